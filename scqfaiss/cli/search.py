"""scqfaiss search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .arguments import FILE, ROWS, image_options, known_option, meter, row_options, say


@click.command()
@click.argument("gallery", type=FILE)
@click.argument("queries", type=ROWS)
@click.option("-k", type=int, show_default="10", help="Hits per query.")
@click.option("--threshold", type=float, help="All hits with a better score than this, instead of -k.")
@click.option("--precision", type=float, help="All hits, as many as leave this share of them right, e.g. 0.9.")
@click.option("--recall", type=float, help="As few hits as find this share of the rows of a query's class.")
@click.option("--min-probability", type=float, help="All hits that are of the query's class with this probability.")
@click.option(
    "--confidence",
    type=float,
    show_default="0.9",
    help="How sure --precision and --recall are to be kept; 0.5: as sure as not.",
)
@click.option("-o", "--out", type=FILE, help="Write scores and ids to this HDF5 file.")
@click.option("--model", type=FILE, help="Model of the gallery; needed where the encoder is not inside the gallery.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
@click.option("--filter-ids", help="Find only these ids: 1,2,3 or a file (text, .npy, or rows with ids).")
@click.option("--deny-ids", help="Never find these ids; given as for --filter-ids.")
@click.option("--nprobe", type=int, help="Lists to visit, where the gallery has lists.")
@click.option(
    "--items", type=FILE, help="What ids mean: a .csv, .jsonl or .parquet file with id, title, label and image."
)
@click.option("--mmap", is_flag=True, help="Memory-map the codes, for galleries larger than memory.")
@known_option
@image_options
@row_options
def search(gallery: Path, queries: Path, **options: Any) -> None:
    """Search GALLERY with the rows of QUERIES, or with images: a file or a folder of them."""
    from ..galleries.searching import search_file

    say(search_file(gallery, queries, progress=meter, **options))
