"""The data planes that there are: each module says in PromQL what one of them counts."""

from __future__ import annotations

from infra.monitoring.data_plane import DataPlane
from infra.monitoring.data_planes.envoy_gateway import ENVOY_GATEWAY
from infra.monitoring.data_planes.istio import ISTIO
from infra.monitoring.data_planes.traefik import TRAEFIK

GATEWAYS: dict[str, DataPlane] = {"traefik": TRAEFIK, "envoy-gateway": ENVOY_GATEWAY, "istio": ISTIO}
"""By what a platform's config calls them (`gateway.metrics`)."""
