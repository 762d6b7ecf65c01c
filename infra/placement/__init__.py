"""GPU capacity: which versions fit where, what of it is fragmented, and what to move or shrink so that one fits. Pure.

`place` says where everything goes beside what runs; `make_room` what to change so that more does. Both are exact by
OR-tools within a time limit where the numbers let it, and first-fit-decreasing beyond: the result says which.
"""

from infra.placement.inventory import from_inventory
from infra.placement.model import (
    PRIORITIES,
    SHARED_GPU,
    WHOLE_GPU,
    Assignment,
    Demand,
    Fragmentation,
    Node,
    Placement,
    Pool,
    Priority,
    Slice,
    Unplaced,
    mig_resource,
)
from infra.placement.place import place, without_place
from infra.placement.room import Changes, Loss, Move, make_room
from infra.placement.state import PlacementError

__all__ = [
    "PRIORITIES",
    "SHARED_GPU",
    "WHOLE_GPU",
    "Assignment",
    "Changes",
    "Demand",
    "Fragmentation",
    "Loss",
    "Move",
    "Node",
    "Placement",
    "PlacementError",
    "Pool",
    "Priority",
    "Slice",
    "Unplaced",
    "from_inventory",
    "make_room",
    "mig_resource",
    "place",
    "without_place",
]
