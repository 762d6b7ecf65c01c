"""Where NVIDIA lets MIG slices lie on a GPU: each profile's size and starts, and what fits beside what is there.

Source: "Supported MIG Profiles" of NVIDIA's MIG User Guide,
https://docs.nvidia.com/datacenter/tesla/mig-user-guide/supported-mig-profiles.html, and `nvidia-smi mig -lgipp`, which
prints the same as `{starts}:size`. A GPU has 8 slices of memory (an A30 has 4), and a profile takes some in a row. That
also bounds the GPU's 7 slices of processors: no slices that memory has room for take more of those. Slices with the
media extensions (`+me`) come at most once a GPU.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property, lru_cache


@dataclass(frozen=True, eq=False)
class Profile:
    """One kind of slice, such as `1g.10gb`."""

    name: str
    size: int
    """Slices of memory that it takes."""
    starts: tuple[int, ...]
    """The slices of memory that it may begin with."""

    @property
    def processors(self) -> int:
        """Slices of processors that it takes."""
        return int(self.name.partition("g")[0])

    @property
    def weight(self) -> float:
        """How hard it is to place: by its memory, and of those with the same by its processors."""
        return self.size + self.processors / 10

    @property
    def media(self) -> bool:
        """Whether it has the media extensions."""
        return self.name.endswith("+me")


@dataclass(frozen=True, eq=False)
class Geometry:
    """How GPUs of a product can be cut; products that are cut alike have one and the same.

    What a GPU holds is an integer: a bit for each slice of memory, and a last one for the media extensions; 0 is a GPU
    that holds nothing.
    """

    memory: int
    """Slices of memory that a GPU has."""
    profiles: tuple[Profile, ...]

    def profile(self, name: str) -> Profile | None:
        return self._by_name.get(name)

    @cached_property
    def _by_name(self) -> dict[str, Profile]:
        return {profile.name: profile for profile in self.profiles}

    def bits(self, profile: Profile, start: int) -> int:
        """What a slice takes that starts there."""
        return ((1 << profile.size) - 1) << start | (1 << self.memory if profile.media else 0)

    def starts(self, taken: int, profile: Profile) -> list[int]:
        """Where a slice can still start on a GPU that holds `taken`."""
        return [start for start in profile.starts if not taken & self.bits(profile, start)]


Slices = tuple[tuple[str, int], ...]
"""Profile and start of slices on one GPU, in the order of starts."""


def _seventh(one: int, two: int, half: int, whole: int) -> Geometry:
    """A GPU of 7 slices of processors and 8 of memory, by the gigabytes in its profiles' names."""
    any_start = tuple(range(7))
    return Geometry(
        8,
        (
            Profile(f"7g.{whole}gb", 8, (0,)),
            Profile(f"4g.{half}gb", 4, (0,)),
            Profile(f"3g.{half}gb", 4, (0, 4)),
            Profile(f"2g.{two}gb", 2, (0, 2, 4)),
            Profile(f"1g.{two}gb", 2, (0, 2, 4, 6)),
            Profile(f"1g.{one}gb+me", 1, any_start),
            Profile(f"1g.{one}gb", 1, any_start),
        ),
    )


_A30 = Geometry(
    4,
    (
        Profile("4g.24gb", 4, (0,)),
        Profile("2g.12gb+me", 2, (0, 2)),
        Profile("2g.12gb", 2, (0, 2)),
        Profile("1g.6gb+me", 1, (0, 1, 2, 3)),
        Profile("1g.6gb", 1, (0, 1, 2, 3)),
    ),
)

_EIGHTY_GIGABYTES = _seventh(10, 20, 40, 80)

_PRODUCTS: tuple[tuple[str, Geometry], ...] = (
    (r"\bA30\b", _A30),
    (r"\bA100\b.*\b40GB\b", _seventh(5, 10, 20, 40)),
    (r"\bA100\b.*\b80GB\b", _EIGHTY_GIGABYTES),
    (r"\bH100\b.*\bNVL\b", _seventh(12, 24, 47, 94)),
    (r"\bH100\b.*\b80GB\b", _EIGHTY_GIGABYTES),
    (r"\bH200\b", _seventh(18, 35, 71, 141)),
)


@lru_cache(maxsize=1024)
def geometry_of(product: str | None) -> Geometry | None:
    """The geometry of a product as nodes are labelled with it (`NVIDIA-A100-SXM4-80GB`); None where it isn't known."""
    return next((found for pattern, found in _PRODUCTS if re.search(pattern, product or "")), None)


@lru_cache(maxsize=65536)
def best_start(geometry: Geometry, taken: int, profile: Profile) -> int | None:
    """Where a slice leaves most room for others on a GPU that holds `taken`; None where it does not fit."""
    starts = geometry.starts(taken, profile)
    return max(starts, key=lambda start: (room(geometry, taken | geometry.bits(profile, start)), start), default=None)


@lru_cache(maxsize=65536)
def room(geometry: Geometry, taken: int) -> int:
    """How free a GPU is: the starts that are left, each as much as its profile is large."""
    return sum(profile.size * len(geometry.starts(taken, profile)) for profile in geometry.profiles)


@lru_cache(maxsize=65536)
def most(geometry: Geometry, taken: int, profile: Profile) -> int:
    """How many slices of one profile fit on a GPU that holds `taken`."""
    count = 0
    while (start := best_start(geometry, taken, profile)) is not None:
        taken |= geometry.bits(profile, start)
        count += 1
    return count


@lru_cache(maxsize=4096)
def cuts(geometry: Geometry, taken: int) -> tuple[Slices, ...]:
    """The ways to cut what is left of a GPU that holds `taken` to which nothing could be added, one a set of profiles.

    Whatever fits on the GPU is a part of one of them.
    """
    found: dict[tuple[tuple[str, int], ...], Slices] = {}

    def extend(now: int, after: tuple[int, int], chosen: Slices) -> None:
        for place, profile in enumerate(geometry.profiles):
            for start in geometry.starts(now, profile):
                # Each set of slices in one order only.
                if (start, place) > after:
                    extend(now | geometry.bits(profile, start), (start, place), (*chosen, (profile.name, start)))
        if not any(geometry.starts(now, profile) for profile in geometry.profiles):
            found.setdefault(tuple(sorted(Counter(name for name, _ in chosen).items())), chosen)

    extend(taken, (-1, -1), ())
    return tuple(found[key] for key in sorted(found))


def weights(geometry: Geometry) -> tuple[dict[str, int], ...]:
    """Weights of profiles of which no GPU can hold more than `WHOLE`, whatever it is cut into: for lower bounds.

    They are the slices of memory, the slices of processors, and how often a profile fits alone.
    """
    processors = 4 if geometry.memory == 4 else 7
    by_memory = {profile.name: WHOLE * profile.size // geometry.memory for profile in geometry.profiles}
    by_processors = {profile.name: WHOLE * profile.processors // processors for profile in geometry.profiles}
    return by_memory, by_processors, *_thirds(geometry)


def _thirds(geometry: Geometry) -> list[dict[str, int]]:
    """2g fits three times, not three and a half; and beside 3g, twice."""
    if geometry.memory == 4:
        return []
    third = {"1g": 0, "2g": 1, "3g": 1, "4g": 2, "7g": 3}
    return [{profile.name: WHOLE * third[profile.name[:2]] // 3 for profile in geometry.profiles}]


WHOLE = 168
"""Divisible by all that `weights` divides by."""
