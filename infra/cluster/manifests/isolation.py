"""Who may speak with a version, and with whom it may."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from infra.cluster.manifests import Manifest
from infra.cluster.manifests.version import SELECTOR, Version
from infra.cluster.names import GRPC_PORT, HTTP_PORT, METRICS_PORT, SERVER

_GATEWAY_API = "gateway.networking.k8s.io"
REFERENCE_GRANT = (f"{_GATEWAY_API}/v1beta1", "ReferenceGrant")
"""Its API version and kind."""
_NAMESPACE_LABEL = "kubernetes.io/metadata.name"
_DNS_NAMESPACE = "kube-system"
# https://kubernetes.io/docs/tasks/administer-cluster/nodelocaldns/: on the node itself, where there is one.
_NODE_LOCAL_DNS = "169.254.20.10/32"
# https://docs.aws.amazon.com/eks/latest/userguide/pod-id-agent-setup.html
_POD_IDENTITY_AGENT = ("169.254.170.23/32", "fd00:ec2::23/128")
_HTTPS = 443
_API_SERVER_PORTS = (443, 6443)


def network_policies(version: Version) -> list[Manifest]:
    """Nothing gets in or out but what is named here. https://kubernetes.io/docs/concepts/services-networking/network-policies/

    The kubelet's probes come from the Pod's own node, which no policy keeps out.
    """
    both = ["Ingress", "Egress"]
    server = {
        "podSelector": {"matchLabels": dict(SELECTOR)},
        "policyTypes": both,
        "ingress": _ingress(version),
        "egress": _egress(version),
    }
    return [
        version.object(
            "networking.k8s.io/v1", "NetworkPolicy", "default-deny", spec={"podSelector": {}, "policyTypes": both}
        ),
        version.object("networking.k8s.io/v1", "NetworkPolicy", spec=server),
    ]


def reference_grant(version: Version) -> Manifest:
    """Lets the team's routes, and no others, send requests to the version's Service.

    https://gateway-api.sigs.k8s.io/api-types/referencegrant/
    """
    return version.object(*REFERENCE_GRANT, spec=granted_to(version.facts["namespace"]))


def granted_to(namespace: str) -> dict[str, Any]:
    """A ReferenceGrant's spec: the routes of this namespace may send requests to the server."""
    routes = [{"group": _GATEWAY_API, "kind": kind, "namespace": namespace} for kind in ("HTTPRoute", "GRPCRoute")]
    return {"from": routes, "to": [{"group": "", "kind": "Service", "name": SERVER}]}


def _ingress(version: Version) -> list[dict[str, Any]]:
    ports = [HTTP_PORT, *([GRPC_PORT] if version.server.grpc else [])]
    # Of a Gateway whose Pods are anywhere, or that has none (a cloud's load balancer), no address is known.
    rules = [_from(version.internals["gateway"]["pods_namespace"]) | {"ports": [_tcp(port) for port in ports]}]
    if version.server.metrics_path:
        rules.append(_from(version.internals["monitoring_namespace"]) | {"ports": [_tcp(METRICS_PORT)]})
    if version.spans_nodes:
        rules.append({"from": [{"podSelector": dict[str, Any]()}]})
    return rules


def _egress(version: Version) -> list[dict[str, Any]]:
    dns = [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")]
    resolvers = [*_from(_DNS_NAMESPACE)["from"], {"ipBlock": {"cidr": _NODE_LOCAL_DNS}}]
    rules: list[dict[str, Any]] = [{"to": resolvers, "ports": dns}]
    if not version.mounts_image:
        # Names have no place in a policy, and registries hand out blobs from others' addresses; all by TLS.
        port = urlsplit(version.store).port or _HTTPS
        rules.append({"ports": [_tcp(number) for number in sorted({port, _HTTPS})]})
    if version.takes_role:
        agent = [{"ipBlock": {"cidr": address}} for address in _POD_IDENTITY_AGENT]
        rules.append({"to": agent, "ports": [_tcp(80)]})
    if version.settings.api_access:
        rules.append({"ports": [_tcp(port) for port in _API_SERVER_PORTS]})
    if version.settings.egress:
        rules.append({"to": [{"ipBlock": {"cidr": network}} for network in version.settings.egress]})
    if version.spans_nodes:
        rules.append({"to": [{"podSelector": dict[str, Any]()}]})
    return rules


def _from(namespace: str | None) -> dict[str, Any]:
    if namespace is None:
        return {}
    return {"from": [{"namespaceSelector": {"matchLabels": {_NAMESPACE_LABEL: namespace}}}]}


def _tcp(port: int) -> dict[str, Any]:
    return {"protocol": "TCP", "port": port}
