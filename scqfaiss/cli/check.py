"""scqfaiss check."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .arguments import FILE, ROWS, labelled_row_options, meter, say


@click.command()
@click.argument("rows", type=ROWS)
@click.argument("others", type=ROWS, nargs=-1)
@click.option("-o", "--out", type=FILE, help="File for the rows to leave out (.csv), for train --without.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--quick", is_flag=True, help="Train no classifiers: labels are not judged.")
@labelled_row_options
def check(
    rows: Path, others: tuple[Path, ...], out: Path | None, as_json: bool, quick: bool, keys: dict[str, Any]
) -> None:
    """Look for what stands in the way of a training on ROWS: wrong labels, contradictions, NaN, small classes and the like.

    OTHERS are files of queries, or of a gallery: rows of ROWS that stand in them, too, are named. ROWS are read, and
    never changed.
    """
    from ..checking.check import check_file

    say(check_file(rows, others, out, as_json, quick=quick, keys=keys, progress=meter))
