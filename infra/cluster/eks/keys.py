"""The keys that data at rest is encrypted with."""

from __future__ import annotations

import pulumi
import pulumi_aws as aws

from infra.cluster.eks.identity import Place, Statement, document

_DELETION_DAYS = 30
"""As long as AWS allows: what a key has encrypted is lost with it."""


class Key(pulumi.ComponentResource):
    """A KMS key that AWS rotates each year, under a name that people can read."""

    def __init__(
        self, name: str, alias: str, description: str, policy: pulumi.Input[str], opts: pulumi.ResourceOptions
    ) -> None:
        super().__init__("lepton:eks:Key", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        self.key = aws.kms.Key(
            name,
            description=description,
            enable_key_rotation=True,
            deletion_window_in_days=_DELETION_DAYS,
            policy=policy,
            opts=child,
        )
        aws.kms.Alias(name, name=f"alias/{alias}", target_key_id=self.key.key_id, opts=child)
        self.arn = self.key.arn
        self.register_outputs({"arn": self.arn})


def key_policy(place: Place, *log_groups: str) -> str:
    """Leaves a key to the account's IAM policies, and lets CloudWatch use it for these log groups.

    In a key's policy the resource `*` is the key itself.
    Source: https://docs.aws.amazon.com/AmazonCloudWatch/latest/logs/encrypt-log-data-kms.html
    """
    account: Statement = {
        "Effect": "Allow",
        "Principal": {"AWS": f"arn:{place.partition}:iam::{place.account}:root"},
        "Action": "kms:*",
        "Resource": "*",
    }
    logs: Statement = {
        "Effect": "Allow",
        "Principal": {"Service": f"logs.{place.region}.amazonaws.com"},
        "Action": ["kms:Encrypt", "kms:Decrypt", "kms:ReEncrypt*", "kms:GenerateDataKey*", "kms:Describe*"],
        "Resource": "*",
        "Condition": {
            "ArnEquals": {
                "kms:EncryptionContext:aws:logs:arn": [place.arn("logs", f"log-group:{group}") for group in log_groups]
            }
        },
    }
    return document(account, *([logs] if log_groups else []))
