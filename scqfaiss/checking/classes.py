"""How many rows the classes have."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..training.out_of_fold import MIN_ROWS
from .findings import Checked, Finding, some

UNEQUAL = 10  # times the rows of the median class, or a tenth of them


def no_labels(checked: Checked) -> Sequence[Finding]:
    """No labels, rows without any, or all rows of one class."""
    labels = checked.rows.labels
    if labels is None:
        return [
            Finding(
                len(checked.rows),
                "no labels: methods that need them cannot train",
                "bring them with --labels FILE, or use --labels-key",
            )
        ]
    out = []
    if labels.multilabel and not labels.y.any(1).all():
        none = int((~labels.y.any(1)).sum())
        out.append(Finding(none, "rows have no label", "train --set unlabeled=drop"))
    present = np.flatnonzero(labels.counts())
    if len(present) < 2:
        out.append(Finding(len(labels), "all rows are of one class: there is nothing to tell apart"))
    return out


def small_classes(checked: Checked) -> Sequence[Finding]:
    """Classes of fewer than a handful of rows."""
    labels = checked.rows.labels
    if labels is None:
        return []
    counts = labels.counts()
    few = np.flatnonzero((counts > 0) & (counts < MIN_ROWS))
    if not len(few):
        return []
    names = some([f"{labels.class_name(int(c))}: {counts[c]}" for c in few[np.argsort(counts[few], kind="stable")]])
    text = f"rows of {len(few):,} classes of fewer than {MIN_ROWS} rows ({names})"
    return [Finding(int(counts[few].sum()), text, "label more rows of them, or give --unlabelled rows")]


def unequal_classes(checked: Checked) -> Sequence[Finding]:
    """Classes far smaller or larger than the median one."""
    labels = checked.rows.labels
    if labels is None:
        return []
    counts = labels.counts()
    present = np.flatnonzero(counts)
    if len(present) < 2:
        return []
    median = float(np.median(counts[present]))
    odd = present[(counts[present] * UNEQUAL <= median) | (counts[present] >= UNEQUAL * median)]
    if not len(odd):
        return []
    names = some([f"{labels.class_name(int(c))}: {counts[c]:,}" for c in odd])
    text = f"rows of {len(odd):,} classes {UNEQUAL} times smaller or larger than the median class of {median:,.0f} ({names})"
    return [Finding(int(counts[odd].sum()), text, "small classes rank lower; label more rows of them")]
