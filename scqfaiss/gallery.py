"""Galleries: open a .faissindex file, verify it, search it. Also reads plain FAISS files, with a warning."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import faiss
import numpy as np
from numpy.typing import NDArray

from . import files
from .arrays import Floats, Ints, as_features
from .codebooks import Codebooks, Codes
from .contract import Progress, silent
from .data import Source, open_rows
from .errors import ConfigError, IndexFileError, ResourceError, shown, warn
from .files import PathLike, reserve
from .model import Model
from .targets import REGISTRY as TARGETS
from .targets import target as target_module
from .targets.head import inner
from .targets.walk import walk

MIN_FAISS = (1, 14, 2)  # the first with limits on what a file may make it allocate
# FAISS holds sizes that never stand in the file (d_in * d_out * 4 of a transform) to the limit too, hence the floor.
BYTE_LIMIT_FLOOR = 256 << 20
LOOP_LIMIT_FLOOR = 10**6
_limits_lock = threading.Lock()  # the limits are process-wide


@contextmanager
def _read_limits(size: int) -> Iterator[None]:
    if not hasattr(faiss, "set_deserialization_vector_byte_limit"):
        need = ".".join(map(str, MIN_FAISS))
        raise ConfigError(
            f'FAISS {faiss.__version__} is too old, needs {need} or newer: pip install -U "scqfaiss[cpu]"'
        )
    with _limits_lock:
        before = faiss.get_deserialization_vector_byte_limit(), faiss.get_deserialization_loop_limit()
        faiss.set_deserialization_vector_byte_limit(max(size, BYTE_LIMIT_FLOOR))
        faiss.set_deserialization_loop_limit(max(LOOP_LIMIT_FLOOR, size // 8))
        try:
            yield
        finally:
            faiss.set_deserialization_vector_byte_limit(before[0])
            faiss.set_deserialization_loop_limit(before[1])


def _load(f: BinaryIO, name: str, stream: int | None) -> tuple[Any, int]:
    """The index at the start of the open file and the bytes FAISS read; at most `stream` of them where that is known."""
    size = os.fstat(f.fileno()).st_size
    end, used = size if stream is None else stream, 0
    f.seek(0)

    refused: list[BaseException] = []

    def get(n: int) -> bytes:
        nonlocal used
        try:
            block = f.read(min(n, end - used))
        except BaseException as error:  # a failing disk or Ctrl-C: neither says anything about the file
            refused.append(error)
            raise
        used += len(block)
        if block == b"ilod":  # lists kept in another file, which FAISS would open by the name it finds here
            raise RuntimeError(block)
        return block

    try:
        with _read_limits(size):
            index = faiss.read_index(faiss.PyCallbackIOReader(get))
    except (RuntimeError, OSError) as error:
        if refused and isinstance(refused[0], OSError):
            why = os.strerror(refused[0].errno or 0)
            raise IndexFileError(f"{name}: cannot be read ({why})") from error
        if refused:
            raise refused[0] from None
        if "limit" in str(error):
            raise ResourceError(f"{name}: claims more data than a file of {size:,} bytes can hold") from error
        raise IndexFileError(f"{name}: not a FAISS index, or damaged") from error
    except MemoryError as error:
        raise ResourceError(f"{name}: claims more data than memory can hold") from error
    return index, used


@dataclass(frozen=True)
class Stored:
    """What a file held: the FAISS index, and its card (None for a plain FAISS file)."""

    index: Any
    card: Mapping[str, Any] | None


def read_gallery(path: PathLike, *, verify: bool = True) -> Stored:
    """Read and check a file: footer, hash (unless verify=False), allow-list, card against index.

    Raises ConfigError where it is missing, IndexFileError where it is damaged or not ours, ResourceError where it claims
    more memory than its size justifies.
    """
    name = shown(path)
    with files.open_regular(path) as f:  # one descriptor: a file swapped in meanwhile cannot mix
        card = stream = None
        if files.has_footer(f):
            card, stream = files.read_footer(f, name, hash_all=verify)
        index, used = _load(f, name, stream)
        if stream is not None and used != stream:
            raise IndexFileError(f"{name}: the index ends after {used:,} bytes, the card says {stream:,}")
        if stream is None and used != os.fstat(f.fileno()).st_size:
            raise IndexFileError(
                f"{name}: bytes follow the index without a valid footer; export again or restore a copy"
            )
    try:
        walk(index)
    except IndexFileError as error:
        raise IndexFileError(f"{name}: {error}") from error
    if card is not None:
        _compare(card, index, name)
    return Stored(index, card)


def _targets_of(core: Any) -> list[str]:
    """Registered targets that keep their codes in the class of `core`, an index without its chain."""
    if isinstance(core, faiss.IndexIDMap):
        held = faiss.downcast_index(core.index)
        core = core if isinstance(held, faiss.IndexIVF) else held  # lists keep ids themselves: we never wrap them
    return [name for name in TARGETS if target_module(name).INFO.faiss_class == type(core).__name__]


def _compare(card: Mapping[str, Any], index: Any, name: str) -> None:
    """Raise IndexFileError where card and index disagree."""
    core = inner(index)
    fits = _targets_of(core)
    target = card.get("target") if card.get("target") in fits else next(iter(fits), None)
    found = {"target": target, "n": index.ntotal}
    if isinstance(core, faiss.IndexIDMap):
        core = faiss.downcast_index(core.index)
    if not isinstance(core, (faiss.IndexPQ, faiss.IndexIVFPQ)):
        raise IndexFileError(f"{name}: the card says target={card.get('target')}, the index is a {type(core).__name__}")
    metric = "ip" if core.metric_type == faiss.METRIC_INNER_PRODUCT else "l2"
    found |= {"d": core.d, "M": core.pq.M, "nbits": core.pq.nbits, "K": core.pq.ksub, "metric": metric}
    if card.get("encoder") not in ("none", "folded", "model") or type(card.get("d_in")) is not int:
        raise IndexFileError(f"{name}: the card does not say how queries are encoded")
    if card["encoder"] != "model":
        found["d_in"] = index.d
    for key, value in found.items():
        if card.get(key) != value:
            raise IndexFileError(f"{name}: the card says {key}={card.get(key)}, the index has {value}")


class Gallery:
    """An open gallery. Searches may run in several threads at a time; nothing changes the index.

    index: the faiss.Index. card: facts as written by the export, None for plain FAISS files. model: the Model that
    encodes queries, None where the index holds its encoder.
    """

    def __init__(self, index: Any, card: Mapping[str, Any] | None, model: Model | None, name: str) -> None:
        self.index, self.card, self.model, self.name = index, card, model, name

    @property
    def ntotal(self) -> int:
        return int(self.index.ntotal)

    @property
    def needs_model(self) -> bool:
        """True where queries must go through the model first."""
        return self.card is not None and self.card.get("encoder") == "model"

    @property
    def d(self) -> int:
        """Dimension of the queries."""
        return self.model.d_in if self.model is not None and self.needs_model else int(self.index.d)

    def embed(self, xq: Any, name: str = "queries") -> Floats:
        """Query rows (nq, d) -> what the FAISS index is searched with, (nq, index.d) float32."""
        xq = as_features(xq, name)
        if self.needs_model and self.model is None:  # how wide its rows are, only the model knows
            raise ConfigError(f"{self.name} needs the model its codes came from; give --model")
        if xq.shape[1] != self.d:
            raise ConfigError(f"{name}: queries have d={xq.shape[1]}, {self.name} needs d={self.d}")
        return self.model.embed(xq) if self.needs_model and self.model is not None else xq

    def clip(self, k: int) -> int:
        """k, or with a warning the number of vectors where that is smaller. Raises ConfigError for k < 1."""
        if k < 1:
            raise ConfigError(f"k is {k}, needs 1 or more")
        if k > self.ntotal:
            warn(f"k={k:,} is more than the {self.ntotal:,} vectors of {self.name}: returned all of them")
        return min(k, max(self.ntotal, 1))

    def search(
        self, xq: Any, k: int = 10, *, encoded: bool = False, name: str = "queries"
    ) -> tuple[NDArray[np.float32], Ints]:
        """The k nearest vectors of each query -> scores D (nq, k) float32, ids I (nq, k) int64, best first.

        k above ntotal is clipped to it, with a warning. encoded=True: xq are z already, (nq, index.d).
        Raises ConfigError on a wrong width or k < 1, DataError on rows that are not finite.
        """
        k = self.clip(k)
        if encoded:
            z = as_features(xq, name)
            if z.shape[1] != self.index.d:
                raise ConfigError(f"{name}: encoded queries have d={z.shape[1]}, the index needs d={self.index.d}")
        else:
            z = self.embed(xq, name)
        if len(z) == 0:
            return np.zeros((0, k), np.float32), np.zeros((0, k), np.int64)
        found: tuple[NDArray[np.float32], Ints] = self.index.search(z, k)
        return found

    def unpack(self) -> tuple[Codebooks, Codes, Ints]:
        """Codebooks, codes (n, M) and ids (n,) that the index holds."""
        core = inner(self.index)
        fits = _targets_of(core)
        if not fits:
            raise ConfigError(
                f"{self.name}: {type(core).__name__} holds no codes of ours; needs one of {', '.join(TARGETS)}"
            )
        told = (self.card or {}).get("target")
        return target_module(told if told in fits else fits[0]).unpack(core)


def open_gallery(
    path: PathLike, *, model: Model | PathLike | None = None, device: str = "cpu", verify: bool = True
) -> Gallery:
    """Open a gallery for searching.

    model: the model its codes came from; needed where the encoder is not folded into the file, and refused when it is
    another one. verify=False leaves out the SHA-256 (about 0.6 seconds a GB), not the other checks.
    Raises ConfigError, IndexFileError or ResourceError (see read_gallery), CheckpointError for a damaged model.
    """
    if device != "cpu":
        raise ConfigError(f"device is '{device}', this version searches on cpu")
    name = shown(path)
    stored = read_gallery(path, verify=verify)
    if stored.card is None:
        warn(f"{name}: no checksum: written by another program, or cut off")
    model_name = "the model" if isinstance(model, Model) else shown(model) if model is not None else ""
    loaded = model if isinstance(model, Model) or model is None else Model.load(model)
    if loaded is not None and stored.card is not None and loaded.sha256 != stored.card.get("model_sha256"):
        made_by = str(stored.card.get("model_sha256"))[:12]
        raise ConfigError(f"{model_name} is {loaded.sha256[:12]}, {name} was made by {made_by}; give that model")
    return Gallery(stored.index, stored.card, loaded, name)


def require_model(gallery: Gallery) -> None:
    """Raise ConfigError where queries need a model and none was given: before any query is read."""
    if gallery.needs_model and gallery.model is None:
        made_by = str((gallery.card or {}).get("model_sha256"))[:12]
        raise ConfigError(f"{gallery.name}: queries need the model its codes came from ({made_by}); give --model")


def search_source(
    gallery: Gallery, queries: Source, k: int, progress: Progress = silent
) -> tuple[NDArray[np.float32], Ints]:
    """Search with all rows of a source, in blocks -> D (nq, k), I (nq, k)."""
    require_model(gallery)
    if queries.d != gallery.d:
        raise ConfigError(f"{queries.name}: queries have d={queries.d}, {gallery.name} needs d={gallery.d}")
    k = gallery.clip(k)
    D, I = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
    for i, x in queries.blocks():
        D[i : i + len(x)], I[i : i + len(x)] = gallery.search(x, k, name=queries.name)
        progress("search", i + len(x), len(queries), "")
    return D, I


def search_file(
    path: PathLike,
    queries: PathLike,
    *,
    k: int = 10,
    out: PathLike | None = None,
    model: PathLike | None = None,
    device: str = "cpu",
    keys: Mapping[str, Any],
    progress: Progress = silent,
) -> str:
    """Search with a file of queries; hits go to the HDF5 file `out`, the first few into the returned text."""
    from .data.hdf5 import write_hits

    def run() -> tuple[Any, Any, Any]:
        with open_rows(queries, **{**keys, "labels_key": None}) as source:
            gallery = open_gallery(path, model=model, device=device)
            return *search_source(gallery, source, k, progress), source.ids

    if out is None:
        D, I, query_ids = run()
    else:
        inputs = [p for p in (path, queries, model) if p is not None]
        with reserve(out, inputs=inputs) as slot:
            D, I, query_ids = run()
            slot.write(lambda f: write_hits(f, D, I, query_ids), nbytes=12 * D.size)
    lines = [f"{len(D):,} queries, {D.shape[1]} hits each" + (f", written to {shown(out)}" if out is not None else "")]
    for q, scores, ids in zip(query_ids[:5], D, I):
        hits = "  ".join(f"{i}:{s:.4f}" for i, s in zip(ids, scores) if i >= 0)
        lines.append(f"query {q}  {hits}")
    return "\n".join(lines)


def verify_file(path: PathLike) -> str:
    """Full verification of a gallery or a model; returns one line. Raises when anything is wrong."""
    if Path(path).suffix == ".safetensors":
        model = Model.load(path)
        return f"{shown(path)}: sound, model of method {model.config['method']}, SHA-256 {model.sha256[:12]}"
    stored = read_gallery(path)
    if stored.card is None:
        raise IndexFileError(f"{shown(path)}: no checksum, nothing to verify: written by another program, or cut off")
    return f"{shown(path)}: sound, {stored.index.ntotal:,} vectors, checksum and card agree"
