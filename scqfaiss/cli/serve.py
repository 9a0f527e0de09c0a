"""scqfaiss serve."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from .arguments import FILE, say


def serve_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The galleries, and what can be said of how they are served."""
    options = [
        click.argument("galleries", nargs=-1, required=True, metavar="[NAME=]GALLERY..."),
        click.option(
            "--model", multiple=True, metavar="[NAME=]MODEL", help="Model of a gallery, where queries need it."
        ),
        click.option(
            "--items",
            multiple=True,
            metavar="[NAME=]FILE",
            help="What ids mean: .csv, .jsonl or .parquet with a column id.",
        ),
        click.option(
            "--onnx",
            multiple=True,
            metavar="[NAME=]FILE",
            help="Encoder of images (export-encoder): torch is not needed.",
        ),
        click.option("--images", type=FILE, help="Folder of the images that items name; nothing else is shown."),
        click.option(
            "--host", show_default="127.0.0.1", help="Address to listen on; any but loopback takes --api-key-file."
        ),
        click.option("--port", type=int, show_default="8080", help="0: any that is free."),
        click.option(
            "--workers", type=int, show_default="1", help="Processes; with --mmap they share the file's memory."
        ),
        click.option("--threads", type=int, show_default="the cores", help="Threads that search, of each worker."),
        click.option("--device", show_default="cpu", help="cpu, cuda or cuda:N."),
        click.option("--mmap", is_flag=True, help="Memory-map the codes, for galleries larger than memory."),
        click.option("--reload", type=float, show_default="2", help="Seconds between looks for a new file; 0: never."),
        click.option("--api-key-file", type=FILE, help="File of keys, one a line, that only its owner can read."),
        click.option(
            "--allow-host",
            multiple=True,
            metavar="NAME",
            help="A name that clients call the server by, as behind a proxy.",
        ),
        click.option("--allow-writes", is_flag=True, help="Let holders of a key append and remove."),
        click.option("--max-body", show_default="32MB", help="Largest request."),
        click.option(
            "--timeout", type=float, show_default="10", help="Seconds for a request to arrive, and for a search."
        ),
        click.option("--connections", type=int, show_default="1000", help="Open at a time, of each worker."),
        click.option("--queue", type=int, show_default="1000", help="Requests that may wait; more are answered 503."),
        click.option("--log", show_default="text", help="text or json, a line for each request, on stderr."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def plain(options: dict[str, Any]) -> dict[str, Any]:
    """Options as settings take them: names of files as text."""
    return {key: str(value) if key in ("images", "api_key_file") and value else value for key, value in options.items()}


@click.command()
@serve_options
def serve(galleries: tuple[str, ...], **options: Any) -> None:
    """Serve GALLERIES over HTTP: a JSON and a binary interface, metrics, and a page to search with."""
    from ..serving.run import serve as run

    run(galleries, say, **plain(options))
