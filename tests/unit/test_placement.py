"""Placement is valid whatever it is given, exact where it says so, and its words name what lacks."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.contracts import Held, NodeInventory
from infra.placement import (
    PRIORITIES,
    SHARED_GPU,
    WHOLE_GPU,
    Assignment,
    Changes,
    Demand,
    Node,
    Placement,
    PlacementError,
    Pool,
    Priority,
    Slice,
    exact,
    from_inventory,
    make_room,
    mig_resource,
    place,
)
from infra.placement.bound import lower_bound
from infra.placement.greedy import ORDERS, place_all
from infra.placement.mig import WHOLE, cuts, geometry_of, most, weights
from infra.placement.place import rank_of
from infra.placement.state import State

GIB = 2**30
H100, A100, A30, H200 = "NVIDIA-H100-80GB-HBM3", "NVIDIA-A100-SXM4-80GB", "NVIDIA-A30", "NVIDIA-H200"

# As `nvidia-smi mig -lgipp` prints for an 80 GB A100 or H100: starts, and slices of memory.
STARTS = {
    "1g.10gb": ({0, 1, 2, 3, 4, 5, 6}, 1),
    "1g.10gb+me": ({0, 1, 2, 3, 4, 5, 6}, 1),
    "1g.20gb": ({0, 2, 4, 6}, 2),
    "2g.20gb": ({0, 2, 4}, 2),
    "3g.40gb": ({0, 4}, 4),
    "4g.40gb": ({0}, 4),
    "7g.80gb": ({0}, 8),
}


def whole(name: str, *gpus: int, product: str = H100, cpu: float = 64, memory: int = 512) -> Pool:
    """A pool of nodes with so many whole GPUs each."""
    nodes = (Node(f"{name}-{i}", cpu, memory * GIB, {WHOLE_GPU: count}) for i, count in enumerate(gpus))
    return Pool(name, product, tuple(nodes))


def cut(count: int, gpus: int = 1, product: str = H100) -> Pool:
    return Pool.of("mig", product, count, Node("", 64, 512 * GIB, cut=gpus))


def gpu_demand(name: str, gpu: int, replicas: int = 1, **more: Any) -> Demand:
    return Demand(name, replicas, gpu=gpu, **more)


def require_valid(pools: Sequence[Pool], demands: Sequence[Demand], found: Placement) -> None:
    """By its own count: no node has more than it can, slices lie where NVIDIA lets them, replicas are whole."""
    asked = {demand.name: demand for demand in demands}
    pool_of = {node.name: pool for pool in pools for node in pool.nodes}
    on: dict[str, list[Assignment]] = {}
    for each in found.assignments:
        on.setdefault(each.node, []).append(each)
    for node in (node for pool in pools for node in pool.nodes):
        here = on.get(node.name, [])
        assert sum(asked[each.demand].cpu * each.pods for each in here) <= node.cpu + 1e-9
        assert sum(asked[each.demand].memory * each.pods for each in here) <= node.memory
        taken: Counter[str] = Counter()
        slices = [*node.taken]
        for each in here:
            demand = asked[each.demand]
            assert demand.pool in (None, pool_of[node.name].name)
            assert demand.product in (None, pool_of[node.name].product)
            assert all(one.profile == demand.mig for one in each.slices)
            if demand.resource is not None:
                taken[demand.resource] += each.pods * demand.gpu - len(each.slices)
            slices += each.slices
        assert all(count <= node.gpus.get(resource, 0) for resource, count in taken.items())
        for gpu in range(node.cut):
            require_geometry([one for one in slices if one.gpu == gpu])
        assert all(one.gpu < node.cut for one in slices)
    for demand in demands:
        lie = {each.node: each.pods for each in found.assignments if each.demand == demand.name}
        missing = sum(each.replicas for each in found.unplaced if each.demand == demand.name)
        replicas = demand.replicas - missing
        assert sum(lie.values()) == replicas * demand.nodes_per_replica
        if demand.nodes_per_replica > 1:
            for pool in pools:
                inside = [lie[node.name] for node in pool.nodes if node.name in lie]
                own, rest = divmod(sum(inside), demand.nodes_per_replica)
                assert rest == 0
                assert all(pods <= own for pods in inside)
    assert found.lower_bound <= found.gpus_used


def require_geometry(slices: Sequence[Slice]) -> None:
    memory: Counter[int] = Counter()
    for one in slices:
        starts, size = STARTS[one.profile]
        assert one.start in starts
        memory.update(range(one.start, one.start + size))
    assert all(count == 1 and index < 8 for index, count in memory.items())
    assert sum(int(one.profile[0]) for one in slices) <= 7
    assert sum(one.profile.endswith("+me") for one in slices) <= 1


priorities: st.SearchStrategy[Priority] = st.sampled_from(PRIORITIES)


@st.composite
def whole_problems(draw: st.DrawFn, most_nodes: int = 5, most_demands: int = 6) -> tuple[list[Pool], list[Demand]]:
    pools = [
        whole(
            name,
            *draw(st.lists(st.integers(0, 8), min_size=1, max_size=most_nodes)),
            product=product,
            cpu=16,
            memory=150,
        )
        for name, product in (("a", H100), ("b", H200))
    ]
    demands = [
        Demand(
            f"d{index}",
            draw(st.integers(0, 3)),
            cpu=draw(st.sampled_from([0, 0.5, 1.1, 4, 9])),
            memory=draw(st.sampled_from([0, GIB, 100 * GIB])),
            gpu=draw(st.integers(0, 5)),
            product=draw(st.sampled_from([None, H100, H200])),
            priority=draw(priorities),
            nodes_per_replica=draw(st.sampled_from([1, 1, 1, 2])),
        )
        for index in range(draw(st.integers(0, most_demands)))
    ]
    return pools, demands


@st.composite
def mig_problems(draw: st.DrawFn) -> tuple[list[Pool], list[Demand]]:
    ready = {mig_resource(name): draw(st.integers(0, 2)) for name in ("1g.10gb", "3g.40gb")}
    mixed = Node("mixed", 32, 256 * GIB, ready, cut=draw(st.integers(0, 2)))
    pools = [cut(draw(st.integers(1, 2)), draw(st.integers(1, 2))), Pool("mixed", H100, (mixed,))]
    demands = [
        Demand(
            f"{profile}-{index}",
            draw(st.integers(1, 4)),
            cpu=draw(st.sampled_from([0, 1, 10])),
            gpu=draw(st.integers(1, 2)),
            mig=profile,
            priority=draw(priorities),
        )
        for index, profile in enumerate(draw(st.lists(st.sampled_from(sorted(STARTS)), max_size=5)))
    ]
    return pools, demands


# -- whatever it is given


@settings(max_examples=60)
@given(whole_problems())
def test_no_node_holds_more_than_it_has(problem: tuple[list[Pool], list[Demand]]) -> None:
    require_valid(*problem, place(*problem, seconds=1))


@settings(max_examples=60)
@given(mig_problems())
def test_slices_lie_where_nvidia_lets_them(problem: tuple[list[Pool], list[Demand]]) -> None:
    require_valid(*problem, place(*problem, seconds=1))


@settings(max_examples=40)
@given(st.one_of(whole_problems(), mig_problems()))
def test_it_is_never_worse_than_plain_first_fit_decreasing(problem: tuple[list[Pool], list[Demand]]) -> None:
    pools, demands = problem
    found = place(pools, demands, seconds=1)
    for order in ORDERS:
        state = State(pools, demands, ())
        plain = rank_of(state, place_all(state, state.wanted(), order))
        left = {each.demand: each.replicas for each in found.unplaced}
        assert rank_of(State(pools, demands, found.assignments), left) <= plain


@settings(max_examples=25)
@given(whole_problems(most_nodes=2, most_demands=3))
def test_exact_is_what_trying_everything_finds(problem: tuple[list[Pool], list[Demand]]) -> None:
    pools, demands = problem
    demands = [demand for demand in demands if demand.nodes_per_replica == 1 and demand.replicas][:3]
    found = place(pools, demands, seconds=20)
    left = {each.demand: each.replicas for each in found.unplaced}
    assert found.exact
    assert rank_of(State(pools, demands, found.assignments), left) == best_by_trying(pools, demands)


def best_by_trying(pools: Sequence[Pool], demands: Sequence[Demand]) -> tuple[int, ...]:
    """The least rank over every way to lay the replicas out."""
    nodes = [node.name for pool in pools for node in pool.nodes]
    best: list[tuple[int, ...]] = []

    def ways(demand: Demand) -> Iterator[Mapping[str, int]]:
        for total in range(demand.replicas + 1):
            for chosen in itertools.combinations_with_replacement(nodes, total):
                yield Counter(chosen)

    def fill(index: int, state: State, left: dict[str, int]) -> None:
        if index == len(demands):
            best.append(rank_of(state, left))
            return
        demand = demands[index]
        allowed = {free.node.name for free in state.eligible(demand)}
        for way in ways(demand):
            if not way.keys() <= allowed:
                continue
            more = [Assignment(demand.name, node, pods) for node, pods in way.items()]
            try:
                extended = State(pools, demands, [*state.assignments, *more])
            except PlacementError:
                continue
            fill(index + 1, extended, left | {demand.name: demand.replicas - sum(way.values())})

    fill(0, State(pools, demands, ()), {})
    return min(best)


@settings(max_examples=25)
@given(st.one_of(whole_problems(), mig_problems()))
def test_the_same_input_gives_the_same_output(problem: tuple[list[Pool], list[Demand]]) -> None:
    assert place(*problem, seconds=5) == place(*problem, seconds=5)


@settings(max_examples=40)
@given(whole_problems(), st.data())
def test_what_runs_stays_where_it_is(problem: tuple[list[Pool], list[Demand]], data: st.DataObject) -> None:
    pools, demands = problem
    running, grown = _some_running(pools, demands, data)
    found = place(pools, grown, running, seconds=1)
    require_valid(pools, grown, found)
    pods = found.pods()
    assert all(pods[each.demand][each.node] >= each.pods for each in running)


def _some_running(
    pools: Sequence[Pool], demands: Sequence[Demand], data: st.DataObject
) -> tuple[tuple[Assignment, ...], list[Demand]]:
    """Some demands as they were placed alone, and all of them as what is asked for."""
    first = place(pools, demands[: len(demands) // 2 + 1], seconds=0.1)
    lie = tuple(each for each in first.assignments if not each.slices)
    more = data.draw(st.integers(0, 2))
    grown = [
        Demand(
            demand.name,
            demand.replicas + (more if demand.nodes_per_replica == 1 else 0),
            demand.cpu,
            demand.memory,
            demand.gpu,
            product=demand.product,
            priority=demand.priority,
            nodes_per_replica=demand.nodes_per_replica,
            least=data.draw(st.sampled_from([None, 0, 1])),
            movable=data.draw(st.booleans()),
        )
        for demand in demands
    ]
    return lie, grown


# -- making room


@settings(max_examples=40)
@given(whole_problems(), st.data(), st.booleans())
def test_changes_take_nothing_from_whom_they_must_not(
    problem: tuple[list[Pool], list[Demand]], data: st.DataObject, with_solver: bool
) -> None:
    pools, demands = problem
    running, grown = _some_running(pools, demands, data)
    with pytest.MonkeyPatch.context() as patch:
        if not with_solver:
            patch.setattr(exact, "is_available", lambda: False)
        found = make_room(pools, grown, running, seconds=1)
    asked = {demand.name: demand for demand in grown}
    assert all(asked[each.demand].priority == "batch" for each in found.preempted)
    assert all(asked[each.demand].priority == "serving" for each in found.shrunk)
    assert all(asked[each.demand].movable for each in found.moves)
    lost = Counter({each.demand: 0 for each in (*found.preempted, *found.shrunk)})
    for each in (*found.preempted, *found.shrunk):
        lost[each.demand] += each.pods
    for name, pods in lost.items():
        ran = sum(each.pods for each in running if each.demand == name)
        least = 0 if asked[name].priority == "batch" else asked[name].least
        assert least is not None
        assert (ran - pods) // asked[name].nodes_per_replica >= least
    fewer = [
        Demand(
            **{
                **{key: getattr(demand, key) for key in Demand.__dataclass_fields__},
                "replicas": demand.replicas - lost.get(demand.name, 0) // demand.nodes_per_replica,
            }
        )
        for demand in grown
    ]
    require_valid(pools, fewer, found.placement)
    require_reached(running, found)


def require_reached(running: Sequence[Assignment], found: Changes) -> None:
    """What ran, with the changes, is part of the placement."""
    lie: Counter[tuple[str, str]] = Counter()
    for each in running:
        lie[each.demand, each.node] += each.pods
    for loss in (*found.preempted, *found.shrunk):
        lie[loss.demand, loss.node] -= loss.pods
    for move in found.moves:
        lie[move.demand, move.origin] -= move.pods
        lie[move.demand, move.target] += move.pods
    after = found.placement.pods()
    assert all(0 <= pods <= after.get(demand, {}).get(node, 0) for (demand, node), pods in lie.items())


@pytest.fixture(params=["cp-sat", "first-fit-decreasing"])
def method(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to make room."""
    if request.param != "cp-sat":
        monkeypatch.setattr(exact, "is_available", lambda: False)
    return request.param


def test_a_move_makes_room_where_free_gpus_are_scattered(method: str) -> None:
    pools = [whole("h100", 8, 8)]
    running = [Assignment("old", "h100-0", 1), Assignment("old", "h100-1", 1)]
    found = make_room(pools, [gpu_demand("old", 3, 2), gpu_demand("new", 8)], running)
    assert found.fits
    assert [(each.demand, each.pods, each.ends_first) for each in found.moves] == [("old", 1, False)]
    assert found.placement.method == method
    assert found.exact == (method == "cp-sat")


def test_the_fewest_replicas_are_moved() -> None:
    pools = [whole("h100", 8, 8, 8)]
    demands = [gpu_demand("many", 1, 4), gpu_demand("one", 4, 1), gpu_demand("other", 4), gpu_demand("new", 8)]
    running = [Assignment("many", "h100-0", 4), Assignment("one", "h100-1", 1), Assignment("other", "h100-2", 1)]
    found = make_room(pools, demands, running)
    assert found.exact
    assert sum(each.pods for each in found.moves) == 1


def test_batch_is_pre_empted_before_anything_serving_shrinks(method: str) -> None:
    demands = [
        gpu_demand("night", 4, priority="batch"),
        gpu_demand("day", 4, 2, least=1),
        gpu_demand("new", 4, priority="serving-critical"),
    ]
    running = [Assignment("night", "h100-0", 1), Assignment("day", "h100-0", 1), Assignment("day", "h100-1", 1)]
    found = make_room([whole("h100", 8, 4)], demands, running)
    assert found.fits
    assert [each.demand for each in found.preempted] == ["night"]
    assert not found.shrunk


def test_batch_pre_empts_nothing(method: str) -> None:
    demands = [gpu_demand("night", 4, priority="batch"), gpu_demand("other", 4, priority="batch")]
    found = make_room([whole("h100", 4)], demands, [Assignment("night", "h100-0", 1)])
    assert not found.fits
    assert not found.preempted


def test_what_serves_shrinks_to_its_least_and_no_further(method: str) -> None:
    demands = [gpu_demand("day", 2, 4, least=3), gpu_demand("new", 2, 2)]
    found = make_room([whole("h100", 8)], demands, [Assignment("day", "h100-0", 4)])
    assert [(each.demand, each.pods) for each in found.shrunk] == [("day", 1)]
    assert [each.replicas for each in found.placement.unplaced] == [1]


def test_critical_versions_lose_nothing(method: str) -> None:
    demands = [gpu_demand("vital", 4, priority="serving-critical", least=0), gpu_demand("new", 4)]
    found = make_room([whole("h100", 4)], demands, [Assignment("vital", "h100-0", 1)])
    assert not found.fits
    assert (found.preempted, found.shrunk, found.moves) == ((), (), ())


def test_a_move_is_preferred_to_a_pre_emption() -> None:
    demands = [gpu_demand("night", 2, priority="batch"), gpu_demand("day", 2), gpu_demand("new", 6)]
    running = [Assignment("night", "h100-0", 1), Assignment("day", "h100-1", 1)]
    found = make_room([whole("h100", 6, 6)], demands, running)
    assert found.fits
    assert not found.preempted
    assert len(found.moves) == 1


def test_moves_come_in_an_order_in_which_each_finds_room() -> None:
    demands = [gpu_demand("a", 4), gpu_demand("b", 3), gpu_demand("new", 8)]
    running = [Assignment("a", "h100-0", 1), Assignment("b", "h100-1", 1)]
    found = make_room([whole("h100", 8, 4, 3)], demands, running)
    assert [(each.demand, each.target, each.ends_first) for each in found.moves] == [
        ("b", "h100-2", False),
        ("a", "h100-1", False),
    ]


# -- priorities, spans and shares


def test_the_highest_priority_comes_first_where_there_is_no_room_for_all() -> None:
    demands = [gpu_demand("night", 4, priority="batch"), gpu_demand("vital", 2, priority="serving-critical")]
    found = place([whole("h100", 4)], demands)
    assert [each.demand for each in found.unplaced] == ["night"]


def test_replicas_that_span_nodes_lie_on_different_ones_of_one_pool() -> None:
    pools = [whole("a", 8, 8, 8), whole("b", 8)]
    found = place(pools, [gpu_demand("large", 4, 1, nodes_per_replica=3)])
    assert {each.node for each in found.assignments} == {"a-0", "a-1", "a-2"}


def test_shares_are_no_whole_gpus() -> None:
    pool = Pool("l4", "NVIDIA-L4", (Node("l4-0", 8, 8 * GIB, {SHARED_GPU: 4}),))
    found = place([pool], [gpu_demand("whole", 1), gpu_demand("part", 1, 4, shared=True)])
    assert [each.reason for each in found.unplaced] == ["no pool offers nvidia.com/gpu; there is nvidia.com/gpu.shared"]


def test_seven_small_slices_or_two_large_ones_fit_a_gpu() -> None:
    def fits(profile: str) -> int:
        found = place([cut(1)], [gpu_demand("x", 1, 9, mig=profile)])
        return 9 - sum(each.replicas for each in found.unplaced)

    assert {profile: fits(profile) for profile in STARTS} == {
        "1g.10gb": 7,
        "1g.10gb+me": 1,
        "1g.20gb": 4,
        "2g.20gb": 3,
        "3g.40gb": 2,
        "4g.40gb": 1,
        "7g.80gb": 1,
    }


def test_a_slice_that_is_there_keeps_its_place() -> None:
    pool = Pool("mig", H100, (Node("mig-0", 8, 8 * GIB, cut=1, taken=(Slice(0, "1g.10gb", 4),)),))
    found = place([pool], [gpu_demand("half", 1, 2, mig="3g.40gb")])
    assert [each.slices for each in found.assignments] == [(Slice(0, "3g.40gb", 0),)]
    assert [each.replicas for each in found.unplaced] == [1]


def test_slices_of_4g_and_3g_share_a_gpu_in_one_way_only() -> None:
    demands = [gpu_demand("four", 1, mig="4g.40gb"), gpu_demand("three", 1, mig="3g.40gb")]
    found = place([cut(1)], demands)
    assert {each.demand: each.slices[0].start for each in found.assignments} == {"four": 0, "three": 4}


def test_a_slice_where_none_can_be_is_refused() -> None:
    pool = Pool("mig", H100, (Node("mig-0", 8, 8 * GIB, cut=1, taken=(Slice(0, "2g.20gb", 6),)),))
    with pytest.raises(PlacementError, match=r"no slice 2g\.20gb can start at 6 of GPU 0: .* start at 0, 2, 4"):
        place([pool], [])


def test_gpus_of_an_unknown_product_are_not_cut() -> None:
    with pytest.raises(PlacementError, match=r"pool mig: how GPUs of product 'NVIDIA-X' are cut is not known"):
        place([cut(1, product="NVIDIA-X")], [])


@pytest.mark.parametrize("product", [A30, "NVIDIA-A100-SXM4-40GB", A100, H100, "NVIDIA-H100-NVL", H200])
def test_weights_of_bounds_hold_for_every_way_to_cut_a_gpu(product: str) -> None:
    geometry = geometry_of(product)
    assert geometry is not None
    for weight in weights(geometry):
        assert max(sum(weight[name] for name, _ in way) for way in cuts(geometry, 0)) <= WHOLE
    for profile in geometry.profiles:
        alone = [sum(name == profile.name for name, _ in way) for way in cuts(geometry, 0)]
        assert max(alone) == most(geometry, 0, profile)


@given(st.lists(st.lists(st.integers(1, 8), min_size=1), min_size=1, max_size=5))
def test_the_bound_is_never_above_a_packing_that_there_is(cuts_of_nodes: list[list[int]]) -> None:
    """Nodes of 8 GPUs, each filled with requests as far as they fit."""
    packed = [
        [size for end, size in zip(itertools.accumulate(sizes), sizes, strict=True) if end <= 8]
        for sizes in cuts_of_nodes
    ]
    demands = [gpu_demand(f"d{i}-{j}", size) for i, sizes in enumerate(packed) for j, size in enumerate(sizes)]
    bound = lower_bound(State([whole("h100", *[8] * 20)], demands, ()), {each.name: 1 for each in demands})
    assert bound <= 8 * len(packed)


def test_the_bound_counts_requests_that_exclude_each_other() -> None:
    pools, demands = [whole("h100", 8, 8, 8, 8)], [gpu_demand("x", 5, 3)]
    assert lower_bound(State(pools, demands, ()), {"x": 3}) == 24


# -- what it says


def reason_of(pools: Sequence[Pool], *demands: Demand, running: Sequence[Assignment] = ()) -> str:
    return place(pools, demands, running).unplaced[-1].reason


def test_scattered_gpus_are_named() -> None:
    pool = whole("h100", 8, 8, 8, 8, 8)
    running = [Assignment("full", f"h100-{index}", 1) for index in range(5)]
    assert (
        reason_of([pool], gpu_demand("full", 7, 5), gpu_demand("new", 2), running=running)
        == "pool h100 lacks 2 GPUs on one node (5 free, at most 1 together)"
    )


def test_processors_that_lack_are_named_with_the_gpus_that_are_there() -> None:
    reason = reason_of([whole("h100", 8, 8, cpu=4)], gpu_demand("new", 2, cpu=16))
    assert reason == "pool h100 has 2 GPUs free on 2 nodes, but lacks 16 cores (at most 4 free on one node) there"


def test_nodes_that_lack_for_a_span_are_counted() -> None:
    reason = reason_of([whole("h100", 8, 4)], gpu_demand("new", 8, nodes_per_replica=2))
    assert reason == "pool h100 lacks 1 nodes of the 2 with room for 8 GPUs each (1 there)"


def test_every_pool_that_could_do_says_what_it_lacks() -> None:
    reason = reason_of([whole("a", 2), whole("b", 4)], gpu_demand("new", 8))
    assert reason == (
        "pool a lacks 8 GPUs on one node (2 free, at most 2 together); "
        "pool b lacks 8 GPUs on one node (4 free, at most 4 together)"
    )


@pytest.mark.parametrize(
    ("demand", "reason"),
    [
        (gpu_demand("x", 1, product=H200), f"no pool has GPUs of product {H200}; there is {H100}"),
        (gpu_demand("x", 1, pool="b"), "there is no pool b; there is a"),
        (gpu_demand("x", 1, pool="a", product=H200), f"pool a has no GPUs of product {H200}; there is {H100}"),
        (
            gpu_demand("x", 1, mig="1g.10gb"),
            "no pool offers nvidia.com/mig-1g.10gb; there is nvidia.com/gpu",
        ),
    ],
)
def test_what_nobody_offers_is_named(demand: Demand, reason: str) -> None:
    assert reason_of([whole("a", 8)], demand) == reason


def test_fragmentation_counts_what_larger_requests_cannot_use() -> None:
    running = [Assignment("x", "h100-0", 1), Assignment("x", "h100-1", 1)]
    found = place([whole("h100", 8, 8)], [gpu_demand("x", 5, 2)], running).fragmentation
    assert [(each.total, each.free, each.together, each.stranded) for each in found] == [(16, 6, 3, {2: 2, 4: 6, 8: 6})]


def test_without_ortools_the_result_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "is_available", lambda: False)
    demands = [gpu_demand("six", 6), gpu_demand("five", 5), gpu_demand("three", 3, 2), gpu_demand("two", 2, 2)]
    found = place([whole("h100", 8, 8, 8, 8)], [*demands, gpu_demand("x", 9)])
    assert (found.method, found.exact) == ("first-fit-decreasing", False)


@pytest.mark.parametrize(
    ("pools", "demands", "running", "error"),
    [
        ([whole("a", 8), whole("a", 8)], [], [], "'a-0' is given twice"),
        ([whole("a", 8)], [gpu_demand("x", 1)], [Assignment("x", "b-0", 1)], "x runs on node b-0"),
        ([whole("a", 2)], [gpu_demand("x", 3)], [Assignment("x", "a-0", 1)], "more runs on node a-0 than it has"),
        ([whole("a", 8)], [gpu_demand("x", 1)], [Assignment("x", "a-0", 2)], "x has 2 Pods running; it asks for 1"),
    ],
)
def test_input_that_does_not_go_together_is_refused(
    pools: list[Pool], demands: list[Demand], running: list[Assignment], error: str
) -> None:
    with pytest.raises(PlacementError, match=error):
        place(pools, demands, running)


# -- an environment's inventory


def node(name: str, *held: Held, ready: bool = True, gpus: Mapping[str, int] | None = None) -> NodeInventory:
    return {
        "name": name,
        "pool": "h100",
        "product": H100,
        "ready": ready,
        "cpu": 64.0,
        "memory": 512 * GIB,
        "gpus": dict(gpus or {WHOLE_GPU: 8}),
        "held": list(held),
    }


def held(holder: str, replicas: int, gpu: int, priority: str = "serving", **more: Any) -> Held:
    gpus: dict[str, int] = more.get("gpus", {WHOLE_GPU: gpu})
    return {
        "holder": holder,
        "replicas": replicas,
        "priority": priority,
        "cpu": 2.0 * replicas,
        "memory": GIB * replicas,
        "gpus": gpus,
    }


def test_an_inventory_becomes_what_runs() -> None:
    found = from_inventory([node("n1", held("t/dev.m-1.0.0", 2, 4)), node("n2", held("t/dev.m-1.0.0", 1, 2))])
    assert [(each.name, each.replicas, each.gpu, each.cpu) for each in found.demands] == [("t/dev.m-1.0.0", 3, 2, 2.0)]
    assert found.running == (Assignment("t/dev.m-1.0.0", "n1", 2), Assignment("t/dev.m-1.0.0", "n2", 1))


def test_strangers_are_neither_moved_nor_pre_empted_unless_they_are_batch() -> None:
    found = from_inventory(
        [node("n1", held("other", 1, 2, "system-node-critical"), held("job", 1, 2, "batch"), held("app", 1, 1))]
    )
    assert {each.name: (each.priority, each.movable) for each in found.demands} == {
        "other": ("serving-critical", False),
        "job": ("batch", False),
        "app": ("serving", False),
    }


def test_pods_of_one_holder_that_differ_are_told_apart() -> None:
    found = from_inventory([node("n1", held("m", 1, 1)), node("n2", held("m", 1, 2))])
    assert [(each.name, each.gpu) for each in found.demands] == [("m", 1), ("m (2)", 2)]


def test_nodes_that_take_nothing_new_are_left_out() -> None:
    found = from_inventory([node("n1", held("m", 1, 1), ready=False), node("n2")])
    assert [each.name for pool in found.pools for each in pool.nodes] == ["n2"]
    assert not found.demands


def test_a_node_that_has_less_than_runs_on_it_is_full() -> None:
    """Promised twice over, or without a GPU that it had; or a Pod's part of what is held is no whole number."""
    busy = held("m", 3, 3)
    busy.update(cpu=70.0, memory=512 * GIB + 1)
    found = from_inventory([node("n1", busy, gpus={WHOLE_GPU: 2}), node("n2")])
    more = [replace(each, replicas=each.replicas + 1) for each in found.demands]
    assert [each.node for each in place(found.pools, more, found.running).assignments] == ["n1", "n2"]


def test_what_no_demand_can_say_takes_from_its_node() -> None:
    both = {WHOLE_GPU: 1, mig_resource("1g.10gb"): 2}
    found = from_inventory([node("n1", held("odd", 1, 0, gpus=both), gpus={WHOLE_GPU: 4, mig_resource("1g.10gb"): 7})])
    assert not found.demands
    assert dict(found.pools[0].nodes[0].gpus) == {WHOLE_GPU: 3, mig_resource("1g.10gb"): 5}


def test_slices_of_a_node_count_as_the_gpus_they_were_cut_from() -> None:
    gpus = {mig_resource("1g.10gb"): 56}
    found = from_inventory([node("n1", gpus=gpus)])
    assert found.pools[0].nodes[0].cost == 8
