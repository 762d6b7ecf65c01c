"""The platform of one environment."""

from infra.program import platform

platform()
