"""Labels that look wrong, by classifiers that were trained on other rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..training.out_of_fold import MIN_ROWS, RATIO
from .findings import Checked, Finding


def suspicious_labels(checked: Checked) -> Sequence[Finding]:
    """Rows with a label much less probable than another class, the surest first."""
    labels = checked.rows.labels
    if labels is None:
        return []
    counts = labels.counts()
    if len(np.flatnonzero(counts)) < 2 or counts.max() < MIN_ROWS:
        return []
    opinion = checked.judge()
    rows = np.flatnonzero(opinion.suspicious())
    rows = rows[np.argsort(opinion.given[rows] / opinion.top[rows], kind="stable")]
    what = "none of the labels is" if labels.multilabel else "the label is not"
    text = f"{what} a {round(1 / RATIO)}th as probable as another class (of {int(opinion.judged.sum()):,} rows judged)"
    unjudged = int((~opinion.judged).sum())
    if unjudged:
        text += f"; {unjudged:,} rows have no label, or one of a class of fewer than {MIN_ROWS} rows"
    if labels.multilabel:
        text += "; single labels that are wrong beside right ones, or that lack, are not looked for"
    if not len(rows) and not unjudged and not labels.multilabel:
        return []
    advice = "correct them, train --without FILE, or train --robust on" if len(rows) else ""
    return [Finding(len(rows), text, advice, rows, opinion.seems[rows], opinion.given[rows], opinion.top[rows])]
