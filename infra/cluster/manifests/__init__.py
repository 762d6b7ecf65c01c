"""Builds Kubernetes objects from settings: pure, each module what its name says, in the API server's own words."""

from __future__ import annotations

from typing import Any

Manifest = dict[str, Any]
"""One object, exactly as the API server takes it."""
