"""`scqfaiss compare-growth` over a folder: time and memory of a search against the number of rows.

    python benchmarks/scale.py DATA/cifar10_setting1 --baseline --out results/scale

DATA holds train.h5, query.h5 and database.h5; otherwise this takes the options of `scqfaiss compare-growth`.
"""

import sys
from pathlib import Path
from typing import Any

import click

from scqfaiss.cli.compare import INPUTS, compare_growth, options_of
from scqfaiss.comparison.options import GrowthOptions
from scqfaiss.errors import ScqError


@click.command("compare-growth")
@click.argument("data", type=click.Path(exists=True, file_okay=False, path_type=Path))
@options_of(GrowthOptions, leave_out=INPUTS)
def scale(data: Path, **options: Any) -> None:
    """Measure searches of growing galleries of rows like those of DATA."""
    compare_growth.callback(**{name: data / f"{name}.h5" for name in INPUTS}, **options)


if __name__ == "__main__":
    try:
        scale()
    except ScqError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(error.exit_code)
