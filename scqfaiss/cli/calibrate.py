"""scqfaiss calibrate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .arguments import FILE, ROWS, image_options, labelled_row_options, meter, say


@click.command()
@click.argument("model", type=FILE)
@click.argument("rows", type=ROWS)
@click.option("-o", "--out", type=FILE, show_default="MODEL itself", help="Model file to write (.safetensors).")
@image_options
@labelled_row_options
def calibrate(model: Path, rows: Path, **options: Any) -> None:
    """Learn from labelled ROWS what the scores of MODEL mean: rows that it was not trained on.

    Galleries that are exported then tell probabilities, and search takes --precision, --recall and --min-probability.
    Older galleries of MODEL do so with --model.
    """
    from ..training.calibrating import calibrate_file

    say(calibrate_file(model, rows, progress=meter, **options))
