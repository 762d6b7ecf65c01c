"""An endpoint in a real cluster, behind a real Gateway: what its clients get, and what of it can be observed."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from infra.cluster.endpoint import Shifter
from infra.cluster.live.api import Api
from infra.cluster.live.guarding import put_back_claims
from infra.cluster.manifests import Manifest
from infra.cluster.manifests.claims import CLAIM, claim, deletion_policy
from infra.cluster.manifests.isolation import REFERENCE_GRANT
from infra.cluster.manifests.routes import traffic_in
from infra.cluster.names import SERVER, team_namespace
from infra.cluster.observe import Observer
from infra.contracts import ObservationError
from rollout.analysis.split import compatible
from tests.cluster.control_plane import ControlPlane
from tests.cluster.endpoint_world import MODEL, EndpointWorld
from tests.cluster.gateway import GatewayClass
from tests.deadline import until
from tests.plugins.kubernetes.api import ApiError

V1, V2, V3 = "1.0.0", "2.0.0", "3.0.0-rc.1"
SAMPLE = {"inputs": [{"name": "x", "shape": [1], "datatype": "FP64", "data": [1.0]}]}


@pytest.fixture
def world(control_plane: ControlPlane, gateway_class: GatewayClass, model_server: Path) -> Iterator[EndpointWorld]:
    found = EndpointWorld(control_plane, gateway_class, model_server)
    try:
        yield found
    finally:
        found.stop()


@pytest.fixture
def observer(world: EndpointWorld) -> Observer:
    return Observer(world.platform)


def wait_for(world: EndpointWorld, observer: Observer, weights: Mapping[str, int]) -> None:
    def taken_on() -> bool:
        try:
            return observer.traffic(world.team, MODEL)["weights"] == weights
        except ObservationError:
            return False

    until(taken_on, 30, what=f"the Gateway having {weights}")
    # Its data plane follows what its status says.
    until(lambda: compatible(weights, split(world, 200)), 30, what=f"requests being split by {weights}")


def take_grant_away(world: EndpointWorld, version: str) -> None:
    """Without it the Gateway takes on no route to the version."""
    world.control_plane.delete(*REFERENCE_GRANT, SERVER, world.namespace(version))


def wait_for_refusal(world: EndpointWorld, observer: Observer) -> None:
    def said() -> str:
        try:
            observer.traffic(world.team, MODEL)
        except ObservationError as error:
            return str(error)
        return ""

    until(lambda: "RefNotPermitted" in said(), 30, what="the Gateway's refusal being observed")


def infer(world: EndpointWorld, client: httpx.Client, **headers: str) -> httpx.Response:
    return client.post(f"{world.url}/v2/models/{MODEL}/infer", json=SAMPLE, headers=headers)


def split(world: EndpointWorld, requests: int) -> Counter[str]:
    with httpx.Client() as client, ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: infer(world, client), range(requests)))
    return Counter(a.json()["model_version"] if a.status_code == 200 else str(a.status_code) for a in answers)


def test_clients_are_split_by_weight_and_a_variant_without_weight_gets_none(
    world: EndpointWorld, observer: Observer
) -> None:
    world.serve(V1, V2, V3)
    weights = {V1: 90, V2: 10, V3: 0}
    world.route(weights)
    wait_for(world, observer, weights)
    seen = split(world, 1000)
    assert seen.keys() == {V1, V2}
    assert abs(seen[V2] - 100) < 5 * math.sqrt(1000 * 0.1 * 0.9)
    assert observer.traffic(world.team, MODEL) == {"weights": weights, "shadow": {}}


def test_a_pinned_request_goes_to_its_version_alone_and_its_answer_names_it(
    world: EndpointWorld, observer: Observer
) -> None:
    world.serve(V1, V2, V3)
    world.route({V1: 1, V2: 0, V3: 0})
    wait_for(world, observer, {V1: 1, V2: 0, V3: 0})
    with httpx.Client() as client:
        for version in (V1, V2, V3):
            answers = [infer(world, client, **{"x-model-version": version}) for _ in range(20)]
            assert {answer.json()["model_version"] for answer in answers} == {version}
            assert {answer.headers["x-model-version"] for answer in answers} == {version}


def test_a_request_pinned_to_a_version_that_the_endpoint_lacks_is_an_error(
    world: EndpointWorld, observer: Observer
) -> None:
    world.serve(V1)
    world.route({V1: 1})
    wait_for(world, observer, {V1: 1})
    with httpx.Client() as client:
        answers = [infer(world, client, **{"x-model-version": "9.9.9"}) for _ in range(20)]
    assert {answer.status_code for answer in answers} <= {500, 503}
    # So warm-up knows that it is no version's own.
    assert not any("x-model-version" in answer.headers for answer in answers)


def test_a_server_sees_paths_without_the_endpoints_own(world: EndpointWorld, observer: Observer) -> None:
    world.serve(V1)
    world.route({V1: 1})
    wait_for(world, observer, {V1: 1})
    with httpx.Client() as client:
        assert client.get(f"{world.url}/echo/a/b?c=d").json()["path"] == "/echo/a/b"


def test_no_request_is_lost_while_weights_change(world: EndpointWorld, observer: Observer) -> None:
    world.serve(V1, V2)
    world.route({V1: 1, V2: 0})
    wait_for(world, observer, {V1: 1, V2: 0})
    statuses: Counter[int] = Counter()
    ended = threading.Event()

    def ask() -> None:
        with httpx.Client() as client:
            while not ended.is_set():
                statuses[infer(world, client).status_code] += 1

    with ThreadPoolExecutor(3) as pool:
        asking = [pool.submit(ask) for _ in range(3)]
        try:
            for second in (10, 50, 100, 0):
                Shifter(world.platform).shift(world.team, MODEL, {V1: 100 - second, V2: second})
                wait_for(world, observer, {V1: 100 - second, V2: second})
        finally:
            ended.set()
        for future in asking:
            future.result()
    assert statuses.keys() == {200}
    assert statuses[200] > 100


def test_the_split_that_the_observer_sees_is_the_clients(world: EndpointWorld, observer: Observer) -> None:
    world.serve(V1, V2)
    world.route({V1: 70, V2: 30})
    wait_for(world, observer, {V1: 70, V2: 30})
    seen = observer.split(world.team, MODEL, 300)
    assert seen is not None
    assert sum(seen.values()) == 300
    assert compatible({V1: 70, V2: 30}, seen)


def test_a_gateway_that_nobody_answers_at_cannot_be_observed(world: EndpointWorld) -> None:
    platform: Any = world.platform | {"endpoint_base_url": "http://127.0.0.1:9"}
    with pytest.raises(ObservationError, match="can't be reached from here"):
        Observer(platform).split(world.team, MODEL, 3)


def test_an_endpoint_that_is_not_there_has_no_traffic(world: EndpointWorld, observer: Observer) -> None:
    assert observer.traffic(world.team, "other") == {"weights": {}, "shadow": {}}


def test_a_route_whose_version_grants_it_nothing_is_no_traffic(world: EndpointWorld, observer: Observer) -> None:
    world.serve(V1)
    take_grant_away(world, V1)
    world.route({V1: 1})
    wait_for_refusal(world, observer)


def test_somebodys_edit_of_a_weight_is_observed(world: EndpointWorld, observer: Observer) -> None:
    world.serve(V1, V2)
    world.route({V1: 50, V2: 50})
    wait_for(world, observer, {V1: 50, V2: 50})
    namespace = team_namespace(world.environment, world.team)
    path = f"/apis/gateway.networking.k8s.io/v1/namespaces/{namespace}/httproutes/{MODEL}"
    api = Api(world.platform["internals"]["connection"])
    split_rule = len(api.get(path)["spec"]["rules"]) - 1
    edit = {"op": "replace", "path": f"/spec/rules/{split_rule}/backendRefs/0/weight", "value": 150}
    api.patch(path, [edit], "application/json-patch+json")

    def observed() -> dict[str, int]:
        try:
            return observer.traffic(world.team, MODEL)["weights"]
        except ObservationError:
            return {}

    until(lambda: observed() == {V1: 150, V2: 50}, 30, what="the edit being observed")


# -- shifting


def test_a_shift_gives_a_variant_weight_that_had_none(world: EndpointWorld, observer: Observer) -> None:
    world.serve(V1, V2)
    world.route({V1: 1, V2: 0})
    wait_for(world, observer, {V1: 1, V2: 0})
    Shifter(world.platform).shift(world.team, MODEL, {V1: 0, V2: 7})
    assert observer.traffic(world.team, MODEL)["weights"] == {V1: 0, V2: 7}
    wait_for(world, observer, {V1: 0, V2: 7})


def test_a_shift_moves_http_and_grpc_together(world: EndpointWorld, observer: Observer) -> None:
    world.serve(V1, V2)
    world.route({V1: 3, V2: 1}, grpc=True)
    wait_for(world, observer, {V1: 3, V2: 1})
    Shifter(world.platform).shift(world.team, MODEL, {V1: 1, V2: 3})
    namespace = team_namespace(world.environment, world.team)
    for kind, name in (("HTTPRoute", MODEL), ("GRPCRoute", f"{MODEL}.grpc")):
        route: Any = world.control_plane.get("gateway.networking.k8s.io/v1", kind, name, namespace)
        assert traffic_in(route)["weights"] == {V1: 1, V2: 3}, kind


def test_a_shift_to_a_version_without_a_ready_replica_is_refused(world: EndpointWorld, observer: Observer) -> None:
    world.serve(V1)
    world.make_room(V2)
    world.route({V1: 1, V2: 0})
    wait_for(world, observer, {V1: 1, V2: 0})
    with pytest.raises(ObservationError, match=r"2\.0\.0 has no ready replica.*nothing was changed"):
        Shifter(world.platform).shift(world.team, MODEL, {V1: 0, V2: 1})
    assert observer.traffic(world.team, MODEL)["weights"] == {V1: 1, V2: 0}


def test_a_shift_of_other_variants_is_refused(world: EndpointWorld, observer: Observer) -> None:
    world.serve(V1)
    world.route({V1: 1})
    wait_for(world, observer, {V1: 1})
    with pytest.raises(
        ObservationError, match=r"has the variants 1\.0\.0, and weights were given for 1\.0\.0, 2\.0\.0"
    ):
        Shifter(world.platform).shift(world.team, MODEL, {V1: 1, V2: 1})


def test_a_shift_of_an_endpoint_that_is_not_there_is_refused(world: EndpointWorld) -> None:
    with pytest.raises(ObservationError, match="has no routes in this cluster"):
        Shifter(world.platform).shift(world.team, MODEL, {V1: 1})


class Interruption:
    """What somebody else does between a shift's read and its first patch of routes of a kind."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, plural: str, act: Callable[[], object]) -> None:
        self.done = False
        patch = Api.patch

        def patch_later(api: Api, path: str, *given: Any) -> Any:
            if f"/{plural}/" in path and not self.done:
                self.done = True
                act()
            return patch(api, path, *given)

        monkeypatch.setattr(Api, "patch", patch_later)


def route_of(world: EndpointWorld, kind: str = "HTTPRoute", name: str = MODEL) -> Any:
    namespace = team_namespace(world.environment, world.team)
    return world.control_plane.get("gateway.networking.k8s.io/v1", kind, name, namespace)


def edit(world: EndpointWorld, route: Any, change: dict[str, Any], *, subresource: str = "") -> None:
    """As somebody else."""
    world.control_plane.api.patch(
        "gateway.networking.k8s.io/v1",
        route["kind"],
        route["metadata"]["name"],
        route["metadata"]["namespace"],
        change,
        subresource=subresource,
    )


def send_all_to_the_last(world: EndpointWorld, kind: str = "HTTPRoute", name: str = MODEL) -> None:
    """As somebody else: of the split's two backends the second gets 100, and the first none."""
    route = route_of(world, kind, name)
    rules = route["spec"]["rules"]
    rules[-1]["backendRefs"] = [rules[-1]["backendRefs"][-1] | {"weight": 100}]
    edit(world, route, {"spec": {"rules": rules}})


def test_a_failed_shift_leaves_weights_that_somebody_else_has_set_since(
    world: EndpointWorld, observer: Observer
) -> None:
    world.serve(V1, V2)
    world.route({V1: 90, V2: 10})
    wait_for(world, observer, {V1: 90, V2: 10})
    take_grant_away(world, V2)
    wait_for_refusal(world, observer)
    now = [0.0]

    def somebody_writes(_: float) -> None:
        if not now[0]:
            send_all_to_the_last(world)
        now[0] += 60

    shifter = Shifter(world.platform, clock=lambda: now[0], sleep=somebody_writes)
    with pytest.raises(ObservationError, match=f"HTTPRoute .*/{MODEL} is left as somebody else has made it meanwhile"):
        shifter.shift(world.team, MODEL, {V1: 50, V2: 50})
    assert traffic_in(route_of(world))["weights"] == {V1: 0, V2: 100}


def test_a_failed_shift_puts_back_the_weights_that_it_has_set(world: EndpointWorld, observer: Observer) -> None:
    world.serve(V1, V2)
    world.route({V1: 90, V2: 10}, grpc=True)
    wait_for(world, observer, {V1: 90, V2: 10})
    take_grant_away(world, V2)
    wait_for_refusal(world, observer)
    now = [0.0]
    seen: list[dict[str, int]] = []

    def pass_time(_: float) -> None:
        seen.append(traffic_in(route_of(world))["weights"])
        now[0] += 60

    with pytest.raises(ObservationError):
        Shifter(world.platform, clock=lambda: now[0], sleep=pass_time).shift(world.team, MODEL, {V1: 50, V2: 50})
    assert seen == [{V1: 50, V2: 50}]
    for kind, name in (("HTTPRoute", MODEL), ("GRPCRoute", f"{MODEL}.grpc")):
        assert traffic_in(route_of(world, kind, name))["weights"] == {V1: 90, V2: 10}, kind


def test_a_conflict_in_one_route_takes_back_the_others_alone(
    world: EndpointWorld, observer: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.serve(V1, V2)
    world.route({V1: 90, V2: 10}, grpc=True)
    wait_for(world, observer, {V1: 90, V2: 10})
    grpc = ("GRPCRoute", f"{MODEL}.grpc")
    Interruption(monkeypatch, "grpcroutes", lambda: send_all_to_the_last(world, *grpc))
    with pytest.raises(ObservationError, match=r"somebody else has changed GRPCRoute .* at the same time"):
        Shifter(world.platform).shift(world.team, MODEL, {V1: 50, V2: 50})
    assert traffic_in(route_of(world))["weights"] == {V1: 90, V2: 10}
    assert traffic_in(route_of(world, *grpc))["weights"] == {V1: 0, V2: 100}


def test_a_status_that_is_written_meanwhile_does_not_hold_up_a_shift(
    world: EndpointWorld, observer: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.serve(V1, V2)
    world.route({V1: 90, V2: 10})
    wait_for(world, observer, {V1: 90, V2: 10})

    def write_status() -> None:
        route = route_of(world)
        own = route["status"]["parents"][0]
        other = own | {"controllerName": "example.com/other"}
        edit(world, route, {"status": {"parents": [own, other]}}, subresource="status")
        assert route_of(world)["metadata"]["resourceVersion"] != route["metadata"]["resourceVersion"]

    interruption = Interruption(monkeypatch, "httproutes", write_status)
    Shifter(world.platform).shift(world.team, MODEL, {V1: 50, V2: 50})
    assert interruption.done
    assert observer.traffic(world.team, MODEL)["weights"] == {V1: 50, V2: 50}


# -- readiness


def test_replicas_that_a_request_may_reach_are_counted_once(world: EndpointWorld, observer: Observer) -> None:
    world.serve(V1)
    world.make_room(V2)
    assert observer.ready(world.team, MODEL, [V1, V2, V3]) == {V1: 1, V2: 0, V3: 0}
    address = world.control_plane.address
    ready = {"addresses": [address], "conditions": {"ready": True}, "targetRef": {"kind": "Pod", "uid": "a"}}
    ending = {"addresses": [address], "conditions": {"ready": True, "terminating": True}}
    failing = {"addresses": [address], "conditions": {"ready": False}}
    for name, endpoints in (("one", [ready]), ("two", [ready, ending, failing])):
        world.control_plane.apply(
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {
                    "name": name,
                    "namespace": world.namespace(V2),
                    "labels": {
                        "kubernetes.io/service-name": SERVER,
                        "endpointslice.kubernetes.io/managed-by": "lepton-tests",
                    },
                },
                "addressType": "IPv4",
                "endpoints": endpoints,
                "ports": [{"name": "http", "port": 4711}],
            }
        )
    assert observer.ready(world.team, MODEL, [V2]) == {V2: 1}


# -- taking a version away


@pytest.fixture
def policy(world: EndpointWorld) -> Iterator[list[Manifest]]:
    """Not left there: what befalls an API server's last one is tested."""
    manifests = deletion_policy(world.environment, world.platform["internals"]["namespace"])
    try:
        yield manifests
    finally:
        take_away(world, manifests)


def take_away(world: EndpointWorld, policy: list[Manifest]) -> None:
    for manifest in reversed(policy):
        world.control_plane.delete(manifest["apiVersion"], manifest["kind"], manifest["metadata"]["name"])


def guard_claimed_versions(world: EndpointWorld, policy: list[Manifest]) -> None:
    """With V1 claimed; returns when the policy is in force."""
    cluster, namespace = world.control_plane, world.namespace(V1)
    cluster.apply_all(*policy, claim(world.environment, world.team, MODEL, namespace))

    def refused() -> bool:
        try:
            # What the policy doesn't refuse yet is gone, and made again.
            cluster.delete(*REFERENCE_GRANT, SERVER, namespace)
        except ApiError as error:
            return f"still a variant of {world.team}/{world.environment}.{MODEL}" in str(error)
        world.make_room(V1)
        return False

    until(refused, 60, what="the policy being in force")


def test_the_api_server_keeps_a_claimed_version_whoever_deletes_it(
    world: EndpointWorld, policy: list[Manifest]
) -> None:
    world.serve(V1, V2)
    cluster, namespace = world.control_plane, world.namespace(V1)
    guard_claimed_versions(world, policy)
    with pytest.raises(ApiError, match="take it out of the endpoint's variants"):
        cluster.delete("v1", "Service", SERVER, namespace)
    cluster.delete("v1", "Service", SERVER, world.namespace(V2))
    cluster.delete(*REFERENCE_GRANT, CLAIM, namespace)

    def deleted() -> bool:
        try:
            cluster.delete("v1", "Service", SERVER, namespace)
        except ApiError:
            return False
        return True

    until(deleted, 120, what="the claim being gone")


def test_claimed_versions_are_kept_again_after_the_clusters_last_policy_was_gone(
    world: EndpointWorld, policy: list[Manifest]
) -> None:
    """As when a platform is taken down and made anew, which an API server never gets over where claims are of a kind
    of its own (https://github.com/kubernetes/kubernetes/issues/130887).
    """
    world.make_room(V1)
    guard_claimed_versions(world, policy)
    world.control_plane.delete(*REFERENCE_GRANT, CLAIM, world.namespace(V1))
    take_away(world, policy)
    # It looks every second at which kinds its policies ask for.
    time.sleep(3)
    guard_claimed_versions(world, policy)


def test_a_claim_that_is_gone_is_put_back_where_its_namespace_is_there(world: EndpointWorld) -> None:
    world.make_room(V1)
    here, nowhere = (claim(world.environment, world.team, MODEL, world.namespace(version)) for version in (V1, V2))
    (problem,) = put_back_claims(Api(world.platform["internals"]["connection"]), [here, nowhere])
    assert f"nothing guards the version of namespace {world.namespace(V2)}" in problem
    found: Any = world.control_plane.get(*REFERENCE_GRANT, CLAIM, world.namespace(V1))
    assert found["metadata"]["annotations"] == here["metadata"]["annotations"]
    assert found["metadata"]["labels"] == here["metadata"]["labels"]


def test_a_claimed_versions_whole_namespace_can_still_be_deleted(world: EndpointWorld, policy: list[Manifest]) -> None:
    world.serve(V1)
    cluster, namespace = world.control_plane, world.namespace(V1)
    guard_claimed_versions(world, policy)
    cluster.delete("v1", "Namespace", namespace)
    until(lambda: cluster.get("v1", "Namespace", namespace) is None, 60, what="the namespace being gone")
