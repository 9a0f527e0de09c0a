"""Commands that write galleries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..targets import REGISTRY as TARGETS
from .arguments import FILE, PIECES, ROWS, image_options, meter, row_options, say, target_options


@click.command()
@click.argument("model", type=FILE)
@click.argument("rows", type=PIECES, nargs=-1, required=True)
@click.option("-o", "--out", type=FILE, required=True, help="Gallery to write: .faissindex, or a folder .shards.")
@click.option("--shards", type=int, help="Write so many files of about as many rows into the folder .shards.")
@click.option("--rows-per-shard", type=int, show_default="10000000", help="Rows of each file in the folder .shards.")
@click.option("--target", help=f"FAISS container: {', '.join(TARGETS)}; default: ivfpq or lift.")
@click.option("--bits", type=int, help="Use only the first BITS of every code; needs a method with nested codes (dpq).")
@click.option(
    "--positions",
    is_flag=True,
    help="Ids 0 to n - 1, for programs that count rows; the rows' own go into NAME.ids.npy.",
)
@target_options
@click.option("--dry-run", is_flag=True, help="Say what would be written; write nothing.")
@image_options
@row_options
def export(model: Path, rows: tuple[Path, ...], out: Path, dry_run: bool, **options: Any) -> None:
    """Encode ROWS, or images, with MODEL into one plain FAISS file, or several. ROWS may be files, globs and folders of them."""
    from ..galleries import exporting

    if dry_run:
        say(exporting.export_plan(model, rows, out, **options))
    else:
        say(exporting.export_file(model, rows, out, progress=meter, **options))


@click.command()
@click.argument("gallery", type=FILE)
@click.argument("rows", type=ROWS)
@click.option("--model", type=FILE, help="Model of the gallery; needed where the encoder is not inside the gallery.")
@image_options
@row_options
def append(gallery: Path, rows: Path, **options: Any) -> None:
    """Encode ROWS, or images, and add them to GALLERY. Rows without ids get the numbers after the largest id."""
    from ..galleries.editing import append_file

    say(append_file(gallery, rows, progress=meter, **options))


@click.command()
@click.argument("gallery", type=FILE)
@click.option("--ids", required=True, help="Ids to remove: 1,2,3 or a file (text, .npy, or rows with ids).")
def remove(gallery: Path, ids: str) -> None:
    """Take vectors out of GALLERY by their ids."""
    from ..galleries.editing import remove_file

    say(remove_file(gallery, ids))


@click.command()
@click.argument("galleries", type=FILE, nargs=-1, required=True)
@click.option("-o", "--out", type=FILE, required=True, help="Gallery to write (.faissindex).")
def merge(galleries: tuple[Path, ...], out: Path) -> None:
    """Join GALLERIES of one model and one target into one."""
    from ..galleries.editing import merge_files

    say(merge_files(galleries, out))
