"""What the stack whose program this is said of itself when it was last brought up."""

from __future__ import annotations

from typing import Any

import pulumi


def own_outputs() -> dict[str, Any]:
    """This stack's outputs as its last update left them; empty before the first."""
    name = f"{pulumi.get_organization()}/{pulumi.get_project()}/{pulumi.get_stack()}"
    found = pulumi.runtime.invoke("pulumi:pulumi:readStackOutputs", {"name": name}).value
    return (found or {}).get("outputs") or {}
