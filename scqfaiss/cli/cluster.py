"""Commands that run on a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ..targets import REGISTRY as TARGETS
from .arguments import FILE, PIECES, ROWS, known_option, meter, row_options, say, target_options
from .serve import plain, serve_options


@click.group()
def cluster() -> None:
    """Export, search and serve folders of shards on a Ray cluster (pip install "scqfaiss[ray]")."""


def cluster_options(command: Callable[..., Any]) -> Callable[..., Any]:
    address = click.option(
        "--address",
        show_default="RAY_ADDRESS, or this machine",
        help="The cluster: auto for the one here, or HOST:PORT.",
    )
    return address(command)


def actor_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option(
            "--cpus", default=0.0, show_default=True, help="CPUs that each actor reserves, and searches with."
        ),
        click.option(
            "--hedge", default=1.0, show_default=True, help="Seconds after which a second replica is asked, too."
        ),
        click.option("--replicas", default=2, show_default=True, help="Actors that hold each shard."),
    ):
        command = option(command)
    return cluster_options(command)


@cluster.command()
@click.argument("model", type=FILE)
@click.argument("rows", type=PIECES, nargs=-1, required=True)
@click.option("-o", "--out", type=FILE, required=True, help="Folder to write (.shards), which all nodes see.")
@click.option("--shards", type=int, help="Write so many files of about as many rows.")
@click.option("--rows-per-shard", type=int, show_default="10000000", help="Rows of each file.")
@click.option("--target", help=f"FAISS container: {', '.join(TARGETS)}; default: ivfpq or lift.")
@click.option("--bits", type=int, help="Use only the first BITS of every code; needs a method with nested codes (dpq).")
@click.option("--cpus", default=1.0, show_default=True, help="CPUs that a shard reserves while it is built.")
@cluster_options
@target_options
@row_options
def export(model: Path, rows: tuple[Path, ...], out: Path, **options: Any) -> None:
    """Encode ROWS (files, globs, folders) with MODEL into a folder of shards; shards that are there already are kept."""
    from ..cluster.exporting import export_cluster

    say(export_cluster(model, rows, out, progress=meter, **options))


@cluster.command()
@click.argument("gallery", type=FILE)
@click.argument("queries", type=ROWS)
@click.option("-k", type=int, show_default="10", help="Hits per query.")
@click.option("--threshold", type=float, help="All hits with a better score than this, instead of -k.")
@click.option("-o", "--out", type=FILE, help="Write scores and ids to this HDF5 file.")
@click.option("--model", type=FILE, help="Model of the gallery; needed where the encoder is not inside the gallery.")
@click.option("--partial", "allow_missing", is_flag=True, help="Answer without shards that are lost, and name them.")
@click.option("--filter-ids", help="Find only these ids: 1,2,3 or a file (text, .npy, or rows with ids).")
@click.option("--deny-ids", help="Never find these ids; given as for --filter-ids.")
@click.option("--nprobe", type=int, help="Lists to visit, where the gallery has lists.")
@click.option("--mmap", is_flag=True, help="Memory-map the codes, for shards larger than the memory of a node.")
@actor_options
@known_option
@row_options
def search(gallery: Path, queries: Path, **options: Any) -> None:
    """Search GALLERY, a folder of shards, with the rows of QUERIES; each shard is open in several actors."""
    from ..cluster.searching import search_cluster

    say(search_cluster(gallery, queries, progress=meter, **options))


@cluster.command()
@actor_options
@serve_options
def serve(galleries: tuple[str, ...], **options: Any) -> None:
    """Serve GALLERIES, folders of shards, over HTTP as scqfaiss serve does; each shard is open in several actors."""
    from ..cluster.searching import serve_cluster

    serve_cluster(galleries, say, **plain(options))
