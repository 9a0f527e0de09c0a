"""docs/format.md is enough: a reader and a writer made from that page alone, beside the package's own.

Reading and writing here use nothing of scqfaiss; the package only judges the files, and says what it would read.
"""

import hashlib
import json
import math
import re
import struct
from pathlib import Path

import faiss
import h5py
import life
import numpy as np
import pytest

import scqfaiss
from scqfaiss import metadata
from scqfaiss.encoders.record import check_record
from scqfaiss.errors import ScqError
from scqfaiss.targets import REGISTRY
from scqfaiss.targets.validation import PLACES

PAGE = (Path(__file__).parents[1] / "docs" / "format.md").read_text("utf-8")
GOLDEN = Path(__file__).parent / "golden"


class Refused(Exception):
    pass


def need(condition, why):
    if not condition:
        raise Refused(why)


# -------------------------------------------------------------------------------------------------------- conventions
def parse_object(data):
    def once(pairs):
        need(len({key for key, _ in pairs}) == len(pairs), "a key stands twice")
        return dict(pairs)

    def constant(name):
        raise Refused(name)

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=once, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise Refused(str(error)) from error
    need(isinstance(value, dict), "not an object")
    return value


def check_values(value, depth=1):
    need(not isinstance(value, float) or math.isfinite(value), "a number that is none")
    need(not isinstance(value, int) or abs(value) <= 1 << 62, "a huge number")
    if isinstance(value, str):
        need(not re.search("[\ud800-\udfff]", value), "no Unicode")
    if isinstance(value, list | dict):
        need(depth <= 16, "too deep")
        for part in value if isinstance(value, list) else [*value, *value.values()]:
            check_values(part, depth + 1)


def count(low, high=(1 << 62) - 1):
    return lambda v: type(v) is int and low <= v <= high


def text(v):
    return isinstance(v, str) and len(v) <= 1000


def names(v):
    return v is None or (isinstance(v, list) and all(isinstance(name, str) for name in v))


def one_of(*choices):
    return lambda v: v in choices


def sha256(v):
    return isinstance(v, str) and re.fullmatch("[0-9a-f]{64}", v) is not None


def kind_of(kind):
    return lambda v: isinstance(v, kind)


KIND, METRIC = one_of("product", "additive"), one_of("ip", "l2")
BOOL, OBJECT = kind_of(bool), kind_of(dict)


def is_tables(v):
    """A calibration of codes of one length."""
    shares, errors = ("recall", "relevant", "irrelevant"), ("recall_error", "relevant_error", "irrelevant_error")
    if not isinstance(v, dict) or v.get("metric") not in ("ip", "l2") or not count(1)(v.get("rows")):
        return False
    pairs, lists = v.get("pairs"), [v.get(key) for key in ("scores", "covariance", *shares, *errors)]
    if not isinstance(pairs, list) or len(pairs) != 2 or not all(map(count(1), pairs)):
        return False
    if not all(isinstance(a, list) and a and all(type(x) in (int, float) for x in a) for a in lists):
        return False
    one_length = len({len(a) for a in lists}) == 1 and len(lists[0]) <= 768
    descends = all(a > b for a, b in zip(lists[0], lists[0][1:]))
    ascend = all(a == sorted(a) and 0 <= a[0] and a[-1] <= 1 for a in (v[key] for key in shares))
    return one_length and descends and ascend and all(min(v[key]) >= 0 for key in errors)


def is_calibration(v):
    """Of a model."""
    if not isinstance(v, dict) or not sha256(v.get("model_sha256")) or not isinstance(v.get("lengths"), dict):
        return False
    told = [key in v for key in ("classes", "nearest")]
    return bool(v["lengths"]) and all(map(is_tables, v["lengths"].values())) and told[0] == told[1]


def check_table(values, must, may):
    check_values(values)
    for key, holds in must.items():
        need(key in values and holds(values[key]), f"{key} is {values.get(key)}")
    for key, holds in may.items():
        need(key not in values or holds(values[key]), f"{key} is {values.get(key)}")


# ---------------------------------------------------------------------------------------------------------- the model
DTYPES = {"F32": "float32", "F64": "float64", "F16": "float16", "I64": "int64", "I32": "int32", "U8": "uint8"}
MUST_CONFIG = {"method": text, "encoder": text, "rule": METRIC, "chain": OBJECT, "codebooks": OBJECT}
MAY_CONFIG = {
    "beam": count(1, 64),
    "list_beam": count(1, 64),
    "bits": count(0),
    "extends": lambda v: isinstance(v, list) and all(isinstance(s, dict) and len(s.get("sha256", "")) == 64 for s in v),
    "prefix": lambda v: isinstance(v, dict) and len(v.get("sha256", "")) == 64 and type(v.get("bits")) is int,
    "C": count(0, 1 << 20),
    "class_names": names,
    "classes": lambda v: isinstance(v, list) and all(map(count(0, (1 << 20) - 1), v)) and v == sorted(set(v)),
    **dict.fromkeys(("labels", "long_name"), lambda v: v is None or isinstance(v, str)),
    **dict.fromkeys(("settings", "training", "data", "backbone", "content"), OBJECT),
    "calibration": is_calibration,
}


def model_checksum(config, tensors):
    sha = hashlib.sha256(json.dumps(config, sort_keys=True).encode("ascii"))
    for name in sorted(tensors):
        a = tensors[name]
        shape = f"({a.shape[0]},)" if a.ndim == 1 else f"({', '.join(map(str, a.shape))})"
        sha.update(b"".join(b"\0" + part.encode() for part in (name, a.dtype.name, shape)) + b"\0" + a.tobytes())
    return sha.hexdigest()


def read_model(path):
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = parse_object(data[8 : 8 + length])
    meta = parse_object(header.pop("__metadata__", {}).get("scqfaiss", "").encode())
    need(meta.get("format") in (1, 2, 3), f"format {meta.get('format')}")
    need((meta["format"] == 2) == ("codebooks.lists" in header) or meta["format"] == 3, "lists and format")
    need((meta["format"] == 3) == any(name.startswith("content.") for name in header), "content and format")
    need(sha256(meta.get("sha256")) and isinstance(meta.get("config"), dict), "no checksum or no config")
    tensors, start = {}, 8 + length
    for name, entry in header.items():
        first, end = entry["data_offsets"]
        a = np.frombuffer(data[start + first : start + end], DTYPES[entry["dtype"]]).reshape(entry["shape"])
        need(name.startswith("backbone.") or (np.abs(a) <= 1e18).all(), f"{name}: numbers")
        tensors[name] = a
    config = meta["config"]
    need(model_checksum(config, tensors) == meta["sha256"], "checksum")
    check_table(config, MUST_CONFIG, MAY_CONFIG)
    need("classes" not in config or len(config["classes"]) == config.get("C", 0), "classes and C")
    need(("backbone" in config) == any(name.startswith("backbone.") for name in tensors), "backbone")
    check_codebooks(config["codebooks"], tensors)
    need((meta["format"] == 3) == ("content" in config), "content and format")
    if "content" in config:
        check_content(config, tensors)
    means, told = tensors.get("calibration.means"), config.get("calibration", {}).get("classes")
    need((means is None) == (told is None), "calibration.means and classes")
    need(means is None or (len(means) == len(told) and np.isfinite(means).all()), "calibration.means")
    return config, tensors, hashlib.sha256(data).hexdigest()


def check_codebooks(codebooks, tensors):
    need(KIND(codebooks.get("kind")) and METRIC(codebooks.get("metric")), "codebooks")
    table = tensors.get("codebooks.centroids")
    need(table is not None and table.ndim == 3 and table.dtype == np.float32, "centroids")
    need(2 <= table.shape[1] <= 65536 and table.shape[1].bit_count() == 1, "K")
    lists = tensors.get("codebooks.lists")
    need(len(table) or lists is not None, "M")
    d = table.shape[2] * (max(len(table), 1) if codebooks["kind"] == "product" else 1)
    if lists is not None:
        need(lists.dtype == np.float32 and lists.ndim == 2 and lists.shape[1] == d and len(lists) >= 2, "lists")


def content_parts(config, tensors):
    """The config and the tensors of a content part, as those of a model would be called."""
    own = config["content"]
    parts = {name.removeprefix("content."): a for name, a in tensors.items() if name.startswith("content.")}
    return {"chain": own["chain"], "codebooks": {"kind": own["kind"], "metric": "ip"}, "rule": "l2"}, parts


def check_content(config, tensors):
    own, (as_config, parts) = config["content"], content_parts(config, tensors)
    need(config["codebooks"]["metric"] == "ip", "content and metric")
    semantic, table = tensors["codebooks.centroids"], parts["codebooks.centroids"]
    check_codebooks(as_config["codebooks"], {"codebooks.centroids": table})
    need(own["kind"] == (config["codebooks"]["kind"] if len(semantic) else "additive"), "kind of content")
    need(not len(semantic) or table.shape[1] == semantic.shape[1], "K of content")
    if "codebooks.lists" in parts:
        need(len(parts["codebooks.lists"]) == len(tensors["codebooks.lists"]), "content lists")
    need(len(own["weights"]) == 2 and all(1e-18 <= w <= 1e18 for w in own["weights"]), "weights")
    need(count(1, 64)(own["beam"]), "beam")
    need(any(name.startswith("gate.") for name in parts) == ("gate" in own), "gate")
    if "gate" in own:
        need(own["gate"]["temperature"] > 0 and BOOL(own["gate"]["facts"]["on"]), "gate")
        need(parts["gate.coefficients"].shape == (5,), "coefficients")
        need(parts.get("gate.weighing", parts["gate.coefficients"]).shape == (5,), "weighing")


def joined(config, tensors, z, v):
    """z, v side by side as the joint codebooks have them."""
    table, of_v = tensors["codebooks.centroids"], tensors["content.codebooks.centroids"]
    if config["content"]["kind"] == "additive":
        return np.concatenate([z, v], axis=1)
    dsub = max(table.shape[2], of_v.shape[2])
    parts = [part for a, t in ((z, table), (v, of_v)) for part in np.split(a, len(t), axis=1)]
    return np.concatenate([np.pad(part, ((0, 0), (0, dsub - part.shape[1]))) for part in parts], axis=1)


def joint_queries(config, tensors, x, known=None):
    (as_config, parts), own = content_parts(config, tensors), config["content"]
    z, v = embed(config, tensors, x), embed(as_config, parts, x)
    if known is None:
        known = gate(own, parts, z, v) if "gate" in own and own["gate"]["facts"]["on"] else 1.0
    w = np.exp(known * np.log(own["weights"][0]) + (1 - known) * np.log(own["weights"][1]))
    return joined(config, tensors, z, np.broadcast_to(w, len(z))[:, None] * v)


def gate(own, parts, z, v):
    a = run_layer("softmax", v @ parts["gate.clusters"].T / own["gate"]["temperature"], {})
    tops = [(z @ parts["gate.classes_z"].T).max(1), (v @ parts["gate.classes_v"].T).max(1)]
    features = np.stack([*tops, a @ parts["gate.tops"], a @ parts["gate.shares"]], axis=1)
    coefficients = parts.get("gate.weighing", parts["gate.coefficients"])
    t = features @ coefficients[:4] + coefficients[4]
    return 1 / (1 + np.exp(-t - own["gate"]["caution"]))


def write_model(path, config, tensors):
    config = json.loads(json.dumps(config))
    number = 3 if "content" in config else 2 if "codebooks.lists" in tensors else 1
    meta = {"format": number, "sha256": model_checksum(config, tensors), "config": config}
    write_safetensors(path, json.dumps(meta, sort_keys=True), tensors)


def write_safetensors(path, meta, tensors):
    header, parts, end = {"__metadata__": {"scqfaiss": meta}}, [], 0
    for name in sorted(tensors):
        a = tensors[name]
        (dtype,) = (key for key, value in DTYPES.items() if value == a.dtype.name)
        parts.append(a.tobytes())
        header[name] = {"dtype": dtype, "shape": a.shape, "data_offsets": [end, end + len(parts[-1])]}
        end += len(parts[-1])
    head = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + b"".join(parts))


def run_layer(layer, x, a):
    """x (E, n, d), E heads."""
    if layer == "linear":
        return x @ a["A"].T + a.get("b", 0)
    if layer == "center":
        return x - a["mean"]
    if layer == "normalize":
        norm = np.linalg.norm(x, axis=-1, keepdims=True)
        return x / np.where(norm > 0, norm, 1)
    if layer == "heads":
        parts = np.split(x[0], len(a["A"]), axis=1)
        return np.stack([part @ A.T + b for part, A, b in zip(parts, a["A"], a["b"], strict=True)])
    if layer == "average":
        return np.tensordot(a["weights"], x, 1)[None]
    if layer == "attend":
        share, scale, null = a["mix"]
        w = np.exp(scale * (x @ a["keys"].T))
        return (1 - share) * x + share * (w / (w.sum(-1, keepdims=True) + np.exp(scale * null))) @ a["keys"]
    if layer == "softmax":
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)
    return {
        "power": lambda: np.sign(x) * np.sqrt(np.abs(x)),
        "relu": lambda: np.maximum(x, 0),
        "tanh": lambda: np.tanh(x),
        "sigmoid": lambda: 1 / (1 + np.exp(-x)),
    }[layer]()


def embed(config, tensors, x):
    x = x[None].astype(np.float64)
    for i, layer in enumerate(config["chain"]["layers"]):
        arrays = {name.split(".")[2]: a for name, a in tensors.items() if name.startswith(f"encoder.{i}.")}
        x = run_layer(layer, x, arrays)
    return x[0]


def encode(config, tensors, x):
    """Without a beam of sums."""
    if "content" in config:
        alone = {name: value for name, value in config.items() if name != "content"}
        codes, (as_config, parts) = encode(alone, tensors, x), content_parts(config, tensors)
        v = embed(as_config, parts, x)
        if "codebooks.lists" in parts:
            v = v - parts["codebooks.lists"][codes[:, 0]]
        return np.column_stack([codes, encode_words(as_config, parts, v)])
    z, lists = embed(config, tensors, x), tensors.get("codebooks.lists")
    if lists is None:
        return encode_words(config, tensors, z)
    lists = lists.astype(np.float64)
    order = np.argsort(np.square(z[:, None] - lists).sum(2), axis=1, kind="stable")[:, : config.get("list_beam", 1)]
    codes, errors = [], []
    for near in order.T:
        words = encode_words(config, tensors, z - lists[near])
        codes.append(np.column_stack([near, words]))
        errors.append(np.square(z - decode_listed(config["codebooks"]["kind"], tensors, codes[-1])).sum(1))
    return np.stack(codes)[np.argmin(errors, axis=0), np.arange(len(z))]


def decode_listed(kind, tensors, codes):
    table, lists = tensors["codebooks.centroids"], tensors["codebooks.lists"]
    return lists[codes[:, 0]] + (decode(kind, table, codes[:, 1:]) if len(table) else 0)


def encode_words(config, tensors, z):
    table = tensors["codebooks.centroids"].astype(np.float64)
    product = config["codebooks"]["kind"] == "product"
    codes = np.empty((len(z), len(table)), np.uint16)
    for m, codebook in enumerate(table):
        part = z[:, m * codebook.shape[1] : (m + 1) * codebook.shape[1]] if product else z
        near = part @ codebook.T - (0.5 * np.square(codebook).sum(1) if config["rule"] == "l2" else 0)
        codes[:, m] = near.argmax(1)
        if not product:
            z = z - codebook[codes[:, m]]
    return codes


def decode(kind, table, codes):
    parts = [codebook[codes[:, m]] for m, codebook in enumerate(table)]
    return np.concatenate(parts, axis=1) if kind == "product" else np.sum(parts, axis=0)


def decode_all(config, tensors, codes):
    """The vectors of codes, with lists and content where there are any."""
    table, kind = tensors["codebooks.centroids"], config["codebooks"]["kind"]
    columns = len(table) + ("codebooks.lists" in tensors)
    words = codes[:, :columns]
    z = decode_listed(kind, tensors, words) if "codebooks.lists" in tensors else decode(kind, table, words)
    if "content" not in config:
        return z
    as_config, parts = content_parts(config, tensors)
    v = decode(as_config["codebooks"]["kind"], parts["codebooks.centroids"], codes[:, columns:])
    if "codebooks.lists" in parts:
        v = v + parts["codebooks.lists"][codes[:, 0]]
    return joined(config, tensors, z, v)


# -------------------------------------------------------------------------------------------------------- the gallery
MUST_METADATA = {
    "format": one_of(1),
    "target": text,
    "kind": KIND,
    "metric": METRIC,
    **dict.fromkeys(("K", "nbits", "d", "d_in"), count(1)),
    **dict.fromkeys(("M", "n"), count(0)),
    "encoder": one_of("none", "folded", "model"),
}
MAY_METADATA = {
    **dict.fromkeys(("model_sha256", "ids_sha256", "rows_sha256"), sha256),
    **dict.fromkeys(("method", "faiss"), text),
    "rule": METRIC,
    "class_names": names,
    "calibration": is_tables,
    "relevant_share": lambda v: type(v) is float and 0 < v < 1,
    **dict.fromkeys(("pictures", "by_residual"), BOOL),
    "lists": count(2),
    "list_beam": count(1, 64),
    **dict.fromkeys(("model_bits", "content_bits", "nlist", "nprobe"), count(1)),
    **dict.fromkeys(("bits", "repeated_ids", "skipped_rows"), count(0)),
    "options": OBJECT,
}
TRAILER = struct.Struct("<QQ32s8s")


def read_gallery(path):
    """-> (metadata, FAISS index), whatever the target."""
    data = path.read_bytes()
    need(len(data) >= TRAILER.size, "short")
    stream, size, digest, magic = TRAILER.unpack(data[-TRAILER.size :])
    need(magic == b"SCQFAISS" and size <= 1 << 20 and stream + size + 56 == len(data), "lengths or magic")
    need(hashlib.sha256(data[:-40]).digest() == digest, "checksum")
    found = parse_object(data[stream : stream + size])
    need(found.get("format") == 1, f"format {found.get('format')}")
    check_table(found, MUST_METADATA, MAY_METADATA)
    need(b"ilod" not in data[:stream], "lists in another file")
    index = faiss.deserialize_index(np.frombuffer(data[:stream], np.uint8).copy())
    need(len(faiss.serialize_index(index)) == stream, "the stream ends elsewhere")
    check_place(index, "in a file")
    check_agreement(found, index)
    return found, index


CLASSES = {
    cells[0]: cells[1]
    for cells in (
        [cell.strip() for cell in row.strip("|").split("|")]
        for row in PAGE.partition("### Classes")[2].partition("*flat*")[0].splitlines()
        if row.startswith("|")
    )
}
FLAT = ["IndexFlat", "IndexFlatIP", "IndexFlatL2"]
CODES = [*FLAT, "IndexPQ", "IndexPQFastScan", "IndexResidualQuantizer", "IndexIVFPQ"]
BEHIND_TRANSFORMS = {
    "in a file": "behind transforms",
    "behind ids": "behind ids and transforms",
    "as base of a refine": "behind transforms of a base",
    "as coarse quantizer": "behind transforms of a coarse quantizer",
}


def classes_at(place):
    words = [word.strip(" `") for word in CLASSES[place].split(",")]
    return [name for word in words for name in {"flat": FLAT, "codes": CODES}.get(word, [word])]


def check_place(index, place):
    index = faiss.downcast_index(index)
    name = type(index).__name__
    need(name in classes_at(place), f"{name} {place}")
    if name == "IndexPreTransform":
        check_place(index.index, BEHIND_TRANSFORMS[place])
    elif name.startswith("IndexIDMap"):
        check_place(index.index, "behind ids" if place == "in a file" else "behind ids and transforms")
    elif name == "IndexRefine":
        check_place(index.base_index, "as base of a refine")
        check_place(index.refine_index, "as store of a refine")
    elif name == "IndexIVFPQ":
        check_place(index.quantizer, "as coarse quantizer")
    elif name == "IndexIVFFlat":
        check_place(index.quantizer, "as coarse quantizer of bounding boxes")


def check_agreement(found, index):
    need(found["n"] == index.ntotal, "n")
    need(found["K"] == 1 << found["nbits"], "K")
    need(found.get("bits", found["M"] * found["nbits"]) == found["M"] * found["nbits"], "bits")
    need(found["encoder"] == "model" or found["d_in"] == index.d, "d_in")
    need((found["metric"] == "l2") == (index.metric_type == faiss.METRIC_L2), "metric")
    core = peel(index)[0]
    if isinstance(core, faiss.IndexIVFPQ):
        for key in ("nlist", "nprobe", "by_residual"):
            need(key not in found or found[key] == getattr(core, key), key)
    need(found.get("lists", 1) == lists_of(core), "lists")
    need(found["M"] or "lists" in found, "M")
    need("lists" in found or "list_beam" not in found, "list_beam")
    need("lists" not in found or found.get("rule", "l2") == "l2", "rule")


def lists_of(core):
    """Lists that are part of the codes, 1 where there are none."""
    listed = isinstance(core, faiss.IndexIVFPQ) and core.by_residual
    flat = listed and isinstance(faiss.downcast_index(core.quantizer), faiss.IndexFlat)
    return core.nlist if flat else 1


def peel(index):
    """-> (what stands behind transforms and ids, the ids by row)."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        return peel(index.index)
    if isinstance(index, faiss.IndexIDMap):
        return peel(index.index)[0], faiss.vector_to_array(index.id_map)
    return index, np.arange(index.ntotal)


def pack(codes, nbits):
    bits = codes[:, :, None].astype(np.uint32) >> np.arange(nbits) & 1
    return np.packbits(bits.reshape(len(codes), -1).astype(np.uint8), axis=1, bitorder="little")


def unpack(packed, M, nbits):
    bits = np.unpackbits(packed, axis=1, bitorder="little")[:, : M * nbits].reshape(len(packed), M, nbits)
    return (bits.astype(np.uint32) << np.arange(nbits, dtype=np.uint32)).sum(2)


def list_rows(index):
    """(list of each row, packed codes, ids)"""
    rows = [(number, index.invlists.list_size(number)) for number in range(index.nlist)]
    codes = [
        faiss.rev_swig_ptr(index.invlists.get_codes(i), s * index.code_size).reshape(s, -1).copy() for i, s in rows if s
    ]
    ids = [faiss.rev_swig_ptr(index.invlists.get_ids(i), s).copy() for i, s in rows if s]
    return np.repeat(*np.array(rows).T), np.concatenate(codes), np.concatenate(ids)


def codes_of(found, index):
    """-> (codes (n, M), ids (n,)); of fast scan those of its store."""
    core, ids = peel(index)
    M, nbits = found["M"], found["nbits"]
    if isinstance(core, faiss.IndexRefine):
        core = faiss.downcast_index(core.refine_index)
    if isinstance(core, faiss.IndexIVFPQ):
        lists, packed, ids = list_rows(core)
        coarse = faiss.downcast_index(core.quantizer)
        if lists_of(core) > 1:
            return np.column_stack([lists, unpack(packed, M, nbits)]), ids
        if isinstance(coarse, faiss.IndexPQ):  # unique codes
            packed = faiss.vector_to_array(coarse.codes).reshape(coarse.ntotal, -1)[lists]
    else:
        packed = faiss.vector_to_array(core.codes).reshape(core.ntotal, -1)
    return unpack(packed, M, nbits), ids


def write_gallery(path, index, values):
    stream = faiss.serialize_index(index).tobytes()
    text = json.dumps(values, ensure_ascii=False).encode()
    write_parts(path, stream, text)


def write_parts(path, stream, text):
    head = stream + text + struct.pack("<QQ", len(stream), len(text))
    path.write_bytes(head + hashlib.sha256(head).digest() + b"SCQFAISS")


def split_gallery(path):
    data = path.read_bytes()
    stream, size, _, _ = TRAILER.unpack(data[-56:])
    return data[:stream], parse_object(data[stream : stream + size])


# ---------------------------------------------------------------------------------------------------- golden files read
GALLERIES = sorted(GOLDEN.rglob("*.faissindex"))
MODELS = sorted(GOLDEN.rglob("*.safetensors"))


def label(path):
    return f"{path.parent.name}-{path.stem}"


def assert_encoded_alike(config, codes, others, columns):
    """But for sums that a beam has found, and ties, which float32 may see otherwise. columns: of the semantic part."""
    for part, settings in ((slice(columns), config), (slice(columns, None), config.get("content", {}))):
        if settings.get("beam", 1) == 1 and codes[:, part].size:
            assert (codes[:, part] == others[:, part]).mean() > 0.95


@pytest.mark.parametrize("path", MODELS, ids=label)
def test_a_golden_model_is_read_from_the_page(path):
    config, tensors, sha = read_model(path)
    model = scqfaiss.Model.load(path)
    assert model.sha256 == sha
    x = np.random.default_rng(0).standard_normal((50, config["chain"]["d_in"]), np.float32)
    queries = joint_queries if "content" in config else embed
    np.testing.assert_allclose(model.embed(x), queries(config, tensors, x), atol=1e-4)
    codes = model.encode(x)
    assert_encoded_alike(config, encode(config, tensors, x), codes, model.semantic.columns)
    vectors = decode_all(config, tensors, codes)
    np.testing.assert_allclose(vectors, model.codebooks.decode(codes), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("path", GALLERIES, ids=label)
def test_a_golden_gallery_is_read_from_the_page(path):
    found, index = read_gallery(path)
    with h5py.File(path.parent / "expected.h5", "r") as f:
        expected = {name: node[()] for name, node in f[path.stem].items()}
    assert len({m.name for m in MODELS if m.parent == path.parent and read_model(m)[2] == found["model_sha256"]}) == 1
    if path.stem in ("fastscan_alone", "fastscan_additive"):
        return  # codes in blocks of 32 rows, which FAISS alone unpacks; codebooks in parts
    codes, ids = codes_of(found, index)
    order, theirs = np.argsort(ids), np.argsort(expected["held"])
    np.testing.assert_array_equal(ids[order], expected["held"][theirs])
    np.testing.assert_array_equal(codes[order], expected["codes"][theirs])


# ------------------------------------------------------------------------------------------------------- files written
@pytest.fixture
def model(tmp_path):
    rng = np.random.default_rng(1)
    tensors = {
        "encoder.0.mean": rng.standard_normal(6).astype(np.float32),
        "encoder.1.A": rng.standard_normal((8, 6)).astype(np.float32),
        "encoder.3.A": rng.standard_normal((2, 3, 4)).astype(np.float32),
        "encoder.3.b": rng.standard_normal((2, 3)).astype(np.float32),
        "encoder.5.weights": np.float32([0.25, 0.75]),
        "encoder.6.A": rng.standard_normal((4, 3)).astype(np.float32),
        "codebooks.centroids": rng.standard_normal((2, 256, 2)).astype(np.float32),
        "note": np.arange(3),
    }
    layers = ["center", "linear", "relu", "heads", "softmax", "average", "linear"]
    config = {
        "method": "by hand",
        "encoder": "mlp",
        "rule": "l2",
        "chain": {"d_in": 6, "layers": layers},
        "codebooks": {"kind": "product", "metric": "ip"},
        "beam": 1,
        "bits": 16,
        "nested": False,
        "C": 2,
        "classes": [0, 7],
        "class_names": ["cat", "café 🐈"],
        "labels": "one",
        "long_name": "Codes of a stranger",
        "settings": {"lr": 1e-05, "anneal": 1e16, "rows": 100000.0},
        "training": {},
        "data": {},
        "seed": 0,
        "a newer key": {"is": "ignored"},
    }
    write_model(tmp_path / "m.safetensors", config, tensors)
    return config, tensors, tmp_path / "m.safetensors"


def container(table, codes, ids):
    """IndexIVFPQ with one list whose centroid is 0."""
    M, K, dsub = table.shape
    coarse = faiss.IndexFlatIP(M * dsub)
    coarse.add(np.zeros((1, M * dsub), np.float32))
    index = faiss.IndexIVFPQ(coarse, M * dsub, 1, M, K.bit_length() - 1, faiss.METRIC_INNER_PRODUCT)
    faiss.copy_array_to_vector(table.ravel(), index.pq.centroids)
    index.is_trained = True
    packed = pack(codes, K.bit_length() - 1)
    index.invlists.add_entries(0, len(ids), faiss.swig_ptr(ids), faiss.swig_ptr(packed))
    index.ntotal = len(ids)
    return index


@pytest.fixture
def gallery(model, tmp_path):
    config, tensors, path = model
    x = np.random.default_rng(2).standard_normal((40, 6)).astype(np.float32)
    codes, ids = encode(config, tensors, x), np.arange(40)[::-1] * 3
    values = {
        "format": 1,
        "target": "ivfpq",
        "kind": "product",
        "metric": "ip",
        "M": 2,
        "K": 256,
        "nbits": 8,
        "d": 4,
        "n": 40,
        "bits": 16,
        "d_in": 6,
        "encoder": "model",
        "model_sha256": read_model(path)[2],
        "method": "by hand",
        "rule": "l2",
        "model_bits": 16,
        "pictures": False,
        "class_names": None,
        "classes": [0, 7],
        "options": {},
        "nlist": 1,
        "nprobe": 1,
        "by_residual": True,
        "repeated_ids": 0,
        "skipped_rows": 0,
        "faiss": faiss.__version__,
        "a newer key": ["is ignored"],
    }
    out = tmp_path / "g.faissindex"
    write_gallery(out, container(tensors["codebooks.centroids"], codes, np.ascontiguousarray(ids)), values)
    return x, codes, ids, values, out


def test_a_model_written_from_the_page_is_read(model):
    config, tensors, path = model
    ours = scqfaiss.Model.load(path)
    x = np.random.default_rng(3).standard_normal((20, 6)).astype(np.float32)
    np.testing.assert_allclose(ours.embed(x), embed(config, tensors, x), atol=1e-4)
    assert (ours.encode(x) == encode(config, tensors, x)).mean() > 0.9
    assert read_model(path)[0] == config


def test_a_gallery_written_from_the_page_is_searched_and_edited(model, gallery):
    config, tensors, model_path = model
    x, codes, ids, _, path = gallery
    opened = scqfaiss.open(path, model=model_path)  # which verifies it
    assert opened.ntotal == 40
    D, I = opened.search(x, 5)
    scores = embed(config, tensors, x) @ decode("product", tensors["codebooks.centroids"], codes).T
    place = {int(i): j for j, i in enumerate(ids)}
    named = [[scores[q, place[int(i)]] for i in row] for q, row in enumerate(I)]
    np.testing.assert_allclose(D, named, atol=1e-4)
    np.testing.assert_allclose(D, -np.sort(-scores)[:, :5], atol=1e-4)
    assert scqfaiss.append(path, x[:2], ids=[500, 501], model=model_path) == 42
    assert scqfaiss.remove(path, [0, 3]) == (2, 40)
    assert codes_of(*read_gallery(path))[1].max() == 501


def test_an_additive_gallery_written_from_the_page_is_searched(tmp_path):
    rng = np.random.default_rng(4)
    M, d = 3, 4
    table = rng.standard_normal((M, 16, d)).astype(np.float32)
    codes, ids = rng.integers(0, 16, (30, M)), np.arange(30)
    common = {"format": 1, "kind": "additive", "metric": "ip", "M": M, "K": 16, "nbits": 4, "d": d, "n": 30, "d_in": d}
    tile = faiss.RemapDimensionsTransform(d, M * d, False)
    faiss.copy_array_to_vector(np.tile(np.arange(d), M).astype(np.int32), tile.map)
    lift = faiss.IndexPreTransform(tile, container(table, codes, ids))
    residual = faiss.IndexResidualQuantizer(d, M, 4, faiss.METRIC_INNER_PRODUCT, faiss.AdditiveQuantizer.ST_LUT_nonorm)
    faiss.copy_array_to_vector(table.ravel(), residual.rq.codebooks)
    residual.rq.is_trained = residual.is_trained = True
    residual.add_sa_codes(pack(codes, 4))
    q = rng.standard_normal((5, d)).astype(np.float32)
    best = -np.sort(-(q @ decode("additive", table, codes).T))[:, :3]
    for target, index in (("lift", lift), ("residual", residual)):
        path = tmp_path / f"{target}.faissindex"
        write_gallery(path, index, common | {"target": target, "encoder": "none"})
        np.testing.assert_allclose(scqfaiss.open(path).search(q, 3)[0], best, atol=1e-5)
        np.testing.assert_array_equal(codes_of(*read_gallery(path))[0], codes)


# ------------------------------------------------------------------------------------------------------------- refusals
def table_of(heading):
    """{key: what the page says} of the first table below a heading."""
    rows = PAGE.partition(f"### {heading}\n")[2].partition("\n#")[0].split("\n\n")
    table = next(part.strip() for part in rows if part.strip().startswith("| key |"))
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()[2:]]
    return {key: line[2] for line in cells for key in re.findall("`([^`]+)`", line[0])}


NOT_CHECKED = {"classes"}  # of a gallery: for people to read
NOT_CHECKED_CONFIG = {"seed", "nested"}


def refused(read, path):
    try:
        read(path)
    except (ScqError, Refused):
        return True
    return False


@pytest.mark.parametrize("key", table_of("Metadata"))
def test_every_key_of_the_metadata_is_as_the_page_says(gallery, key):
    values, path = gallery[3], gallery[4]
    stream, _ = split_gallery(path)
    for changed, expected in (
        ({k: v for k, v in values.items() if k != key}, table_of("Metadata")[key].startswith("MUST")),
        (values | {key: [1.5]}, key not in NOT_CHECKED),
    ):
        write_parts(path, stream, json.dumps(changed).encode())
        assert [refused(read, path) for read in (scqfaiss.open, read_gallery)] == [expected] * 2


@pytest.mark.parametrize("key", sorted(set(table_of("Config")) - {"backbone", "content"}))
def test_every_key_of_the_config_is_as_the_page_says(model, key):
    config, tensors, path = model
    expected = table_of("Config")[key].startswith("MUST") or key == "C"  # without C there are no classes to number
    dropped = {k: v for k, v in config.items() if k != key}
    for changed, no in ((dropped, expected), (config | {key: [1.5]}, key not in NOT_CHECKED_CONFIG)):
        write_model(path, changed, tensors)
        assert [refused(read, path) for read in (scqfaiss.Model.load, read_model)] == [no] * 2


def deep(levels):
    return json.loads("[" * levels + "]" * levels)


@pytest.mark.parametrize(
    "extra, expected",
    [
        ('"x": 1', False),
        ('"format": 1', True),  # twice
        ('"x": NaN', True),
        ('"x": -Infinity', True),
        (r'"x": "\ud800"', True),
        (f'"x": {1 << 62}', False),
        (f'"x": {(1 << 62) + 1}', True),
        (f'"x": {json.dumps(deep(15))}', False),
        (f'"x": {json.dumps(deep(16))}', True),
        ('"d_in": 6.0', True),
    ],
)
def test_json_is_read_as_the_page_says(gallery, extra, expected):
    values, path = gallery[3], gallery[4]
    stream, _ = split_gallery(path)
    if extra.startswith('"d_in"'):
        values = {k: v for k, v in values.items() if k != "d_in"}
    write_parts(path, stream, (json.dumps(values)[:-1] + f", {extra}}}").encode())
    assert [refused(read, path) for read in (scqfaiss.open, read_gallery)] == [expected] * 2


def test_damage_and_newer_formats_are_refused(gallery, model):
    path, data = gallery[4], gallery[4].read_bytes()
    stream, values = split_gallery(path)
    parts = (stream, json.dumps(values | {"format": 2}).encode())
    damaged = [data[:10] + b"?" + data[11:], data[:-1], data + b"x", data[:-50] + b"\1" + data[-49:]]
    for content in damaged:
        path.write_bytes(content)
        assert refused(read_gallery, path)
        if content[-8:] == b"SCQFAISS":
            assert refused(scqfaiss.open, path)
    write_parts(path, *parts)
    with pytest.raises(ScqError, match="format 2, this version reads 1"):  # of galleries
        scqfaiss.open(path)
    assert refused(read_gallery, path)
    write_parts(path, stream + b"\0", json.dumps(values).encode())
    assert refused(scqfaiss.open, path) and refused(read_gallery, path)
    config, tensors, of_model = model
    for number, with_lists in (
        (4, tensors),
        (3, tensors),
        (2, tensors),
        (1, tensors | {"codebooks.lists": np.zeros((2, 6), "f")}),
    ):
        meta = {"format": number, "sha256": model_checksum(config, with_lists), "config": config}
        write_safetensors(of_model, json.dumps(meta), with_lists)
        assert refused(scqfaiss.Model.load, of_model) and refused(read_model, of_model)


def test_classes_in_other_places_are_refused(gallery):
    values, path = gallery[3], gallery[4]
    norms = [faiss.NormalizationTransform(4, 2.0) for _ in range(2)]
    flat = faiss.IndexFlatIP(4)
    twice = faiss.IndexPreTransform(norms[0], faiss.IndexPreTransform(norms[1], faiss.IndexFlatIP(4)))
    for index, words in (
        (faiss.IndexHNSWFlat(4, 4), "IndexHNSWFlat in a file"),
        (twice, "behind transforms"),
        (flat, None),
    ):
        index.add(np.eye(40, 4, dtype=np.float32))
        write_gallery(path, index, values)
        assert refused(scqfaiss.open, path)
        if words is not None:  # a flat index may stand there, but belongs to no target
            with pytest.raises(Refused, match=words):
                read_gallery(path)


# -------------------------------------------------------------------------------------------------- the page is complete
def test_every_key_that_is_checked_stands_on_the_page():
    rules = [v for v in vars(metadata).values() if isinstance(v, dict) and v and all(map(is_rule, v.values()))]
    checked = {key for table in rules for key in table}
    on_page = {*table_of("Metadata"), *table_of("Config")}
    assert len(rules) >= 4 and checked <= on_page
    others = {"format", "options", "classes", "beam", "nested", "C", "seed"}  # each looked at elsewhere
    assert on_page - checked <= others


def is_rule(value):
    return isinstance(value, tuple) and len(value) == 2 and callable(value[0])


def test_places_and_targets_are_those_of_the_code():
    def plain(places):
        return {place.replace("bounding ", ""): sorted(names) for place, names in places.items()}

    assert plain({place: classes_at(place) for place in CLASSES if place not in ("place", "---")}) == plain(PLACES)
    section = PAGE.partition("| target | kinds | index |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)`", section, re.MULTILINE)) == set(REGISTRY)


def test_layers_are_those_of_the_code(model):
    config, tensors, path = model
    section = PAGE.partition("### Encoder")[2].partition("### Encoding")[0]
    firsts = " ".join(row.split("|")[1] for row in section.splitlines() if row.startswith("|"))
    write_model(
        path,
        config | {"chain": {"d_in": 6, "layers": ["another"]}},
        {"codebooks.centroids": tensors["codebooks.centroids"]},
    )
    with pytest.raises(ScqError, match=r"\(another\) is unknown") as refusal:
        scqfaiss.Model.load(path)
    assert set(re.findall("`(\\w+)`", firsts)) == set(str(refusal.value).rpartition(" runs ")[2].split(", "))


def test_every_key_of_a_network_is_needed_and_on_the_page():
    colours = [0.5, 0.5, 0.5]
    record = {"factory": "a.b:c", "arguments": {}, "size": 32, "fit": "crop", "mean": colours, "std": colours}
    record |= {"layers": [], "pool": "average", "width": 8, "mirror": False, "channels_last": True}
    assert set(table_of("Network for images")) == set(record) == set(check_record(record))
    for key in record:
        for changed in ({k: v for k, v in record.items() if k != key}, record | {key: 1.5}):
            with pytest.raises(ScqError, match=key):
                check_record(changed)


# ------------------------------------------------------------------------------------------------------ codes with lists
@pytest.mark.parametrize("M", [0, 2])
@pytest.mark.parametrize("list_beam", [1, 3])
def test_lists_written_from_the_page_are_read(model, tmp_path, M, list_beam):
    config, tensors, path = model
    rng = np.random.default_rng(4)
    table = tensors["codebooks.centroids"] / 4 if M else np.zeros((0, 2, 4), np.float32)
    lists = rng.standard_normal((300, 4)).astype(np.float32)
    config = config | {"list_beam": list_beam, "bits": 8 * M}
    tensors = tensors | {"codebooks.centroids": table, "codebooks.lists": lists}
    write_model(path, config, tensors)
    ours, x = scqfaiss.Model.load(path), rng.standard_normal((60, 6)).astype(np.float32)
    codes = encode(config, tensors, x)
    assert (ours.encode(x) == codes).mean() > 0.95  # ties in float32 may fall otherwise
    np.testing.assert_allclose(ours.codebooks.decode(codes), decode_listed("product", tensors, codes), atol=1e-6)
    coarse = faiss.IndexFlatIP(4)
    coarse.add(lists)
    stored = table if M else np.zeros((1, 2, 4), np.float32)
    nbits = stored.shape[1].bit_length() - 1
    index = faiss.IndexIVFPQ(coarse, 4, 300, len(stored), nbits, faiss.METRIC_INNER_PRODUCT)
    index.by_residual, index.nprobe = True, 9
    faiss.copy_array_to_vector(stored.ravel(), index.pq.centroids)
    index.is_trained = True
    words = codes[:, 1:] if M else np.zeros((60, 1), np.uint16)
    packed, ids = pack(words, nbits), np.arange(60)[::-1] * 3
    for number in np.unique(codes[:, 0]):
        rows = np.flatnonzero(codes[:, 0] == number)
        own, own_codes = np.ascontiguousarray(ids[rows]), np.ascontiguousarray(packed[rows])
        index.invlists.add_entries(int(number), len(rows), faiss.swig_ptr(own), faiss.swig_ptr(own_codes))
    index.ntotal = 60
    values = {
        "format": 1,
        "target": "ivfpq",
        "kind": "product",
        "metric": "ip",
        "M": M,
        "K": 1 << nbits,
        "nbits": nbits,
    }
    values |= {"d": 4, "n": 60, "d_in": 6, "encoder": "model", "model_sha256": read_model(path)[2], "method": "by hand"}
    values |= {"lists": 300, "list_beam": list_beam, "nlist": 300, "nprobe": 9, "bits": nbits * M, "rule": "l2"}
    for target in ("ivfpq", "buckets"):
        write_gallery(tmp_path / "l.faissindex", index, values | {"target": target})
        gallery = scqfaiss.open(tmp_path / "l.faissindex", model=path)
        _, found, held = gallery.unpack()
        np.testing.assert_array_equal(found[np.argsort(held)], codes[::-1])
        scores = ours.embed(x) @ ours.codebooks.decode(codes).T
        D = gallery.search(x, 5, nprobe=300)[0]
        np.testing.assert_allclose(D, -np.sort(-scores, 1)[:, :5], atol=1e-5)
        assert scqfaiss.append(tmp_path / "l.faissindex", x[:4] + 1, model=path) == 64
        again, index_again = read_gallery(tmp_path / "l.faissindex")
        assert codes_of(again, index_again)[0].shape[0] == 64 and again["lists"] == 300
    for change in ({"lists": 299}, {"lists": None}, {"M": 1}, {"lists": 1}, {"rule": "ip"}, {"list_beam": 65}):
        wrong = {k: v for k, v in (values | change).items() if v is not None}
        write_gallery(tmp_path / "w.faissindex", index, wrong)
        assert refused(scqfaiss.open, tmp_path / "w.faissindex")
        if "M" not in change:
            assert refused(read_gallery, tmp_path / "w.faissindex")


def test_a_calibration_is_read_from_the_page(tmp_path):
    plain = life.model("additive-4")
    made, sha = scqfaiss.calibrate(plain, life.X, life.Y), plain.sha256
    made.save(tmp_path / "m.safetensors")
    config, tensors, _ = read_model(tmp_path / "m.safetensors")
    assert config["calibration"]["model_sha256"] == sha and set(config["calibration"]) == set(table_of_calibration(0))
    scqfaiss.export(made, life.X[:60], path=tmp_path / "g.faissindex")
    found, _ = read_gallery(tmp_path / "g.faissindex")
    assert found["model_sha256"] == sha and set(found["calibration"]) == set(table_of_calibration(1))
    assert found["calibration"] == config["calibration"]["lengths"]["16"]
    r, f, p = (np.array(v) for v in (found["calibration"]["relevant"], found["calibration"]["irrelevant"], 0.3))
    np.testing.assert_allclose(made.calibration.precision(0.3), p * r / (p * r + (1 - p) * f), rtol=1e-4)
    for change in ({"classes": None}, {"lengths": {}}, {"model_sha256": "0"}):
        wrong = {k: v for k, v in (config["calibration"] | change).items() if v is not None}
        write_model(tmp_path / "w.safetensors", config | {"calibration": wrong}, tensors)
        assert refused(scqfaiss.Model.load, tmp_path / "w.safetensors")
        assert refused(read_model, tmp_path / "w.safetensors")


def table_of_calibration(number):
    """Keys of one of the two tables of the page's section."""
    section = PAGE.partition("### Calibration\n")[2].partition("\n#")[0]
    table = [part for part in section.split("\n\n") if part.startswith("| key of")][number]
    return [key for row in table.splitlines()[2:] for key in re.findall("`([^`]+)`", row.split("|")[1])]


# Fast scan stores additive codes of a wide range of scores as other codes.
OF_LISTS_AND_CONTENT = [
    (name, target)
    for name, target, _ in life.every_case()
    if ("listed" in name or "content" in name) and (name, target) != ("additive-4 content", "fastscan")
]


@pytest.mark.parametrize("name, target", OF_LISTS_AND_CONTENT)
def test_lists_and_content_that_are_exported_are_read_from_the_page(tmp_path, name, target):
    life.export(name, tmp_path / "g.faissindex", slice(60), target)
    found, index = read_gallery(tmp_path / "g.faissindex")
    codes, ids = codes_of(found, index)
    gallery = scqfaiss.open(tmp_path / "g.faissindex", model=life.model(name))
    ours, held = gallery.unpack()[1:]
    order, theirs = np.argsort(ids), np.argsort(held)
    np.testing.assert_array_equal(ids[order], held[theirs])
    np.testing.assert_array_equal(codes[order][:, : ours.shape[1]], ours[theirs])
    life.model(name).save(tmp_path / "m.safetensors")
    config, tensors, sha = read_model(tmp_path / "m.safetensors")
    assert sha == found["model_sha256"] and found.get("list_beam", 1) == config.get("list_beam", 1)
    model = life.model(name)
    assert_encoded_alike(
        config, encode(config, tensors, life.X[:60]), model.encode(life.X[:60]), model.semantic.columns
    )
    if "content" not in config:
        return
    table = tensors["content.codebooks.centroids"]
    assert found["content_bits"] == len(table) * (table.shape[1].bit_length() - 1)
    for known in (None, 0.0, 0.3):
        got = joint_queries(config, tensors, life.X[:60], known)
        np.testing.assert_allclose(got, model.embed(life.X[:60], known=known), atol=1e-4 * np.abs(got).max())
