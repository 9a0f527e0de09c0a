"""Galleries: open a .faissindex file and search it with arrays. Also reads plain FAISS files, with a warning."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from .. import faiss_calls, files
from ..arrays import Floats, Ints, as_id_set
from ..codebooks import Codebooks, Codes
from ..errors import ConfigError, printable, warn
from ..files import PathLike
from ..forks import Lock
from ..model import Model
from ..targets import gpu
from ..targets.code_lists import has_code_lists
from ..targets.ids import all_ids
from ..targets.pretransform import encoded, unwrap_index
from ..targets.queries import prepared, ranges, unscaled
from .base import AnyGallery, absent, threshold_of
from .extending import extends, taken_over
from .filters import known_target, selector
from .hits import Hits, RangeHits
from .promises import Promises, promises_of
from .reading import read_gallery, stamp_of
from .snapshot import Origin, Snapshot


class Gallery(AnyGallery):
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
    def index_d(self) -> int:
        return int(self.index.d)

    def encoded(self, z: Floats) -> Floats:
        """What `embed` made -> queries as the codes meet them, behind the encoder inside the file."""
        return encoded(self.index, z)

    def _width(self, snapshot: Snapshot, encoded: bool, decoded: bool) -> int | None:
        """Of queries that are encoded or decoded; None where they are rows."""
        if decoded:
            return (snapshot.stored.shape or known_target(snapshot, self.name).shape_of(snapshot.stored.index)).d
        return int(snapshot.stored.index.d) if encoded else None

    def _promises(self) -> Promises | None:
        return promises_of(self._snapshot, self.model, self.name)

    def _visited(self, nprobe: int | None, snapshot: Snapshot) -> int | None:
        """How many lists a search visits; None where the file or the target decides."""
        visited = self._visited_of(nprobe, getattr(unwrap_index(snapshot.stored.index), "nlist", None))
        if visited is not None and snapshot.on_gpu is not None and not has_code_lists(snapshot.stored.index):
            raise ConfigError("a GPU search scores every row; leave nprobe out, or use device cpu")
        return visited

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
    ) -> Hits:
        """The k nearest vectors of each query -> scores D (nq, k) float32, ids I (nq, k) int64, best first, also as a table.

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
        k = self._clip(k, int(snapshot.stored.index.ntotal))
        z = self._queries(xq, self._width(snapshot, encoded, decoded), name, check_finite, known)
        if len(z) == 0:
            return Hits(np.zeros((0, k), np.float32), np.zeros((0, k), np.int64))
        sel = selector(snapshot, self.name, allow, deny)
        nprobe = self._visited(nprobe, snapshot)
        core, x, powers = prepared(snapshot.stored.index, z, name, snapshot.on_gpu is not None, decoded)
        if snapshot.on_gpu is not None:
            D, I = snapshot.on_gpu.search(x, k, nprobe)
        elif (target := snapshot.stored.target) is None:
            D, I = faiss_calls.search(core, x, k)
        else:
            D, I = target.search(core, x, k, sel=sel, nprobe=nprobe)
        return Hits(unscaled(D, powers, I, name), I)

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
    ) -> RangeHits:
        """All vectors with a score above `threshold` (metric l2: a distance below it).

        -> lims (nq + 1,) int64, D, I: query q owns D[lims[q] : lims[q + 1]], best first. Raises as search does.
        """
        snapshot = self._snapshot
        threshold = threshold_of(threshold)
        z = self._queries(xq, self._width(snapshot, encoded, decoded), name, check_finite, known)
        if snapshot.on_gpu is not None:
            raise ConfigError("a GPU has no range search; use device cpu")
        target = known_target(snapshot, self.name)
        if len(z) == 0:
            return RangeHits(np.zeros(1, np.int64), np.zeros(0, np.float32), np.zeros(0, np.int64))
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
        return RangeHits(lims, D[order], I[order])

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
        ids = as_id_set(ids)
        here, decoded = self.reconstruct_some(ids)
        if not here.all():
            raise absent(ids[~here], len(ids), self.name)
        return decoded

    def reconstruct_some(self, ids: Ints) -> tuple[NDArray[np.bool_], Floats]:
        """ids (n,) -> which of them are there, and what the codes of those stand for, in their order; as reconstruct."""
        snapshot = self._snapshot
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
        return here, codebooks.decode(codes[place[here]])

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
            check_model(self.model, stored.metadata, self.name)
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


def check_model(
    model: Model | None, metadata: Mapping[str, Any] | None, name: str, model_name: str = "the model"
) -> None:
    """Raise ConfigError where a gallery was made by another model."""
    if model is not None and metadata is not None and model.origin != metadata.get("model_sha256"):
        made_by = str(metadata.get("model_sha256"))[:12]
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
    check_model(loaded, stored.metadata, name, model_name)
    return Gallery(
        Snapshot.on_device(stored, device), loaded, name, Origin(os.path.abspath(path), device, mmap, verify)
    )
