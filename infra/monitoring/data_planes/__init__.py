"""The data planes that there are: each module says in PromQL what one of them counts."""

from __future__ import annotations

from collections.abc import Callable

from infra.monitoring.data_plane import DataPlane
from infra.monitoring.data_planes.envoy_gateway import envoy_gateway
from infra.monitoring.data_planes.istio import istio
from infra.monitoring.data_planes.traefik import traefik

GATEWAYS: dict[str, Callable[[str], DataPlane]] = {"traefik": traefik, "envoy-gateway": envoy_gateway, "istio": istio}
"""What each counts of the versions of an environment, by what a platform's config calls it (`gateway.metrics`)."""
