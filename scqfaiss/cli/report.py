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
    """Draw RESULTS of benchmarks, files or folders that hold results.json, into one page that needs no network."""
    from ..report.page import write_report

    say(write_report(results, out, **options))
