"""Controllers of GatewayClasses of which something is known beside their status, by `spec.controllerName`."""

CILIUM = "io.cilium/gateway-controller"
ENVOY_GATEWAY = "gateway.envoyproxy.io/gatewayclass-controller"
ISTIO = "istio.io/gateway-controller"
KGATEWAY = "kgateway.dev/kgateway"
TRAEFIK = "traefik.io/gateway-controller"
