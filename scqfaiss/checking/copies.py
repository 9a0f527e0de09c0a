"""Rows that stand more than once: with different labels, and in the files that are searched."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..arrays import Ints
from .findings import NO_CLASS, Checked, Finding, Look


def contradictions(checked: Checked) -> Sequence[Finding]:
    """Equal rows with different labels: all but those of the label that most of the copies have."""
    labels = checked.rows.labels
    if labels is None:
        return []
    y = np.unique(labels.y, axis=0, return_inverse=True)[1].reshape(-1) if labels.multilabel else labels.y
    out, seems = [], []
    for rows in _groups(checked.rows):
        values, counts = np.unique(y[rows], return_counts=True)
        if len(values) > 1:
            most = values[counts == counts.max()]
            wrong = rows if len(most) > 1 else rows[y[rows] != most[0]]
            out.append(wrong)
            seems += [NO_CLASS if len(most) > 1 or labels.multilabel else int(most[0])] * len(wrong)
    if not out:
        return []
    text = f"equal rows with different labels ({len(out):,} such rows; where one label has most copies, the others are named)"
    found = np.concatenate(out)
    return [Finding(len(found), text, "keep one label of each", found, np.array(seems))]


def repeated(checked: Checked) -> Sequence[Finding]:
    """Rows that stand more than once with one label: they weigh more than others."""
    more = sum(len(rows) - 1 for rows in _groups(checked.rows))
    if not more:
        return []
    return [Finding(more, "rows are copies of another row: they count several times, and validation may see them")]


def shared(checked: Checked) -> Sequence[Finding]:
    """Training rows that stand in another file, too: figures of queries that were trained on say nothing."""
    out = []
    for other in checked.others:
        both = np.unique(np.concatenate([checked.rows.digests, other.digests]), axis=0, return_inverse=True)[1].reshape(
            -1
        )
        rows = np.flatnonzero(np.isin(both[: len(checked.rows)], both[len(checked.rows) :]))
        if len(rows):
            advice = "train --without FILE, where these are queries"
            out.append(
                Finding(len(rows), f"rows stand in {other.name}, too", advice, rows, np.full(len(rows), NO_CLASS))
            )
    return out


def _groups(look: Look) -> list[Ints]:
    """The row numbers of each row that stands more than once."""
    which, counts = np.unique(look.digests, axis=0, return_inverse=True, return_counts=True)[1:]
    which = which.reshape(-1)
    order = np.argsort(which, kind="stable")
    order = order[counts[which[order]] > 1]
    cuts = np.flatnonzero(np.diff(which[order])) + 1
    return np.split(order, cuts) if len(order) else []
