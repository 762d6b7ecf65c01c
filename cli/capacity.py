"""`lepton capacity`: what an environment's nodes have and hold, and whether a rollout would find room."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import context, output
from cli.context import JsonOption

if TYPE_CHECKING:
    from infra.contracts import NodeInventory
    from infra.placement import Changes, Demand, Placement
    from rollout.planning.fitting import StrategyFit

_DEFAULT = "dev"


def capacity(
    environment: Annotated[
        str | None, typer.Argument(metavar="[ENV]", help="The environment. [default: dev, or that of --for]")
    ] = None,
    endpoint: Annotated[
        str | None, typer.Option("--for", metavar="ENDPOINT", help="TEAM/ENV.MODEL, with --to.")
    ] = None,
    to: Annotated[
        list[str] | None,
        typer.Option("--to", metavar="VERSION[=SHARE]", help="Where a rollout would go, as in `lepton rollout plan`."),
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=0.1, max=600, help="How long to search, at most, for what would make room.")
    ] = 5.0,
    as_json: JsonOption = False,
) -> None:
    """Show what an environment's nodes have, and which strategies a rollout would find room for.

    Where there is none, it says which pool lacks what, and what to move, pre-empt or shrink. Nothing is changed.

    Exit status 1: a rollout by the endpoint's own strategy finds no room.
    """
    if (endpoint is None) != (not to):
        raise typer.BadParameter("--for ENDPOINT and --to VERSION go together", param_hint="--for, --to")
    stack = context.stack(endpoint, "endpoint") if endpoint else None
    if stack and environment not in (None, stack.settings.environment):
        raise typer.BadParameter(
            f"{stack.address} is in {stack.settings.environment}, and not in {environment}; leave ENV out",
            param_hint="ENV",
        )
    name = stack.settings.environment if stack else environment or _DEFAULT
    nodes, known = _read(name)
    if stack is None:
        _show_environment(name, nodes, known, as_json=as_json)
        return
    from cli.rollout.options import target  # noqa: PLC0415
    from rollout.planning.fitting import strategy_fits  # noqa: PLC0415
    from rollout.planning.plan import rollout_to  # noqa: PLC0415

    wanted = target(stack, to or [])
    rollout = rollout_to(context.project(), stack, wanted, stack.endpoint.rollout)
    fits = list(strategy_fits(rollout, nodes, known, seconds=seconds))
    if as_json:
        output.document({"endpoint": stack.address, "target": wanted, "strategies": [_fit(each) for each in fits]})
    else:
        _show_rollout(stack.address, wanted, fits)
    if not fits[0].fits:
        raise typer.Exit(1)


def _read(environment: str) -> tuple[list[NodeInventory], dict[str, Demand]]:
    """The nodes, and what configs say of the versions on them."""
    from infra.contracts import observer_of  # noqa: PLC0415
    from rollout.planning.plan import demands  # noqa: PLC0415

    nodes = observer_of(context.releases().platform(environment)).inventory()
    return nodes, demands(context.project(), environment)


# -- an environment


def _show_environment(
    environment: str, nodes: Sequence[NodeInventory], known: Mapping[str, Demand], *, as_json: bool
) -> None:
    from infra.placement import from_inventory, place  # noqa: PLC0415

    found = from_inventory(nodes, known)
    placed = place(found.pools, found.demands, found.running, seconds=0.1)
    if as_json:
        pieces = [_piece(each) for each in placed.fragmentation]
        output.document({"environment": environment, "nodes": list(nodes), "fragmentation": pieces})
        return
    pools = dict.fromkeys((node["pool"], node["product"]) for node in nodes)
    output.table(
        ["pool", "product", "nodes", "resource", "total", "held", "free", "free on one node"],
        [row for pool, product in pools for row in _pool(pool, product, nodes)],
    )
    scattered = [
        f"{each.pool or 'no pool'}: of {each.free} free {each.resource}, {count} can't serve requests of {size}"
        for each in placed.fragmentation
        for size, count in each.stranded.items()
        if count
    ]
    for text in scattered:
        output.line(f"note: {text}")
    output.line("")
    output.table(
        ["holder", "priority", "replicas", "cores", "memory", "GPUs", "nodes"],
        [_holder(name, nodes) for name in sorted({held["holder"] for node in nodes for held in node["held"]})],
    )
    for node in nodes:
        if not node["ready"]:
            output.line(f"note: node {node['name']} is not ready: nothing new may come to it")


def _pool(pool: str, product: str | None, nodes: Sequence[NodeInventory]) -> Iterator[list[Any]]:
    members = [node for node in nodes if (node["pool"], node["product"]) == (pool, product) and node["ready"]]
    first: list[Any] = [pool or "-", product or "-", len(members)]
    if not members:
        yield [*first, "-", "-", "-", "-", "-"]
        return
    cores = [node["cpu"] - sum(held["cpu"] for held in node["held"]) for node in members]
    memory = [node["memory"] - sum(held["memory"] for held in node["held"]) for node in members]
    total = sum(node["cpu"] for node in members), sum(node["memory"] for node in members)
    yield [*first, "cores", *(f"{each:g}" for each in (total[0], total[0] - sum(cores), sum(cores), max(cores)))]
    sizes = (total[1], total[1] - sum(memory), sum(memory), max(memory))
    yield ["", "", "", "memory", *(output.size(each) for each in sizes)]
    for resource in sorted({name for node in members for name in node["gpus"]}):
        has = [node["gpus"].get(resource, 0) for node in members]
        held = [sum(each["gpus"].get(resource, 0) for each in node["held"]) for node in members]
        free = [there - taken for there, taken in zip(has, held, strict=True)]
        yield ["", "", "", resource, sum(has), sum(held), sum(free), max(free)]


def _holder(name: str, nodes: Sequence[NodeInventory]) -> list[Any]:
    theirs = [(node["name"], held) for node in nodes for held in node["held"] if held["holder"] == name]
    gpus: dict[str, int] = {}
    for _, held in theirs:
        for resource, count in held["gpus"].items():
            gpus[resource] = gpus.get(resource, 0) + count
    return [
        name,
        theirs[0][1]["priority"] or "-",
        sum(held["replicas"] for _, held in theirs),
        f"{sum(held['cpu'] for _, held in theirs):g}",
        output.size(sum(held["memory"] for _, held in theirs)),
        " ".join(f"{count} {resource.removeprefix('nvidia.com/')}" for resource, count in gpus.items() if count) or "-",
        len({node for node, _ in theirs}),
    ]


def _piece(each: Any) -> dict[str, Any]:
    return {
        "pool": each.pool,
        "resource": each.resource,
        "total": each.total,
        "free": each.free,
        "free_on_one_node": each.together,
        "stranded": {str(size): count for size, count in each.stranded.items()},
    }


# -- a rollout


def _show_rollout(endpoint: str, target: Mapping[str, int], fits: Sequence[StrategyFit]) -> None:
    output.line(f"{endpoint}: to {output.weights(target)}")
    output.line("")
    output.table(
        ["strategy", "fits", "replicas at its peak", "GPUs", "with changes"],
        [
            [
                each.strategy,
                "-" if each.refused else "yes" if each.fits else "no",
                output.weights(each.peak) or "-",
                each.gpus if each.peak else "-",
                _outlook(each.changes),
            ]
            for each in fits
        ],
    )
    for each in fits:
        if each.refused:
            output.line(f"note: {each.strategy}: {each.refused}")
    output.line("")
    own = fits[0]
    if own.refused:
        output.line(f"{own.strategy} can't do it.")
        return
    if own.fits:
        output.line(f"{own.strategy} fits.")
        return
    for lack in own.lacking:
        output.line(f"{own.strategy} does not fit: {lack.replicas} of {lack.demand}: {lack.reason}.")
    others = [each.strategy for each in fits[1:] if each.fits]
    output.line(f"Would fit: {'; '.join(others)}." if others else "No strategy fits.")
    if own.changes is not None:
        _show_changes(own.strategy, own.changes)


def _outlook(changes: Changes | None) -> str:
    if changes is None:
        return "-"
    if not changes.fits:
        return "does not fit"
    counts = (
        (sum(each.pods for each in changes.preempted), "pre-empted"),
        (sum(each.pods for each in changes.shrunk), "shrunk"),
        (sum(each.pods for each in changes.moves), "moved"),
    )
    return "fits with " + ", ".join(f"{count} {what}" for count, what in counts if count)


def _show_changes(strategy: str, changes: Changes) -> None:
    if not changes.fits:
        output.line("Nothing that may be moved, pre-empted or shrunk makes room for it.")
        return
    least = "the least that does" if changes.exact else "there may be less that does"
    output.line(f"What would make {strategy} fit ({least}):")
    for each in changes.preempted:
        output.line(f"  pre-empt {each.pods} of {each.demand} (batch) on {each.node}")
    for each in changes.shrunk:
        output.line(f"  shrink {each.demand} by {each.pods}, on {each.node}")
    for each in changes.moves:
        first = ", which ends before it can start there" if each.ends_first else ""
        output.line(f"  move {each.pods} of {each.demand} from {each.origin} to {each.target}{first}")
    output.line(_method(changes.placement))


def _method(placement: Placement) -> str:
    if placement.exact or placement.method == "cp-sat":
        return "(searched by CP-SAT)"
    return "(searched node by node: the least changes are found with OR-tools, extra `placement`)"


def _fit(each: StrategyFit) -> dict[str, Any]:
    changes = each.changes
    return {
        "strategy": each.strategy,
        "fits": each.fits,
        "refused": each.refused,
        "peak": dict(each.peak),
        "gpus": each.gpus,
        "lacking": [{"demand": lack.demand, "replicas": lack.replicas, "reason": lack.reason} for lack in each.lacking],
        "changes": None
        if changes is None
        else {
            "fits": changes.fits,
            "exact": changes.exact,
            "method": changes.placement.method,
            "preempt": [_loss(loss.demand, loss.node, loss.pods) for loss in changes.preempted],
            "shrink": [_loss(loss.demand, loss.node, loss.pods) for loss in changes.shrunk],
            "move": [
                {
                    "demand": move.demand,
                    "from": move.origin,
                    "to": move.target,
                    "pods": move.pods,
                    "ends_first": move.ends_first,
                }
                for move in changes.moves
            ],
        },
    }


def _loss(demand: str, node: str, pods: int) -> dict[str, Any]:
    return {"demand": demand, "node": node, "pods": pods}
