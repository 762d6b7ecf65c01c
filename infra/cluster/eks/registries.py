"""The environment's ECR repositories: for artifacts of models, and for images of servers."""

from __future__ import annotations

import json

import pulumi
import pulumi_aws as aws

from infra.settings.eks import RegistrySettings

ATTACHMENTS = "sha256-*"
"""Tags of what is attached to an artifact (signatures, evaluations), which may grow. No version begins so."""


def registry_prefix(environment: str) -> str:
    """What all repositories of an environment begin with."""
    return f"lepton/{environment}"


class Registries(pulumi.ComponentResource):
    """Repositories whose versions nobody can change, and nothing of which is lost with the stack.

    One that still has images can't be deleted: `pulumi destroy` then says so, and images are a person's to delete.
    """

    def __init__(
        self,
        name: str,
        environment: str,
        settings: RegistrySettings,
        opts: pulumi.ResourceOptions,
        *,
        key_arn: pulumi.Input[str],
    ) -> None:
        super().__init__("lepton:eks:Registries", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        for repository_name in settings.repositories:
            resource_name = f"{name}-{repository_name}"
            repository = aws.ecr.Repository(
                resource_name,
                name=f"{registry_prefix(environment)}/{repository_name}",
                image_tag_mutability="IMMUTABLE_WITH_EXCLUSION",
                image_tag_mutability_exclusion_filters=[
                    aws.ecr.RepositoryImageTagMutabilityExclusionFilterArgs(filter=ATTACHMENTS, filter_type="WILDCARD")
                ],
                image_scanning_configuration=aws.ecr.RepositoryImageScanningConfigurationArgs(scan_on_push=True),
                encryption_configurations=[
                    aws.ecr.RepositoryEncryptionConfigurationArgs(encryption_type="KMS", kms_key=key_arn)
                ],
                force_delete=False,
                opts=child,
            )
            aws.ecr.LifecyclePolicy(
                resource_name, repository=repository.name, policy=lifecycle(settings.untagged_days), opts=child
            )
        self.register_outputs({})


def lifecycle(untagged_days: int) -> str:
    """Takes away what no tag names after some days, and nothing else.

    Source: https://docs.aws.amazon.com/AmazonECR/latest/userguide/lifecycle_policy_parameters.html
    """
    rule = {
        "rulePriority": 1,
        "description": f"untagged for {untagged_days} days",
        "selection": {
            "tagStatus": "untagged",
            "countType": "sinceImagePushed",
            "countUnit": "days",
            "countNumber": untagged_days,
        },
        "action": {"type": "expire"},
    }
    return json.dumps({"rules": [rule]}, separators=(",", ":"))
