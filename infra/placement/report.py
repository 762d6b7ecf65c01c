"""What a placement leaves: which pool lacks what for a demand, and how what is free is split up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from infra.placement.mig import most
from infra.placement.model import WHOLE_GPU, Demand, Fragmentation, mig_resource
from infra.placement.state import Free, Request, State

_SIZES = (2, 4, 8, 16)
_GIB = 2**30


def reason(state: State, demand: Demand) -> str:
    """Why no further replica of a demand has room, pool by pool."""
    nodes = state.eligible(demand)
    if not nodes:
        return _nowhere(state, demand)
    request = state.requests[demand.name]
    pools: dict[str, list[Free]] = {}
    for free in nodes:
        pools.setdefault(free.pool.name, []).append(free)
    return "; ".join(f"{_pool(name)} {_lacks(members, demand, request)}" for name, members in pools.items())


def fragmentation(state: State) -> Iterator[Fragmentation]:
    """Of every GPU resource of every pool, in order. GPUs that are cut on demand count for each profile alone."""
    for pool, nodes in state.by_pool():
        for resource in sorted({name for free in nodes for name in free.node.gpus}):
            pieces = [free.gpus.get(resource, 0) for free in nodes]
            total = sum(free.node.gpus.get(resource, 0) for free in nodes)
            largest = max(free.node.gpus.get(resource, 0) for free in nodes)
            sizes = [size for size in _SIZES if size <= largest] if resource == WHOLE_GPU else []
            stranded = {size: sum(piece % size for piece in pieces) for size in sizes}
            yield Fragmentation(pool.name, resource, total, sum(pieces), max(pieces), stranded)
        geometry = next((free.geometry for free in nodes if free.geometry), None)
        for profile in geometry.profiles if geometry else ():
            pieces = [sum(most(geometry, taken, profile) for taken in free.cut) for free in nodes if geometry]
            total = sum(len(free.cut) for free in nodes) * most(geometry, 0, profile) if geometry else 0
            yield Fragmentation(pool.name, mig_resource(profile.name), total, sum(pieces), max(pieces), {})


def _nowhere(state: State, demand: Demand) -> str:
    if demand.pool is not None and demand.pool not in {pool.name for pool in state.pools}:
        return f"there is no pool {demand.pool}; there {_are(sorted({pool.name for pool in state.pools}))}"
    pools = [pool for pool in state.pools if demand.pool in (None, pool.name)]
    products = sorted({pool.product for pool in pools if pool.product})
    where = _pool(demand.pool) if demand.pool else "no pool"
    if demand.product is not None and demand.product not in products:
        lacks = "has no" if demand.pool else "has"
        return f"{where} {lacks} GPUs of product {demand.product}; there {_are(products)}"
    offered = sorted({name for pool in pools for node in pool.nodes for name in node.gpus})
    if demand.resource is None:
        return f"{where} has {'no' if demand.pool else 'a'} node"
    of = f" of product {demand.product}" if demand.product else ""
    return f"{where} offers {'no ' if demand.pool else ''}{demand.resource}{of}; there {_are(offered)}"


def _lacks(nodes: Sequence[Free], demand: Demand, request: Request) -> str:
    """What keeps the pool's nodes from holding one replica more."""
    span = demand.nodes_per_replica
    fit = sum(1 for free in nodes if free.fits(request, 1))
    if span > 1:
        each = f"{request.gpu} {demand.what}" if request.gpu else _amounts(demand)
        return f"lacks {span - fit} nodes of the {span} with room for {each} each ({fit} there)"
    if request.resource is not None:
        rooms = [free.gpu_room(request, 10**9) for free in nodes]
        if max(rooms) < request.gpu:
            free, together = sum(rooms), max(rooms)
            detail = f"{free} free, at most {together} together" if free else "none free"
            return f"lacks {request.gpu} {demand.what} on one node ({detail})"
        nodes = [free for free, count in zip(nodes, rooms, strict=True) if count >= request.gpu]
        has = (
            f"has {request.gpu} {demand.what} free on {len(nodes)} {'node' if len(nodes) == 1 else 'nodes'}, but lacks"
        )
    else:
        has = "lacks"
    return f"{has} {_scarce(nodes, request)} there" if request.resource else f"{has} {_scarce(nodes, request)}"


def _scarce(nodes: Sequence[Free], request: Request) -> str:
    cores = max(free.milli for free in nodes)
    memory = max(free.memory for free in nodes)
    found: list[str] = []
    if cores < request.milli:
        found.append(f"{request.milli / 1000:g} cores (at most {max(cores, 0) / 1000:g} free on one node)")
    if memory < request.memory:
        found.append(f"{_gib(request.memory)} of memory (at most {_gib(max(memory, 0))} free on one node)")
    together = f"{request.milli / 1000:g} cores and {_gib(request.memory)} of memory free on one node together"
    return " and ".join(found) or together


def _amounts(demand: Demand) -> str:
    return f"{demand.cpu:g} cores and {_gib(demand.memory)} of memory"


def _gib(count: int) -> str:
    return f"{count / _GIB:.4g} GiB"


def _pool(name: str) -> str:
    return f"pool {name}" if name else "the nodes of no pool"


def _are(names: Sequence[str]) -> str:
    return f"{'is' if len(names) == 1 else 'are'} {', '.join(names) or 'none'}"
