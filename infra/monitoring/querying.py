"""Reads what Prometheus' API answers to a query, however it was reached.

Reference: https://prometheus.io/docs/prometheus/latest/querying/api/
"""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

from infra.errors import UserError

PATH = "/api/v1/query"
"""Of an instant query, `?query=PROMQL`."""

Vector = list[tuple[dict[str, str], float]]
"""Labels and value of each sample."""


class BadExpressionError(UserError):
    """An expression that Prometheus can't answer, whatever is there."""


class RefusedError(UserError):
    """Prometheus answers with an error that isn't the expression's."""


def instant_vector(promql: str, status: int, body: bytes) -> Vector:
    """The samples in an answer to `promql`.

    Raises:
        BadExpressionError: when Prometheus can't read the expression, or it is of another type.
        RefusedError: for every other error, or an answer that is none of Prometheus'.
    """
    if status != HTTPStatus.OK:
        kind = BadExpressionError if status == HTTPStatus.BAD_REQUEST else RefusedError
        raise kind(f"Prometheus refused {promql!r}: {_reason(body)}")
    try:
        data: dict[str, Any] = json.loads(body)["data"]
        kind_of_result, result = data["resultType"], data["result"]
    except (ValueError, KeyError, TypeError):
        raise RefusedError(f"what answers is no Prometheus: {body[:100].decode(errors='replace')!r}") from None
    if kind_of_result != "vector":
        raise BadExpressionError(f"{promql!r} gives a {kind_of_result}, and an instant vector is asked for")
    return [(sample["metric"], float(sample["value"][1])) for sample in result]


def _reason(body: bytes) -> str:
    """What Prometheus' API says of an error, without the JSON around it."""
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace")
