"""scqfaiss extend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..methods.list_counts import PER_NEW_CLASS
from ..options import TrainOptions
from .arguments import FILE, ROWS, labelled_row_options, meter, say


@click.command()
@click.argument("model", type=FILE)
@click.argument("rows", type=ROWS)
@click.option("-o", "--out", type=FILE, required=True, help="Model file to write (.safetensors).")
@click.option("--lists", default=PER_NEW_CLASS, type=int, show_default=True, help="Lists for each new class.")
@click.option("--seed", default=TrainOptions.seed, type=int, show_default=True, help="Seed of everything random.")
@labelled_row_options
def extend(model: Path, rows: Path, out: Path, **options: Any) -> None:
    """Teach MODEL the classes of ROWS, 2 rows or more of each, without a new encoder.

    Old codes stay: galleries of MODEL are searched with the new model, and append takes them over.
    """
    from ..training.extending import extend_file

    say(extend_file(model, rows, out, progress=meter, **options))
