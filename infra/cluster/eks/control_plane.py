"""The EKS cluster itself: its API server, its secrets' encryption, its logs, and who may come in."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pulumi
import pulumi_aws as aws

from infra.cluster.eks.identity import Place, Role, allow, document, service_trust
from infra.cluster.names import team_namespace
from infra.errors import UserError
from infra.settings.eks import Access, EksSettings

LOG_TYPES = ("api", "audit", "authenticator", "controllerManager", "scheduler")
_HTTPS = 443

_ACCESS_POLICIES = {
    "admin": "AmazonEKSClusterAdminPolicy",
    "view": "AmazonEKSViewPolicy",
    "team": "AmazonEKSEditPolicy",
}


def control_plane_log_group(cluster: str) -> str:
    """The name that EKS gives it, and no other."""
    return f"/aws/eks/{cluster}/cluster"


def team_group(team: str) -> str:
    """The Kubernetes group of a team's people, for RoleBindings in namespaces that come and go."""
    return f"lepton:{team}"


class ClusterError(UserError):
    """EKS's cluster is not as it should be."""


class ControlPlane(pulumi.ComponentResource):
    """The cluster, private unless told otherwise, and its access entries."""

    def __init__(
        self,
        name: str,
        environment: str,
        settings: EksSettings,
        place: pulumi.Output[Place],
        opts: pulumi.ResourceOptions,
        *,
        cluster: str,
        subnet_ids: Sequence[pulumi.Input[str]],
        key_arn: pulumi.Input[str],
    ) -> None:
        super().__init__("lepton:eks:ControlPlane", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        role = Role(
            name,
            service_trust("eks.amazonaws.com"),
            child,
            description=f"Control plane of {cluster}",
            managed=[place.apply(lambda place: place.managed_policy("AmazonEKSClusterPolicy"))],
            policy=pulumi.Output.from_input(key_arn).apply(
                lambda arn: document(allow(["kms:Encrypt", "kms:Decrypt", "kms:ListGrants", "kms:DescribeKey"], [arn]))
            ),
        )
        # Before the cluster, which else makes it, without an end to what it keeps.
        logs = aws.cloudwatch.LogGroup(
            name,
            name=control_plane_log_group(cluster),
            retention_in_days=settings.log_retention_days,
            kms_key_id=key_arn,
            opts=child,
        )
        public = settings.api.public_cidrs
        self.cluster = aws.eks.Cluster(
            name,
            name=cluster,
            version=settings.kubernetes,
            role_arn=role.arn,
            vpc_config=aws.eks.ClusterVpcConfigArgs(
                subnet_ids=subnet_ids,
                endpoint_private_access=True,
                endpoint_public_access=bool(public),
                public_access_cidrs=list(public) or None,
            ),
            access_config=aws.eks.ClusterAccessConfigArgs(
                authentication_mode="API", bootstrap_cluster_creator_admin_permissions=False
            ),
            encryption_config=aws.eks.ClusterEncryptionConfigArgs(
                provider=aws.eks.ClusterEncryptionConfigProviderArgs(key_arn=key_arn), resources=["secrets"]
            ),
            enabled_cluster_log_types=list(LOG_TYPES),
            upgrade_policy=aws.eks.ClusterUpgradePolicyArgs(
                support_type="EXTENDED" if settings.extended_support else "STANDARD"
            ),
            # EKS's own copies, which nothing here could configure or upgrade.
            bootstrap_self_managed_addons=False,
            # The role's policies go last: EKS takes its network interfaces away with them.
            opts=pulumi.ResourceOptions(parent=self, depends_on=[role, logs]),
        )
        self.security_group_id = self.cluster.vpc_config.cluster_security_group_id.apply(
            lambda group: _told(group, f"{cluster}'s security group")
        )
        self.certificate_authority = self.cluster.certificate_authority.data.apply(
            lambda data: _told(data, f"{cluster}'s certificate authority")
        )
        """In base64."""
        for index, cidr in enumerate(settings.api.private_cidrs):
            aws.vpc.SecurityGroupIngressRule(
                f"{name}-api-{index}",
                security_group_id=self.security_group_id,
                description="The API server, from a network joined with the VPC",
                cidr_ipv4=cidr,
                ip_protocol="tcp",
                from_port=_HTTPS,
                to_port=_HTTPS,
                opts=child,
            )
        self.access = [self._enter(name, environment, access, place) for access in settings.access]
        self.register_outputs({"cluster": self.cluster.name})

    def _enter(
        self, name: str, environment: str, access: Access, place: pulumi.Output[Place]
    ) -> aws.eks.AccessPolicyAssociation:
        # By the principal, so that a list in another order changes nothing.
        entry_name = f"{name}-access-{hashlib.sha256(access.principal.encode()).hexdigest()[:10]}"
        entry = aws.eks.AccessEntry(
            entry_name,
            cluster_name=self.cluster.name,
            principal_arn=access.principal,
            type="STANDARD",
            kubernetes_groups=[team_group(team) for team in access.teams] or None,
            opts=pulumi.ResourceOptions(parent=self),
        )
        namespaces = [team_namespace(environment, team) for team in access.teams]
        return aws.eks.AccessPolicyAssociation(
            entry_name,
            cluster_name=self.cluster.name,
            principal_arn=access.principal,
            policy_arn=place.apply(lambda place: place.access_policy(_ACCESS_POLICIES[access.level])),
            access_scope=aws.eks.AccessPolicyAssociationAccessScopeArgs(
                type="namespace" if namespaces else "cluster", namespaces=namespaces or None
            ),
            opts=pulumi.ResourceOptions(parent=self, depends_on=[entry]),
        )


def _told(value: str | None, what: str) -> str:
    if value is None:
        raise ClusterError(f"EKS does not say {what}; bring the stack up again once the cluster is active")
    return value
