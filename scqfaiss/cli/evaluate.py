"""scqfaiss evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .arguments import FILE, ROWS, evaluated_row_options, image_options, known_option, meter, say


@click.command()
@click.argument("gallery", type=FILE)
@click.argument("queries", type=ROWS)
@click.argument("database", type=ROWS, required=False)
@click.option("--model", type=FILE, help="Model of the gallery; needed where the encoder is not inside the gallery.")
@click.option("--at", type=int, help="Use only the first R ranks; default: the whole gallery.")
@click.option(
    "--promises", is_flag=True, help="Check what a calibrated gallery promises: precision, recall, probabilities."
)
@click.option("--confidence", type=float, default=0.9, show_default=True, help="Of the promises that are checked.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@known_option
@image_options
@evaluated_row_options
def evaluate(gallery: Path, queries: Path, database: Path | None, as_json: bool, **options: Any) -> None:
    """Measure how well GALLERY ranks DATABASE for QUERIES: tie-aware mAP, precision and recall by labels.

    Without DATABASE or labels, the right answer of a query is the vector with its own id: recall and mean reciprocal rank.
    """
    from ..evaluation.files import evaluate_file, report_text

    say(report_text(evaluate_file(gallery, queries, database, progress=meter, **options), as_json))
