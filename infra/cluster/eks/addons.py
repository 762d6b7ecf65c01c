"""EKS's managed add-ons, at a version that fits the cluster's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pulumi
import pulumi_aws as aws

from infra.cluster.eks.identity import PodRoles
from infra.settings.eks import AddonName, EksSettings

BEFORE_NODES: tuple[AddonName, ...] = ("eks-pod-identity-agent", "vpc-cni", "kube-proxy")
"""DaemonSets without which a node isn't ready, or its Pods have no credentials."""
AFTER_NODES: tuple[AddonName, ...] = ("coredns", "aws-ebs-csi-driver", "metrics-server")
"""Have Deployments, and are not well before a node runs them."""

_CONFIGURATION: Mapping[AddonName, dict[str, Any]] = {
    # Else NetworkPolicies are accepted, and do nothing.
    "vpc-cni": {"enableNetworkPolicy": "true"},
}


class Addons(pulumi.ComponentResource):
    """Some of the add-ons, in no order."""

    def __init__(
        self,
        name: str,
        addons: Sequence[AddonName],
        settings: EksSettings,
        opts: pulumi.ResourceOptions,
        *,
        cluster: aws.eks.Cluster,
        roles: PodRoles,
        after: Sequence[pulumi.Resource] = (),
    ) -> None:
        super().__init__("lepton:eks:Addons", name, None, opts)
        identities: Mapping[AddonName, tuple[str, pulumi.Input[str]]] = {
            "vpc-cni": ("aws-node", roles.network.arn),
            "aws-ebs-csi-driver": ("ebs-csi-controller-sa", roles.storage.arn),
        }
        self.addons: list[aws.eks.Addon] = []
        for addon in addons:
            identity = identities.get(addon)
            configuration = _CONFIGURATION.get(addon)
            made = aws.eks.Addon(
                f"{name}-{addon}",
                cluster_name=cluster.name,
                addon_name=addon,
                addon_version=settings.addons.get(addon) or self._default_version(addon, settings.kubernetes),
                configuration_values=json.dumps(configuration) if configuration else None,
                pod_identity_associations=(
                    [aws.eks.AddonPodIdentityAssociationArgs(service_account=identity[0], role_arn=identity[1])]
                    if identity
                    else None
                ),
                resolve_conflicts_on_create="OVERWRITE",
                resolve_conflicts_on_update="OVERWRITE",
                opts=pulumi.ResourceOptions(parent=self, depends_on=list(after)),
            )
            self.addons.append(made)
        self.register_outputs({})

    def _default_version(self, addon: AddonName, kubernetes: str) -> pulumi.Output[str]:
        """Asked for, and not left out: EKS would keep an add-on as it is when the cluster is upgraded."""
        return aws.eks.get_addon_version_output(
            addon_name=addon, kubernetes_version=kubernetes, most_recent=False, opts=pulumi.InvokeOptions(parent=self)
        ).version
