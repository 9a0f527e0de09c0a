"""How many inverted lists codes get where nobody says. Known before any row is read, and without torch."""

from __future__ import annotations

import math

PER_NEW_CLASS = 8  # that a model is extended by
AUTO_MOST = 1024  # more lists are worth less than a thousandth of mAP, and every query looks at all centroids


def auto(rows: int, C: int) -> int:
    """The number of lists for codebooks that learn from so many rows of C classes: 4 sqrt(rows), 4 a class at least, a power of
    two up to AUTO_MOST, and 1 for so few rows that lists would hold a handful.
    """
    wanted = min(max(4 * rows**0.5, 4.0 * C), rows / 4, float(AUTO_MOST))
    return 1 << round(math.log2(wanted)) if wanted >= 2 else 1
