"""Kubernetes' quantities: written as the API server writes them back, and read.

https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/
"""

from __future__ import annotations

import re
from fractions import Fraction

_BINARY = ("Ki", "Mi", "Gi", "Ti", "Pi", "Ei")
_DECIMAL = ("k", "M", "G", "T", "P", "E")
_FACTORS = {
    **{unit: Fraction(2 ** (10 * power)) for power, unit in enumerate(_BINARY, start=1)},
    **{unit: Fraction(10) ** power for unit, power in zip("numkMGTPE", (-9, -6, -3, 3, 6, 9, 12, 15, 18), strict=True)},
    "": Fraction(1),
}
_QUANTITY = re.compile(r"([+-]?(?:\d+(?:\.\d*)?|\.\d+))(?:[eE]([+-]?\d+)|([KMGTPE]i|[numkMGTPE]?))")


def number(value: float) -> str:
    """Cores, or a metric's target, to a thousandth."""
    thousandths = round(value * 1000)
    return f"{thousandths}m" if thousandths % 1000 else _in_units(thousandths // 1000, _DECIMAL, 1000)


def size(count: int) -> str:
    """Bytes, in the largest unit that they are a multiple of, a binary one if there is any."""
    return _in_units(count, _DECIMAL, 1000) if count % 1024 else _in_units(count, _BINARY, 1024)


def parse(quantity: str) -> Fraction:
    """Raises ValueError where it is no quantity."""
    match = _QUANTITY.fullmatch(quantity)
    if match is None:
        raise ValueError(f"{quantity!r} is no quantity of Kubernetes, such as '500m', '2' or '8Gi'")
    amount, exponent, unit = match.groups()
    return Fraction(amount) * (Fraction(10) ** int(exponent) if exponent else _FACTORS[unit])


def times(quantities: dict[str, str], factor: int) -> dict[str, str]:
    """So many of each."""
    return {name: _write(parse(quantity) * factor) for name, quantity in quantities.items()}


def _in_units(count: int, units: tuple[str, ...], step: int) -> str:
    text = str(count)
    for power, unit in enumerate(units, start=1):
        if count and count % step**power == 0:
            text = f"{count // step**power}{unit}"
    return text


def _write(amount: Fraction) -> str:
    return size(int(amount)) if amount.denominator == 1 else number(float(amount))
