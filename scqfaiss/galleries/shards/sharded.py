"""A gallery in several files, searched as one: each shard for its best k, merged by score and id."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...arrays import Floats, Ints, as_id_set
from ...calibration.tables import Calibration
from ...codebooks import Codebooks, Codes
from ...errors import ConfigError, printable
from ...files import PathLike
from ...forks import Lock
from ...model import Model
from ...targets import gpu
from ...targets.pretransform import unwrap_index
from ..base import AnyGallery, absent, threshold_of
from ..extending import extends
from ..gallery import Gallery, check_model
from ..hits import Hits, RangeHits
from ..promises import Promises
from ..reading import shape_of_card
from ..snapshot import Origin
from .manifest import Manifest, read_manifest
from .merging import merge_hits, merge_ranges
from .opening import each, open_shards


@dataclass(frozen=True)
class Traits:
    """What searches have to know of the shards, which are alike. lists: of an index, None without."""

    index_d: int
    exact: bool
    every_list: int | None
    lists: int | None

    @staticmethod
    def of(part: Gallery) -> Traits:
        lists = getattr(unwrap_index(part.index), "nlist", None)
        return Traits(part.index_d, part.exact, part.every_list, lists)


@dataclass(frozen=True)
class Opened:
    """What searches run on; a refresh puts another in its place. parts: a Gallery, or what stands for one, for each shard."""

    manifest: Manifest
    parts: tuple[Any, ...]
    traits: Traits
    promises: list[Any] = field(default_factory=list)


class Sharded(AnyGallery):
    """An open gallery of several files. Any number of threads may search at a time; `refresh` may run beside them.

    A search runs on as many threads as FAISS may use (faiss.omp_get_max_threads in the thread that searches).
    """

    def __init__(self, opened: Opened, model: Model | None, name: str, origin: Origin) -> None:
        """As open_sharded makes it."""
        self._opened, self.model, self.name, self._origin = opened, model, name, origin
        self._refreshing = Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as the path and the checksum of its manifest: it is opened again where it is unpickled."""
        return _reopened, (self._origin, self.checksum, self.model)

    def __copy__(self) -> Sharded:
        """Another gallery on the same files; each is refreshed by itself."""
        return type(self)(self._opened, self.model, self.name, self._origin)

    def __deepcopy__(self, memo: Any) -> Sharded:
        return self.__copy__()

    @property
    def manifest(self) -> Manifest:
        return self._opened.manifest

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What is common to all shards; n counts the rows of all."""
        return self._opened.manifest.metadata

    @property
    def target(self) -> str:
        return str(self.metadata["target"])

    @property
    def ntotal(self) -> int:
        return self._opened.manifest.n

    @property
    def index_d(self) -> int:
        return self._opened.traits.index_d

    @property
    def exact(self) -> bool:
        return self._opened.traits.exact

    @property
    def every_list(self) -> int | None:
        return self._opened.traits.every_list

    @property
    def checksum(self) -> str:
        """SHA-256 of the manifest, and by what it holds of all shards."""
        return self._opened.manifest.checksum

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
        """The k nearest vectors of each query, as Gallery.search: best first, and equal scores by id.

        Without nprobe every shard visits as many lists as its own file says.
        """
        opened = self._opened
        k = self._clip(k, opened.manifest.n)
        z = self._queries(xq, self._width(opened, encoded, decoded), name, check_finite, known)
        if len(z) == 0:
            return Hits(np.zeros((0, k), np.float32), np.zeros((0, k), np.int64))
        nprobe = self._visited_of(nprobe, opened.traits.lists)
        options = {"nprobe": nprobe, **_options(decoded, allow, deny, name)}
        wanted = [min(k, shard.rows) for shard in opened.manifest.shards]
        parts = self._ask(opened, "search", z, wanted, options)
        return Hits(*merge_hits(parts, k, str(opened.manifest.metadata["metric"])))

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
        """All vectors with a score above `threshold`, as Gallery.range_search."""
        opened, threshold = self._opened, threshold_of(threshold)
        z = self._queries(xq, self._width(opened, encoded, decoded), name, check_finite, known)
        if len(z) == 0:
            return RangeHits(np.zeros(1, np.int64), np.zeros(0, np.float32), np.zeros(0, np.int64))
        wanted = [threshold] * len(opened.parts)
        parts = self._ask(opened, "range_search", z, wanted, _options(decoded, allow, deny, name))
        return RangeHits(*merge_ranges(parts, len(z), str(opened.manifest.metadata["metric"])))

    def _width(self, opened: Opened, encoded: bool, decoded: bool) -> int | None:
        if decoded:
            return shape_of_card(opened.manifest.metadata).d
        return opened.traits.index_d if encoded else None

    def _ask(
        self, opened: Opened, verb: str, z: Floats, wanted: Sequence[Any], options: Mapping[str, Any]
    ) -> list[Any]:
        """verb(z, wanted of the shard, **options) of every shard."""
        pairs = list(zip(opened.parts, wanted, strict=True))
        return each(pairs, lambda pair: getattr(pair[0], verb)(z, pair[1], **options))

    # ---------------------------------------------------------------------------------------------------------- content
    def _of_each(self, opened: Opened, verb: str, *arguments: Any) -> list[Any]:
        """verb(*arguments) of every shard."""
        return each(opened.parts, lambda part: getattr(part, verb)(*arguments))

    def unpack(self) -> tuple[Codebooks, Codes, Ints]:
        """Codebooks, codes (n, M) and ids (n,) of all shards, one after another."""
        return self._unpack(self._opened)

    def _unpack(self, opened: Opened) -> tuple[Codebooks, Codes, Ints]:
        codebooks, codes, ids = zip(*self._of_each(opened, "unpack"))
        return codebooks[0], np.concatenate(codes), np.concatenate(ids)

    def ids(self) -> Ints:
        """(n,) ids of all shards, in no order."""
        found: Ints = np.concatenate(self._of_each(self._opened, "ids"))
        return found

    def reconstruct(self, ids: Any) -> Floats:
        """ids (n,) -> the vectors their codes stand for, as Gallery.reconstruct; shards without such ids are not asked."""
        opened, ids = self._opened, as_id_set(ids)
        out = np.empty((len(ids), shape_of_card(opened.manifest.metadata).d), np.float32)
        missing = np.ones(len(ids), bool)
        for s, shard in enumerate(opened.manifest.shards):
            near = np.flatnonzero(missing & (shard.ids[0] <= ids) & (ids <= shard.ids[1]))
            if len(near):
                here, vectors = self._ask_one(opened, s, "reconstruct_some", ids[near])
                out[near[here]] = vectors
                missing[near[here]] = False
        if missing.any():
            raise absent(ids[missing], len(ids), self.name)
        return out

    def _ask_one(self, opened: Opened, s: int, verb: str, *arguments: Any) -> Any:
        return getattr(opened.parts[s], verb)(*arguments)

    def encoded(self, z: Floats) -> Floats:
        """What `embed` made -> queries as the codes meet them, behind the encoder inside the files."""
        found: Floats = self._ask_one(self._opened, 0, "encoded", z)
        return found

    def _promises(self) -> Promises | None:
        """As promises.promises_of: the model's calibration, where it is another one than the manifest's."""
        opened = self._opened
        if not opened.promises:
            metadata = opened.manifest.metadata
            packed, bits = metadata.get("calibration"), metadata["M"] * metadata["nbits"]
            of_model = None if self.model is None else self.model.calibrations
            found: Promises | None = None
            if of_model is not None and bits in of_model.lengths and of_model.lengths[bits].pack() != packed:
                codebooks, codes, _ = self._unpack(opened)
                distinct, counts = np.unique(codes, axis=0, return_counts=True)
                found = of_model.lengths[bits], of_model.share(codebooks.decode(distinct), counts, bits)
            elif packed is not None:
                found = Calibration.unpack(packed), metadata.get("relevant_share")
            opened.promises.append(found)
        promises: Promises | None = opened.promises[0]
        return promises

    # ------------------------------------------------------------------------------------------------------- the folder
    def refresh(self) -> bool:
        """Open what the manifest names now, where it is another -> whether it was. Shards that stay are not opened again.

        Searches go on meanwhile, each on the files it began with. On any error the gallery goes on with what it has.
        """
        with self._refreshing:
            before = self._opened
            if read_manifest(self._origin.path).checksum == before.manifest.checksum:
                return False
            after = self._open_again(before)
            check_model(self.model, after.manifest.metadata, self.name)
            a, b = before.manifest.metadata, after.manifest.metadata
            keys = ("encoder", "model_sha256") if a.get("encoder") == "model" else ("encoder",)
            if any(a.get(key) != b.get(key) for key in keys) or after.traits.index_d != before.traits.index_d:
                raise ConfigError(f"{self.name}: the new shards take other queries than those that are open")
            self._opened = after
            return True

    def _open_again(self, before: Opened) -> Opened:
        known = {shard.sha256: part for shard, part in zip(before.manifest.shards, before.parts)}
        how = self._origin
        manifest, parts = open_shards(how.path, device=how.device, mmap=how.mmap, verify=how.verify, known=known)
        return Opened(manifest, parts, Traits.of(parts[0]))


def _options(decoded: bool, allow: Any, deny: Any, name: str) -> dict[str, Any]:
    return {
        "encoded": not decoded,
        "decoded": decoded,
        "allow": allow,
        "deny": deny,
        "name": name,
        "check_finite": False,
    }


def open_sharded(
    path: PathLike,
    *,
    model: Model | PathLike | None = None,
    device: str = "cpu",
    mmap: bool = False,
    verify: bool = True,
) -> Sharded:
    """Open a folder of shards for searching, in this process. Arguments as those of open_gallery.

    Raises ConfigError, IndexFileError naming the shard that is missing, damaged, listed twice, of another model, or that
    repeats an id of another.
    """
    if device != "cpu":
        gpu.number_of(device)
    name = printable(path)
    loaded = model_for(model, read_manifest(path).metadata, name)
    manifest, parts = open_shards(path, device=device, mmap=mmap, verify=verify)
    return Sharded(
        Opened(manifest, parts, Traits.of(parts[0])), loaded, name, Origin(os.path.abspath(path), device, mmap, verify)
    )


def model_for(model: Model | PathLike | None, metadata: Mapping[str, Any], name: str) -> Model | None:
    """The model that was given, held to what a manifest says. Raises ConfigError where it is another's."""
    loaded = model if isinstance(model, Model) or model is None else Model.load(model)
    model_name = "the model" if isinstance(model, Model) or model is None else printable(model)
    if loaded is not None and extends(loaded, metadata):
        raise ConfigError(
            f"{model_name} extends the model of {name}; scqfaiss append with it takes the shards over, or give the old one"
        )
    check_model(loaded, metadata, name, model_name)
    return loaded


def _reopened(origin: Origin, checksum: str, model: Model | None) -> Sharded:
    gallery = open_sharded(origin.path, model=model, device=origin.device, mmap=origin.mmap, verify=origin.verify)
    if gallery.checksum != checksum:
        raise ConfigError(f"{printable(origin.path)} is another gallery than the one that was pickled; open it anew")
    return gallery
