"""The commands. Options in, one call, no logic; imports are inside, so that --help loads neither torch nor faiss."""

from __future__ import annotations

import errno
import os
import sys
import tomllib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click

from .. import __version__, signals
from ..dependencies import missing
from ..errors import ConfigError, ScqError, ScqWarning, shown
from ..files import open_regular
from ..progress import Meter, to_stderr


class FileName(click.Path):
    """A file name; a configuration file may put anything else in its place."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, (str, os.PathLike)) or "\0" in os.fsdecode(value):
            self.fail(f"{value!r} is no file name", param, ctx)
        return super().convert(value, param, ctx)


class RowsName(FileName):
    """The name of a file of rows or of pictures: whether it can be one is told before anything heavy is loaded."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from ..data.kinds import check_kind

        path = super().convert(value, param, ctx)
        check_kind(path)
        return path


FILE, ROWS = FileName(path_type=Path), RowsName(path_type=Path)
meter = Meter()


def gathering(
    command: Callable[..., Any], options: list[Any], name: str, parts: tuple[str, ...], make: Callable[..., Any]
) -> Callable[..., Any]:
    """A command with more options, which arrive as one argument `name`, make(**parts)."""

    @click.pass_context
    def gathered(context: click.Context, /, **values: Any) -> Any:
        given = make(**{part: values.pop(part) for part in parts})
        return context.invoke(command, **{name: given}, **values)

    gathered.__name__, gathered.__doc__ = command.__name__, command.__doc__
    gathered.__click_params__ = list(getattr(command, "__click_params__", []))  # type: ignore[attr-defined]
    for option in reversed(options):
        gathered = option(gathered)
    return gathered


def row_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of every command that reads rows; they arrive as one dictionary, `keys`."""
    options = [
        click.option(
            "--features-key",
            show_default="features; in a file of pairs queries or keys",
            help="Dataset of the features in HDF5; of pairs to train on, two: queries,keys.",
        ),
        click.option("--labels-key", show_default="labels", help="Dataset of the labels in HDF5."),
        click.option("--ids-key", show_default="ids", help="Dataset of the ids in HDF5."),
        click.option(
            "--skip-bad-rows", is_flag=True, help="Leave out rows that hold NaN or infinity, and bad pictures."
        ),
        click.option("--allow-duplicate-ids", is_flag=True, help="Take ids that stand more than once."),
        click.option("-v", "--verbose", is_flag=True, help="Tell of HDF5 datasets without checksums too."),
        click.option("--workers", default=0, help="Threads that decode pictures; default: one for each core."),
    ]

    def given(**values: Any) -> dict[str, Any]:
        return {name: value for name, value in values.items() if value is not None}

    names = ("features_key", "labels_key", "ids_key", "skip_bad_rows", "allow_duplicate_ids", "verbose", "workers")
    return gathering(command, options, "keys", names, given)


def picture_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of commands that show pictures to a model's network; they arrive as one features.Seeing, `seeing`."""
    options = [
        click.option(
            "--encoder",
            metavar="MODULE:FACTORY",
            help="Network that the model may have built; needed for foreign ones.",
        ),
        click.option("--encoder-device", default="auto", show_default=True, help="Where it runs: auto, cpu or cuda."),
        click.option("--encoder-precision", default="float32", show_default=True, help="float32 or bfloat16."),
    ]

    def seeing(**given: Any) -> Any:
        from ..features.source import Seeing

        return Seeing(*given.values())

    return gathering(command, options, "seeing", ("encoder", "encoder_device", "encoder_precision"), seeing)


def read_config(context: click.Context, _: click.Parameter, path: Path | None) -> Path | None:
    """Defaults from a TOML file: option names as keys, and a table [set] for the method's settings."""
    if path is None:
        return None
    try:
        with open_regular(path, ConfigError) as f:
            values = tomllib.loads(f.read().decode("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{shown(path)}: not a readable TOML file ({' '.join(str(error).split())})") from error
    table = values.pop("set", {})
    known = {str(p.name): p for p in context.command.params if isinstance(p, click.Option)}
    for key, value in values.items():
        option = known.get(key.replace("-", "_"))
        if option is None or option.name in ("config", "settings"):
            raise ConfigError(f"{shown(path)}: unknown key '{key}'; method settings go into a table [set]")
        if isinstance(option.type, click.types.IntParamType) and type(value) not in (int, str):
            raise ConfigError(f"{shown(path)}: {key} is {value!r}, needs a whole number")  # click would round it
        if isinstance(option.type, click.types.FloatParamType) and type(value) not in (int, float, str):
            raise ConfigError(f"{shown(path)}: {key} is {value!r}, needs a number")
    if not isinstance(table, dict):
        raise ConfigError(f"{shown(path)}: set is {table!r}, needs a table [set]")
    context.default_map = {key.replace("-", "_"): value for key, value in values.items()}
    context.meta["scqfaiss.set"] = table
    return path


def parse_pairs(context: click.Context, option: click.Parameter, pairs: tuple[str, ...]) -> dict[str, str]:
    out = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f"{option.opts[0]} is '{shown(pair)}', needs key=value")
        out[key.strip()] = value.strip()
    return out


def parse_settings(context: click.Context, _: click.Parameter, pairs: tuple[str, ...]) -> dict[str, Any]:
    table: dict[str, Any] = context.meta.get("scqfaiss.set", {})
    return table | parse_pairs(context, _, pairs)


def say(text: str) -> None:
    """What a command found; of several processes the first one speaks. What stands in files reaches no terminal raw."""
    if text:
        click.echo("\n".join(shown(line) for line in text.split("\n")))


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="scqfaiss")
def cli() -> None:
    """Label-aware codes for FAISS: train with labels, export one plain FAISS file, search it anywhere."""


@cli.command()
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


@cli.command()
@click.argument("model", type=FILE)
@click.argument("rows", type=ROWS)
@click.option("-o", "--out", type=FILE, required=True, help="Gallery to write (.faissindex).")
@click.option("--target", help="FAISS container: ivfpq, pq, fastscan, buckets, lift, residual; default: ivfpq or lift.")
@click.option("--bits", type=int, help="Only so many bits of every code; for methods with nested codes (dpq).")
@click.option("--nlist", default=0, help="Inverted lists of ivfpq (default 1: exact) or buckets.")
@click.option("--nprobe", default=0, help="Lists that a search visits unless it says otherwise.")
@click.option("--refine", default=0, help="Candidates per hit that fastscan scores again exactly; -1: none.")
@click.option("--dry-run", is_flag=True, help="Say what would be written; write nothing.")
@picture_options
@row_options
def export(model: Path, rows: Path, out: Path, dry_run: bool, **options: Any) -> None:
    """Encode ROWS, or pictures, with MODEL into one plain FAISS file."""
    from ..galleries import exporting

    if dry_run:
        say(exporting.export_plan(model, rows, out, **options))
    else:
        say(exporting.export_file(model, rows, out, progress=meter, **options))


@cli.command()
@click.argument("gallery", type=FILE)
@click.argument("rows", type=ROWS)
@click.option("--model", type=FILE, help="Model of the gallery, where its encoder is not inside the file.")
@picture_options
@row_options
def append(gallery: Path, rows: Path, **options: Any) -> None:
    """Encode ROWS, or pictures, and add them to GALLERY. Rows without ids are numbered on from the largest id there is."""
    from ..galleries.editing import append_file

    say(append_file(gallery, rows, progress=meter, **options))


@cli.command()
@click.argument("gallery", type=FILE)
@click.option("--ids", required=True, help="Ids to remove: 1,2,3 or a file (text, .npy, or rows with ids).")
def remove(gallery: Path, ids: str) -> None:
    """Take vectors out of GALLERY by their ids."""
    from ..galleries.editing import remove_file

    say(remove_file(gallery, ids))


@cli.command()
@click.argument("galleries", type=FILE, nargs=-1, required=True)
@click.option("-o", "--out", type=FILE, required=True, help="Gallery to write (.faissindex).")
def merge(galleries: tuple[Path, ...], out: Path) -> None:
    """Join GALLERIES of one model and one target into one."""
    from ..galleries.editing import merge_files

    say(merge_files(galleries, out))


@cli.command()
@click.argument("gallery", type=FILE)
@click.argument("queries", type=ROWS)
@click.option("-k", default=10, show_default=True, help="Hits per query.")
@click.option("--threshold", type=float, help="All hits with a better score than this, instead of -k.")
@click.option("-o", "--out", type=FILE, help="Write scores and ids to this HDF5 file.")
@click.option("--model", type=FILE, help="Model of the gallery, where its encoder is not inside the file.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
@click.option("--filter-ids", help="Find only these ids: 1,2,3 or a file (text, .npy, or rows with ids).")
@click.option("--deny-ids", help="Never find these ids; given as for --filter-ids.")
@click.option("--nprobe", type=int, help="Lists to visit, where the gallery has lists.")
@click.option("--mmap", is_flag=True, help="Leave codes in the file: for galleries larger than memory.")
@picture_options
@row_options
def search(gallery: Path, queries: Path, **options: Any) -> None:
    """Search GALLERY with the rows of QUERIES, or with pictures: a file or a folder of them."""
    from ..galleries.gallery import search_file

    say(search_file(gallery, queries, progress=meter, **options))


@cli.command()
@click.argument("gallery", type=FILE)
@click.argument("queries", type=ROWS)
@click.argument("database", type=ROWS, required=False)
@click.option("--model", type=FILE, help="Model of the gallery, where its encoder is not inside the file.")
@click.option("--at", type=int, help="Count ranks 1 to R only; default: the whole gallery.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@picture_options
@row_options
def evaluate(gallery: Path, queries: Path, database: Path | None, as_json: bool, **options: Any) -> None:
    """Hold the ranking of GALLERY against the labels of QUERIES and DATABASE: tie-aware mAP, precision, recall.

    Without DATABASE, or without labels, a query belongs to the vector of its own id: recall and mean reciprocal rank.
    """
    from ..evaluation.files import evaluate_file, report_text

    say(report_text(evaluate_file(gallery, queries, database, progress=meter, **options), as_json))


@cli.command()
@click.argument("images", type=ROWS)
@click.option("-o", "--out", type=FILE, required=True, help="File of rows to write (.h5).")
@click.option("--encoder", help="Network: squeezenet or package.module:factory; with --model, a foreign one to allow.")
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
@click.option(
    "--part", "part_rows", default=1024, show_default=True, type=click.IntRange(1), help="Pictures of a part."
)
@row_options
def features(images: Path, out: Path, encoder: str | None, device: str, precision: str, **options: Any) -> None:
    """See IMAGES (a folder, a list, HDF5, or a picture) with a network and write what it sees as rows."""
    from ..features.files import features_file
    from ..features.source import Seeing

    say(features_file(images, out, seeing=Seeing(encoder, device, precision), progress=meter, **options))


@cli.command("export-encoder")
@click.argument("model", type=FILE)
@click.option("-o", "--out", type=FILE, required=True, help="File to write (.onnx).")
@click.option(
    "--encoder", metavar="MODULE:FACTORY", help="Network that the model may have built; needed for foreign ones."
)
def export_encoder(model: Path, out: Path, encoder: str | None) -> None:
    """Write the encoder of MODEL as ONNX: pictures, or rows, in; what galleries are searched with out."""
    from ..galleries import onnx_export as portable

    say(portable.export_encoder(model, out, encoder=encoder))


@cli.command()
@click.argument("file", type=FILE)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@row_options
def info(file: Path, as_json: bool, keys: dict[str, Any]) -> None:
    """Describe a gallery, a model or a file of rows."""
    from ..galleries.inspection import describe_file

    say(describe_file(file, as_json, keys))


@cli.command()
@click.argument("file", type=FILE)
def verify(file: Path) -> None:
    """Check a gallery or a model: checksum, structure, card. Exit code 3 where anything is wrong."""
    from ..galleries.gallery import verify_file

    say(verify_file(file))


@cli.command()
@click.argument("results", type=FILE, nargs=-1, required=True)
@click.option("-o", "--out", type=FILE, required=True, help="Page to write (.html).")
@click.option("--png", type=FILE, metavar="FOLDER", help="Write every chart as a PNG file into this folder, too.")
@click.option("--title", help="Heading of the page; default: the names of the results.")
def report(results: tuple[Path, ...], out: Path, **options: Any) -> None:
    """Draw RESULTS of benchmarks, files or folders that hold results.json, into one page that needs no network."""
    from ..report.page import write_report

    say(write_report(results, out, **options))


@cli.command()
@click.option(
    "-o", "--out", type=FILE, default=Path("scqfaiss-demo"), show_default=True, help="Folder for the results."
)
def demo(out: Path) -> None:
    """Train, export, search and compare on the handwritten digits inside the package; under a minute."""
    from ..demo.digits import run

    run(out, say, meter)


from . import compare as _compare  # noqa: E402, F401  (its commands stand in a file of their own)


def show_warning(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
    """A ScqWarning as one line; any other warning in Python's own form."""
    meter.close()
    if issubclass(category, ScqWarning):
        to_stderr(f"Warning: {one_line(str(message))}")
    else:
        lines = warnings.formatwarning(message, category, *rest[:2]).split("\n")
        to_stderr("\n".join(map(shown, lines)), nl=False)


def one_line(message: str) -> str:
    """A message as one printable line, whatever names and texts out of files stand in it."""
    return shown(" ".join(message.splitlines()))


def run(arguments: list[str] | None = None) -> int:
    """One command -> its exit code: 0; 2, 3, 4, 5 (see errors.py); 130 stopped. Errors are one line on stderr."""
    try:
        try:
            cli.main(arguments, prog_name="scqfaiss", standalone_mode=False)
        except Exception as error:
            lacking = missing(error)
            if lacking is None:
                raise
            raise lacking from error
        if sys.stdout is not None:
            sys.stdout.flush()
        return 0
    except ScqError as error:
        return fail(str(error), error.exit_code, error)
    except click.exceptions.NoArgsIsHelpError as error:
        to_stderr(error.format_message())
        return 2
    except click.ClickException as error:
        return fail(error.format_message(), 2, error)
    except (KeyboardInterrupt, click.exceptions.Abort):
        return fail(signals.MESSAGE, signals.STOPPED)
    except MemoryError as error:
        return fail("out of memory; use smaller batches or fewer rows", 5, error)
    except SystemExit as error:  # click's answer to a closed pipe
        return lost_output("was closed", error)
    except OSError as error:
        if error.errno is None:
            raise
        if error.filename is not None:
            return fail(f"{shown(error.filename)}: {os.strerror(error.errno)}", 4, error)
        # All files go through files.py and data/, which have words of their own: what is left is standard output.
        why = "was closed" if error.errno == errno.EPIPE else f"cannot be written ({os.strerror(error.errno)})"
        return lost_output(why, error)


def lost_output(what: str, error: BaseException) -> int:
    # Python flushes stdout once more at exit: give it somewhere to go.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return fail(f"standard output {what}", 4, error)


def fail(message: str, code: int, error: BaseException | None = None) -> int:
    meter.close()
    if error is not None and os.environ.get("SCQFAISS_DEBUG") == "1":
        import traceback

        traceback.print_exception(error)
    to_stderr(f"Error: {one_line(message)}")
    return code


def main() -> NoReturn:
    """The `scqfaiss` program, but for its signals, which are taken before this module is imported."""
    signals.take()
    for fd in (0, 1, 2):  # one that was closed would be given to the next file opened, and prints would land in it
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stdout is not None:
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # names beyond the locale's letters
    warnings.simplefilter("always", ScqWarning)
    warnings.showwarning = show_warning  # type: ignore[assignment]
    code = run()
    signals.finish(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
