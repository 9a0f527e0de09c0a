"""Commands that look at a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .arguments import FILE, labelled_row_options, say


@click.command()
@click.argument("file", type=FILE)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@labelled_row_options
def info(file: Path, as_json: bool, keys: dict[str, Any]) -> None:
    """Describe a gallery, a model or a file of rows."""
    from ..galleries.inspection import describe_file

    say(describe_file(file, as_json, keys))


@click.command()
@click.argument("file", type=FILE)
def verify(file: Path) -> None:
    """Check a gallery or a model: checksum, structure, metadata. Exit code 3 if anything is wrong."""
    from ..galleries.inspection import verify_file

    say(verify_file(file))
