"""What a gallery, a model or a file of rows holds, and whether a file is whole."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..calibration.forecast import Forecast
from ..content import Content
from ..data import Source, open_rows
from ..data.items import ItemSource
from ..errors import IndexFileError, format_bytes, printable
from ..files import PathLike
from .shards.manifest import is_sharded


def facts(path: PathLike, keys: Mapping[str, Any]) -> dict[str, Any]:
    """Plain facts about a file, its kind told by its ending. Raises as the reader of that kind does."""
    suffix = Path(path).suffix
    if is_sharded(path):
        return shards_facts(path)
    if suffix == ".faissindex":
        return gallery_facts(path)
    if suffix == ".safetensors":
        return model_facts(path)
    with open_rows(path, **keys, role="any", keep_unlabelled=True) as source:
        if source.pairs:
            return {
                "kind": "pairs",
                "pairs": len(source),
                "d": source.d // 2,
                "ids": "given" if source.has_ids else "row numbers",
                "distinct_keys": len(np.unique(source.ids)),
                "checksums": _checksums(source),
            }
        kind_facts: dict[str, Any] = {"kind": "rows", "rows": len(source), "d": source.d}
        if isinstance(source, ItemSource):
            source.prove()  # a listing alone would not tell whether they can be used
            kind_facts = {"kind": source.modality.items, source.modality.items: len(source)}
        used = [] if source.labels is None else np.flatnonzero(source.labels.counts()).tolist()
        if source.labels is not None and len(used) < source.labels.C:
            kind_facts["class_numbers"] = used
        if source.labels is not None and len(none := source.labels.without_label()):
            kind_facts["without_label"] = len(none)
        return kind_facts | {
            "labels": "none" if source.labels is None else "many" if source.labels.multilabel else "one",
            "classes": len(used),
            "class_names": source.labels.class_names if source.labels else None,
            "ids": "given" if source.has_ids else "row numbers",
            "checksums": None if isinstance(source, ItemSource) else _checksums(source),
        }


def _checksums(source: Source) -> str:
    return "of all that is read" if source.sealed else "not of all that is read: bit errors cannot be seen"


def gallery_facts(path: PathLike) -> dict[str, Any]:
    from ..targets import gpu, target
    from ..targets.pretransform import unclonable
    from . import positions
    from .gallery import open_gallery

    gallery = open_gallery(path)
    codebooks, codes, ids = gallery.unpack()
    out = gallery.facts() | {
        "kind": "gallery",
        "bits": codebooks.bits,
        "bytes": os.stat(path).st_size,
        "codewords_used": [len(np.unique(column)) for column in codebooks.split(codes)[1].T],
    }
    if codebooks.lists is not None:
        out["lists_used"] = len(np.unique(codes[:, 0]))
    if gallery.metadata:
        container = target(gallery.metadata["target"])
        info = container.INFO
        on_gpu = gpu.unsupported_reason(codebooks.shape)
        out["gpu"] = "yes" if on_gpu is None else f"no: {on_gpu}"
        out |= {
            "faiss_class": info.faiss_class,
            "id_filter": info.filter,
            "range_search": container.ranges(gallery.index),
        }
    transforms = unclonable(gallery.index)
    out["clone"] = f"no: FAISS cannot clone {' and '.join(transforms)}; clone what is behind" if transforms else "yes"
    return out | positions.facts(path, ids, gallery.metadata)


def shards_facts(path: PathLike) -> dict[str, Any]:
    from ..targets import target
    from .shards.sharded import open_sharded

    gallery = open_sharded(path, mmap=True)
    manifest = gallery.manifest
    info = target(gallery.target).INFO
    return gallery.facts() | {
        "kind": "gallery in shards",
        "bytes": sum(os.stat(Path(path) / shard.name).st_size for shard in manifest.shards),
        "rows_per_shard": manifest.rows_per_shard,
        "faiss_class": info.faiss_class,
        "id_filter": info.filter,
        "sha256": manifest.checksum,
        "shards": [
            {"name": shard.name, "rows": shard.rows, "ids": list(shard.ids), "sha256": shard.sha256}
            for shard in manifest.shards
        ],
    }


def model_facts(path: PathLike) -> dict[str, Any]:
    from ..model import Model

    model = Model.load(path)
    codebooks = model.codebooks
    return model.config | {
        "kind": "model",
        "sha256": model.sha256,
        # By which galleries and messages know the model.
        **({} if model.calibrations is None else {"model_sha256": model.origin}),
        "d_in": model.d_in,
        "d": codebooks.d,
        "M": codebooks.M,
        "nbits": codebooks.nbits,
        **({} if codebooks.lists is None else {"lists": codebooks.L}),
        "metric": codebooks.metric,
        "codebooks": codebooks.kind,
        "encoder_layers": [op for op, _ in model.chain.layers],
        "encoder_folds_into_index": model.chain.foldable and model.content is None,
        **_content_facts(model.content),
        "calibration": None if model.calibration is None else model.calibration.table(),
        "bytes": os.stat(path).st_size,
    }


def _content_facts(content: Content | None) -> dict[str, Any]:
    if content is None:
        return {}
    of_known, of_unknown = content.weights
    found: dict[str, Any] = {
        "content_bits": content.bits,
        "content_d": content.codebooks.d,
        "content_weights": {"known": of_known, "unknown": of_unknown},
        "content_encoder_layers": [op for op, _ in content.chain.layers],
    }
    return found | ({} if content.gate is None else {"gate": dict(content.gate.facts)})


def describe_file(path: PathLike, as_json: bool, keys: Mapping[str, Any]) -> str:
    """The facts as one JSON object, or as lines for a person."""
    file_facts = facts(path, keys)
    if as_json:
        return json.dumps(file_facts, sort_keys=True)
    lines = [f"{printable(path)}: {file_facts.pop('kind')}"]
    for key, value in file_facts.items():
        # Keys are text out of the file, too.
        if value is None or (isinstance(value, dict) and not value):
            continue
        if key == "calibration" and isinstance(value, list):
            lines += [f"  {line}" for line in _table_lines(value)]
            continue
        if key == "training" and isinstance(value, dict) and value.get("forecast"):
            lines.append(f"  forecast: {Forecast.unpack(value['forecast'])}")
            value = {k: v for k, v in value.items() if k != "forecast"}
        if key == "shards":
            lines += [
                f"  {s['name']}: {s['rows']:,} rows, ids {s['ids'][0]} to {s['ids'][1]}, SHA-256 {s['sha256'][:12]}"
                for s in value
            ]
            continue
        if isinstance(value, dict):
            value = ", ".join(f"{k} {v}" for k, v in value.items())
        elif isinstance(value, (list, tuple)):
            value = ", ".join(map(str, value)) if len(value) <= 20 else f"{len(value)} values"
        elif key == "bytes" and type(value) is int:
            value = f"{value:,} ({format_bytes(value)})"
        lines.append(f"  {printable(key.replace('_', ' '))}: {printable(str(value))}")
    return "\n".join(lines)


def _table_lines(table: list[dict[str, float]]) -> list[str]:
    """Scores and what they mean: all hits at a score or better have its precision and recall."""
    lines = ["scores (one hit's probability; precision and recall of all hits that score as well or better):"]
    lines.append("        score  probability  precision  recall")
    for entry in table:
        lines.append("{score:13.5g}  {probability:11.3f}  {precision:9.3f}  {recall:6.3f}".format(**entry))
    return lines


def verify_file(path: PathLike) -> str:
    """Full verification of a gallery or a model; returns one line. Raises when anything is wrong."""
    from ..model import Model
    from .reading import read_gallery

    if is_sharded(path):
        from .shards.sharded import open_sharded

        gallery = open_sharded(path, mmap=True)
        shards = len(gallery.manifest.shards)
        return (
            f"{printable(path)}: valid, {gallery.ntotal:,} vectors in {shards:,} shards, checksums and manifest agree"
        )
    if Path(path).suffix == ".safetensors":
        model = Model.load(path)
        return f"{printable(path)}: valid, model of method {printable(model.config['method'])}, SHA-256 {model.sha256[:12]}"
    stored = read_gallery(path)
    if stored.metadata is None:
        raise IndexFileError(
            f"{printable(path)}: no checksum, nothing to verify: written by another program, or cut off"
        )
    return f"{printable(path)}: valid, {stored.index.ntotal:,} vectors, checksum and metadata agree"
