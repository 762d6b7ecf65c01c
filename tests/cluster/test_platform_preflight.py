"""What a cluster must have before a platform is put into it, asked of real API servers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from infra.cluster.internals import GatewayFacts
from infra.cluster.live.api import Api
from infra.cluster.live.preflight import PreflightError, preflight
from infra.cluster.manifests.routes import Backend, endpoint_routes
from infra.cluster.names import team_namespace
from infra.settings.cluster import ClusterSettings
from tests.cluster.control_plane import ControlPlane
from tests.cluster.endpoint_world import endpoint_settings
from tests.cluster.gateway import CLASS, CONTROLLER, GatewayClass
from tests.cluster.kwok_nodes import KwokNodes
from tests.deadline import until
from tests.plugins.kubernetes.api import ApiError

HTTP_ROUTES = "httproutes.gateway.networking.k8s.io"
IMAGE = "registry.example.org/gpu/plugin@sha256:" + "0123456789abcdef" * 4
GPUS = {"device_plugin": True}
POOL = {"name": "h100", "labels": {"pool": "h100"}, "gpu_resource": "nvidia.com/gpu"}
KUEUE = ("kueue.x-k8s.io", "v1beta1")

ENVIRONMENT = "preflight"
"""Of these tests alone: they share the cluster with others, and the names of namespaces follow from it."""


def settings(class_name: str = CLASS, **given: Any) -> ClusterSettings:
    gateway = {"class_name": class_name} | given.pop("gateway", {})
    return ClusterSettings.model_validate({"teams": {"diagnostics": {}}, "gateway": gateway} | given)


def api(control_plane: ControlPlane, context: str | None = None) -> Api:
    return Api({"kubeconfig": str(control_plane.kubeconfig), "context": context, "document": None})


def refusal(given: Api, asked: ClusterSettings) -> str:
    with pytest.raises(PreflightError) as refused:
        preflight(given, ENVIRONMENT, asked)
    return str(refused.value)


class OtherVersion(Api):
    """An API server that says it is of another version."""

    def __init__(self, control_plane: ControlPlane, minor: str) -> None:
        super().__init__({"kubeconfig": str(control_plane.kubeconfig), "context": None, "document": None})
        self._minor = minor

    def get(self, path: str, **query: str) -> Any:
        return {"major": "1", "minor": self._minor} if path == "/version" else super().get(path, **query)


def custom_resource(group: str, version: str, kind: str, plural: str, scope: str = "Namespaced") -> dict[str, Any]:
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{plural}.{group}",
            "annotations": {"api-approved.kubernetes.io": "unapproved, a test's own"},
        },
        "spec": {
            "group": group,
            "scope": scope,
            "names": {"kind": kind, "plural": plural, "singular": kind.lower()},
            "versions": [{"name": version, "served": True, "storage": True, "schema": schema}],
        },
    }


@pytest.fixture(scope="module")
def bare() -> Iterator[ControlPlane]:
    """A cluster without anything beyond Kubernetes."""
    found = ControlPlane.in_new_folder()
    try:
        found.start()
        yield found
    finally:
        found.stop()


def test_a_cluster_that_has_all_is_described(
    control_plane: ControlPlane, gateway_class: GatewayClass, kwok_nodes: KwokNodes
) -> None:
    facts = preflight(api(control_plane), ENVIRONMENT, settings())
    assert facts.controller == CONTROLLER
    assert facts.features == gateway_class.features
    assert {"gpu-0", "gpu-3"} <= {node["metadata"]["name"] for node in facts.nodes}
    assert facts.identity == preflight(api(control_plane, context="admin"), ENVIRONMENT, settings()).identity


def test_what_a_class_does_not_say_is_as_told(control_plane: ControlPlane, gateway_class: GatewayClass) -> None:
    told = settings(gateway={"features": ("HTTPRouteRequestMirror",)})
    assert preflight(api(control_plane), ENVIRONMENT, told).features == ["HTTPRouteRequestMirror"]


def test_a_team_that_still_has_versions_stays(control_plane: ControlPlane, gateway_class: GatewayClass) -> None:
    control_plane.apply(
        {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {
                "name": "left-over",
                "labels": {"lepton/environment": "leaving", "lepton/team": "imaging", "lepton/version": "1.0.0"},
            },
        }
    )
    with pytest.raises(PreflightError) as refused:
        preflight(api(control_plane), "leaving", settings())
    assert "teams: 'imaging' is not given, and has 1 version in the cluster; take its endpoints" in str(refused.value)
    assert preflight(api(control_plane), "leaving", settings(teams={"imaging": {}})).controller == CONTROLLER


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"namespace": "kube-system"}, "namespace: given 'kube-system': the cluster's namespace kube-system"),
        (
            {"namespace": "free", "gpus": GPUS, "images": {"device_plugin": IMAGE}, "pools": [POOL]},
            "namespace: given 'free': the cluster's namespace free-gpus",
        ),
        (
            {"teams": {"rivals": {}}},
            f"teams: given 'rivals': the cluster's namespace {team_namespace(ENVIRONMENT, 'rivals')}",
        ),
    ],
    ids=["the platform's", "that of GPUs", "a team's"],
)
def test_a_namespace_that_is_somebody_elses_is_refused(
    control_plane: ControlPlane, gateway_class: GatewayClass, given: dict[str, Any], key: str
) -> None:
    control_plane.namespace("free-gpus")
    control_plane.namespace(team_namespace(ENVIRONMENT, "rivals"))
    assert (
        f"lepton:platform.cluster.{key} isn't labelled as of this environment: "
        f"app.kubernetes.io/managed-by=lepton,lepton/environment={ENVIRONMENT}; give a name that is free"
    ) in refusal(api(control_plane), settings(**given))


def test_a_namespace_is_one_environments_which_finds_it_again(
    control_plane: ControlPlane, gateway_class: GatewayClass
) -> None:
    labels = {"app.kubernetes.io/managed-by": "lepton", "lepton/environment": ENVIRONMENT}
    asked = settings(namespace=control_plane.namespace("of-dev", **labels))
    assert preflight(api(control_plane), ENVIRONMENT, asked).controller == CONTROLLER
    with pytest.raises(
        PreflightError, match=f"namespace of-dev is the environment '{ENVIRONMENT}''s; give a name that is free"
    ):
        preflight(api(control_plane), "prod", asked)


def test_an_environment_stays_in_its_cluster(bare: ControlPlane, control_plane: ControlPlane) -> None:
    here, there = api(control_plane).identity(), api(bare).identity()
    with pytest.raises(PreflightError) as refused:
        preflight(api(bare), ENVIRONMENT, settings(), is_in=here)
    text = str(refused.value)
    assert text.startswith(
        f"lepton:platform.cluster.existing: the current context of {bare.kubeconfig} leads to another cluster than "
        f"{ENVIRONMENT} is in: the UID of its kube-system is {there}, and {ENVIRONMENT} was brought up in {here}."
    )
    assert "`pulumi stack rm --force --preserve-config STACK`" in text
    with pytest.raises(PreflightError, match="it serves no gatewayclasses"):
        preflight(api(bare), ENVIRONMENT, settings(), is_in=there)


def test_routes_are_given_no_field_that_the_clusters_do_not_have(
    control_plane: ControlPlane, gateway_class: GatewayClass
) -> None:
    """Traefik brings the standard channel, which has no retries; the class says that it does them."""
    features = [*gateway_class.features, "HTTPRouteRetry", "HTTPRouteRetryConnectionError", "HTTPRouteRequestTimeout"]
    facts = preflight(api(control_plane), ENVIRONMENT, settings(gateway={"features": features}))
    assert facts.lacks == ["retry", "sessionPersistence"]
    gateway: GatewayFacts = {
        "name": "lepton",
        "namespace": "lepton",
        "class_name": CLASS,
        "controller": "gateway.envoyproxy.io/gatewayclass-controller",
        "features": facts.features,
        "listeners": {"diagnostics": "http"},
        "hostnames": {},
        "pods_namespace": None,
    }
    namespace = control_plane.namespace(team_namespace("routes", "diagnostics"))
    backends: dict[str, Backend] = {"1.0.0": {"namespace": namespace, "protocol": "oip-v2", "grpc": False}}

    asked = endpoint_settings({"1.0.0": 1}, environment="routes")

    def apply(gateway: GatewayFacts) -> dict[str, Any]:
        (route,) = endpoint_routes("diagnostics", gateway, asked, backends)
        return control_plane.apply(route, dry_run=True)

    with pytest.raises(ApiError, match="retry"):
        apply(gateway)
    assert "timeouts" in apply({**gateway, "lacks": facts.lacks})["spec"]["rules"][-1]


def test_a_class_that_is_not_there_is_told_which_are(control_plane: ControlPlane, gateway_class: GatewayClass) -> None:
    text = refusal(api(control_plane), settings("istio"))
    assert "lepton:platform.cluster.gateway.class_name: given 'istio': it has no GatewayClass of that name" in text
    assert text.endswith(f"there are: {CLASS}")


def test_all_that_is_missing_is_said_at_once(control_plane: ControlPlane, gateway_class: GatewayClass) -> None:
    asked = settings(
        "istio",
        monitoring={"kind": "operator", "url": "http://prometheus:9090"},
        gateway={"domain": "models.example.com", "tls": {"issuer": "letsencrypt"}},
    )
    # Which features there are depends on what other tests have installed.
    text = refusal(api(control_plane), asked)
    for said in (
        "monitoring.kind: given 'operator': it serves no podmonitors of monitoring.coreos.com/v1",
        "gateway.tls.issuer: given 'letsencrypt': it has no ClusterIssuer of that name",
        "given 'istio': it has no GatewayClass",
    ):
        assert said in text


def test_a_class_that_no_controller_accepted_is_refused(
    control_plane: ControlPlane, gateway_class: GatewayClass
) -> None:
    orphan = {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "GatewayClass",
        "metadata": {"name": "orphan"},
        "spec": {"controllerName": "example.org/nobody"},
    }
    control_plane.apply(orphan)
    try:
        text = refusal(api(control_plane), settings("orphan"))
    finally:
        control_plane.delete("gateway.networking.k8s.io/v1", "GatewayClass", "orphan")
    assert (
        "given 'orphan': GatewayClass: nobody has said yet whether it is Accepted; is its controller running?" in text
    )


@pytest.mark.parametrize(("minor", "refused"), [("31", True), ("31+", True), ("32", False), ("33+", False)])
def test_kubernetes_is_new_enough_or_refused(
    control_plane: ControlPlane, gateway_class: GatewayClass, minor: str, refused: bool
) -> None:
    given = OtherVersion(control_plane, minor)
    if refused:
        assert "its Kubernetes is 1.31; 1.32 or newer is needed" in refusal(given, settings())
    else:
        assert preflight(given, ENVIRONMENT, settings()).controller == CONTROLLER


def test_image_volumes_need_the_release_that_has_them(control_plane: ControlPlane, gateway_class: GatewayClass) -> None:
    asked = settings(features=("image-volumes",))
    assert "leave it out, and models are pulled" in refusal(OtherVersion(control_plane, "32"), asked)
    assert preflight(api(control_plane), ENVIRONMENT, asked).controller == CONTROLLER


def test_device_claims_are_part_of_a_new_kubernetes(control_plane: ControlPlane, gateway_class: GatewayClass) -> None:
    asked = settings(features=("dynamic-resource-allocation",))
    assert preflight(api(control_plane), ENVIRONMENT, asked).controller == CONTROLLER


def test_a_context_that_the_kubeconfig_lacks_is_named(control_plane: ControlPlane) -> None:
    text = refusal(api(control_plane, context="production"), settings())
    assert text.startswith("lepton:platform.cluster.existing: the cluster's kubeconfig can't be used: ")
    assert "production" in text


def test_a_cluster_that_can_not_be_reached_is_told(own_control_plane: ControlPlane) -> None:
    own_control_plane.stop_api_server()
    text = refusal(api(own_control_plane), settings())
    assert text.startswith("lepton:platform.cluster.existing: the cluster's API server can't be reached: ")


def test_a_cluster_without_the_gateway_api_is_told_to_get_it(bare: ControlPlane) -> None:
    assert "it serves no gatewayclasses of gateway.networking.k8s.io/v1; install the Gateway API's standard CRDs" in (
        refusal(api(bare), settings())
    )


def test_a_gateway_api_that_is_too_old_is_refused(own_control_plane: ControlPlane) -> None:
    GatewayClass(own_control_plane).install_resources()
    own_control_plane.api.patch(
        "apiextensions.k8s.io/v1",
        "CustomResourceDefinition",
        HTTP_ROUTES,
        None,
        {"metadata": {"annotations": {"gateway.networking.k8s.io/bundle-version": "v1.0.0"}}},
    )
    own_control_plane.apply(
        {
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "GatewayClass",
            "metadata": {"name": CLASS},
            "spec": {"controllerName": CONTROLLER},
        }
    )
    assert "its Gateway API is 1.0; 1.1 or newer is needed" in refusal(api(own_control_plane), settings())


def test_a_queue_that_is_not_there_is_named(own_control_plane: ControlPlane) -> None:
    GatewayClass(own_control_plane).install_resources()
    own_control_plane.apply_all(
        custom_resource(*KUEUE, "LocalQueue", "localqueues"),
        custom_resource(*KUEUE, "ClusterQueue", "clusterqueues", scope="Cluster"),
    )
    asked = settings(features=("kueue",), teams={"diagnostics": {"queue": "gpus"}})

    def says() -> str:
        return refusal(api(own_control_plane), asked)

    until(lambda: "it serves no localqueues" not in says(), 30, what="Kueue's resources being served")
    assert (
        "lepton:platform.cluster.teams.diagnostics.queue: given 'gpus': it has no ClusterQueue of that name" in says()
    )
    own_control_plane.apply(
        {"apiVersion": "/".join(KUEUE), "kind": "ClusterQueue", "metadata": {"name": "gpus"}, "spec": {}}
    )
    assert "ClusterQueue" not in says()
