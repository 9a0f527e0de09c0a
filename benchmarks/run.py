"""Run the rows of benchmark files anew and hold them against what they promise.

    python benchmarks/run.py                                  # every benchmarks/*.toml
    python benchmarks/run.py benchmarks/scene.toml --only scq-16
    python benchmarks/run.py --data /data --results benchmarks/results

A row of a file is

    [[row]]
    name = "scq-16"
    command = '''
    scqfaiss train {data}/scene/train.h5 -o m.safetensors --bits 16 --seed {seed}
    scqfaiss evaluate g.faissindex ... --json'''
    seeds = [0, 1, 2]
    expected = {map = 0.8}      # means over the seeds of numbers in the JSON that the commands print
    tolerance = 0.015           # of every expected value, absolute; or a table, {map = 0.015}
    limits = ["map >= 0.72", "float_map - map <= 0.005"]

Commands run one after the other in an empty folder of their own; {data}, {seed} and {benchmarks} are filled in, and Python
finds the modules of benchmarks/networks. JSON objects on standard output are merged, those of a line that begins with a name
and a colon, `scq8: scqfaiss evaluate ...`, as scq8_map; `seconds` is the wall time of the first command, `train_seconds` that
of all `scqfaiss train` and `train_gb` the largest memory of one, and so for every other verb; `all_seconds` that of the row.
Exit code 1 when a value is outside its tolerance or limit or a command fails; rows whose data is absent, or that need a GPU
(`gpu = true`) where there is none, are skipped and named.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import click
import torch

from scqfaiss.comparison import results as measured
from scqfaiss.files import atomic_write

HERE = Path(__file__).parent
NETWORKS = str(HERE.resolve() / "networks")  # for --encoder module:factory
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), NETWORKS)))}
DATA = Path(os.environ.get("SCQFAISS_DATA", HERE.parent.parent / "shared" / "data"))


def machine() -> str:
    """Processor, cores and versions: figures mean little without them."""
    here = measured.machine()
    found = here["versions"]
    parts = ", ".join(f"{name} {found[name]}" for name in ("torch", "faiss", "numpy"))
    return f"{here['cpu']}, {here['cores']} cores, Python {found['python']}, {parts}"


def timed(words: list[str], folder: str) -> tuple[float, float, int, str, str]:
    """Run a command -> seconds, peak memory of the process in GB (10^9), exit code, standard output and error."""
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(words, cwd=folder, stdout=out, stderr=err, text=True, env=ENVIRONMENT)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - start
        out.seek(0)
        err.seek(0)
        return seconds, used.ru_maxrss * 1024 / 1e9, process.returncode, out.read(), err.read()


def run_once(row: dict[str, Any], seed: int, data: Path) -> dict[str, float]:
    """All commands of a row for one seed -> the numbers they printed. Raises RuntimeError with stderr on failure."""
    values: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, line in enumerate(row["command"].strip().splitlines()):
            named = re.match(r"(\w+): (.*)", line)
            prefix, line = (f"{named[1]}_", named[2]) if named else ("", line)
            words = shlex.split(line.format(data=data.resolve(), seed=seed, benchmarks=HERE.resolve()))
            # The same Python as this one, whatever is on the PATH.
            words = [sys.executable, *(["-m", "scqfaiss"] if words[0] == "scqfaiss" else []), *words[1:]]
            seconds, gigabytes, code, out, err = timed(words, folder)
            if number == 0:
                values["seconds"] = seconds
            values["all_seconds"] = values.get("all_seconds", 0.0) + seconds
            if words[1:3] == ["-m", "scqfaiss"]:
                verb = words[3].replace("-", "_")
                values[f"{verb}_seconds"] = values.get(f"{verb}_seconds", 0.0) + seconds
                values[f"{verb}_gb"] = max(values.get(f"{verb}_gb", 0.0), gigabytes)
            if code:
                raise RuntimeError(f"{line}\nexit code {code}: {err.strip()}")
            for text in out.splitlines():
                if text.startswith("{"):
                    values |= {prefix + name: value for name, value in numbers(json.loads(text)).items()}
    return values


def numbers(found: dict[str, Any]) -> dict[str, float]:
    """The numbers of a JSON object; those of {"recall_at_k": {"10": 0.5}} as recall_at_10."""
    out = {k: v for k, v in found.items() if isinstance(v, int | float)}
    for key, table in found.items():
        if key.endswith("_k") and isinstance(table, dict):
            out |= {f"{key[:-1]}{k}": v for k, v in table.items()}
    return out


def check(row: dict[str, Any], means: dict[str, float]) -> list[str]:
    """What a row promised and did not keep."""
    wrong = []
    for key, expected in row.get("expected", {}).items():
        tolerance = row["tolerance"][key] if isinstance(row["tolerance"], dict) else row["tolerance"]
        if key not in means:
            wrong.append(f"{key} was not printed")
        elif abs(means[key] - expected) > tolerance:
            wrong.append(f"{key} is {means[key]:.4f}, expected {expected} +- {tolerance}")
    for limit in row.get("limits", []):
        parts = re.fullmatch(r"(\w+)(?: - (\w+))? (>=|<=) ([\d.]+)", limit)
        if parts is None:
            wrong.append(f"limit '{limit}' is not of the form 'a >= 1' or 'a - b <= 1'")
            continue
        a, b, sign, bound = parts.groups()
        if a not in means or (b and b not in means):
            wrong.append(f"{limit}: not printed")
            continue
        value = means[a] - (means[b] if b else 0)
        if value < float(bound) if sign == ">=" else value > float(bound):
            wrong.append(f"{limit} does not hold: {value:.4f}")
    return wrong


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("files", nargs=-1, type=click.Path(exists=True, path_type=Path))
@click.option("--only", multiple=True, help="Rows whose name holds this text.")
@click.option("--data", type=click.Path(path_type=Path), default=DATA, help="Folder of the data sets.")
@click.option(
    "--results",
    type=click.Path(path_type=Path),
    help="Folder to write FILE.json with all values into; made if it is not there.",
)
def main(files: tuple[Path, ...], only: tuple[str, ...], data: Path, results: Path | None) -> None:
    """Run benchmark FILES (default: all beside this script)."""
    failed = skipped = 0
    if results is not None:  # before anything is measured: rows take hours
        results.mkdir(parents=True, exist_ok=True)
    click.echo(f"machine: {machine()}")
    for file in files or sorted(HERE.glob("*.toml")):
        kept = []
        for row in tomllib.loads(file.read_text())["row"]:
            if only and not any(word in row["name"] for word in only):
                continue
            wanted = re.findall(r"\{data\}/([\w/.-]+)", row["command"])
            missing = [w for w in wanted if not (data / w).exists()]
            if row.get("gpu") and not torch.cuda.is_available():
                skipped += 1
                click.echo(f"{file.stem} {row['name']}: skipped, needs a GPU")
                continue
            if missing:
                skipped += 1
                click.echo(f"{file.stem} {row['name']}: skipped, {data / missing[0]} is not there")
                continue
            try:
                runs = [run_once(row, seed, data) for seed in row.get("seeds", [0])]
            except RuntimeError as error:
                failed += 1
                click.echo(f"{file.stem} {row['name']}: FAILED\n{error}")
                continue
            means = {k: mean(r[k] for r in runs) for k in runs[0]}
            spread = {k: stdev(r[k] for r in runs) if len(runs) > 1 else 0.0 for k in runs[0]}
            wrong = check(row, means)
            failed += bool(wrong)
            columns = row.get("show", ["map"])
            figures = "  ".join(f"{k} {means[k]:.4f} +- {spread[k]:.4f}" for k in columns if k in means)
            click.echo(f"{file.stem} {row['name']:24} {figures}  {means['seconds']:.1f} s  {'; '.join(wrong) or 'ok'}")
            kept.append({"name": row["name"], "command": row["command"], "seeds": row.get("seeds", [0]), "runs": runs})
        if results is not None and kept:
            text = json.dumps({"machine": machine(), "rows": kept}, indent=1) + "\n"
            with atomic_write(results / f"{file.stem}.json") as output:
                output.write(lambda f: f.write(text.encode()))  # noqa: B023
    click.echo(f"{failed} failed, {skipped} skipped")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
