"""A folder of shards while it is written: who may change it, and what is left over in it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ... import files, footer
from ...arrays import Ints
from ...errors import ConfigError, IndexFileError, WriteError, printable
from ...files import AtomicFile, PathLike, atomic_write
from .manifest import MANIFEST, Manifest, Shard, is_sharded, numbers_of

_LEFT = re.compile(r"\.?(shard-[\d-]+\.faissindex)(?:\.tmp-\d+|\.lock)")


@contextmanager
def held(
    folder: PathLike, inputs: Sequence[PathLike], what: str, create: bool = False
) -> Iterator[tuple[Path, AtomicFile]]:
    """(the folder, its manifest to be written last), while nobody else may change them.

    Raises ConfigError for a name that does not end in .shards, and as atomic_write. A folder made here that stays empty is
    removed.
    """
    if not is_sharded(folder):
        raise ConfigError(f"{printable(folder)}: folders of shards end in .shards")
    real, made = Path(os.path.realpath(folder)), False
    if create and not real.exists():
        if not real.parent.is_dir():
            raise WriteError(f"{printable(folder)}: folder {printable(real.parent)} does not exist; create it first")
        files.make_folder(real)
        made = True
    elif real.exists() and not real.is_dir():
        raise WriteError(f"{printable(folder)}: is no folder, no shards can be written there")
    elif not create and not (real / MANIFEST).exists():
        raise IndexFileError(f"{printable(folder)}: has no {MANIFEST}, so it is no gallery; export again")
    try:
        with atomic_write(Path(folder) / MANIFEST, inputs=inputs, what=what) as output:
            yield real, output
    finally:
        if made:
            with suppress(OSError):  # something stands in it
                real.rmdir()


def entry(path: Path, ids: Ints) -> tuple[Shard, dict[str, Any]]:
    """What a manifest says of a file that was just written and read back, and its metadata."""
    with files.open_regular(path) as f:
        sha256 = footer.digest(f).hex()
        card, _ = footer.read_footer(f, printable(path), hash_all=False)
    return Shard(path.name, int(card["n"]), (int(ids.min()), int(ids.max())), sha256), card


def card_of(path: Path) -> dict[str, Any]:
    """The metadata in the footer of a file."""
    with files.open_regular(path) as f:
        return footer.read_footer(f, printable(path), hash_all=False)[0]


def clear(folder: Path, manifest: Manifest) -> None:
    """Remove shards that the manifest does not name, and what writers left behind that were killed.

    Galleries that have such a file open go on with it: its bytes stay until they let go.
    """
    named = {shard.name for shard in manifest.shards}
    for name in os.listdir(folder):
        left = _LEFT.fullmatch(name)
        if left is not None:
            with suppress(WriteError), atomic_write(folder / left[1]):
                pass  # taking and letting go removes what nobody holds
        elif numbers_of(name) is not None and name not in named:
            with suppress(OSError):
                os.unlink(folder / name)
