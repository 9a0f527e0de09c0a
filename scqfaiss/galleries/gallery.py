"""Galleries: open a .faissindex file and search it with arrays. Also reads plain FAISS files, with a warning."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from .. import faiss_calls, files
from ..arrays import Floats, Ints, as_features, as_id_set, transposed
from ..codebooks import Codebooks, Codes
from ..errors import ConfigError, DataError, printable, warn
from ..files import PathLike
from ..forks import Lock
from ..model import Model
from ..options import as_whole
from ..targets import gpu
from ..targets.code_lists import has_code_lists
from ..targets.ids import all_ids
from ..targets.pretransform import unwrap_index
from ..targets.queries import MAX_SCORE, prepared, ranges, unscaled
from .extending import extends, taken_over
from .filters import known_target, selector
from .promises import Promised
from .reading import Stored, read_gallery, stamp_of
from .snapshot import Origin, Snapshot


class Gallery(Promised):
    """An open gallery. Any number of threads may search at a time; `refresh` may run beside them.

    index: the faiss.Index (on the CPU, also where searches run on a GPU). metadata: facts as written by the export, None for
    plain FAISS files. model: the Model that encodes queries, None where the index holds its encoder.
    """

    def __init__(self, snapshot: Snapshot, model: Model | None, name: str, origin: Origin | None = None) -> None:
        """As open_gallery makes it; Snapshot(Stored.of(index, metadata)) is one in memory, without an origin."""
        self._snapshot, self.model, self.name, self._origin = snapshot, model, name, origin
        self._refreshing, self._reconstructing = Lock(), Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as the path and the hash of its file, and its model: it is opened again where it is unpickled.

        Raises ConfigError where there is no such file or hash, and for a gallery on a GPU.
        """
        why = None
        if self._origin is None:
            why = "was not opened from a file"
        elif self._snapshot.on_gpu is not None:
            why = f"lies on {self._origin.device}, which another process has to open itself"
        elif self._snapshot.stored.stamp is None:
            why = "is a plain FAISS file, without a hash to know it by"
        if why is not None:
            raise ConfigError(f"{self.name} cannot be pickled: it {why}; pass the path and open it there")
        return _reopened, (self._origin, self._snapshot.stored.stamp, self.model)

    def __copy__(self) -> Gallery:
        """Another gallery on the same index; each is refreshed by itself."""
        return Gallery(self._snapshot, self.model, self.name, self._origin)

    def __deepcopy__(self, memo: Any) -> Gallery:
        return self.__copy__()  # an index is never changed, only replaced

    @property
    def index(self) -> Any:
        return self._snapshot.stored.index

    @property
    def metadata(self) -> Mapping[str, Any] | None:
        return self._snapshot.stored.metadata

    @property
    def target(self) -> str | None:
        """Name of the target that the index belongs to; None for foreign files."""
        target = self._snapshot.stored.target
        return None if target is None else target.INFO.name

    @property
    def exact(self) -> bool:
        """Whether a search finds the best by the codes' own scores; False where lists are passed over or tables rounded."""
        target = self._snapshot.stored.target
        lists = getattr(unwrap_index(self.index), "nlist", 1)
        if target is None or not target.INFO.exact or (target.INFO.name != "buckets" and lists > 1):
            return False
        return self._snapshot.on_gpu is None or not has_code_lists(self.index) or lists <= gpu.MAX_NPROBE

    @property
    def every_list(self) -> int | None:
        """The nprobe with which a search looks at every row, where codes have lists; None where they have none, or a GPU
        cannot choose among so many.
        """
        if not has_code_lists(self.index):
            return None
        lists = int(unwrap_index(self.index).nlist)
        return lists if self._snapshot.on_gpu is None or lists <= gpu.MAX_NPROBE else None

    @property
    def checksum(self) -> str | None:
        """SHA-256 of the file that is open, in hexadecimal digits; None for plain FAISS files."""
        stamp = self._snapshot.stored.stamp
        return None if stamp is None else bytes(stamp).hex()

    @property
    def ntotal(self) -> int:
        return int(self.index.ntotal)

    @property
    def needs_model(self) -> bool:
        """True where queries must go through the model first."""
        return self.metadata is not None and self.metadata.get("encoder") == "model"

    @property
    def d(self) -> int:
        """Dimension of the queries."""
        return self.model.d_in if self.model is not None and self.needs_model else int(self.index.d)

    def embed(self, xq: Any, name: str = "queries", *, known: Any = None, check_finite: bool = True) -> Floats:
        """Query rows (nq, d) -> what the FAISS index is searched with, (nq, index.d) float32. known, check_finite: see search."""
        rows = self._rows(xq, name, check_finite)
        if self.needs_model and self.model is not None:
            return self.model.queries(rows, name, known)
        if known is not None:
            raise ConfigError(
                f"known is given, and the codes of {self.name} have no content part; that takes a model trained with "
                "--content-bits"
            )
        return rows

    def known(self, xq: Any, name: str = "queries", *, check_finite: bool = True) -> Floats:
        """Query rows (nq, d) -> the probability that the class of each is one of the training's, (nq,) float32.

        Raises ConfigError where the gallery's model has no gate to tell it, and as search does.
        """
        xq = self._rows(xq, name, check_finite)
        if not self.has_gate or self.model is None:
            raise ConfigError(
                f"{self.name} cannot tell queries of known classes from others: that takes a model with a gate, trained with "
                "--content-bits"
            )
        return self.model.gate_of(xq, name)

    @property
    def has_gate(self) -> bool:
        """Whether `known` can tell anything: the model is here, and has content codes and a gate."""
        return self.needs_model and self.model is not None and self.model.has_gate

    def _rows(self, xq: Any, name: str, check_finite: bool) -> Floats:
        xq = as_features(xq, name, finite=check_finite, one_row=True)
        if self.needs_model and self.model is None:  # how wide its rows are, only the model knows
            raise ConfigError(f"{self.name} needs the model its codes came from; give --model")
        if xq.shape[1] != self.d:
            how = transposed(len(xq), xq.shape[1], self.d)
            raise ConfigError(f"{name}: queries have d={xq.shape[1]}, {self.name} needs d={self.d}{how}")
        rows: Floats = xq
        return rows

    def clip(self, k: int) -> int:
        """k, or with a warning the number of vectors where that is smaller. Raises ConfigError for k < 1."""
        return self._clip(k, self._snapshot)

    def _clip(self, k: int, snapshot: Snapshot) -> int:
        k = as_whole("k", k)
        if k < 1:
            raise ConfigError(f"k is {k}, needs 1 or more")
        n = int(snapshot.stored.index.ntotal)
        if k > n:
            warn(f"k={k:,} is more than the {n:,} vectors of {self.name}: returned all of them")
        return min(k, max(n, 1))

    def _queries(
        self, xq: Any, encoded: bool, decoded: bool, name: str, snapshot: Snapshot, check_finite: bool, known: Any
    ) -> Floats:
        if not encoded and not decoded:
            return self.embed(xq, name, known=known, check_finite=check_finite)
        if known is not None:
            raise ConfigError(f"{name}: known weighs queries as they are encoded, and these are encoded already")
        z, d = as_features(xq, name, finite=check_finite, one_row=True), snapshot.stored.index.d
        if decoded:
            d = (snapshot.stored.shape or known_target(snapshot, self.name).shape_of(snapshot.stored.index)).d
        if z.shape[1] != d:
            raise ConfigError(f"{name}: encoded queries have d={z.shape[1]}, the index needs d={d}")
        return z

    def _visited(self, nprobe: int | None, snapshot: Snapshot) -> int | None:
        """How many lists a search visits; None where the file or the target decides."""
        if nprobe is None:
            return None
        nprobe = as_whole("nprobe", nprobe)
        lists: int | None = getattr(unwrap_index(snapshot.stored.index), "nlist", None)
        if nprobe < 1 or lists is None:
            raise ConfigError(f"nprobe is {nprobe}: " + ("needs 1 or more" if lists else f"{self.name} has no lists"))
        if nprobe > lists:
            warn(f"nprobe={nprobe:,} is more than the {lists:,} lists of {self.name}: visited all of them")
        if snapshot.on_gpu is not None and not has_code_lists(snapshot.stored.index):
            raise ConfigError("a GPU search scores every row; leave nprobe out, or use device cpu")
        return min(nprobe, lists)

    # ------------------------------------------------------------------------------------------------------- searching
    def search(
        self,
        xq: Any,
        k: int = 10,
        *,
        encoded: bool = False,
        decoded: bool = False,
        allow: Any = None,
        deny: Any = None,
        nprobe: int | None = None,
        known: Any = None,
        name: str = "queries",
        check_finite: bool = True,
    ) -> tuple[NDArray[np.float32], Ints]:
        """The k nearest vectors of each query -> scores D (nq, k) float32, ids I (nq, k) int64, best first.

        k above ntotal is clipped to it, with a warning. encoded=True: xq are z already, (nq, index.d); decoded=True: they
        live where codes do, as those of `reconstruct`, and no encoder inside the file touches them. allow, deny: ids
        that alone, or that never, may be found; where they leave fewer than k, the rest of I is -1 and D means nothing
        there. nprobe: lists to visit and no more, for a gallery with lists. Without it a search visits as many as the file
        says, and more where these hold fewer than k hits; target buckets searches exactly. known: where codes have a content
        part, how certain the class of each query is one of the training's, as Model.embed takes it. check_finite:
        False for rows that were looked at already, as those of a Source are.
        Raises ConfigError on a wrong width, k < 1 or filters where the container has none, DataError on bad rows or ids.
        """
        snapshot = self._snapshot
        k = self._clip(k, snapshot)
        z = self._queries(xq, encoded, decoded, name, snapshot, check_finite, known)
        if len(z) == 0:
            return np.zeros((0, k), np.float32), np.zeros((0, k), np.int64)
        sel = selector(snapshot, self.name, allow, deny)
        nprobe = self._visited(nprobe, snapshot)
        core, x, powers = prepared(snapshot.stored.index, z, name, snapshot.on_gpu is not None, decoded)
        if snapshot.on_gpu is not None:
            D, I = snapshot.on_gpu.search(x, k, nprobe)
        elif (target := snapshot.stored.target) is None:
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
        decoded: bool = False,
        allow: Any = None,
        deny: Any = None,
        known: Any = None,
        name: str = "queries",
        check_finite: bool = True,
    ) -> tuple[Ints, NDArray[np.float32], Ints]:
        """All vectors with a score above `threshold` (metric l2: a distance below it).

        -> lims (nq + 1,) int64, D, I: query q owns D[lims[q] : lims[q + 1]], best first. Raises as search does.
        """
        snapshot = self._snapshot
        if not isinstance(threshold, (int, float, np.number)) or not np.isfinite(threshold):
            raise ConfigError(f"threshold is {threshold}, needs a number")
        threshold = float(np.clip(threshold, -MAX_SCORE, MAX_SCORE))
        z = self._queries(xq, encoded, decoded, name, snapshot, check_finite, known)
        if snapshot.on_gpu is not None:
            raise ConfigError("a GPU has no range search; use device cpu")
        target = known_target(snapshot, self.name)
        if len(z) == 0:
            return np.zeros(1, np.int64), np.zeros(0, np.float32), np.zeros(0, np.int64)
        sel = selector(snapshot, self.name, allow, deny)
        core, x, powers = prepared(snapshot.stored.index, z, name, decoded=decoded)
        if powers is None:
            lims, D, I = target.range_search(core, x, threshold, sel=sel)
        else:  # a threshold for each power
            lims, D, I = ranges(
                lambda rows, power: target.range_search(core, x[rows], power, sel=sel), threshold, powers
            )
            D = unscaled(D, np.repeat(powers, np.diff(lims)), I, name, np.repeat(np.arange(len(x)), np.diff(lims)))
        sign = -1 if snapshot.stored.index.metric_type == faiss.METRIC_INNER_PRODUCT else 1
        order = np.lexsort((I, sign * D, np.repeat(np.arange(len(z)), np.diff(lims))))
        return lims, D[order], I[order]

    # ---------------------------------------------------------------------------------------------------------- content
    def unpack(self) -> tuple[Codebooks, Codes, Ints]:
        """Codebooks, codes (n, M) and ids (n,) that the index holds."""
        return self._unpack(self._snapshot)

    def _unpack(self, snapshot: Snapshot, only: Ints | None = None) -> tuple[Codebooks, Codes, Ints]:
        stored, target = snapshot.stored, known_target(snapshot, self.name)
        return target.unpack(stored.index, stored.shape, only)  # type: ignore[no-any-return]

    def ids(self) -> Ints:
        """(n,) ids that the index holds, in no order: without a look at the codes. Raises as unpack does."""
        known_target(self._snapshot, self.name)
        return all_ids(self.index)

    def reconstruct(self, ids: Any) -> Floats:
        """ids (n,) -> the vectors their codes stand for, (n, d of the codebooks) float32, as searches score them.

        They live where encoded queries live, not where rows do: no encoder runs backwards. The first call takes the codes out
        of the index and keeps them, b + 8 bytes a row; where they are memory-mapped, every call looks through the ids, and at
        the codes of these alone. Raises DataError for ids that are not there.
        """
        snapshot = self._snapshot
        ids = as_id_set(ids)
        mapped = self._origin is not None and self._origin.mmap
        with self._reconstructing:
            decodable = snapshot.decodable[0] if snapshot.decodable else None
            if decodable is None:
                codebooks, codes, known = self._unpack(snapshot, np.unique(ids) if mapped else None)
                order = np.argsort(known, kind="stable")
                decodable = codebooks, codes[order], known[order]
                if not mapped:
                    snapshot.decodable.append(decodable)
        codebooks, codes, known = decodable
        place = np.searchsorted(known, ids)
        here = place < len(known)
        here[here] = known[place[here]] == ids[here]
        if not here.all():
            first = ", ".join(str(i) for i in ids[~here][:5])
            raise DataError(f"ids {first} are not in {self.name} ({int((~here).sum()):,} of {len(ids):,})")
        decoded: Floats = codebooks.decode(codes[place])
        return decoded

    # ------------------------------------------------------------------------------------------------------- the file
    def refresh(self) -> bool:
        """Open the file anew if another one stands under its name now -> whether it did. A plain FAISS file carries
        nothing to tell it by and is opened anew every time.

        Searches go on meanwhile, each on the file it began with. On any error, raised as open does, the gallery goes on
        with what it has.
        """
        origin = self._origin
        if origin is None:
            raise ConfigError(f"{self.name} was not opened from a file")
        with self._refreshing:
            with files.open_regular(origin.path) as f:
                stamp = stamp_of(f)
            if stamp is not None and stamp == self._snapshot.stored.stamp:
                return False
            stored = read_gallery(origin.path, verify=origin.verify, mmap=origin.mmap)
            if self.model is not None and extends(self.model, stored.metadata):
                stored = taken_over(self.model, stored, self.name)
            _check_model(self.model, stored, self.name)
            before, after = self._snapshot.stored.metadata or {}, stored.metadata or {}
            # Queries that were encoded outside the file fit the codes of their own model alone.
            keys = ("encoder", "model_sha256") if before.get("encoder") == "model" else ("encoder",)
            if any(before.get(key) != after.get(key) for key in keys) or stored.index.d != self.index.d:
                raise ConfigError(f"{self.name}: the new file takes other queries than the one that is open")
            self._snapshot = Snapshot.on_device(stored, origin.device)
            return True


def _reopened(origin: Origin, stamp: Any, model: Model | None) -> Gallery:
    """The gallery that was pickled. Raises as open_gallery does, and ConfigError where another file stands there now."""
    gallery = open_gallery(origin.path, model=model, device=origin.device, mmap=origin.mmap, verify=origin.verify)
    if gallery._snapshot.stored.stamp != stamp:
        raise ConfigError(
            f"{printable(origin.path)} is another file than the one whose gallery was pickled; open it anew"
        )
    return gallery


def _check_model(model: Model | None, stored: Stored, name: str, model_name: str = "the model") -> None:
    if model is not None and stored.metadata is not None and model.origin != stored.metadata.get("model_sha256"):
        made_by = str(stored.metadata.get("model_sha256"))[:12]
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

    model: the model its codes came from, or one that extends it, with which the file stays as it is; needed where the
    encoder is not folded into the file, and refused when it is another one. device: cpu, cuda or cuda:N. mmap: codes and
    ids stay in the file, for files larger than memory; replace such a file by another, never write into it. verify=False
    leaves out the SHA-256 (about 0.6 seconds a GB), not the other checks.
    Raises ConfigError, IndexFileError or ResourceError (see read_gallery), CheckpointError for a damaged model.
    """
    if device != "cpu":
        gpu.number_of(device)  # before any slow step
    name = printable(path)
    stored = read_gallery(path, verify=verify, mmap=mmap)
    if stored.metadata is None:
        warn(f"{name}: no checksum: written by another program, or cut off")
    model_name = "the model" if isinstance(model, Model) else printable(model) if model is not None else ""
    loaded = model if isinstance(model, Model) or model is None else Model.load(model)
    if loaded is not None and extends(loaded, stored.metadata):
        stored = taken_over(loaded, stored, name)
    _check_model(loaded, stored, name, model_name)
    return Gallery(
        Snapshot.on_device(stored, device), loaded, name, Origin(os.path.abspath(path), device, mmap, verify)
    )
