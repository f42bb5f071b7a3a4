"""How figures are written: three digits that count, thousands apart."""

import math

__all__ = ["shown"]


def shown(value: float) -> str:
    """Write a figure: 25,525 / 118 / 36.5 / 1.44 / 0.287."""
    if value == 0:
        return "0"
    whole_digits = math.floor(math.log10(abs(value))) + 1
    return f"{value:,.{min(3, max(0, 3 - whole_digits))}f}"
