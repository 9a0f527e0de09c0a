"""`scqfaiss compare-growth` over a folder: time and memory of a search against the number of rows.

    python benchmarks/scale.py DATA/cifar10_setting1 --baseline --out results/scale

DATA holds train.h5, query.h5 and database.h5; otherwise this takes the options of `scqfaiss compare-growth`.
"""

import sys
from pathlib import Path
from typing import Any

import click

from scqfaiss.cli.arguments import compared_row_options
from scqfaiss.cli.compare import INPUTS, options_of
from scqfaiss.comparison.growth import compare_growth
from scqfaiss.comparison.options import GrowthOptions
from scqfaiss.errors import ScqError
from scqfaiss.progress import to_stderr


@click.command("compare-growth")
@click.argument("data", type=click.Path(exists=True, file_okay=False, path_type=Path))
@options_of(GrowthOptions, leave_out=INPUTS)
@compared_row_options
def scale(data: Path, keys: dict[str, Any], **options: Any) -> None:
    """Measure searches of growing galleries of rows like those of DATA."""
    files: dict[str, Any] = {name: data / f"{name}.h5" for name in INPUTS}
    click.echo(compare_growth(GrowthOptions(**files, **options), to_stderr, keys=keys))


if __name__ == "__main__":
    try:
        scale()
    except ScqError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(error.exit_code)
