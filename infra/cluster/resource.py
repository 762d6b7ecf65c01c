"""Declares Kubernetes objects from manifests, as pulumi-kubernetes' own resources."""

from __future__ import annotations

from typing import Any

import pulumi
import pulumi_kubernetes

from infra.cluster.internals import Connection
from infra.cluster.manifests import Manifest

_FORCE = {"pulumi.com/patchForce": "true"}
"""What the config says wins over an edit by hand, as field managers would otherwise conflict."""


class ExistingSecret(pulumi.CustomResource):
    """A Secret that somebody else made, as it is now: read at each preview and update, and never changed.

    The update fails where there is none.
    """

    data: pulumi.Output[dict[str, str]]
    """In base64, as in the API; encrypted in the state."""
    type: pulumi.Output[str]

    def __init__(self, name: str, namespace: str, secret: str, opts: pulumi.ResourceOptions) -> None:
        opts = pulumi.ResourceOptions.merge(
            opts, pulumi.ResourceOptions(id=f"{namespace}/{secret}", additional_secret_outputs=["data"])
        )
        super().__init__(_token("v1", "Secret"), name, {"data": None, "type": None}, opts)


class Object(pulumi.CustomResource):
    """Any Kubernetes object.

    One class for all kinds, as the manifests are the pure modules' own, and the API server knows each field.
    """

    metadata: pulumi.Output[dict[str, Any]]
    spec: pulumi.Output[Any]
    status: pulumi.Output[Any]

    def __init__(self, name: str, manifest: Manifest, opts: pulumi.ResourceOptions) -> None:
        token = _token(manifest["apiVersion"], manifest["kind"])
        metadata = manifest["metadata"]
        metadata = {**metadata, "annotations": {**metadata.get("annotations", {}), **_FORCE}}
        super().__init__(token, name, {"spec": None, **manifest, "metadata": metadata, "status": None}, opts)


def provider(name: str, connection: pulumi.Input[Connection], opts: pulumi.ResourceOptions) -> pulumi.ProviderResource:
    """The pulumi-kubernetes provider that reaches the API server so."""
    found = pulumi.Output.from_input(connection)
    return pulumi_kubernetes.Provider(
        name,
        kubeconfig=found.apply(lambda c: c["document"] or c["kubeconfig"]),
        context=found.apply(lambda c: c["context"]),
        opts=opts,
    )


def _token(api_version: str, kind: str) -> str:
    group = api_version if "/" in api_version else f"core/{api_version}"
    return f"kubernetes:{group}:{kind}"
