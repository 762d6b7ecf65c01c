"""Where the Pods of a GatewayClass are found, and where they serve their metrics."""

from __future__ import annotations

from dataclasses import dataclass

from infra.cluster.controllers import ENVOY_GATEWAY, ISTIO, TRAEFIK
from infra.cluster.manifests.monitoring.errors import KEY, MonitoringError
from infra.cluster.names import GATEWAY
from infra.monitoring.data_plane import DataPlane
from infra.monitoring.data_planes import GATEWAYS
from infra.settings.cluster import ClusterSettings


@dataclass(frozen=True)
class GatewayKind:
    """One make of data plane, as its own charts and controllers install it."""

    name: str
    controllers: tuple[str, ...]
    """`spec.controllerName` of its GatewayClasses."""
    pod_labels: dict[str, str]
    port_name: str
    port: int
    path: str

    def data_plane(self, environment: str) -> DataPlane:
        return GATEWAYS[self.name](environment)


KINDS = (
    # https://github.com/traefik/traefik-helm-chart/blob/master/traefik/values.yaml
    GatewayKind(
        "traefik",
        (TRAEFIK,),
        {"app.kubernetes.io/name": "traefik"},
        "metrics",
        9100,
        "/metrics",
    ),
    # https://gateway.envoyproxy.io/docs/tasks/observability/proxy-metric/
    GatewayKind(
        "envoy-gateway",
        (ENVOY_GATEWAY,),
        {"app.kubernetes.io/managed-by": "envoy-gateway", "app.kubernetes.io/component": "proxy"},
        "metrics",
        19001,
        "/stats/prometheus",
    ),
    # https://istio.io/latest/docs/tasks/traffic-management/ingress/gateway-api/#automated-deployment
    GatewayKind(
        "istio",
        (ISTIO,),
        {"gateway.networking.k8s.io/gateway-name": GATEWAY},
        "http-envoy-prom",
        15090,
        "/stats/prometheus",
    ),
)


def gateway_kind(settings: ClusterSettings, controller: str) -> GatewayKind:
    """The kind that the settings name, or else the one of the GatewayClass's controller, which is empty where the
    cluster is yet to be made.

    Raises:
        MonitoringError: where neither tells.
    """
    for kind in KINDS:
        if settings.gateway.metrics == kind.name or (
            settings.gateway.metrics is None and controller in kind.controllers
        ):
            return kind
    known = ", ".join(repr(kind.name) for kind in KINDS)
    why = (
        f"nothing here knows how {controller!r} counts requests"
        if controller
        else "a cluster that is yet to be made has no GatewayClass to tell"
    )
    raise MonitoringError(
        f"{KEY}.gateway.metrics: not given, and {why}: where its data "
        f"plane is one of {known}, say so; else give {KEY}.monitoring.kind 'external', and a Prometheus that records "
        "the metrics of infra/monitoring/catalogue.py"
    )
