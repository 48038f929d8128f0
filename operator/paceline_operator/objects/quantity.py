"""Kubernetes quantities, such as 500m or 16Gi, as exact numbers. Pure."""

import re
from fractions import Fraction

DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}  # powers of 10
BINARY = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}  # powers of 2
FORM = re.compile(r"([+-]?(?:\d{1,30}(?:\.\d{0,30})?|\.\d{1,30}))([numkMGTPE]|[KMGTPE]i|[eE][+-]?\d{1,2})?", re.ASCII)


def number(quantity: str | float) -> Fraction:
    """The number that a quantity stands for. Raises ValueError."""
    found = FORM.fullmatch(str(quantity))
    if found is None:
        raise ValueError(f"{quantity!r} is not a quantity, such as 2, 500m or 1e3")
    amount, suffix = Fraction(found[1]), found[2] or ""
    if suffix in BINARY:
        return amount * Fraction(2) ** BINARY[suffix]
    return amount * Fraction(10) ** (DECIMAL[suffix] if suffix in DECIMAL else int(suffix[1:]))
