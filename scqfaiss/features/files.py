"""Files of features: what an encoder makes of images, written once as rows."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from numpy.typing import NDArray

from .. import __version__, bundle
from ..contract import Progress, silent
from ..data import HDF5_ENDINGS, open_rows
from ..data.items import ItemSource
from ..errors import ConfigError, DataError, format_bytes, printable
from ..files import PathLike, atomic_write
from ..model import Model
from .parts import Parts, resumable
from .source import DEFAULT_INFERENCE, FeatureSource, InferenceOptions, front_encoder_of

if TYPE_CHECKING:
    from ..encoders.base import FrontEncoder

PART = 1024  # images of a part that is kept: seconds to minutes of work
DTYPES = ("float32", "float16")


@dataclass(frozen=True)
class EncoderIdentity:
    """An encoder and all that tells it apart from others."""

    encoder: FrontEncoder
    facts: dict[str, Any]

    @classmethod
    def of_model(cls, path: PathLike, inference_options: InferenceOptions) -> EncoderIdentity:
        model = Model.load(path)
        return cls._of(
            front_encoder_of(model, inference_options, printable(path)),
            inference_options,
            {"model_sha256": model.sha256},
        )

    @classmethod
    def of_factory(
        cls,
        arguments: Mapping[str, str],
        weights: PathLike | None,
        settings: Mapping[str, Any],
        inference_options: InferenceOptions,
    ) -> EncoderIdentity:
        from ..encoders import inference

        assert inference_options.encoder is not None
        network, sha256 = inference.of_factory(inference_options.encoder, arguments, weights, settings)
        facts = {"weights_sha256": sha256} if sha256 else {}
        return cls._of(
            inference.ready(network, inference_options.device, inference_options.precision), inference_options, facts
        )

    @classmethod
    def _of(cls, encoder: FrontEncoder, inference_options: InferenceOptions, facts: dict[str, Any]) -> EncoderIdentity:
        facts |= encoder.facts() | {
            "network_sha256": bundle.Bundle(*encoder.record()).digest(),
            "precision": inference_options.precision,
        }
        return cls(encoder, facts)


def features_file(
    images: PathLike,
    out: PathLike,
    *,
    model: PathLike | None = None,
    inference_options: InferenceOptions = DEFAULT_INFERENCE,
    encoder_args: Mapping[str, str] | None = None,
    weights: PathLike | None = None,
    settings: Mapping[str, Any] | None = None,
    dtype: str = "float32",
    resume: bool = False,
    part_rows: int = PART,
    keys: Mapping[str, Any],
    progress: Progress = silent,
) -> str:
    """Write what a network sees in images as HDF5 rows; returns what to tell the user.

    Datasets features, names, and labels and ids where the images have them; attributes class_names and how they were made.

    The network is that of `model`, or the one that seeing.encoder names, with encoder_args, weights and settings (of
    encoders.backbone.Settings). Finished parts of part_rows images lie in OUT.parts until the file is whole: with resume a
    run that was killed goes on from there, and the file comes out byte for byte as without the break. keys: arguments of
    open_rows.
    Raises ConfigError on a request that cannot be met, DataError on bad images, WriteError where nothing can be written;
    parts that are finished stay.
    """
    _check_request(model, inference_options, encoder_args, weights, settings, dtype, out, part_rows)
    inputs = [p for p in (images, model, weights) if p is not None]
    with atomic_write(out, inputs=inputs, what="computed") as output:
        with open_rows(images, **keys, keep_unlabelled=True) as source:
            if not isinstance(source, ItemSource):
                raise ConfigError(f"{source.name} holds rows already, needs images")
            if len(source) == 0:
                raise DataError(f"{source.name} holds 0 images, needs at least 1")
            if model is not None:
                identity = EncoderIdentity.of_model(model, inference_options)
            else:
                identity = EncoderIdentity.of_factory(encoder_args or {}, weights, settings or {}, inference_options)
            rows = FeatureSource(source, identity.encoder)
            parts = Parts(output.path, rows, _request_facts(identity, rows, dtype, part_rows), dtype, part_rows)
            parts.check_start(resume)
            nbytes = len(rows) * rows.d * parts.dtype.itemsize
            output.check_space(nbytes + nbytes * (parts.count - len(parts.sound)) // parts.count)
            with resumable(parts):
                for k in sorted({*range(parts.count)} - parts.sound):
                    parts.compute(k, progress)
        # Closing says whether the images were changed while they were read: only then is the file written.
        with resumable(parts):
            output.write(lambda f: _fill(f, parts, identity.facts), nbytes=nbytes)
        parts.clear()
        done = (
            f"{output.name}: {len(rows):,} images, features of d={rows.d}, {format_bytes(output.path.stat().st_size)}"
        )
        return done + (f", {len(parts.sound):,} of {parts.count:,} parts were there" if parts.sound else "")


def _check_request(
    model: PathLike | None,
    inference_options: InferenceOptions,
    encoder_args: Mapping[str, str] | None,
    weights: PathLike | None,
    settings: Mapping[str, Any] | None,
    dtype: str,
    out: PathLike,
    part_rows: int,
) -> None:
    if model is None and inference_options.encoder is None:
        raise ConfigError("features need a network: give --encoder, or --model of a model for images")
    for option, given in (("--encoder-arg", encoder_args), ("--weights", weights), ("--set", settings)):
        if model is not None and given:
            raise ConfigError(f"{option} goes with --encoder; with --model the network is as the model has it")
    if dtype not in DTYPES:
        raise ConfigError(f"dtype is '{dtype}', needs one of {', '.join(DTYPES)}")
    if part_rows < 1:
        raise ConfigError(f"a part holds {part_rows} images, needs 1 or more")
    if Path(out).suffix.lower() not in HDF5_ENDINGS:
        raise ConfigError(f"{printable(out)}: files of features end in one of {' '.join(HDF5_ENDINGS)}")


def _request_facts(identity: EncoderIdentity, rows: FeatureSource, dtype: str, part_rows: int) -> dict[str, Any]:
    from ..encoders.inference import versions

    made_by = {"scqfaiss": __version__, **versions(identity.encoder)}  # another torch, or a GPU, rounds otherwise
    return identity.facts | made_by | {"dtype": dtype, "images": len(rows), "images of a part": part_rows}


def _fill(f: BinaryIO, parts: Parts, facts: Mapping[str, Any]) -> None:
    """Write the finished file from its parts."""
    from ..data.writing import write_features

    rows, stop = parts.rows, threading.Event()
    labels = rows.labels
    names = labels.class_names if labels is not None else None
    small = {
        "labels": None if labels is None else labels.y,
        # Numbers of rows are no ids: two files of them would seem to hold the same images.
        "ids": rows.ids if rows.has_ids or rows.dropped else None,
        "names": [printable(name) for name in rows.names],
    }
    attrs = {**facts, **({} if names is None else {"class_names": list(names)})}

    def each() -> Iterator[NDArray[Any]]:
        for k in range(parts.count):
            if stop.is_set():
                raise OSError("stopped")
            yield parts.read(k)

    # Ctrl-C reaches the main thread alone, and so never comes up inside a call of HDF5, which would crash.
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write_features, f, each(), (len(rows), rows.d), parts.dtype, parts.step, small, attrs)
        try:
            writing.result()
        except BaseException:
            stop.set()
            raise
