"""Which settings of a version which modes can do: one that the mode can't is an error, and never dropped."""

from __future__ import annotations

from pydantic import BaseModel

from infra.settings.loading import SettingsError
from infra.settings.platform import Mode

_ONLY: dict[str, frozenset[Mode]] = {
    "runtime": frozenset({"single-node"}),
    "health": frozenset({"single-node"}),
    "autoscaling": frozenset({"cluster", "cloud"}),
    "priority": frozenset({"cluster"}),
    "pool": frozenset({"cluster"}),
    "nodes_per_replica": frozenset({"cluster"}),
    "model_volume": frozenset({"cluster"}),
    "model_image": frozenset({"cluster"}),
    "api_access": frozenset({"cluster"}),
    "egress": frozenset({"cluster"}),
    "resources.gpu_product": frozenset({"cluster"}),
    "resources.mig": frozenset({"cluster"}),
    "resources.gpu_shared": frozenset({"cluster"}),
    "resources.device_class": frozenset({"cluster"}),
}
"""Keys of a version's settings that not all modes know."""


def refuse_foreign(settings: BaseModel, mode: Mode, *, file: str, key: str) -> None:
    """Raises SettingsError for each key that was given and that the mode doesn't know."""
    lines = [
        f"{file}: {key}.{path}: mode {mode} has nothing of the kind, only {' and '.join(sorted(modes))}; leave it out"
        for path, modes in _ONLY.items()
        if mode not in modes and _given(settings, path.split("."))
    ]
    if lines:
        raise SettingsError("\n".join(lines))


def _given(settings: BaseModel, path: list[str]) -> bool:
    for part in path:
        if part not in settings.model_fields_set:
            return False
        settings = getattr(settings, part)
    return True
