"""The codes of a growing gallery: models, and embeddings and codes of drawn rows, in files that later runs find again.

One SCQ model learns from the training rows. Rows are drawn with replacement from the database, with Gaussian noise of `noise`
times the standard deviation of each feature, so that codes do not repeat as rows do, and encoded once, to z. Every codebook
codes that z; the first n rows of it are the gallery of n rows:

wide        the model's own product codebooks of 8 bits
narrow      product codebooks of 4 bits
additive    additive codebooks of 4 bits

narrow and additive are of method scq with encoder=identity, on z of the database as it is. z has the fewest dimensions that the
classes fit into and all of these codebooks divide. 84 bytes a row at 32 bits: of rows as they were drawn nothing is kept.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import Floats, Ints, Labels
from ..files import atomic_write, make_folder
from ..model import Model
from ..training.interface import train
from .inputs import NO_KEYS, labelled
from .measuring import threads
from .options import GrowthOptions

BLOCK = 1 << 15  # rows drawn and encoded at a time
PIECE = 1 << 18  # rows of a file of work


def read_labelled(path: Path, keys: Mapping[str, Any] = NO_KEYS, part: str = "train") -> tuple[Floats, Labels]:
    """All rows of a file and their labels. Raises DataError where it has none."""
    with labelled(path, keys, part) as source:
        assert source.labels is not None
        return source.read(0, len(source)), source.labels


def drawn(x: Floats, rows: int, noise: float, seed: int | tuple[int, ...]) -> Iterator[tuple[Ints, Floats]]:
    """(rows of x that were drawn (b,), rows like these (b, d)) block by block."""
    rng = np.random.default_rng(seed)
    spread = (noise * x.std(0)).astype(np.float32)
    for i in range(0, rows, BLOCK):
        picked = rng.integers(0, len(x), min(BLOCK, rows - i))
        yield picked, x[picked] + spread * rng.standard_normal((len(picked), x.shape[1]), np.float32)


@dataclass
class Work:
    """Models, embeddings and codes of drawn rows, in files; what is there already is not made again.

    Files hold PIECE rows each, and each piece is drawn by a generator of its own: it does not depend on how many rows a run
    asks for.
    """

    folder: Path
    options: GrowthOptions
    say: Callable[[str], Any]
    keys: Mapping[str, Any] = field(default_factory=dict)  # arguments of open_rows, see data.keys_for
    models: dict[str, Model] = field(default_factory=dict)

    def read(self, part: str) -> tuple[Floats, Labels]:
        """All rows of 'train', 'query' or 'database', and their labels. Raises DataError where it has none."""
        return read_labelled(self.options.inputs[part], self.keys, part)

    def make(self, rows: int, codebooks: set[str]) -> None:
        """Train what has no model file, encode and code what has no piece. `wide` is always among the models."""
        make_folder(self.folder)
        xb, labels = self.read("database")
        wide = self.models["wide"] = self._model("wide", lambda: self._train_wide())
        for name in sorted(codebooks - {"wide"}):
            # Only product codebooks have codewords of their own for classes, and 16 are too few for that.
            how: dict[str, Any] = {"private": "public"} if name == "narrow" else {"codebooks.kind": "additive"}
            self.models[name] = self._model(
                name,
                lambda how=how: train(  # type: ignore[misc]
                    wide.embed(xb),
                    labels.y,
                    bits=self.options.bits,
                    nbits=4,
                    encoder="identity",
                    seed=self.options.seed,
                    **how,
                ),
            )
        pieces = range(-(-rows // PIECE))
        # Two pieces at a time on a core each beats one on both: drawing, and half of an encoder, use one core alone.
        with threads(1), ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            for number, made in enumerate(pool.map(lambda piece: self._piece(piece, xb, codebooks), pieces)):
                for name, array in made.items():
                    self._store(name, number, array)
                if made:
                    self.say(f"encoded {min((number + 1) * PIECE, rows):,} of {rows:,} rows")

    def _store(self, name: str, piece: int, array: NDArray[Any]) -> None:
        with atomic_write(self._path(name, piece)) as output:
            output.write(lambda f: np.lib.format.write_array(f, array, allow_pickle=False))

    def load(self, name: str, rows: int) -> NDArray[Any]:
        """The first rows of 'z' (rows, d) float32, or of the codes (rows, M) of a codebook."""
        first = self._read(name, 0)
        out = np.empty((rows, first.shape[1]), first.dtype)
        for i in range(0, rows, PIECE):
            out[i : i + PIECE] = self._read(name, i // PIECE)[: rows - i]
        return out

    def _read(self, name: str, piece: int) -> NDArray[Any]:
        array: NDArray[Any] = np.load(self._path(name, piece), allow_pickle=False)
        return array

    def _path(self, name: str, piece: int) -> Path:
        return self.folder / f"{name}-{piece:05d}.npy"

    def _model(self, name: str, trained: Callable[[], Model]) -> Model:
        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            self.say(f"training the {name} codebooks")
            trained().save(path)
        return Model.load(path)

    def _train_wide(self) -> Model:
        x, labels = self.read("train")
        C = labels.C if labels.multilabel else int(labels.y.max()) + 1
        step = self.options.bits // 4  # codebooks of 4 bits: twice as many as of 8, so that both divide d
        d = -(-C // step) * step
        return train(x, labels.y, bits=self.options.bits, d=d, members=self.options.members, seed=self.options.seed)

    def _piece(self, piece: int, xb: Floats, codebooks: set[str]) -> dict[str, NDArray[Any]]:
        """What is missing of a piece: 'z' and codes."""
        missing = [name for name in ("z", *sorted(codebooks)) if not self._path(name, piece).exists()]
        if not missing:
            return {}
        if "z" in missing:
            rows = drawn(xb, PIECE, self.options.noise, (self.options.seed, piece))
            z = np.concatenate([self.models["wide"].embed(part) for _, part in rows])
        else:
            z = self._read("z", piece)
        return {name: z if name == "z" else self.models[name].assign(z) for name in missing}
