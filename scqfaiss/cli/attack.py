"""scqfaiss attack; the options are made from the fields of attack.options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..attack.options import AttackOptions
from .arguments import FILE, ROWS, evaluated_row_options, image_options, meter, say
from .compare import options_of


@click.command()
@click.argument("model", type=FILE)
@click.argument("queries", type=ROWS)
@click.argument("database", type=ROWS)
@options_of(AttackOptions)
@image_options
@evaluated_row_options
def attack(model: Path, queries: Path, database: Path, keys: Any, inference_options: Any, **values: Any) -> None:
    """Change labelled QUERIES a little, so that a search with MODEL finds something else in DATABASE, and measure what is left.

    Rows are changed within a ball around them, images within a few steps of each pixel. Neither MODEL nor DATABASE changes.
    Writes OUT/results.json, for `scqfaiss report OUT`; an interrupted run goes on with the same command.
    """
    options = AttackOptions(**values)
    from ..attack.attacking import attack_files

    say(attack_files(model, queries, database, options, keys=keys, inference_options=inference_options, progress=meter))
