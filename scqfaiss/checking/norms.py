"""Rows that are zero or of an odd length, and values that are not finite."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .findings import NO_CLASS, Checked, Finding

ODD = 100  # times the median norm, or a hundredth of it


def not_finite(checked: Checked) -> Sequence[Finding]:
    """Rows with NaN or infinity, which no training takes."""
    count = len(checked.rows.bad_ids)
    if not count:
        return []
    return [Finding(count, "rows hold NaN, infinity or a number too large for float32", "train --skip-bad-rows")]


def zero_rows(checked: Checked) -> Sequence[Finding]:
    """Rows of zeros: whatever made them has failed."""
    rows = np.flatnonzero(checked.rows.norms == 0)
    if not len(rows):
        return []
    return [Finding(len(rows), "rows are 0 in every column", "make them again", rows, np.full(len(rows), NO_CLASS))]


def odd_norms(checked: Checked) -> Sequence[Finding]:
    """Rows far longer or shorter than the others: of another model, or in another unit."""
    norms = checked.rows.norms
    if not norms.any():
        return []
    median = float(np.median(norms[norms > 0]))
    rows = np.flatnonzero((norms > ODD * median) | ((norms > 0) & (norms * ODD < median)))
    if not len(rows):
        return []
    text = f"rows are {ODD} times longer or shorter than the median row, of norm {median:.4g}"
    return [
        Finding(len(rows), text, "are they of another model, or in another unit?", rows, np.full(len(rows), NO_CLASS))
    ]


def other_files(checked: Checked) -> Sequence[Finding]:
    """Files of another width, or with rows that are not finite."""
    out = []
    for other in checked.others:
        if other.d != checked.rows.d:
            out.append(
                Finding(len(other), f"{other.name}: rows have d={other.d}, those to train on d={checked.rows.d}")
            )
        if len(other.bad_ids):
            out.append(Finding(len(other.bad_ids), f"{other.name}: rows hold NaN or infinity"))
    return out
