"""scqfaiss demo."""

from __future__ import annotations

from pathlib import Path

import click

from .arguments import FILE, meter, say


@click.command()
@click.option(
    "-o", "--out", type=FILE, default=Path("scqfaiss-demo"), show_default=True, help="Folder for the results."
)
@click.option("--serve", is_flag=True, help="Train once, and serve a page to search the digits with, until Ctrl-C.")
@click.option("--port", type=int, show_default="8080", help="Port of --serve; 0: any that is free.")
def demo(out: Path, serve: bool, port: int | None) -> None:
    """Train, export, search and compare on the handwritten digits inside the package; under a minute."""
    if serve:
        from ..demo.page import serve_digits

        serve_digits(out, say, meter, port)
    else:
        from ..demo.digits import run

        run(out, say, meter)
