"""Columns that say nothing, or drown the others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .findings import Checked, Finding, some

SPREAD = 100  # times the standard deviation of the median column


def constant_columns(checked: Checked) -> Sequence[Finding]:
    """Columns that never vary."""
    look = checked.rows
    columns = np.flatnonzero(look.low == look.high)
    if not len(columns) or len(look) < 2:
        return []
    names = some([str(c) for c in columns])
    return [
        Finding(
            0, f"{len(columns):,} of {look.d:,} columns are constant ({names})", "harmless; leave them out to save time"
        )
    ]


def unscaled_columns(checked: Checked) -> Sequence[Finding]:
    """Columns whose spread drowns that of the others."""
    look = checked.rows
    varying = look.sd[look.sd > 0]
    if not len(varying):
        return []
    median = float(np.median(varying))
    columns = np.flatnonzero(look.sd > SPREAD * median)
    if not len(columns):
        return []
    names = some([str(c) for c in columns])
    text = f"{len(columns):,} of {look.d:,} columns vary more than {SPREAD} times as much as the median one ({names})"
    advice = "the encoder mlp standardises columns; for identity, pq, opq and rq, standardise them first"
    return [Finding(0, text, advice)]
