"""Unpack the images of CIFAR-10, setting 1, into train/, query/ and database/, all classes or some.

    python benchmarks/cifar10_images.py cifar10_setting1_images.tar.xz
    python benchmarks/cifar10_images.py cifar10_setting1_images.tar.xz --classes cat,dog,deer --train-without dog

A gallery or a training made of them sees a folder for each class that is left.
"""

from __future__ import annotations

import tarfile
from pathlib import Path, PurePosixPath

import click


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("archive", type=click.Path(exists=True, path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), default=Path("."), help="Folder to unpack into.")
@click.option("--classes", default="", help="Only these, by name and with commas between; default: all.")
@click.option("--train-without", default="", help="Classes that are left out of train/ alone.")
@click.option("--query-only", default="", help="Only these in query/.")
def main(archive: Path, out: Path, classes: str, train_without: str, query_only: str) -> None:
    wanted, unseen, asked = (set(filter(None, names.split(","))) for names in (classes, train_without, query_only))
    found: dict[str, int] = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            place = PurePosixPath(member.name)
            if not member.isfile() or len(place.parts) < 3:
                continue
            part, name = place.parts[-3:-1]
            if (wanted and name not in wanted) or (part == "train" and name in unseen):
                continue
            if part == "query" and asked and name not in asked:
                continue
            member.name = str(PurePosixPath(*place.parts[-3:]))
            tar.extract(member, out, filter="data")
            found[part] = found.get(part, 0) + 1
    click.echo(", ".join(f"{part} {n:,}" for part, n in sorted(found.items())))


if __name__ == "__main__":
    main()
