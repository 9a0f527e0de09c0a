"""Seconds of whole commands alone, beside one busy process and beside two, by how their threads wait. Prints a table and JSON.

    python benchmarks/neighbours.py [--data FOLDER] [--ways scqfaiss,runtime] [--verbs train,export] [--rounds 5]

FOLDER holds train.h5, query.h5 and database.h5 with labels; without it such files are drawn: 5,000, 1,000 and 54,000 rows of
512 dimensions in ten classes, the sizes of CIFAR-10 setting 1. Trainings of the digits inside the package stand beside them.

A way is how threads wait for one another: `scqfaiss` as training has it, `runtime` as GNU's OpenMP runtime has it by itself,
`passive` without any spinning, `one` with one thread alone. All ways take turns within a round, so that a machine that
gets slower does so for all of them. A busy process is a Python loop of its own. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import click
import numpy as np

from scqfaiss.data.writing import write_rows
from scqfaiss.demo.digits import write_parts
from scqfaiss.files import atomic_write

LIMIT = 600  # seconds of one command, and of a busy process
# GNU's runtime looks 300,000 times before it sleeps; said outright, training lets it stand.
WAYS = {
    "scqfaiss": {},
    "runtime": {"GOMP_SPINCOUNT": "300000"},
    "passive": {"OMP_WAIT_POLICY": "passive"},
    "one": {"OMP_NUM_THREADS": "1"},
}
THREADS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
BUSY = f"import time\nend = time.monotonic() + {LIMIT}\nwhile time.monotonic() < end: pass"
SIZES = {"train": 5_000, "query": 1_000, "database": 54_000}
VERBS = {
    "train-digits": "train digits/train.h5 -o digits.safetensors",
    "train": "train train.h5 -o m.safetensors",
    "train-mecoq": "train train.h5 -o mecoq.safetensors --method mecoq --epochs 2",
    "export": "export m.safetensors database.h5 -o g.faissindex",
    "search": "search g.faissindex query.h5 -o hits.h5 --model m.safetensors",
    "evaluate": "evaluate g.faissindex query.h5 database.h5 --model m.safetensors",
}


# Seconds by the clock and of the processors of each run, by verb, way and number of busy processes.
Times = dict[tuple[str, str, int], list[tuple[float, float]]]


def draw(folder: Path) -> None:
    """Files of rows around the points of ten classes, so near one another that a training has something to do."""
    rng = np.random.default_rng(0)
    points, first = rng.standard_normal((10, 512)).astype(np.float32), 0
    for name, n in SIZES.items():
        y = rng.integers(0, 10, n)
        x = points[y] + 6 * rng.standard_normal((n, 512), np.float32)
        with atomic_write(folder / f"{name}.h5") as output:
            output.write(lambda f: write_rows(f, x, y, np.arange(first, first + n)))  # noqa: B023
        first += n


def run(verb: str, way: str, folder: Path) -> tuple[float, float]:
    """Seconds of a command by the clock, and of the processors. Raises ClickException where it fails or takes too long."""
    kept = {key: value for key, value in os.environ.items() if key not in THREADS}
    for old in ("digits.safetensors", "m.safetensors", "mecoq.safetensors"):
        if f"-o {old}" in VERBS[verb]:
            (folder / old).unlink(missing_ok=True)
    words = [sys.executable, "-m", "scqfaiss", *VERBS[verb].split()]
    before, started = os.times(), time.perf_counter()
    try:
        done = subprocess.run(
            words, cwd=folder, env=kept | WAYS[way], timeout=LIMIT, capture_output=True, text=True, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise click.ClickException(f"{verb}: takes more than {LIMIT} seconds") from error
    seconds, after = time.perf_counter() - started, os.times()
    if done.returncode:
        raise click.ClickException(f"{verb}: {done.stderr.strip()}")
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return seconds, used


@contextmanager
def beside(count: int) -> Iterator[None]:
    """Busy processes while something runs; they end with it."""
    busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def processor_seconds() -> tuple[float, float]:
    """Of all processors since the machine started: all ticks, and idle ones."""
    fields = [float(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return sum(fields), fields[3] + fields[4]


def warn_of_others() -> None:
    """Say so where the machine is not idle while nothing of ours runs."""
    before = processor_seconds()
    time.sleep(2)
    total, idle = (b - a for a, b in zip(before, processor_seconds()))
    if idle < 0.9 * total:
        click.echo(f"the machine is {1 - idle / total:.0%} busy with other work: these figures mean little", err=True)


@click.command()
@click.option(
    "--data", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Folder of rows; default: drawn."
)
@click.option("--ways", default="scqfaiss,runtime", show_default=True, help=", ".join(WAYS))
@click.option("--verbs", default=",".join(VERBS), show_default=True, help="Commands to time.")
@click.option("--neighbours", default="0,1,2", show_default=True, help="Numbers of busy processes.")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1, 50))
def main(data: Path | None, ways: str, verbs: str, neighbours: str, rounds: int) -> None:
    """Time commands beside busy processes."""
    asked, sides = verbs.split(","), ways.split(",")
    counts = [int(count) for count in neighbours.split(",")]
    for name, known in ((asked, VERBS), (sides, WAYS)):
        if not set(name) <= set(known):
            raise click.ClickException(f"{', '.join(set(name) - set(known))}: needs some of {', '.join(known)}")
    found: Times = {}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "digits").mkdir()
        write_parts(folder / "digits")
        if data is None:
            draw(folder)
        else:
            for name in SIZES:
                shutil.copy(data / f"{name}.h5", folder)
        first = {"train", "export"} if {"export", "search", "evaluate"} & set(asked) else set()
        for verb in VERBS:  # what the timed ones need, and nothing is read from the disk for the first time later
            if verb in first | set(asked):
                run(verb, "scqfaiss", folder)
        warn_of_others()
        for number in range(rounds):
            for verb in asked:
                for count in counts:
                    for way in sides if number % 2 == 0 else sides[::-1]:
                        with beside(count):
                            found.setdefault((verb, way, count), []).append(run(verb, way, folder))
            click.echo(f"round {number + 1} of {rounds}", err=True)
    report(found, asked, sides, counts)


def report(found: Times, verbs: list[str], ways: list[str], counts: list[int]) -> None:
    """Medians as a table, then as JSON: VERB_WAY_COUNT_seconds, and as a ratio of the first way's own, with no neighbour."""
    out: dict[str, float] = {}
    head = "".join(f"{f'{count} beside' if count else 'alone':>12}" for count in counts)
    click.echo(f"{'median seconds':14} {'threads wait':12}{head}{'ratio':>8}{'cpu alone':>11}")
    for verb in verbs:
        for way in ways:
            seconds = [median(s for s, _ in found[verb, way, count]) for count in counts]
            used = median(cpu for _, cpu in found[verb, way, counts[0]])
            name = f"{verb}_{way}".replace("-", "_")
            out |= {f"{name}_{count}_seconds": round(s, 2) for count, s in zip(counts, seconds)}
            out |= {f"{name}_{count}_ratio": round(s / seconds[0], 2) for count, s in zip(counts, seconds)}
            cells = "".join(f"{s:12.2f}" for s in seconds)
            ratio = seconds[min(1, len(seconds) - 1)] / seconds[0]
            click.echo(f"{verb:14} {way:12}{cells}{ratio:8.2f}{used:11.2f}")
        if {"scqfaiss", "runtime"} <= set(ways):  # pair by pair, as both were measured in turn
            for count in counts:
                pairs = zip(found[verb, "scqfaiss", count], found[verb, "runtime", count])
                ratio = median(mine / theirs for (mine, _), (theirs, _) in pairs)
                out[f"{verb.replace('-', '_')}_{count}_of_runtime"] = round(ratio, 3)
    click.echo(json.dumps(out))


if __name__ == "__main__":
    main()
