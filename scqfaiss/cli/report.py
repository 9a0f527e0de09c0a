"""scqfaiss report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .arguments import FILE, say


@click.command()
@click.argument("results", type=FILE, nargs=-1, required=True)
@click.option("-o", "--out", type=FILE, required=True, help="Page to write (.html).")
@click.option("--png", type=FILE, metavar="FOLDER", help="Write every chart as a PNG file into this folder, too.")
@click.option("--title", help="Heading of the page; default: the names of the results.")
def report(results: tuple[Path, ...], out: Path, **options: Any) -> None:
    """Turn benchmark RESULTS (results.json, or folders that hold one) into one self-contained HTML page."""
    from ..report.page import write_report

    say(write_report(results, out, **options))
