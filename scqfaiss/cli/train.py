"""scqfaiss train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .arguments import FILE, ROWS, meter, parse_pairs, parse_settings, read_config, row_options, say


@click.command()
@click.argument("rows", type=ROWS)
@click.option("-o", "--out", type=FILE, required=True, help="Model file to write (.safetensors).")
@click.option(
    "--config", type=FILE, callback=read_config, is_eager=True, help="TOML file with defaults for these options."
)
@click.option("--method", default="scq", show_default=True, help="scq, dpq, phpq, mecoq, mopq, label, pq, opq or rq.")
@click.option("--bits", default=32, show_default=True, help="Bits of a code.")
@click.option("--nbits", default=8, show_default=True, help="Bits of one codebook; bits / nbits codebooks.")
@click.option(
    "--encoder",
    default="auto",
    show_default=True,
    help="mlp, linear or identity; of pictures squeezenet or package.module:factory; auto: as the method goes.",
)
@click.option(
    "--encoder-arg",
    "encoder_args",
    multiple=True,
    callback=parse_pairs,
    metavar="KEY=VALUE",
    help="An argument of that factory.",
)
@click.option("--weights", type=FILE, help="Weights that a network for pictures starts from (.safetensors or .pth).")
@click.option("--start", type=FILE, help="Model whose network stays as it is: train other codebooks alone (pictures).")
@click.option("--codebook-rows", type=ROWS, help="Rows without labels that the codebooks learn from.")
@click.option("--validation", type=ROWS, help="Rows that train nothing and say which epoch was best, and when to stop.")
@click.option("--patience", default=5, show_default=True, help="Epochs without a better one that end a stage; 0: none.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option("--precision", default="float32", show_default=True, help="float32, bfloat16 or float16, of the encoder.")
@click.option("--accumulate", default=1, show_default=True, help="Parts that a batch is cut into, to save memory.")
@click.option("--clip-norm", default=0.0, help="Largest norm of the gradients of a step; default: any.")
@click.option("--epochs", type=int, help="Epochs of every stage, instead of the method's own.")
@click.option("--batch-size", type=int, help="Rows of a training step, instead of the method's own.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 2**31 - 1))
@click.option(
    "--set", "settings", multiple=True, callback=parse_settings, metavar="KEY=VALUE", help="A method setting."
)
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint, in MODEL.checkpoints.")
@click.option("--checkpoints", type=FILE, help="Another folder for checkpoints.")
@click.option("--checkpoint-every", default=0, help="Steps from checkpoint to checkpoint; default: a minute.")
@click.option("--metrics", type=FILE, help="Write losses, learning rate and codeword use of each epoch as JSON lines.")
@click.option("--tensorboard", type=FILE, help="Write the same for TensorBoard into this folder.")
@click.option("--dry-run", is_flag=True, help="Say what would be done: steps, bytes, targets; write nothing.")
@row_options
def train(
    rows: Path,
    out: Path,
    config: Path,
    codebook_rows: Path,
    validation: Path,
    dry_run: bool,
    keys: dict[str, Any],
    **options: Any,
) -> None:
    """Train a quantizer on ROWS (HDF5, .npy, .fvecs, .bvecs, or pictures) and write the model.

    Pictures come as a folder with a sub-folder for each class, as a list (.csv, .jsonl), or in HDF5 (dataset images).

    On several processes: torchrun --nproc-per-node N -m scqfaiss train ...
    """
    from ..training import fitting as training

    request, traces = training.asked(options)
    more: dict[str, Any] = {"codebook_rows": codebook_rows, "validation": validation, "keys": keys}
    if dry_run:
        say(training.dry_run(rows, out, request, **more))
    else:
        say(training.train_file(rows, out, request, traces=traces, progress=meter, **more))
