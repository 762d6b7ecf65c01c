"""What a user can mend in the settings of a cluster's monitoring."""

from __future__ import annotations

from infra.errors import UserError
from infra.settings.cluster import ClusterSettings, Image

KEY = "lepton:platform.cluster"


class MonitoringError(UserError):
    """The settings leave out something that monitoring can't do without."""


def image(settings: ClusterSettings, key: str) -> Image:
    """The image that `images` names by this key. Raises MonitoringError where there is none."""
    found: Image | None = getattr(settings.images, key)
    if found is None:
        raise MonitoringError(
            f"{KEY}.images.{key}: not given, and {KEY}.monitoring brings it up: give 'REGISTRY/NAME[:TAG]@sha256:…', "
            f"or choose 'operator' or 'external' as {KEY}.monitoring.kind"
        )
    return found
