"""Galleries that a service holds open: searched in batches, and opened anew where another file stands under their name."""

from __future__ import annotations

import copy
import io
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import files, footer
from ..arrays import Floats, Ints
from ..errors import ConfigError, DataError, ScqError, WriteError, printable
from ..features.source import front_encoder_of
from ..galleries.alike import alike
from ..galleries.base import AnyGallery
from ..galleries.editing import append, remove
from ..galleries.opening import open_any
from ..galleries.searching import require_model
from ..galleries.shards.manifest import MANIFEST, is_sharded, read_manifest
from ..items.opening import open_items
from ..items.store import Items
from ..model import Model
from .problems import Problem
from .queries import Asked
from .settings import Served, Settings
from .thumbnails import MAX_PIXELS

Opener = Callable[..., AnyGallery]  # takes what open_any does

IMAGES_AT_A_TIME = 32  # decoded and encoded together


@dataclass(frozen=True, eq=False)
class Answer:
    """Hits of nq queries, each a part of D, I and P between its lims; id -1 marks a place without a hit. items: of each hit,
    None where the gallery has none. version: of the file that was searched.
    """

    lims: Ints
    D: NDArray[np.float32]
    I: Ints
    P: NDArray[np.float32] | None
    items: list[Any] | None
    version: str
    encode: float = 0.0  # seconds

    @property
    def short(self) -> int:
        """Queries with fewer hits than were asked for."""
        empty = self.I < 0
        return int((np.diff(np.append(0, empty.cumsum())[self.lims]) > 0).sum()) if empty.any() else 0


class OpenGallery:
    """A gallery under the name it is served by, with its items and what encodes images for it."""

    def __init__(self, served: Served, settings: Settings, opener: Opener = open_any) -> None:
        """opener: opens the gallery. Raises as it does and as open_items, ConfigError where queries need a model that was not
        given.
        """
        self.served, self.settings, self.name = served, settings, served.name
        self._seen = _seen(served.gallery)
        model = None if served.model is None else Model.load(served.model)
        self.gallery = opener(served.gallery, model=model, device=settings.device, mmap=settings.mmap)
        if self.gallery.metadata is None:
            raise ConfigError(
                f"{served.gallery}: made by another program, or cut off; serve galleries that scqfaiss exported"
            )
        require_model(self.gallery)
        self.gallery.name = served.name  # what answers call it: they tell nothing of the machine's folders
        self._seen_items = None if served.items is None else _seen(served.items)
        self.items: Items | None = None if served.items is None else open_items(served.items, served.gallery)
        self.images = Images.of(model, served.onnx, self.gallery.metadata.get("model_sha256"))
        self.loaded, self.failures, self._faults = time.time(), 0, {"gallery": "", "items": ""}
        self._writing = threading.Lock()

    # ------------------------------------------------------------------------------------------------------- searching
    def search(self, asked: Sequence[Asked]) -> list[Answer]:
        """Requests of one kind, together. Raises Problem, or an error of the search, which may be of one of them alone."""
        view = copy.copy(self.gallery)  # an answer is of one file, whatever is put in its place meanwhile
        first, started = asked[0], time.perf_counter()
        known = np.asarray(first.known) if isinstance(first.known, list) else first.known
        if first.ids is not None:
            z = self._stored(view, np.concatenate([a.ids for a in asked if a.ids is not None]), known)
        else:
            rows = np.concatenate([a.rows for a in asked if a.rows is not None])
            z = rows if first.encoded else view.embed(rows, known=known, check_finite=False)
        encode = time.perf_counter() - started
        found = self._ranged(view, z, first) if first.ranged else self._first(view, z, first)
        return self._split(view, asked, *found, encode)

    def _first(self, view: AnyGallery, z: Floats, a: Asked) -> tuple[Ints, NDArray[np.float32], Ints]:
        k, nprobe = min(a.k, max(view.ntotal, 1)), a.nprobe
        if nprobe is not None and view.every_list is not None:
            nprobe = min(nprobe, view.every_list)
        D, I = view.search(z, k, nprobe=nprobe, **_options(a))
        return np.arange(0, len(z) * k + 1, k), D.ravel(), I.ravel()

    def _ranged(self, view: AnyGallery, z: Floats, a: Asked) -> tuple[Ints, NDArray[np.float32], Ints]:
        """Query by query: what a low threshold finds must not fill the memory before it is counted."""
        threshold = a.threshold
        if threshold is None:
            threshold = view.threshold(precision=a.precision, recall=a.recall)
        lims, parts, most = [0], [], self.settings.most_hits
        for row in z:
            _, D, I = view.range_search(row[None], threshold, **_options(a))
            lims.append(lims[-1] + len(I))
            if lims[-1] > most:
                raise Problem(
                    422, f"more than {most:,} hits are better than {threshold:g}; ask for fewer queries or better hits"
                )
            parts.append((D, I))
        return np.array(lims), *(np.concatenate(part) for part in zip(*parts))  # type: ignore[return-value]

    def _stored(self, view: AnyGallery, ids: Ints, known: Any) -> Floats:
        try:
            return alike(view, ids, known)
        except DataError as error:
            raise Problem(404, str(error)) from None

    def _split(
        self, view: AnyGallery, asked: Sequence[Asked], lims: Ints, D: NDArray[np.float32], I: Ints, encode: float
    ) -> list[Answer]:
        P = view.probability(D) if asked[0].probability else None
        items = None if self.items is None else self.items.get(I)
        version, out, q = self._version(view), [], 0
        for a in asked:
            own = lims[q : q + a.n + 1]
            low, high = int(own[0]), int(own[-1])
            part = None if P is None else P[low:high]
            told = None if items is None else items[low:high]
            out.append(Answer(own - low, D[low:high], I[low:high], part, told, version, encode))
            q += a.n
        return out

    def _version(self, view: AnyGallery | None = None) -> str:
        return ((view or self.gallery).checksum or "")[:12]

    @property
    def version(self) -> str:
        """The first digits of the checksum of the file that is open."""
        return self._version()

    # ------------------------------------------------------------------------------------------------------- the file
    def reload(self) -> bool:
        """Open the files anew where they are others -> whether one was. A bad one is told in `fault`; the old one serves on.

        Raises nothing.
        """
        changed = self._reload_gallery()
        return self._reload_items() or changed

    @property
    def fault(self) -> str:
        """What is wrong with the files that stand there now, "" for nothing."""
        return "; ".join(filter(None, self._faults.values()))

    def _failed(self, what: str, error: BaseException) -> None:
        self._faults[what] = plain(str(error) or "out of memory", (self.served,))
        self.failures += 1

    def _reload_items(self) -> bool:
        path = self.served.items
        if path is None or (seen := _seen(path)) == self._seen_items:
            return False
        try:
            self.items = open_items(path, self.served.gallery)
        except WriteError as error:  # another worker may be making them: look again, and say so once
            if not self._faults["items"]:
                self._failed("items", error)
            return False
        except (ScqError, OSError, MemoryError) as error:
            self._seen_items = seen
            self._failed("items", error)
            return False
        self._seen_items, self._faults["items"] = seen, ""
        return True

    def _reload_gallery(self) -> bool:
        seen = _seen(self.served.gallery)
        if seen == self._seen:
            return False
        self._seen = seen
        try:
            changed = self.gallery.refresh()
            if (
                not changed
            ):  # it carries the hash of the one that is open; whether that is its own, only reading it tells
                _verify(self.served.gallery)
        except (ScqError, OSError, MemoryError) as error:
            self._failed("gallery", error)
            return False
        if changed:
            self.loaded = time.time()
        self._faults["gallery"] = ""
        return changed

    def append(self, rows: Floats, ids: Ints | None) -> int:
        """Rows of features into the file, which is replaced -> vectors it now holds. Raises as editing.append."""
        with self._writing:
            n = append(self.served.gallery, rows, ids=ids, model=self.gallery.model)
            self.reload()
        return n

    def remove(self, ids: Ints) -> int:
        """Take vectors out of the file, which is replaced -> vectors that are left. Raises as editing.remove."""
        with self._writing:
            _, n = remove(self.served.gallery, ids)
            self.reload()
        return n

    def facts(self) -> dict[str, Any]:
        """What `info --json` tells, but for what takes a look at every code."""
        g = self.gallery
        found = g.facts() | {"name": self.name, "version": self.version}
        return found | {"known": g.has_gate, "images": self.images is not None, "items": self.items is not None}


def plain(message: str, galleries: Sequence[Served]) -> str:
    """A message without paths of this machine: files are called by their last part."""
    for served in galleries:
        for path in (served.gallery, served.model, served.items, served.onnx):
            for form in (os.path.abspath(path), path) if path else ():
                message = message.replace(form, os.path.basename(path or ""))
    return message


def _seen(path: str) -> tuple[int, ...] | None:
    """What differs where a file, or the manifest of shards, is replaced or rewritten."""
    try:
        found = os.stat(os.path.join(path, MANIFEST) if is_sharded(path) else path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _verify(path: str) -> None:
    """Raise IndexFileError where the hash of a file, or of the manifest of shards, is not that of its content."""
    if is_sharded(path):
        read_manifest(path)
        return
    with files.open_regular(path) as f:
        footer.read_footer(f, printable(path), hash_all=True)


def _options(a: Asked) -> dict[str, Any]:
    """Of a search: stored vectors, and what a whole encoder made, live behind the encoder inside the file, others before it."""
    stored = a.ids is not None or a.encoded
    return {"encoded": not stored, "decoded": stored, "allow": a.allow, "deny": a.deny, "check_finite": False}


class Images:
    """What turns encoded images into what a gallery is searched with: the network of its model, or its ONNX form."""

    def __init__(self, encode: Any, side: int, fit: str, encoded: bool) -> None:
        self._encode, self._side, self._fit, self.encoded = encode, side, fit, encoded

    @staticmethod
    def of(model: Model | None, onnx: str | None, made_by: Any) -> Images | None:
        """None where the gallery takes no images. made_by: SHA-256 of the gallery's model.

        Raises as front_encoder_of, ConfigError for an ONNX file of another kind or another model.
        """
        if onnx is not None:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            session = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
            told = session.get_modelmeta().custom_metadata_map
            if session.get_inputs()[0].name != "images" or "scqfaiss.size" not in told:
                raise ConfigError(
                    f"{onnx} takes no images; write it with scqfaiss export-encoder from a model for images"
                )
            if (of_model := told.get("scqfaiss.model_sha256", "")) != made_by:
                raise ConfigError(
                    f"{onnx} is of the model {printable(of_model)[:12]}, the gallery was made by {str(made_by)[:12]}"
                )
            run = lambda x: session.run(None, {"images": x})[0]  # noqa: E731
            return Images(run, int(told["scqfaiss.size"]), told.get("scqfaiss.fit", "crop"), True)
        if model is None or model.backbone is None:
            return None
        encoder: Any = front_encoder_of(model)
        return Images(encoder.features, encoder.size, encoder.fit, False)

    def rows(self, images: Sequence[bytes]) -> Floats:
        """Encoded images -> rows of features, or z where `encoded`, (n, d) float32. Raises Problem 422 naming a bad one."""
        from ..data.decoding import Refused, decode

        pixels = []
        for i, data in enumerate(images):
            try:
                pixels.append(decode(io.BytesIO(data), self._side, self._fit, MAX_PIXELS))
            except Refused as refused:
                raise Problem(422, f"image {i} cannot be read: {refused.fault}") from None
        parts = [
            np.asarray(self._encode(np.stack(pixels[i : i + IMAGES_AT_A_TIME])), np.float32)
            for i in range(0, len(pixels), IMAGES_AT_A_TIME)
        ]
        return np.concatenate(parts)
