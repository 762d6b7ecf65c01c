"""The volumes of a cluster that the platform makes on EKS, whose own default ones are not encrypted."""

from __future__ import annotations

from infra.cluster.manifests import Manifest
from infra.cluster.names import MANAGED_BY

_DEFAULT = "storageclass.kubernetes.io/is-default-class"


def encrypted_volumes(namespace: str) -> Manifest:
    """The default StorageClass: encrypted gp3 volumes, each in the zone of the Pod that first wants it.

    https://github.com/kubernetes-sigs/aws-ebs-csi-driver/blob/master/docs/parameters.md
    """
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": f"{namespace}-gp3", "labels": dict(MANAGED_BY), "annotations": {_DEFAULT: "true"}},
        "provisioner": "ebs.csi.aws.com",
        "parameters": {"type": "gp3", "encrypted": "true"},
        "volumeBindingMode": "WaitForFirstConsumer",
        "allowVolumeExpansion": True,
    }
