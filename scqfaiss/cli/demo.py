"""scqfaiss demo."""

from __future__ import annotations

from pathlib import Path

import click

from .arguments import FILE, meter, say


@click.command()
@click.option(
    "-o", "--out", type=FILE, default=Path("scqfaiss-demo"), show_default=True, help="Folder for the results."
)
def demo(out: Path) -> None:
    """Train, export, search and compare on the handwritten digits inside the package; under a minute."""
    from ..demo.digits import run

    run(out, say, meter)
