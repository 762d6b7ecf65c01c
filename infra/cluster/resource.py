"""Declares Kubernetes objects from manifests, as pulumi-kubernetes' own resources."""

from __future__ import annotations

from typing import Any, cast

import pulumi
import pulumi_kubernetes

from infra.cluster.internals import Connection
from infra.cluster.live.api import Api
from infra.cluster.manifests import Manifest

_FORCE = {"pulumi.com/patchForce": "true"}
"""What the config says wins over an edit by hand, as field managers would otherwise conflict."""


class Object(pulumi.CustomResource):
    """Any Kubernetes object.

    One class for all kinds, as the manifests are the pure modules' own, and the API server knows each field.
    """

    metadata: pulumi.Output[dict[str, Any]]
    spec: pulumi.Output[Any]
    status: pulumi.Output[Any]

    def __init__(self, name: str, manifest: Manifest, opts: pulumi.ResourceOptions) -> None:
        version = manifest["apiVersion"]
        token = f"kubernetes:{version if '/' in version else f'core/{version}'}:{manifest['kind']}"
        metadata = manifest["metadata"]
        metadata = {**metadata, "annotations": {**metadata.get("annotations", {}), **_FORCE}}
        super().__init__(token, name, {"spec": None, **manifest, "metadata": metadata, "status": None}, opts)


def provider(name: str, connection: pulumi.Input[Connection], opts: pulumi.ResourceOptions) -> pulumi.ProviderResource:
    """The pulumi-kubernetes provider that reaches the API server so.

    Raises:
        ObservationError: when that is another cluster's, or can't be reached, as far as it can be known yet.
    """
    if not isinstance(connection, pulumi.Output):
        Api(cast("Connection", connection)).refuse_other_cluster()
    found = pulumi.Output.from_input(connection)
    return pulumi_kubernetes.Provider(
        name,
        kubeconfig=found.apply(lambda c: c["document"] or c["kubeconfig"]),
        context=found.apply(lambda c: c["context"]),
        # Else another path to the same cluster counts as another cluster, and all that is in it is replaced.
        cluster_identifier=found.apply(lambda c: c.get("identity")),
        # Else changed data replaces the object, with a time in which it isn't there.
        enable_config_map_mutable=True,
        enable_secret_mutable=True,
        opts=opts,
    )
