"""scqfaiss train: its options are the fields of options.TrainOptions and options.RunOptions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

import click

from ..methods import REGISTRY as METHODS
from ..options import RunOptions, TrainOptions, parse_request
from .arguments import FILE, ROWS, meter, parse_pairs, parse_settings, read_config, say, trained_row_options
from .groups import grouped

# Options that are given as KEY=VALUE, many times: their name on the command line, and what reads them.
MAPPINGS = {"encoder_args": ("--encoder-arg", parse_pairs), "settings": ("--set", parse_settings)}
# Headings of the help, and what stands below each; the rest comes last.
GROUPS = {
    "Rows": (
        *(
            "codebook_rows",
            "unlabelled",
            "validation",
            "without",
            "calibrate",
            "labels_file",
            "validation_labels",
            "calibrate_labels",
            "features_key",
            "labels_key",
        ),
        *("ids_key", "scale", "skip_bad_rows", "allow_duplicate_ids", "workers", "verbose"),
    ),
    "Codes": ("method", "bits", "nbits", "lists", "content_bits", "settings"),
    "Encoder": ("encoder", "encoder_args", "weights", "start"),
    "Training": (
        *(
            "epochs",
            "batch_size",
            "patience",
            "robust",
            "forecast",
            "seed",
            "device",
            "precision",
            "accumulate",
            "clip_norm",
        ),
    ),
    "Traces": ("resume", "checkpoints", "checkpoint_every", "metrics", "tensorboard"),
}
TYPES = {"int": int, "float": float, "str": str, "bool": bool, "PathLike": FILE}


def option_of(f: Field[Any]) -> Callable[..., Any]:
    """The click option of a field: type, default and help are the field's; {methods} in the help stands for
    the names of all methods."""
    text = f.metadata["help"].format(methods=", ".join(METHODS))
    if f.name in MAPPINGS:
        name, read = MAPPINGS[f.name]
        return click.option(name, f.name, multiple=True, callback=read, metavar=f.metadata["metavar"], help=text)
    flag = "--" + f.name.replace("_", "-")
    kind = TYPES[str(f.type).partition(" | ")[0]]
    if kind is bool:
        return click.option(flag, is_flag=True, help=text)
    default = None if f.default is MISSING else f.default
    show_default = f.metadata.get("shown_default", default is not None)
    return click.option(flag, default=default, type=kind, show_default=show_default, help=text)


def train_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for f in reversed([*fields(TrainOptions), *fields(RunOptions)]):
        command = option_of(f)(command)
    return command


@grouped(GROUPS)
@click.argument("rows", type=ROWS)
@click.option("-o", "--out", type=FILE, required=True, help="Model file to write (.safetensors).")
@click.option(
    "--config", type=FILE, callback=read_config, is_eager=True, help="TOML file with defaults for these options."
)
@click.option("--codebook-rows", type=ROWS, help="Rows without labels that the codebooks learn from.")
@click.option("--unlabelled", type=ROWS, help="Rows without labels that the features learn from too, where that helps.")
@click.option("--validation", type=ROWS, help="Held-out rows that choose the best epoch and stop the training early.")
@click.option("--without", type=FILE, help="Leave out the rows that this file names: see check -o; or a file of ids.")
@click.option(
    "--calibrate", type=ROWS, help="Held-out labelled rows that tell what scores mean, see scqfaiss calibrate."
)
@train_options
@click.option("--dry-run", is_flag=True, help="Print what would be done (steps, bytes, targets) and write nothing.")
@trained_row_options
def train(
    rows: Path,
    out: Path,
    config: Path,
    codebook_rows: Path,
    unlabelled: Path,
    validation: Path,
    without: Path,
    calibrate: Path,
    dry_run: bool,
    keys: dict[str, Any],
    **options: Any,
) -> None:
    """Train a quantizer on ROWS (HDF5, .parquet, .npz, .npy, .fvecs, .bvecs, a folder of these, or images) and write the model.

    Images come as a folder with a sub-folder for each class, as a list (.csv, .jsonl), or in HDF5 (dataset images).

    On several processes: torchrun --nproc-per-node N -m scqfaiss train ...
    """
    from ..training import dry_run as plans
    from ..training.interface import train_file

    request, run = parse_request(options)
    more: dict[str, Any] = {"codebook_rows": codebook_rows, "unlabelled": unlabelled, "validation": validation}
    more |= {"without": without, "calibrate": calibrate, "keys": keys}
    if dry_run:
        say(plans.dry_run(rows, out, request, **more))
    else:
        say(train_file(rows, out, request, run=run, progress=meter, **more))
