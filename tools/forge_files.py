"""Forge index and model files under sound hashes: each must be refused, or read without harm.

    python tools/forge_files.py [--nestings 1000] [--fields 3000] [--seed 0] [--show 5] [--list]

Nestings: every class that FAISS can write inside every other, with a footer and as a plain FAISS file. All hold the same
vectors, so what is accepted must answer as brute force does. Fields: sound galleries of all targets and sound models, with one
to three fields changed: of the FAISS stream, of the metadata, of the model's config or of its tensors.

Every file is opened by a child process of its own, whole and memory-mapped, and goes through the commands that read it. A
signal, an exception that is not ours, an endless wait, more memory than 2 x file + 256 MiB, a wrong answer, a NaN for a score,
or a control character on the terminal is a violation. Exit code 1 if there is any.
"""

import argparse
import copy
import io
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import faiss
import h5py
import numpy as np

import scqfaiss
from scqfaiss import Model, bundle, footer
from scqfaiss.cli import program as cli
from scqfaiss.codebooks import Codebooks
from scqfaiss.encoders.chain import Chain
from scqfaiss.errors import ScqError
from scqfaiss.galleries import reading
from scqfaiss.targets.pretransform import unwrap_index

SECONDS = 20  # of one file
SLACK = 256 << 20
ROWS, COARSE, D = 64, 16, 8
IP = faiss.METRIC_INNER_PRODUCT


# ------------------------------------------------------------------------------------------------------------- children
def outcome(look: Callable[[], Any], nbytes: int) -> tuple[str, str]:
    """(what became of look() in a child process, detail): its own word, or the name of a violation."""
    got, put = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        os.close(got)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(SECONDS)
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 2)
        try:
            said = list(look())
        except ScqError as error:
            said = ["refused", f"{type(error).__name__}: {error}"]
        except BaseException as error:
            said = ["EXCEPTION", f"{type(error).__name__}: {error}"]
        os.write(put, json.dumps(said).encode("utf-8", "replace")[:60_000])
        os._exit(0)
    os.close(put)
    text = b""
    while block := os.read(got, 1 << 16):
        text += block
    os.close(got)
    _, status, usage = os.wait4(pid, 0)
    grew = usage.ru_maxrss * 1024 - resident()
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return ("WAITS" if number == signal.SIGALRM else "SIGNAL"), signal.Signals(number).name
    word, detail = json.loads(text)
    if grew > 2 * nbytes + SLACK:
        return "MEMORY", f"{grew >> 20} MiB for a file of {nbytes:,} bytes ({word}: {detail})"
    return word, detail


def resident() -> int:
    """Bytes of memory that this process holds, and a child of it begins with."""
    with open("/proc/self/statm", encoding="ascii") as f:
        return int(f.read().split()[1]) * resource.getpagesize()


def command(*arguments: Any) -> tuple[int, str]:
    """One command in this process -> exit code and what it printed. What is raised uncaught is raised here."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), warnings.catch_warnings():
        code = cli.run([str(a) for a in arguments])
    return code, out.getvalue() + err.getvalue()


def harmless(text: str) -> bool:
    """No character that a terminal acts upon, or that turns the text around it."""
    return all(c == "\n" or c.isprintable() for c in text)


# ------------------------------------------------------------------------------------------------------------- nestings
class World:
    """One set of vectors that every class of FAISS can hold: words of 4-bit product codes."""

    def __init__(self, metric: int) -> None:
        rng = np.random.default_rng(5)
        self.metric = metric
        self.codebooks = rng.standard_normal((4, 16, 2)).astype(np.float32)
        self.codes = rng.integers(0, 16, (ROWS, 4)).astype(np.uint8)
        self.x = np.concatenate([self.codebooks[m][self.codes[:, m]] for m in range(4)], axis=1)
        self.q = rng.standard_normal((6, D)).astype(np.float32)
        turn = np.linalg.qr(rng.standard_normal((D, D)))[0].astype(np.float32)
        self.turn, self.turned = turn, self.q @ turn.T

    def scores(self, q: Any) -> Any:
        q, x = q.astype(np.float64), self.x.astype(np.float64)
        return q @ x.T if self.metric == IP else -np.square(q[:, None] - x).sum(2)

    def leaves(self) -> dict[str, Callable[[int], Any]]:
        return {
            "Flat": self.flat,
            "PQ": self.pq,
            "FastScan": lambda n: faiss.IndexPQFastScan(self.pq(n)),
            "RQ": self.rq,
            "IVFPQ": lambda n: self.ivfpq(self.flat(4), n),
            "IVFFlat": lambda n: self.ivfflat(self.flat(4), n),
        }

    def flat(self, n: int) -> Any:
        index = (faiss.IndexFlatIP if self.metric == IP else faiss.IndexFlatL2)(D)
        index.add(self.x[:n])
        return index

    def pq(self, n: int) -> Any:
        index = faiss.IndexPQ(D, 4, 4, self.metric)
        faiss.copy_array_to_vector(self.codebooks.ravel(), index.pq.centroids)
        index.is_trained = True
        index.add_sa_codes(faiss.pack_bitstrings(self.codes[:n].astype(np.int32), 4))
        return index

    def rq(self, n: int) -> Any:
        AQ = faiss.AdditiveQuantizer
        kind = AQ.ST_LUT_nonorm if self.metric == IP else AQ.ST_norm_float
        index = faiss.IndexResidualQuantizer(D, 4, 4, self.metric, kind)
        codebooks = np.zeros((4, 16, D), np.float32)
        for m in range(4):
            codebooks[m, :, 2 * m : 2 * m + 2] = self.codebooks[m]
        faiss.copy_array_to_vector(codebooks.ravel(), index.rq.codebooks)
        index.rq.is_trained = index.is_trained = True
        index.rq.train_type |= faiss.ResidualQuantizer.Skip_codebook_tables
        packed = np.zeros((n, index.rq.code_size), np.uint8)
        squares = np.square(self.x[:n]).sum(1).astype(np.float32)
        plain = np.ascontiguousarray(self.codes[:n], np.int32)
        if self.metric != IP:
            index.rq.train_norm(n, faiss.swig_ptr(squares))
        norms = None if self.metric == IP else faiss.swig_ptr(squares)
        index.rq.pack_codes(n, faiss.swig_ptr(plain), faiss.swig_ptr(packed), -1, norms)
        index.add_sa_codes(packed)
        return index

    def ivfpq(self, coarse: Any, n: int) -> Any:
        index = faiss.IndexIVFPQ(coarse, D, coarse.ntotal, 4, 4, self.metric)
        index.by_residual = False
        faiss.copy_array_to_vector(self.codebooks.ravel(), index.pq.centroids)
        return self._filled(index, faiss.pack_bitstrings(self.codes[:n].astype(np.int32), 4), coarse)

    def ivfflat(self, coarse: Any, n: int) -> Any:
        index = faiss.IndexIVFFlat(coarse, D, coarse.ntotal, self.metric)
        return self._filled(index, self.x[:n].view(np.uint8), coarse)

    def _filled(self, index: Any, packed: Any, coarse: Any) -> Any:
        index.is_trained, index.nprobe, index.referenced_objects = True, index.nlist, [coarse]
        for i, code in enumerate(packed):
            key = np.array([i], np.int64)
            index.invlists.add_entries(
                i % index.nlist, 1, faiss.swig_ptr(key), faiss.swig_ptr(np.ascontiguousarray(code))
            )
        index.ntotal = len(packed)
        return index

    def ids(self, inside: Any, kind: Any = faiss.IndexIDMap) -> Any:
        index = kind(faiss.IndexFlat(inside.d, self.metric))
        index.index, index.own_fields, index.referenced_objects = inside, False, [inside]
        faiss.copy_array_to_vector(np.arange(inside.ntotal) * 2 + 9, index.id_map)
        index.ntotal, index.is_trained = inside.ntotal, True
        return index

    def behind(self, transform: str, inside: Any) -> Any:
        index = faiss.IndexPreTransform(inside)
        if transform == "turn":
            t = faiss.LinearTransform(D, D, False)
            faiss.copy_array_to_vector(self.turn.ravel(), t.A)
            t.is_trained = True
        else:
            t = faiss.RemapDimensionsTransform(D, D, False)
            faiss.copy_array_to_vector(np.arange(D).astype(np.int32), t.map)
        index.prepend_transform(t)
        index.referenced_objects = [inside, t]
        return index

    def refine(self, base: Any, store: Any) -> Any:
        index = faiss.IndexRefine(base, store)
        index.k_factor, index.referenced_objects = float(ROWS), [base, store]
        return index

    def all(self) -> dict[str, tuple[Callable[[], Any], str]]:
        """name -> (what makes it, what its ids or its queries are: '', 'ids', 'turn')."""
        inside: dict[str, Callable[[int], Any]] = dict(self.leaves())
        for name in ("Flat", "PQ", "FastScan"):
            inside[f"IDMap({name})"] = lambda n, name=name: self.ids(self.leaves()[name](n))
        for name in ("Flat", "PQ"):
            inside[f"PreTransform({name})"] = lambda n, name=name: self.behind("same", self.leaves()[name](n))
        inside["Refine(FastScan, PQ)"] = lambda n: self.refine(faiss.IndexPQFastScan(self.pq(n)), self.pq(n))
        out: dict[str, tuple[Callable[[], Any], str]] = {}
        for a, base in inside.items():
            inner_ids = "ids" if a.startswith("IDMap") else ""
            out[a] = (lambda base=base: base(ROWS)), inner_ids
            out[f"IDMap({a})"] = (lambda base=base: self.ids(base(ROWS))), "ids"
            out[f"IDMap2({a})"] = (lambda base=base: self.ids(base(ROWS), faiss.IndexIDMap2)), "ids"
            out[f"Linear({a})"] = (lambda base=base: self.behind("turn", base(ROWS))), "turn" + inner_ids
            out[f"Remap({a})"] = (lambda base=base: self.behind("same", base(ROWS))), inner_ids
            out[f"IVFPQ by {a}"] = (lambda base=base: self.ivfpq(base(COARSE), ROWS)), ""
            out[f"IVFFlat by {a}"] = (lambda base=base: self.ivfflat(base(COARSE), ROWS)), ""
            for b, store in inside.items():
                out[f"Refine({a}, {b})"] = (
                    (lambda base=base, store=store: self.refine(base(ROWS), store(ROWS))),
                    inner_ids,
                )
        return out


def right(world: World, how: str, D_: Any, I: Any, k: int, tolerance: float) -> bool:
    """Whether hits are the best of brute force, up to ties, under their right ids."""
    scores = world.scores(world.turned if how.startswith("turn") else world.q)
    place = (I - 9) // 2 if how.endswith("ids") else I
    if (I < 0).any() or (place < 0).any() or (place >= ROWS).any() or (how.endswith("ids") and (I % 2 == 0).any()):
        return False
    sign, wide = (1 if world.metric == IP else -1), np.ptp(scores)
    best = -np.sort(-scores, axis=1)[:, :k]
    found = np.take_along_axis(scores, place, 1)
    near = np.abs(sign * D_ - found).max() <= tolerance * wide and np.abs(found - best).max() <= tolerance * wide
    return bool(near and (np.diff(np.sort(place, axis=1), axis=1) > 0).all())


def card_of(index: Any) -> dict[str, Any]:
    """A metadata that says what it can of any index."""
    target = reading.target_of(index)
    metadata: dict[str, Any] = {
        "encoder": "none",
        "d_in": int(index.d),
        "n": int(index.ntotal),
        "model_sha256": "0" * 64,
    }
    metadata |= {"method": "pq", "rule": "l2", "target": "ivfpq"}
    if target is not None:
        s = target.shape_of(index)
        metadata |= {"target": target.INFO.name, "kind": s.kind, "M": s.M, "nbits": s.nbits, "K": s.K, "d": s.d}
        metadata |= {"metric": s.metric, "bits": s.M * s.nbits} | target.facts(index)
    return metadata


def write(path: Path, stream: bytes, metadata: dict[str, Any] | None) -> None:
    path.unlink(missing_ok=True)
    with open(path, "x+b") as f:
        if metadata is None:
            f.write(stream)
        else:
            footer.write_sealed(f, lambda put: put(stream), metadata)


def look_at_nesting(path: Path, world: World, how: str, loose: bool) -> tuple[str, str]:
    answers = []
    for mmap in (False, True):
        gallery = scqfaiss.open(path, mmap=mmap)
        for k in (5, ROWS):
            answers.append(gallery.search(world.q, k))
            if not right(world, how, *answers[-1], k, 0.05 if loose else 1e-5):
                return "WRONG", f"k={k}, mmap={mmap}"
        if gallery.target is not None:
            gallery.unpack()
            if reading.find_target(gallery.target).ranges(gallery.index):
                gallery.range_search(world.q, 0.0)
    return "answers right", ""


def nestings(folder: Path, most: int) -> list[tuple[str, str, str]]:
    """(name, outcome, detail) of every nesting, in inner products and in distances, with a footer and without."""
    found, path = [], folder / "n.faissindex"
    for metric in (IP, faiss.METRIC_L2):
        world = World(metric)
        for name, (make, how) in list(world.all().items())[:most]:
            title = f"{name} {'ip' if metric == IP else 'l2'}"
            try:
                index = make()
                stream = faiss.serialize_index(index).tobytes()
            except RuntimeError as error:
                found.append((title, "not written by FAISS", str(error)[-80:]))
                continue
            try:
                metadata = card_of(index)
            except Exception:  # what kind of index it is, the older forms of the package cannot tell
                metadata = {"target": "ivfpq", "encoder": "none", "d_in": D}
            for kind, given in (("footer", metadata), ("plain", None)):
                write(path, stream, given)
                loose = "FastScan" in name
                look = lambda how=how, loose=loose, world=world: look_at_nesting(path, world, how, loose)  # noqa: E731
                found.append((f"{title} {kind}", *outcome(look, len(stream))))
    return found


# --------------------------------------------------------------------------------------------------------------- fields
def sound_files(folder: Path) -> list[tuple[Path, Path]]:
    """(gallery, its model) of every target and encoder."""
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((320, 6)).astype(np.float32)
    with h5py.File(folder / "rows.h5", "w") as f:
        f["features"], f["labels"] = rows[:40], np.arange(40) % 3
        f["ids"] = np.arange(40) * 3 + 5
    with h5py.File(folder / "more.h5", "w") as f:
        f["features"], f["ids"] = rows[40:44], np.arange(4) + 10**6

    def normal(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(np.float32)

    chains = {
        "none": Chain(6),
        "folded": Chain(6, [("center", {"mean": normal(6)}), ("linear", {"A": normal(8, 6)}), ("normalize", {})]),
        "model": Chain(6, [("linear", {"A": normal(8, 6), "b": normal(8)}), ("relu", {})]),
    }
    wanted = [
        ("none", "product", 3, 8, "ip", "ivfpq", {}),
        ("folded", "product", 4, 4, "ip", "ivfpq", {"nlist": 5}),
        ("model", "product", 4, 4, "l2", "pq", {}),
        ("none", "product", 2, 5, "ip", "pq", {}),
        ("folded", "product", 4, 4, "ip", "fastscan", {}),
        ("none", "additive", 4, 4, "ip", "fastscan", {}),
        ("model", "product", 4, 4, "l2", "fastscan", {"refine": -1}),
        ("none", "product", 2, 4, "ip", "buckets", {}),
        ("folded", "additive", 3, 4, "ip", "buckets", {"nlist": 9}),
        ("folded", "additive", 3, 4, "ip", "lift", {}),
        ("model", "additive", 3, 5, "ip", "residual", {}),
        ("none", "additive", 3, 5, "l2", "residual", {}),
        ("folded", "product", 4, 4, "ip", "ivfpq", {}, 6),
        ("none", "product", 2, 5, "l2", "ivfpq", {}, 6),
        ("none", "product", 0, 1, "ip", "buckets", {}, 6),
        ("model", "additive", 3, 4, "ip", "lift", {}, 6),
        ("folded", "additive", 4, 4, "ip", "buckets", {}, 6),
    ]
    out = []
    for number, (encoder, kind, M, nbits, metric, target, options, *lists) in enumerate(wanted):
        d = chains[encoder].d_out
        centroids = normal(M, 1 << nbits, d // max(M, 1) if kind == "product" else d)
        codebooks = Codebooks(kind, centroids, metric, normal(*lists, d) if lists else None)
        config = {"method": "dpq", "rule": "l2", "encoder": "mlp", "bits": M * nbits, "seed": 0, "nested": False}
        config |= {"class_names": ["a", "b", "c"], "labels": "one", "settings": {"epochs": 3, "lr": 0.1}}
        config |= {"list_beam": 2} if lists else {}
        config |= {"training": {"rows": 9, "loss": [0.5], "codewords_used": [3] * M}, "long_name": "deep"}
        model, gallery = folder / f"m{number}.safetensors", folder / f"g{number}.faissindex"
        Model(chains[encoder], codebooks, config).save(model)
        scqfaiss.export(model, rows, path=gallery, ids=np.arange(320) * 3 + 5, target=target, **options)
        out.append((gallery, model))
    return out


def fields_of(stream: bytes) -> list[tuple[int, int]]:
    """(offset, bytes) of everything that FAISS reads on its own: single fields, and arrays."""
    found: list[tuple[int, int]] = []
    f = io.BytesIO(stream)

    def get(n: int) -> bytes:
        found.append((f.tell(), n))
        return f.read(n)

    faiss.read_index(faiss.PyCallbackIOReader(get))
    return found


STRANGE: list[Any] = [
    None,
    True,
    False,
    -1,
    0,
    1,
    2**31,
    2**63,
    10**400,
    1.5,
    float("nan"),
    float("inf"),
    -0.0,
    "",
    "x",
]
STRANGE += [[], {}, ["x"], {"x": 1}, [[[]]], "\x1b[2J\x1b]0;y\x07", "a\nError: b", "\u202egnp", "z" * 5000, "\ud800"]
FLOATS = (np.nan, np.inf, -np.inf, 3e38, -3e38, 1e20, 0.0, 1.0)
TAGS = (
    b"null",
    b"il00",
    b"IxPq",
    b"IxFI",
    b"IwPQ",
    b"IxMp",
    b"IxPT",
    b"IxRF",
    b"IHNf",
    b"ilod",
    b"NoTr",
    b"LTra",
    b"PcAm",
)


def forge_stream(rng: Any, stream: bytes, places: list[tuple[int, int]]) -> bytes:
    data = bytearray(stream)
    small = [p for p in places if p[1] in (1, 4, 8)]
    large = [p for p in places if p[1] > 8]
    for _ in range(rng.integers(1, 4)):
        chosen = large if large and rng.random() < 0.3 else small
        at, n = chosen[int(rng.integers(len(chosen)))]
        old = bytes(data[at : at + n])
        if n == 1:
            data[at] = int(rng.choice([0, 1, 2, 255]))
        elif n in (4, 8):
            wide = np.int32 if n == 4 else np.int64
            value = int(np.frombuffer(old, wide)[0])
            new = [0, 1, -1, value + 1, value - 1, 2 * value, value // 2, 7, 255, 65536, 2**31 - 1, -(2**31)]
            new += [2**33, 2**40, 2**61, -(2**63)] if n == 8 else []
            which = int(rng.integers(len(new) + 4))
            if which >= len(new) and n == 4:
                tag = TAGS[rng.integers(len(TAGS))] if rng.random() < 0.5 else np.float32(rng.choice(FLOATS)).tobytes()
                data[at : at + 4] = tag
            else:
                number = new[which % len(new)]
                number = (number + 2 ** (8 * n - 1)) % 2 ** (8 * n) - 2 ** (8 * n - 1)
                data[at : at + n] = wide(number).tobytes()
        else:
            which = int(rng.integers(4))
            if which == 0 and n % 4 == 0:
                place = at + 4 * int(rng.integers(n // 4))
                data[place : place + 4] = np.float32(rng.choice(FLOATS)).tobytes()
            elif which == 1 and n % 8 == 0:
                place = at + 8 * int(rng.integers(n // 8))
                other = at + 8 * int(rng.integers(n // 8))
                new_id = bytes(data[other : other + 8]) if rng.random() < 0.5 else np.int64(rng.choice([-1, 0, 2**62]))
                data[place : place + 8] = new_id if isinstance(new_id, bytes) else new_id.tobytes()
            else:
                data[at + int(rng.integers(n))] = int(rng.integers(256))
    return bytes(data)


def forge_json(rng: Any, value: Any) -> Any:
    """The same object with one entry, at any depth, removed, added or replaced."""
    value = copy.deepcopy(value)
    spots: list[tuple[Any, Any]] = []

    def visit(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            spots.append((node, key))
            if isinstance(node[key], dict | list):
                visit(node[key])

    visit(value)
    node, key = spots[int(rng.integers(len(spots)))]
    action = rng.random()
    if action < 0.15:
        del node[key]
    elif action < 0.3 and isinstance(node, dict):
        node[
            ["\x1b[31mred", "a\nb", "options", "prefix", "backbone", "beam", "pictures", "\u202e"][rng.integers(8)]
        ] = pick(rng)
    else:
        node[key] = pick(rng)
    return value


def pick(rng: Any) -> Any:
    return copy.deepcopy(STRANGE[int(rng.integers(len(STRANGE)))])


def seal_any(path: Path, stream: bytes, metadata: dict[str, Any]) -> None:
    """As footer.write_sealed, but NaN and lone surrogates go into the metadata as Python writes them."""
    import hashlib

    text = json.dumps({"format": footer.FORMAT, **metadata}).encode("utf-8")
    body = stream + text + footer.TRAILER.pack(len(stream), len(text), b"", b"")[:16]
    path.unlink(missing_ok=True)
    path.write_bytes(body + hashlib.sha256(body).digest() + footer.MAGIC)


def forge_model(rng: Any, path: Path, out: Path) -> None:
    """A model with its config or its tensors changed, hashed anew."""
    from safetensors.numpy import save

    held = bundle.read(path)[0]
    config, tensors = dict(held.config), dict(held.tensors)
    if rng.random() < 0.7:
        for _ in range(rng.integers(1, 4)):
            config = forge_json(rng, config)
    else:
        name = sorted(tensors)[int(rng.integers(len(tensors)))]
        t = np.array(tensors[name])
        which = int(rng.integers(6))
        if which == 0:
            del tensors[name]
        elif which == 1:
            tensors[name] = t.reshape(-1)
        elif which == 2:
            tensors[name] = t.astype([np.float64, np.int32, np.float16][rng.integers(3)])
        elif which == 3:
            tensors[f"{name}.{rng.integers(9)}"] = t
        elif which == 4:
            tensors[name] = t[..., :0]
        elif t.size:  # of lists alone there are no codewords
            t.reshape(-1)[rng.integers(t.size)] = rng.choice(FLOATS)
    forged = bundle.Bundle(tensors, config)
    meta = {"format": held.format, "sha256": forged.digest(), "config": config}
    out.write_bytes(save({k: np.ascontiguousarray(t) for k, t in tensors.items()}, {"scqfaiss": json.dumps(meta)}))


def run_all(*commands: tuple[Any, ...]) -> tuple[str, str]:
    codes = set()
    for arguments in commands:
        code, text = command(*arguments)
        if not harmless(text):
            return "CONTROLS", f"{arguments[0]}: {text[:300]!a}"
        if "--json" in arguments and code == 0:
            json.loads(text[text.index("{") : text.rindex("}") + 1], parse_constant=lambda name: 1 / 0)
        if code not in (0, 2, 3, 4, 5):
            return "EXIT CODE", f"{arguments[0]}: {code} {text[:200]}"
        codes.add(code)
    return ("accepted" if codes == {0} else "refused"), ""


def look_at_gallery(path: Path, model: Path, folder: Path) -> tuple[str, str]:
    accepted = False
    rows, more = folder / "rows.h5", folder / "more.h5"
    with h5py.File(rows, "r") as f:
        q = f["features"][:5]
    for mmap in (False, True):
        try:
            gallery = scqfaiss.open(path, mmap=mmap, model=model)
        except ScqError:
            continue
        accepted = True
        found = gallery.search(q, 9)
        if np.isnan(found[0][found[1] >= 0]).any():
            return "NAN", "a score"
        target = reading.find_target(gallery.target)
        if target.ranges(gallery.index):
            gallery.range_search(q, 1.0)
        if target.INFO.filter:
            gallery.search(q, 9, allow=[5, 8, 11])
        unwrap_index(gallery.index).search(np.ones((1, unwrap_index(gallery.index).d), np.float32), 3)
        gallery.unpack()
    reads = [("verify", path), ("info", path), ("info", path, "--json")]
    if not accepted:
        return run_all(*reads)
    word = run_all(
        *reads,
        ("search", path, rows, "--model", model, "-k", "3"),
        ("evaluate", path, rows, "--model", model, "--json"),
        ("append", path, more, "--model", model),
        ("remove", path, "--ids", "5,8"),
        ("merge", path, folder / "g0.faissindex", "-o", folder / "merged.faissindex"),
    )
    return ("accepted", "") if word[0] == "refused" else word


def look_at_model(path: Path, folder: Path) -> tuple[str, str]:
    word = run_all(
        ("verify", path),
        ("info", path),
        ("info", path, "--json"),
        ("export", path, folder / "rows.h5", "-o", folder / "e.faissindex", "--dry-run"),
        ("export", path, folder / "rows.h5", "-o", folder / "e.faissindex"),
        ("search", folder / "g0.faissindex", folder / "rows.h5", "--model", path),
    )
    if (folder / "e.faissindex").exists():
        again = run_all(
            ("info", folder / "e.faissindex"),
            ("append", folder / "e.faissindex", folder / "more.h5", "--model", path),
            ("search", folder / "e.faissindex", folder / "rows.h5", "--model", path),
        )
        word = again if again[0] not in ("accepted", "refused") else ("accepted", "")
    return word


def fields(folder: Path, count: int, seed: int) -> list[tuple[str, str, str]]:
    """(name, outcome, detail) of `count` files with changed fields."""
    sound, found = sound_files(folder), []
    held = []
    for gallery, _ in sound:
        with open(gallery, "rb") as f:
            metadata, n = footer.read_footer(f, gallery.name)
            f.seek(0)
            stream = f.read(n)
        metadata.pop("format")
        held.append((metadata, stream, fields_of(stream)))
    for i in range(count):
        rng = np.random.default_rng([seed, i])
        number = i % len(sound)
        gallery, model = sound[number]
        metadata, stream, places = held[number]
        kind = ("stream", "stream", "card", "model")[i // len(sound) % 4]
        work = folder / "work"
        work.mkdir()
        for name in ("rows.h5", "more.h5", "g0.faissindex"):
            shutil.copy(folder / name, work)
        if kind == "model":
            path = work / "f.safetensors"
            forge_model(rng, model, path)
            look = lambda path=path, work=work: look_at_model(path, work)  # noqa: E731
        else:
            path = work / "f.faissindex"
            if kind == "stream":
                write(path, forge_stream(rng, stream, places), metadata)
            else:
                forged = metadata
                for _ in range(rng.integers(1, 4)):
                    forged = forge_json(rng, forged)
                seal_any(path, stream, forged)
            look = lambda path=path, model=model, work=work: look_at_gallery(path, model, work)  # noqa: E731
        found.append((f"{kind} {i} of {metadata['target']}", *outcome(look, path.stat().st_size)))
        shutil.rmtree(work)
    return found


# --------------------------------------------------------------------------------------------------------------- report
def table(title: str, found: list[tuple[str, str, str]], show: int) -> int:
    """Print counts, and the first of each kind of violation -> violations."""
    counts = Counter(word for _, word, _ in found)
    bad = {word: n for word, n in counts.items() if word.isupper()}
    print(f"{title}: {len(found):,} files")
    for word, n in sorted(counts.items()):
        print(f"  {n:6,}  {word}")
    for word in bad:
        some = [(name, detail) for name, found_word, detail in found if found_word == word]
        for what, n in Counter(detail[:400] for _, detail in some).most_common(show):
            first = next(name for name, detail in some if detail.startswith(what))
            print(f"          {word}: {n:,} x {what!a}, first {first}")
    sys.stdout.flush()
    return sum(bad.values())


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nestings", type=int, default=1000, help="at most so many, of each metric")
    parser.add_argument("--fields", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", type=int, default=5, help="kinds of each violation that are named")
    parser.add_argument("--list", action="store_true", help="name every nesting and what became of it")
    asked = parser.parse_args(arguments)
    faiss.omp_set_num_threads(1)  # a child of a process with OpenMP threads would wait for them for ever
    warnings.simplefilter("ignore")
    begun, bad = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.chdir(folder)
        if asked.nestings:
            found = nestings(folder, asked.nestings)
            if asked.list:
                for one in found:
                    print("  ".join(one)[:200])
            bad += table("nestings", found, asked.show)
        if asked.fields:
            bad += table("fields", fields(folder, asked.fields, asked.seed), asked.show)
        os.chdir("/")
    print(f"{bad:,} violations, {time.monotonic() - begun:.0f} s")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
