"""A check of rows, from files to a table, an object of JSON, and a list of rows to leave out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from typing import Any

from .. import distributed
from ..contract import Progress, silent
from ..data import Source, keys_for, open_rows
from ..data.left_out import ENDING, LeftOut, as_text, label_text, write_left_out
from ..files import PathLike, atomic_write
from ..methods import method_class
from ..options import TrainOptions
from ..training.fitting import train_judge
from ..training.out_of_fold import Opinion, options_of_folds
from ..training.rows import SourceRows
from ..training.suspects import opinions
from .faults import FAULTS, TRAINING
from .findings import NO_CLASS, Checked, Finding, Look
from .looking import look_at

SHOWN = 10  # suspicious labels in the table

Findings = Mapping[str, Sequence[Finding]]


def check_file(
    path: PathLike,
    others: Sequence[PathLike] = (),
    out: PathLike | None = None,
    as_json: bool = False,
    *,
    quick: bool = False,
    options: TrainOptions | None = None,
    keys: Mapping[str, Any],
    progress: Progress = silent,
) -> str:
    """Check a file of rows to train on, and whether its rows stand in `others`; returns what to tell the user.

    out: a .csv file for the rows that a training should leave out, see data.left_out. quick: train no classifiers, judge no
    label. options: of the training that the rows are for. keys: arguments of open_rows.
    """
    options = TrainOptions() if options is None else options
    with ExitStack() as stack:
        output = None
        if out is not None:
            output = stack.enter_context(atomic_write(out, inputs=[path, *others], suffix=ENDING, what="written"))
        opened = [
            stack.enter_context(open_rows(p, **keys_for(keys, "others" if k else ""), repeated_ids=True))
            for k, p in enumerate([path, *others])
        ]
        checked = checked_rows(opened[0], opened[1:], options, progress)
        faults = {name: fault for name, fault in FAULTS.items() if not (quick and name in TRAINING)}
        found = {name: list(fault(checked)) for name, fault in faults.items()}
        left_out = rows_to_leave_out(checked.rows, found)
        if output is not None:
            output.write(lambda f: write_left_out(f, left_out))
    told = as_object(checked.rows, found) if as_json else None
    return json.dumps(told, sort_keys=True) if told is not None else table(checked.rows, found, left_out, out)


def checked_rows(source: Source, others: Sequence[Source], options: TrainOptions, progress: Progress) -> Checked:
    """The rows of all sources, looked at, and the classifiers that judge the labels of the first."""
    rows = look_at(source, progress)

    @cache
    def judge() -> Opinion:
        assert source.labels is not None
        memory = SourceRows(source, distributed.pick_device(options.device))
        of_folds = options_of_folds(options, method_class(options.method).Config)
        return opinions(memory, source.labels, of_folds, train_judge, progress)[-1]

    return Checked(rows, [look_at(other, progress) for other in others], judge)


def rows_to_leave_out(look: Look, found: Findings) -> list[LeftOut]:
    """Every row that some fault says to leave out, once, by its first reason; those that are not finite first."""
    out = [LeftOut(int(id), "not finite", "", "", row) for id, row in zip(look.bad_ids, as_text(look.bad_digests))]
    named: set[int] = set()
    for name, findings in found.items():
        for finding in findings:
            if finding.rows is None or finding.seems is None:
                continue
            for row, seems, digest in zip(
                finding.rows.tolist(), finding.seems.tolist(), as_text(look.digests[finding.rows])
            ):
                if row not in named:
                    named.add(row)
                    out.append(LeftOut(int(look.ids[row]), name, _label(look, row), _class(look, seems), digest))
    return out


def as_object(look: Look, found: Findings) -> dict[str, Any]:
    """Everything that was found, as plain values: of each fault a list of findings, each with the ids of its rows."""

    def plain(finding: Finding) -> dict[str, Any]:
        out: dict[str, Any] = {"count": finding.count, "text": finding.text}
        if finding.rows is not None and finding.seems is not None:
            out["ids"] = look.ids[finding.rows].tolist()
            out["labels"] = [_label(look, row) for row in finding.rows.tolist()]
            out["seems"] = [_class(look, c) for c in finding.seems.tolist()]
        for name in ("given", "top"):
            value = getattr(finding, name)
            if value is not None:
                out[name] = [round(float(v), 6) for v in value]
        return out

    faults = {name: [plain(finding) for finding in findings] for name, findings in found.items() if findings}
    return {"rows": len(look), "d": look.d, "faults": faults}


def table(look: Look, found: Findings, left_out: Sequence[LeftOut], out: PathLike | None) -> str:
    """Everything that was found, for a person."""
    classes = "no labels"
    if look.labels is not None:
        counts = look.labels.counts()
        counts = counts[counts > 0]
        classes = f"{len(counts):,} classes of {min(counts, default=0):,} to {max(counts, default=0):,} rows"
    lines = [f"{look.name}: {len(look):,} rows of d={look.d}, {classes}"]
    for name, findings in found.items():
        for finding in findings:
            count = f"{finding.count:,}" if finding.count else ""
            lines.append(f"{name:18} {count:>8}  {finding.text}" + (f"; {finding.advice}" if finding.advice else ""))
            if finding.given is not None:
                lines += _surest(look, finding)
    if len(lines) == 1:
        lines.append("nothing found")
    if left_out:
        where = (
            f"written to {out}; train --without {out} leaves them out" if out is not None else "-o FILE.csv lists them"
        )
        lines.append(f"{len(left_out):,} rows to leave out, {where}")
    return "\n".join(lines)


def _surest(look: Look, finding: Finding) -> list[str]:
    """The first suspicious labels."""
    assert (
        finding.rows is not None and finding.seems is not None and finding.given is not None and finding.top is not None
    )
    if not len(finding.rows):
        return []
    lines = [f"  {'id':>12}  {'label':24} {'p':>8}  {'seems':24} {'p':>8}"]
    for k in range(min(SHOWN, len(finding.rows))):
        row, seems = int(finding.rows[k]), int(finding.seems[k])
        label, other = _label(look, row)[:24], _class(look, seems)[:24]
        lines.append(f"  {look.ids[row]:>12}  {label:24} {finding.given[k]:8.5f}  {other:24} {finding.top[k]:8.5f}")
    return lines


def _label(look: Look, row: int) -> str:
    return "" if look.labels is None else label_text(look.labels, row)


def _class(look: Look, c: int) -> str:
    return "" if look.labels is None or c == NO_CLASS else look.labels.class_name(c)
