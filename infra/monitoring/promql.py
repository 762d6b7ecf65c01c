"""Pieces of PromQL that rules and data planes are put together from. Pure."""

from __future__ import annotations

from collections.abc import Sequence


def sum_by(labels: Sequence[str], vector: str) -> str:
    return f"sum by ({', '.join(labels)}) ({vector})"


def fresh_rate(counter: str, window: str) -> str:
    """A rate that ends with its counter, not a window later: a dead source leaves no figures that look alive."""
    return f"(rate({counter}[{window}]) and {counter})"


def milliseconds(buckets: str) -> str:
    """A histogram's buckets with `le` in milliseconds instead of seconds.

    PromQL can't multiply a label, so its decimal point is moved three digits to the right: whatever bounds somebody
    has configured, they need not be known here.
    """
    for regex, replacement in (
        (r"(\\d+)", "$1."),
        (r"(\\d+\\.\\d*)", "${1}000"),
        (r"(\\d+)\\.(\\d{3})(\\d*)", "$1$2.$3"),
        (r"0*(\\d+(?:\\.\\d*[1-9])?)\\.?0*", "$1"),
    ):
        buckets = f'label_replace({buckets}, "le", "{replacement}", "le", "{regex}")'
    return buckets
