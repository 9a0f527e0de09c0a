"""Commands about encoders of images: their features as rows, and ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .arguments import FILE, ROWS, meter, parse_pairs, row_options, say


@click.command()
@click.argument("images", type=ROWS)
@click.option("-o", "--out", type=FILE, required=True, help="File of rows to write (.h5).")
@click.option(
    "--encoder",
    help="Network: squeezenet or package.module:factory; with --model, the factory that the model may import.",
)
@click.option(
    "--encoder-arg",
    "encoder_args",
    multiple=True,
    callback=parse_pairs,
    metavar="KEY=VALUE",
    help="An argument of that factory.",
)
@click.option("--weights", type=FILE, help="Its weights (.safetensors or .pth).")
@click.option(
    "--set", "settings", multiple=True, callback=parse_pairs, metavar="KEY=VALUE", help="Its size, fit, layers or pool."
)
@click.option("--model", type=FILE, help="Take the network of this model instead.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option("--precision", default="float32", show_default=True, help="float32 or bfloat16, of the network.")
@click.option("--dtype", default="float32", show_default=True, help="float32 or float16, of the features in the file.")
@click.option("--resume", is_flag=True, help="Go on from the finished parts, in OUT.parts.")
@click.option("--part", "part_rows", default=1024, show_default=True, type=click.IntRange(1), help="Images of a part.")
@row_options
def features(images: Path, out: Path, encoder: str | None, device: str, precision: str, **options: Any) -> None:
    """Run a network on IMAGES (a folder, a list, HDF5, or one image) and write its features as rows."""
    from ..features.files import features_file
    from ..features.source import InferenceOptions

    say(
        features_file(
            images, out, inference_options=InferenceOptions(encoder, device, precision), progress=meter, **options
        )
    )


@click.command("export-encoder")
@click.argument("model", type=FILE)
@click.option("-o", "--out", type=FILE, required=True, help="File to write (.onnx).")
@click.option(
    "--encoder",
    metavar="MODULE:FACTORY",
    help="Network factory that the model may import; needed where the network is not part of scqfaiss.",
)
def export_encoder(model: Path, out: Path, encoder: str | None) -> None:
    """Write the encoder of MODEL as ONNX: images or rows in, query vectors for its galleries out."""
    from ..galleries import onnx_export as portable

    say(portable.export_encoder(model, out, encoder=encoder))
