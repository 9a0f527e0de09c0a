"""Galleries: open a .faissindex file, verify it, search it. Also reads plain FAISS files, with a warning."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from .. import faiss_calls, files
from ..arrays import Floats, Ints, as_features, as_id_set, transposed
from ..codebooks import Codebooks, Codes
from ..contract import Progress, silent
from ..data import Source, open_rows
from ..data.idlist import read_ids
from ..errors import ConfigError, DataError, IndexFileError, shown, warn
from ..features.source import USUAL, FeatureSource, Seeing, as_rows
from ..files import PathLike, Slot, reserve
from ..forks import Lock
from ..modality import ROWS
from ..model import Model
from ..targets import REGISTRY as TARGETS
from ..targets import gpu
from ..targets import target as find_target
from ..targets.head import inner
from ..targets.queries import MAX_SCORE, prepared, ranges, unscaled
from .reading import Stored, read_gallery, stamp_of, target_of

SHOWN = 10  # hits a query in the text of a search


def _whole(value: Any, name: str) -> int:
    """A whole number as Python's own int: FAISS takes no NumPy integers. Raises ConfigError."""
    try:
        return operator.index(value)
    except TypeError:
        raise ConfigError(f"{name} is {value!r}, needs a whole number") from None


@dataclass(frozen=True)
class _Held:
    """What searches run on. A refresh puts another in its place; a search keeps the one it began with."""

    stored: Stored
    on_gpu: gpu.OnGpu | None = None
    rows: list[Any] = field(default_factory=list)  # of `places`, found once


class Gallery:
    """An open gallery. Any number of threads may search at a time; `refresh` may run beside them.

    index: the faiss.Index (on the CPU, also where searches run on a GPU). card: facts as written by the export, None for
    plain FAISS files. model: the Model that encodes queries, None where the index holds its encoder.
    """

    def __init__(self, index: Any, card: Mapping[str, Any] | None, model: Model | None, name: str) -> None:
        self._held = _Held(Stored(index, card, target_of(index, (card or {}).get("target"))))
        self.model, self.name = model, name
        self._path: str | None = None
        self._how: dict[str, Any] = {}
        self._refreshing, self._reconstructing = Lock(), Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as the path and the hash of its file, and its model: it is opened again where it is unpickled.

        Raises ConfigError where there is no such file or hash, and for a gallery on a GPU.
        """
        why = None
        if self._path is None:
            why = "was not opened from a file"
        elif self._held.on_gpu is not None:
            why = f"lies on {self._how['device']}, which another process has to open itself"
        elif self._held.stored.stamp is None:
            why = "is a plain FAISS file, without a hash to know it by"
        if why is not None:
            raise ConfigError(f"{self.name} cannot be pickled: it {why}; pass the path and open it there")
        return _reopened, (self._path, self._held.stored.stamp, self.model, self._how)

    def __copy__(self) -> Gallery:
        """Another gallery on the same index; each is refreshed by itself."""
        out = Gallery(self.index, self.card, self.model, self.name)
        out._held, out._path, out._how = self._held, self._path, dict(self._how)
        return out

    def __deepcopy__(self, memo: Any) -> Gallery:
        return self.__copy__()  # an index is never changed, only replaced

    @property
    def index(self) -> Any:
        return self._held.stored.index

    @property
    def card(self) -> Mapping[str, Any] | None:
        return self._held.stored.card

    @property
    def target(self) -> str | None:
        """Name of the target that the index belongs to; None for foreign files."""
        target = self._held.stored.target
        return None if target is None else target.INFO.name

    @property
    def exact(self) -> bool:
        """Whether a search finds the best by the codes' own scores; False where lists are passed over or tables rounded."""
        target = self._held.stored.target
        lists = getattr(inner(self.index), "nlist", 1)
        return target is not None and target.INFO.exact and (target.INFO.name != "ivfpq" or lists == 1)

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
        xq = as_features(xq, name, one_row=True)
        if self.needs_model and self.model is None:  # how wide its rows are, only the model knows
            raise ConfigError(f"{self.name} needs the model its codes came from; give --model")
        if xq.shape[1] != self.d:
            how = transposed(len(xq), xq.shape[1], self.d)
            raise ConfigError(f"{name}: queries have d={xq.shape[1]}, {self.name} needs d={self.d}{how}")
        return self.model.embed(xq) if self.needs_model and self.model is not None else xq

    def clip(self, k: int) -> int:
        """k, or with a warning the number of vectors where that is smaller. Raises ConfigError for k < 1."""
        return self._clip(k, self._held)

    def _clip(self, k: int, held: _Held) -> int:
        k = _whole(k, "k")
        if k < 1:
            raise ConfigError(f"k is {k}, needs 1 or more")
        n = int(held.stored.index.ntotal)
        if k > n:
            warn(f"k={k:,} is more than the {n:,} vectors of {self.name}: returned all of them")
        return min(k, max(n, 1))

    def _queries(self, xq: Any, encoded: bool, name: str, held: _Held) -> Floats:
        if not encoded:
            return self.embed(xq, name)
        z = as_features(xq, name, one_row=True)
        if z.shape[1] != held.stored.index.d:
            raise ConfigError(f"{name}: encoded queries have d={z.shape[1]}, the index needs d={held.stored.index.d}")
        return z

    # ------------------------------------------------------------------------------------------------------- searching
    def search(
        self,
        xq: Any,
        k: int = 10,
        *,
        encoded: bool = False,
        allow: Any = None,
        deny: Any = None,
        nprobe: int | None = None,
        name: str = "queries",
    ) -> tuple[NDArray[np.float32], Ints]:
        """The k nearest vectors of each query -> scores D (nq, k) float32, ids I (nq, k) int64, best first.

        k above ntotal is clipped to it, with a warning. encoded=True: xq are z already, (nq, index.d). allow, deny: ids
        that alone, or that never, may be found; where they leave fewer than k, the rest of I is -1 and D means nothing
        there. nprobe: lists to visit, for a gallery with lists (target buckets without it searches exactly).
        Raises ConfigError on a wrong width, k < 1 or filters where the container has none, DataError on bad rows or ids.
        """
        held = self._held
        k = self._clip(k, held)
        z = self._queries(xq, encoded, name, held)
        if len(z) == 0:
            return np.zeros((0, k), np.float32), np.zeros((0, k), np.int64)
        sel = self._selector(held, allow, deny)
        index, target = held.stored.index, held.stored.target
        if nprobe is not None:
            nprobe = _whole(nprobe, "nprobe")
            lists = getattr(inner(index), "nlist", None)
            if nprobe < 1 or lists is None:
                raise ConfigError(
                    f"nprobe is {nprobe}: " + ("needs 1 or more" if lists else f"{self.name} has no lists")
                )
            if nprobe > lists:
                warn(f"nprobe={nprobe:,} is more than the {lists:,} lists of {self.name}: visited all of them")
            nprobe = min(nprobe, lists)
        if held.on_gpu is not None and nprobe is not None:
            raise ConfigError("a GPU search scores every row; leave nprobe out, or use device cpu")
        core, x, powers = prepared(index, z, name, held.on_gpu is not None)
        if held.on_gpu is not None:
            D, I = held.on_gpu.search(x, k)
        elif target is None:
            D, I = faiss_calls.search(core, x, k)
        else:
            D, I = target.search(core, x, k, sel=sel, nprobe=nprobe)
        return unscaled(D, powers, I, name), I

    def range_search(
        self,
        xq: Any,
        threshold: float,
        *,
        encoded: bool = False,
        allow: Any = None,
        deny: Any = None,
        name: str = "queries",
    ) -> tuple[Ints, NDArray[np.float32], Ints]:
        """All vectors with a score above `threshold` (metric l2: a distance below it).

        -> lims (nq + 1,) int64, D, I: query q owns D[lims[q] : lims[q + 1]], best first. Raises as search does.
        """
        held = self._held
        if not isinstance(threshold, (int, float, np.number)) or not np.isfinite(threshold):
            raise ConfigError(f"threshold is {threshold}, needs a number")
        threshold = float(np.clip(threshold, -MAX_SCORE, MAX_SCORE))
        z = self._queries(xq, encoded, name, held)
        if held.on_gpu is not None:
            raise ConfigError("a GPU has no range search; use device cpu")
        target = self._own(held)
        if len(z) == 0:
            return np.zeros(1, np.int64), np.zeros(0, np.float32), np.zeros(0, np.int64)
        sel = self._selector(held, allow, deny)
        core, x, powers = prepared(held.stored.index, z, name)
        if powers is None:
            lims, D, I = target.range_search(core, x, threshold, sel=sel)
        else:  # a threshold for each power
            lims, D, I = ranges(
                lambda rows, power: target.range_search(core, x[rows], power, sel=sel), threshold, powers
            )
            D = unscaled(D, np.repeat(powers, np.diff(lims)), I, name, np.repeat(np.arange(len(x)), np.diff(lims)))
        sign = -1 if held.stored.index.metric_type == faiss.METRIC_INNER_PRODUCT else 1
        order = np.lexsort((I, sign * D, np.repeat(np.arange(len(z)), np.diff(lims))))
        return lims, D[order], I[order]

    def _own(self, held: _Held) -> Any:
        if held.stored.target is None:
            kind = type(inner(held.stored.index)).__name__
            raise ConfigError(f"{self.name}: {kind} holds no codes of ours; needs one of {', '.join(TARGETS)}")
        return held.stored.target

    def _selector(self, held: _Held, allow: Any, deny: Any) -> Any:
        """allow, deny -> a faiss.IDSelector or None. What ignores selectors is refused here, never passed over."""
        if allow is None and deny is None:
            return None
        if held.on_gpu is not None:
            raise ConfigError("filters need device cpu: FAISS's GPU search takes them and ignores them")
        target = self._own(held)
        if not target.INFO.filter:
            kind = target.shape_of(held.stored.index).kind
            able = [t.INFO.name for t in map(find_target, TARGETS) if t.INFO.filter and kind in t.INFO.kinds]
            raise ConfigError(
                f"{self.name}: target {target.INFO.name} cannot filter by id; export with {' or '.join(able)}"
            )
        parts = []
        for ids, what in ((allow, "allow"), (deny, "deny")):
            if ids is not None:
                batch = faiss.IDSelectorBatch(as_id_set(ids, what))
                parts.append(batch if what == "allow" else faiss.IDSelectorNot(batch))
        return parts[0] if len(parts) == 1 else faiss.IDSelectorAnd(*parts)

    # ---------------------------------------------------------------------------------------------------------- content
    def unpack(self) -> tuple[Codebooks, Codes, Ints]:
        """Codebooks, codes (n, M) and ids (n,) that the index holds."""
        return self._unpack(self._held)

    def _unpack(self, held: _Held) -> tuple[Codebooks, Codes, Ints]:
        found: tuple[Codebooks, Codes, Ints] = self._own(held).unpack(held.stored.index, held.stored.shape)
        return found

    def reconstruct(self, ids: Any) -> Floats:
        """ids (n,) -> the vectors their codes stand for, (n, d of the codebooks) float32, as searches score them.

        They live where encoded queries live, not where rows do: no encoder runs backwards. The first call takes the codes
        out of the index, and keeps them, b + 8 bytes a row, unless the gallery is memory-mapped. Raises DataError for ids
        that are not there.
        """
        held = self._held
        ids = as_id_set(ids)
        with self._reconstructing:
            rows = held.rows[0] if held.rows else None
            if rows is None:
                books, codes, found = self._unpack(held)
                order = np.argsort(found, kind="stable")
                rows = books, codes[order], found[order]
                if not self._how.get("mmap"):
                    held.rows.append(rows)
        books, codes, found = rows
        place = np.searchsorted(found, ids)
        here = place < len(found)
        here[here] = found[place[here]] == ids[here]
        if not here.all():
            first = ", ".join(str(i) for i in ids[~here][:5])
            raise DataError(f"ids {first} are not in {self.name} ({int((~here).sum()):,} of {len(ids):,})")
        decoded: Floats = books.decode(codes[place])
        return decoded

    # ------------------------------------------------------------------------------------------------------- the file
    def refresh(self) -> bool:
        """Open the file anew if another one stands under its name now -> whether it did. A plain FAISS file carries
        nothing to tell it by and is opened anew every time.

        Searches go on meanwhile, each on the file it began with. On any error, raised as open does, the gallery goes on
        with what it has.
        """
        if self._path is None:
            raise ConfigError(f"{self.name} was not opened from a file")
        with self._refreshing:
            with files.open_regular(self._path) as f:
                stamp = stamp_of(f)
            if stamp is not None and stamp == self._held.stored.stamp:
                return False
            stored = read_gallery(self._path, verify=self._how["verify"], mmap=self._how["mmap"])
            _check_model(self.model, stored, self.name)
            before, after = self._held.stored.card or {}, stored.card or {}
            # Queries that were encoded outside the file fit the codes of their own model alone.
            keys = ("encoder", "model_sha256") if before.get("encoder") == "model" else ("encoder",)
            if any(before.get(key) != after.get(key) for key in keys) or stored.index.d != self.index.d:
                raise ConfigError(f"{self.name}: the new file takes other queries than the one that is open")
            self._held = _place(stored, self._how["device"])
            return True


def _reopened(path: str, stamp: Any, model: Model | None, how: dict[str, Any]) -> Gallery:
    """The gallery that was pickled. Raises as open_gallery does, and ConfigError where another file stands there now."""
    gallery = open_gallery(path, model=model, **how)
    if gallery._held.stored.stamp != stamp:
        raise ConfigError(f"{shown(path)} is another file than the one whose gallery was pickled; open it anew")
    return gallery


def _place(stored: Stored, device: str) -> _Held:
    """Put codes on a GPU where that is asked for."""
    if device == "cpu":
        return _Held(stored)
    number = gpu.number_of(device)
    if stored.target is None:
        raise ConfigError(f"a {type(inner(stored.index)).__name__} holds no codes of ours and stays on the cpu")
    if not stored.target.INFO.exact:
        warn(f"on a GPU the codes of target {stored.target.INFO.name} are searched exactly, not as that target would")
    return _Held(stored, gpu.OnGpu(gpu.form(*stored.target.unpack(stored.index, stored.shape)), number))


def _check_model(model: Model | None, stored: Stored, name: str, model_name: str = "the model") -> None:
    if model is not None and stored.card is not None and model.origin != stored.card.get("model_sha256"):
        made_by = str(stored.card.get("model_sha256"))[:12]
        raise ConfigError(f"{model_name} is {model.origin[:12]}, {name} was made by {made_by}; give that model")


def open_gallery(
    path: PathLike,
    *,
    model: Model | PathLike | None = None,
    device: str = "cpu",
    mmap: bool = False,
    verify: bool = True,
) -> Gallery:
    """Open a gallery for searching.

    model: the model its codes came from; needed where the encoder is not folded into the file, and refused when it is
    another one. device: cpu, cuda or cuda:N. mmap: codes and ids stay in the file, for files larger than memory; replace
    such a file by another, never write into it. verify=False leaves out the SHA-256 (about 0.6 seconds a GB), not the
    other checks.
    Raises ConfigError, IndexFileError or ResourceError (see read_gallery), CheckpointError for a damaged model.
    """
    if device != "cpu":
        gpu.number_of(device)  # before any slow step
    name = shown(path)
    stored = read_gallery(path, verify=verify, mmap=mmap)
    if stored.card is None:
        warn(f"{name}: no checksum: written by another program, or cut off")
    model_name = "the model" if isinstance(model, Model) else shown(model) if model is not None else ""
    loaded = model if isinstance(model, Model) or model is None else Model.load(model)
    _check_model(loaded, stored, name, model_name)
    gallery = Gallery(stored.index, stored.card, loaded, name)
    gallery._held = _place(stored, device)
    gallery._path, gallery._how = os.path.abspath(path), {"device": device, "mmap": mmap, "verify": verify}
    return gallery


def require_model(gallery: Gallery) -> None:
    """Raise ConfigError where queries need a model and none was given: before any query is read."""
    if gallery.needs_model and gallery.model is None:
        made_by = str((gallery.card or {}).get("model_sha256"))[:12]
        raise ConfigError(f"{gallery.name}: queries need the model its codes came from ({made_by}); give --model")


def as_queries(gallery: Gallery, queries: Source, seeing: Seeing = USUAL) -> Source:
    """What a gallery is searched with: rows as they are, pictures as rows of its model's features.

    Raises ConfigError where the model is not there, even if the file holds its encoder for rows; and as features.as_rows.
    """
    if queries.modality == ROWS:
        return queries
    if gallery.model is None:
        raise ConfigError(lacks_network(queries, gallery.card or {}, gallery.name, gallery.d))
    return as_rows(queries, gallery.model, seeing)


def lacks_network(source: Source, card: Mapping[str, Any], name: str, d: int) -> str:
    """Why a gallery by itself takes no pictures, and what to do."""
    if card.get("pictures"):
        made_by = str(card.get("model_sha256"))[:12]
        return f"{source.name} holds {source.modality.noun}, which only the model of {name} can see ({made_by}); give --model"
    if card.get("encoder") == "model":
        made_by = str(card.get("model_sha256"))[:12]
        return f"{name}: queries need the model its codes came from ({made_by}); give --model"
    return f"{source.name} holds {source.modality.noun}, {name} takes rows of d={d}: {source.modality.make_features}"


def check_queries(gallery: Gallery, queries: Source) -> None:
    """Raise ConfigError where the rows of a source cannot be searched for: before any of them is read."""
    require_model(gallery)
    if queries.d != gallery.d:
        how = transposed(len(queries), queries.d, gallery.d)
        raise ConfigError(f"{queries.name}: queries have d={queries.d}, {gallery.name} needs d={gallery.d}{how}")


def search_source(
    gallery: Gallery, queries: Source, k: int, progress: Progress = silent, **options: Any
) -> tuple[NDArray[np.float32], Ints]:
    """Search with all rows of a source, in blocks -> D (nq, k), I (nq, k). options: as Gallery.search takes them."""
    check_queries(gallery, queries)
    k = gallery.clip(k)
    D, I = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
    for i, x in queries.blocks():
        D[i : i + len(x)], I[i : i + len(x)] = gallery.search(x, k, name=queries.name, **options)
        progress("search", i + len(x), len(queries), "")
    return D, I


def range_search_source(
    gallery: Gallery, queries: Source, threshold: float, progress: Progress = silent, **options: Any
) -> tuple[Ints, NDArray[np.float32], Ints]:
    """The same for all hits beyond a threshold -> lims (nq + 1,), D, I."""
    check_queries(gallery, queries)
    counts, D, I = [np.zeros(1, np.int64)], [np.zeros(0, np.float32)], [np.zeros(0, np.int64)]
    for i, x in queries.blocks():
        lims, scores, ids = gallery.range_search(x, threshold, name=queries.name, **options)
        counts.append(np.diff(lims))
        D.append(scores)
        I.append(ids)
        progress("search", i + len(x), len(queries), "")
    return np.cumsum(np.concatenate(counts)), np.concatenate(D), np.concatenate(I)


def search_file(
    path: PathLike,
    queries: PathLike,
    *,
    k: int = 10,
    threshold: float | None = None,
    out: PathLike | None = None,
    model: PathLike | None = None,
    device: str = "cpu",
    mmap: bool = False,
    filter_ids: str | None = None,
    deny_ids: str | None = None,
    nprobe: int | None = None,
    keys: Mapping[str, Any],
    seeing: Seeing = USUAL,
    progress: Progress = silent,
) -> str:
    """Search with a file of queries; hits go to the HDF5 file `out`, the first few into the returned text.

    Queries may be pictures, a single one too; the text names them by their files. threshold: all hits beyond it, instead of
    k. filter_ids, deny_ids: "1,2,3" or a file of ids. seeing: how the model looks at pictures.
    """
    from ..data.writing import write_hits, write_ranges

    if threshold is not None and nprobe is not None:
        raise ConfigError("a search by threshold looks into every list; leave --nprobe out")
    lists = {"allow": filter_ids, "deny": deny_ids}

    def run(slot: Slot | None = None) -> tuple[Any, Any, Any]:
        options: dict[str, Any] = {what: read_ids(ids) for what, ids in lists.items() if ids is not None}
        with open_rows(queries, **{**keys, "labels_key": None}, role="queries") as source:
            gallery = open_gallery(path, model=model, device=device, mmap=mmap)
            source = as_queries(gallery, source, seeing)
            names = [shown(name) for name in source.names] if isinstance(source, FeatureSource) else source.ids
            if slot is not None and threshold is None:
                slot.check_space(12 * len(source) * min(k, gallery.ntotal))
            if threshold is not None:
                return range_search_source(gallery, source, threshold, progress, **options), source.ids, names
            return search_source(gallery, source, k, progress, nprobe=nprobe, **options), source.ids, names

    if out is None:
        hits, query_ids, names = run()
    else:
        given = (path, queries, model, *(ids for ids in lists.values() if ids is not None and os.path.exists(ids)))
        with reserve(out, inputs=[p for p in given if p is not None]) as slot:
            hits, query_ids, names = run(slot)
            write: Callable[..., None] = write_hits if threshold is None else write_ranges
            slot.write(lambda f: write(f, *hits, query_ids), nbytes=12 * hits[-1].size)
    return _said(hits, query_ids) + (f", written to {shown(out)}" if out is not None else "") + _first(hits, names)


def _said(hits: tuple[Any, ...], query_ids: Ints) -> str:
    if len(hits) == 3:
        return f"{len(query_ids):,} queries, {len(hits[2]):,} hits"
    missing = (hits[1] < 0).sum(1)
    text = f"{len(query_ids):,} queries, {hits[1].shape[1]} hits each"
    return text + (f" but for {int((missing > 0).sum()):,} with fewer" if missing.any() else "")


def _first(hits: tuple[Any, ...], names: Sequence[Any] | Ints) -> str:
    """The hits of the first queries, a line each."""
    lines = [""]
    for q, name in enumerate(names[:5]):
        own = q if len(hits) == 2 else slice(*hits[0][q : q + 2])
        D, I = (a[own][:SHOWN] for a in hits[-2:])
        lines.append(f"query {name}  " + "  ".join(f"{i}:{s:.4f}" for i, s in zip(I, D) if i >= 0))
    return "\n".join(lines)


def verify_file(path: PathLike) -> str:
    """Full verification of a gallery or a model; returns one line. Raises when anything is wrong."""
    if Path(path).suffix == ".safetensors":
        model = Model.load(path)
        return f"{shown(path)}: sound, model of method {shown(model.config['method'])}, SHA-256 {model.sha256[:12]}"
    stored = read_gallery(path)
    if stored.card is None:
        raise IndexFileError(f"{shown(path)}: no checksum, nothing to verify: written by another program, or cut off")
    return f"{shown(path)}: sound, {stored.index.ntotal:,} vectors, checksum and card agree"
