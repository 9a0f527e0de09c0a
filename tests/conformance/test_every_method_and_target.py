"""Every registered method against every registered target. A new one passes by standing in its registry."""

import dataclasses
import itertools
import json
import subprocess
import sys
import types
from dataclasses import dataclass
from typing import ClassVar

import click
import faiss
import numpy as np
import pytest
from close import assert_close, assert_encodes_as, roundings
from contents import asked, with_content

import scqfaiss
import scqfaiss.methods
import scqfaiss.targets
from scqfaiss import Model
from scqfaiss.cli import arguments
from scqfaiss.codebooks import Codebooks, Shape
from scqfaiss.content import AUTO
from scqfaiss.contract import Stage
from scqfaiss.contract import settings as settings_of
from scqfaiss.data.writing import write_rows
from scqfaiss.errors import ConfigError, DataError
from scqfaiss.galleries.exporting import build as build_index
from scqfaiss.galleries.exporting import export_file
from scqfaiss.galleries.gallery import open_gallery
from scqfaiss.galleries.searching import search_file
from scqfaiss.methods import method_class
from scqfaiss.options import TrainOptions
from scqfaiss.targets import Entry
from scqfaiss.targets import target as find_target
from scqfaiss.targets.options import RefineOptions, option
from scqfaiss.targets.pq import PQ
from scqfaiss.targets.reshape import merged_shape
from scqfaiss.training.interface import train_file

pytestmark = pytest.mark.filterwarnings("ignore::scqfaiss.errors.ScqWarning")

METHODS, TARGETS = list(scqfaiss.methods.REGISTRY), list(scqfaiss.targets.REGISTRY)
OF_IMAGES = [m for m in METHODS if "feature maps" in method_class(m).needs]  # stored rows have none
METHODS = [m for m in METHODS if m not in OF_IMAGES]
# A method whose settings change what it hands over stands here once more.
VARIANTS = {
    "scq additive": ("scq", {"codebooks.kind": "additive", "beam": 4}),
    "dpq released": ("dpq", {"recipe": "reference", "d": 8}),
}
N_BASE, K = 150, 12
# Settings that keep a run short, given to the methods that know them.
QUICK = {"features.epochs": 2, "hidden": 16, "codebooks.epochs": 2, "similarity": "identity", "iterations": 5}


def base(method):
    """(name in the registry, settings) of a method or a variant of one."""
    return VARIANTS.get(method, (method, {}))


def cases():
    for method in [*METHODS, *VARIANTS]:
        for labels in ("one", "many") if "labels" in method_class(base(method)[0]).needs else ("none",):
            for nbits in (8, 4):
                # 4 bits go into every target; 8 bits of most methods are left to the slow half.
                marks = [pytest.mark.slow] if nbits == 8 and method not in ("scq", "dpq", "pq") else []
                yield pytest.param(method, labels, nbits, id=f"{method}-{labels}-{nbits}", marks=marks)


CASES = list(cases())


def train(method, x, y, nbits=8, encoder="mlp", bits=16, epochs=2, **more):
    method, variant = base(method)
    cls = method_class(method)
    known = set(settings_of(cls.Config)) | ({"hidden"} if cls.needs_encoder and encoder == "mlp" else set())
    settings = {k: v for k, v in QUICK.items() if k in known} | variant | more
    if "pairs" in cls.needs:
        settings["keys"] = x  # and the same rows ask, each with a little of the one before
        x = x + 0.1 * np.roll(x, 1, axis=0)
    return scqfaiss.train(
        x, y, method=method, bits=bits, nbits=nbits, encoder=encoder, epochs=epochs, forecast="off", **settings
    )


_trained = {}


@pytest.fixture
def trained(request, one, multilabel):
    """(method, labels, nbits) -> a model, trained once."""

    def get(method, labels, nbits):
        key = method, labels, nbits
        if key not in _trained:
            x, y = {"one": one, "many": multilabel, "none": (one[0], None)}[labels]
            _trained[key] = train(method, x, y, nbits)
        return _trained[key]

    return get


WORKER = """
import json, sys
import faiss, numpy as np
for line in sys.stdin:
    path, queries, k, out = json.loads(line)
    index = faiss.read_index(path)
    D, I = index.search(np.load(queries), k)
    np.save(out + ".D.npy", D)
    np.save(out + ".I.npy", I)
    ours = sorted(m for m in sys.modules if m.partition(".")[0] in ("scqfaiss", "torch"))
    print(json.dumps({"ours": ours, "ntotal": index.ntotal, "d": index.d}), flush=True)
"""


@pytest.fixture(scope="module")
def plain_faiss(tmp_path_factory):
    """search(path, queries, k) by a process that has FAISS and NumPy, and neither torch nor this package."""
    folder = tmp_path_factory.mktemp("plain")
    process = subprocess.Popen([sys.executable, "-c", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def search(path, queries, k):
        np.save(folder / "q.npy", queries)
        process.stdin.write(json.dumps([str(path), str(folder / "q.npy"), k, str(folder / "hits")]) + "\n")
        process.stdin.flush()
        answer = json.loads(process.stdout.readline())
        assert answer["ours"] == []
        return np.load(folder / "hits.D.npy"), np.load(folder / "hits.I.npy"), answer

    yield search
    process.stdin.close()
    process.stdout.close()
    assert process.wait(20) == 0


def assert_hits(D, I, scores, ids, k, metric="ip"):
    """D, I (nq, k) are the best k of `scores` (nq, n) for rows called `ids`, up to ties; where n < k, -1 follows."""
    assert D.shape == I.shape == (len(scores), k)
    assert (I[:, len(ids) :] == -1).all()
    D, I, k = D[:, : len(ids)], I[:, : len(ids)], min(k, len(ids))
    place = {int(i): j for j, i in enumerate(ids)}
    scale = np.abs(scores).max(initial=0) + 1e-12
    best = -np.sort(-scores, axis=1)[:, :k] if metric == "ip" else np.sort(scores, axis=1)[:, :k]
    np.testing.assert_allclose(D / scale, best / scale, atol=1e-5)
    of_ids = np.array([[scores[q, place[int(i)]] for i in row] for q, row in enumerate(I)]).reshape(best.shape)
    np.testing.assert_allclose(of_ids / scale, best / scale, atol=1e-5)
    assert all(len(set(row)) == k for row in I.tolist())


def assert_in_range(found, scores, ids, radius, metric="ip"):
    """lims, D, I are all rows better than radius, which lies between scores."""
    lims, D, I = found
    assert lims.shape == (len(scores) + 1,) and lims[-1] == len(D) == len(I)
    better = scores > radius if metric == "ip" else scores < radius
    for q, wanted in enumerate(better):
        part = slice(lims[q], lims[q + 1])
        order = np.argsort(I[part])
        np.testing.assert_array_equal(I[part][order], np.sort(ids[wanted]))
        np.testing.assert_allclose(D[part][order], scores[q, wanted][np.argsort(ids[wanted])], rtol=1e-4, atol=1e-4)


def between(scores, share):
    """A number that no score is near to, with about `share` of them below it."""
    values = np.sort(scores, axis=None)
    near = len(values) * np.array([share - 0.1, share + 0.1])
    i = int(near[0]) + np.diff(values[int(near[0]) : int(near[1]) + 2]).argmax()
    return float(values[i : i + 2].mean())


def assert_same_codes(found, codebooks, codes, ids):
    """Codebooks, codes, ids (in any order) are what was stored. Of merged additive codebooks only sums come back."""
    found_codebooks, found_codes, found_ids = found
    if codebooks.lists is not None:
        np.testing.assert_array_equal(found_codebooks.lists, codebooks.lists)
    if codebooks.kind == "product" or merged_shape(codebooks.shape) == codebooks.shape:
        np.testing.assert_array_equal(found_codebooks.centroids, codebooks.centroids)
    assert (found_codebooks.shape, found_codes.dtype) == (codebooks.shape, codes.dtype)
    order, wanted = np.argsort(found_ids), np.argsort(ids)
    np.testing.assert_array_equal(found_ids[order], ids[wanted])
    np.testing.assert_array_equal(found_codes[order], codes[wanted])
    np.testing.assert_allclose(found_codebooks.decode(found_codes[order]), codebooks.decode(codes[wanted]), atol=1e-5)


def serving(shape):
    """The targets that take codes of this shape, written down once more."""
    if shape.L > 1:
        return {"ivfpq" if shape.kind == "product" else "lift", "buckets"}
    if shape.kind == "product":
        return {"ivfpq", "pq", "buckets"} | ({"fastscan"} if shape.nbits == 4 else set())
    if shape.metric == "l2":
        return {"residual"}
    return {"lift", "residual", "buckets"} | ({"fastscan"} if shape.nbits == 4 else set())


@pytest.mark.parametrize("method, labels, nbits", CASES)
def test_codes_have_their_shape_and_range(method, labels, nbits, trained, one):
    model, x = trained(method, labels, nbits), one[0]
    codebooks, codes = model.codebooks, model.encode(x)
    method = base(method)[0]
    C, asked = 0 if labels == "none" else 4, (16 // nbits, nbits)
    assert (codebooks.M, codebooks.nbits) == method_class(method).shape(C, labels == "many", *asked)
    assert codes.shape == (400, codebooks.M)
    assert codes.dtype == codebooks.code_dtype
    assert codes.max() < codebooks.K
    assert np.isfinite(codebooks.centroids).all()
    assert model.embed(x).shape == (400, codebooks.d)
    # Nothing depends on what stands beside a row, on NumPy's layout, or on state left by training; up to ties, as products
    # of one row are summed in another order than those of many.
    for n in (0, 1, 7):
        assert_encodes_as(model, x[:n], codes[:n])
    facts = model.config
    assert (facts["method"], facts["rule"], facts["labels"]) == (method, method_class(method).rule, labels) or (
        method,
        facts["rule"],
        labels,
    ) == ("label", "l2", "many")
    assert facts["bits"] == codebooks.bits


@pytest.mark.parametrize("method, labels, nbits", CASES)
def test_training_twice_gives_the_same_bytes_and_another_seed_others(method, labels, nbits, trained, one, multilabel):
    x, y = {"one": one, "many": multilabel, "none": (one[0], None)}[labels]
    assert train(method, x, y, nbits).to_bytes() == trained(method, labels, nbits).to_bytes()
    if nbits == 4:
        other, same = train(method, x, y, nbits, seed=1), trained(method, labels, nbits)
        assert any(not np.array_equal(a, b) for a, b in zip(numbers(other), numbers(same)))


def numbers(model):
    """All that was learned, without the settings."""
    return [*model.chain.pack()[0].values(), model.codebooks.centroids]


@pytest.mark.parametrize("method, labels, nbits", CASES)
def test_a_saved_model_is_the_same_model(method, labels, nbits, trained, one, tmp_path):
    model, x = trained(method, labels, nbits), one[0]
    model.save(tmp_path / "m.safetensors")
    again = Model.load(tmp_path / "m.safetensors")
    assert again.to_bytes() == model.to_bytes()
    assert again.config == json.loads(json.dumps(model.config))
    np.testing.assert_array_equal(again.embed(x), model.embed(x))
    np.testing.assert_array_equal(again.encode(x), model.encode(x))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("method, labels, nbits", CASES)
def test_plain_faiss_gives_the_scores_of_the_codes(method, labels, nbits, target, trained, one, tmp_path, plain_faiss):
    model, x = trained(method, labels, nbits), one[0]
    path, xb, xq = tmp_path / "g.faissindex", x[:N_BASE], x[N_BASE : N_BASE + 20]
    if target not in serving(model.codebooks.shape):
        with pytest.raises(ConfigError, match=f"^target {target} cannot serve these codes: "):
            scqfaiss.export(model, xb, path=path, target=target)
        return
    ids = np.random.default_rng(1).permutation(N_BASE) * 7 + 2**62 - 10_000  # large, and in no order
    scqfaiss.export(model, xb, ids=ids, path=path, target=target)
    codes, z = model.encode(xb), model.embed(xq)
    scores = model.codebooks.scores(z, codes)
    folded = model.chain.foldable
    D, I, found = plain_faiss(path, xq if folded else z, K)
    assert (found["ntotal"], found["d"]) == (N_BASE, model.d_in if folded else model.codebooks.d)
    assert_hits(D, I, scores, ids, K, model.codebooks.metric)
    # Our own reader answers alike, and what it unpacks is what was put in: nothing was encoded again.
    gallery = scqfaiss.open(path, model=model)
    assert gallery.target == target
    ours = gallery.search(xq, K)
    np.testing.assert_allclose(ours[0], D, atol=1e-5 * np.abs(scores).max())
    assert_same_codes(gallery.unpack(), model.codebooks, codes, ids)
    np.testing.assert_allclose(gallery.reconstruct(ids[:9]), model.codebooks.decode(codes[:9]), atol=1e-5)
    if find_target(target).INFO.filter:
        assert_hits(*gallery.search(xq, K, allow=ids[::5], deny=ids[::2]), scores[:, 5::10], ids[5::10], K)
    else:
        kind = model.codebooks.kind
        able = "ivfpq or buckets" if kind == "product" else "buckets or lift"
        for which in ("allow", "deny"):
            with pytest.raises(ConfigError, match=f": target {target} cannot filter by id; export with {able}$"):
                gallery.search(xq, K, **{which: ids[:3]})
            with pytest.raises(ConfigError, match=f": target {target} cannot filter by id; export with {able}$"):
                gallery.range_search(xq, 0.0, **{which: ids[:3]})


# M, nbits, and dimensions of a codeword of a product codebook and of an additive one.
SHAPES = [(4, 8, 2, 6), (3, 4, 4, 5), (6, 4, 4, 5), (5, 1, 1, 3), (2, 10, 3, 4)]


def shapes():
    for (M, nbits, dsub, d), metric in itertools.product(SHAPES, ("ip", "l2")):
        yield Shape("product", M, nbits, M * dsub, metric)
        yield Shape("additive", M, nbits, d, metric)


def name_of(shape):
    return f"{shape.kind}-{shape.M}x{shape.nbits}-{shape.metric}"


def codebooks_of(shape, rng):
    dsub = shape.d // shape.M if shape.kind == "product" else shape.d
    return Codebooks(shape.kind, rng.standard_normal((shape.M, shape.K, dsub)).astype(np.float32), shape.metric)


@pytest.mark.parametrize("shape", list(shapes()), ids=name_of)
def test_every_shape_has_its_targets_and_the_others_say_why_not(shape):
    reasons = {name: find_target(name).supports(shape) for name in TARGETS}
    assert {name for name, reason in reasons.items() if reason is None} == serving(shape)
    for reason in filter(None, reasons.values()):
        assert any(name in reason for name in [*serving(shape), "--nbits 4"])


SERVED = [
    pytest.param(name, shape, id=f"{name}-{name_of(shape)}")
    for shape in shapes()
    for name in TARGETS
    if name in serving(shape)
]


@pytest.mark.parametrize("target, shape", SERVED)
def test_any_codes_come_back_and_score_as_they_should(target, shape, tmp_path, plain_faiss):
    for n, ids in itertools.product((0, 1, 90), ("given", "row numbers")):
        check_codes_come_back(target, shape, n, ids, tmp_path, plain_faiss)


def check_codes_come_back(target, shape, n, ids, tmp_path, plain_faiss):
    rng = np.random.default_rng(0)
    codebooks, container = codebooks_of(shape, rng), find_target(target)
    codes = codebooks.check_codes(
        rng.integers(0, codebooks.K, (n, codebooks.M))
    )  # random: not what FAISS itself would choose
    codes[n // 2 :: 7] = codes[:1]
    names = rng.permutation(n).astype(np.int64) * 3 + 5 if ids == "given" else np.arange(n)
    index = container.build(codebooks, codes, names)
    path = str(tmp_path / "g.faissindex")
    faiss.write_index(index, path)
    # The stream is about as long as announced.
    stream = (tmp_path / "g.faissindex").stat().st_size
    if target == "buckets":
        assert stream <= container.nbytes(shape, n)
    else:
        assert abs(container.nbytes(shape, n) - stream) < 3000 + (8 * n if ids == "row numbers" else 0)
    index = faiss.read_index(path)
    assert {name for name in TARGETS if find_target(name).holds(index)} == {target}
    assert container.shape_of(index) in (shape, merged_shape(shape))
    assert (index.ntotal, index.d) == (n, shape.d)
    assert_same_codes(container.unpack(index, shape), codebooks, codes, names)
    if not n:
        return
    q = rng.standard_normal((6, codebooks.d)).astype(np.float32)
    q[5] = 0
    q[4] = np.abs(q[4])
    scores, metric = codebooks.scores(q, codes), shape.metric
    D, I, _ = plain_faiss(path, q[:5], K)
    assert_hits(D[:, :n], I[:, :n], scores[:5], names, min(n, K), metric)
    for k in (1, K, n, n + 3):
        assert_hits(*container.search(index, q, k), scores, names, k, metric)
    radius = between(scores[:5], 0.4)
    assert_in_range(container.range_search(index, q[:5], radius), scores[:5], names, radius, metric)
    for never in (-1e9, 1e9):
        assert_in_range(container.range_search(index, q, never), scores, names, never, metric)
    if container.INFO.filter:
        kept = np.arange(n) % 9 == 0
        batch = faiss.IDSelectorBatch(names[kept])
        for sel, here in ((batch, kept), (faiss.IDSelectorNot(batch), ~kept)):
            assert_hits(*container.search(index, q, K, sel=sel), scores[:, here], names[here], K, metric)
            found = container.range_search(index, q[:5], radius, sel=sel)
            assert_in_range(found, scores[:5, here], names[here], radius, metric)


@pytest.mark.parametrize("target, shape", [p for p in SERVED if p.values[1].M in (3, 4, 6)])
def test_a_plain_faiss_file_is_read_by_its_class(target, shape, tmp_path):
    """Without a metadata nobody knows of merged codebooks: the codes then are those of the codebooks as they stand."""
    rng = np.random.default_rng(0)
    codebooks = codebooks_of(shape, rng)
    codes, ids = codebooks.check_codes(rng.integers(0, codebooks.K, (30, codebooks.M))), rng.permutation(30) + 100
    faiss.write_index(find_target(target).build(codebooks, codes, ids), str(tmp_path / "g.faissindex"))
    gallery = scqfaiss.open(tmp_path / "g.faissindex")
    assert (gallery.metadata, gallery.target) == (None, target)
    held_codebooks, held, held_ids = gallery.unpack()
    order = np.argsort(held_ids)
    np.testing.assert_array_equal(held_ids[order], np.sort(ids))
    np.testing.assert_allclose(held_codebooks.decode(held[order]), codebooks.decode(codes[np.argsort(ids)]), atol=1e-5)
    if held_codebooks.shape == shape:
        np.testing.assert_array_equal(held[order], codes[np.argsort(ids)])


@pytest.mark.parametrize("kind, metric", [("product", "ip"), ("product", "l2"), ("additive", "ip")])
def test_fast_scan_alone_finds_most_of_the_best(kind, metric, tmp_path, plain_faiss):
    rng = np.random.default_rng(0)
    codebooks = codebooks_of(Shape(kind, 16, 4, 64, metric), rng)
    codes, q = codebooks.check_codes(rng.integers(0, 16, (2000, 16))), rng.standard_normal((40, 64)).astype(np.float32)
    container = find_target("fastscan")
    index = container.build(codebooks, codes, np.arange(2000), RefineOptions(refine=-1))
    faiss.write_index(index, str(tmp_path / "g.faissindex"))
    scores = codebooks.scores(q, codes) * (1 if metric == "ip" else -1)
    tenth = -np.sort(-scores, axis=1)[:, 9:10]
    D, I, _ = plain_faiss(tmp_path / "g.faissindex", q, 10)
    of_ids = np.take_along_axis(scores, I, 1)
    assert (of_ids >= tenth - 1e-6).mean() >= 0.9
    np.testing.assert_allclose(np.abs(D), np.abs(of_ids), atol=0.02 * np.abs(scores).max())
    with pytest.raises(
        ConfigError, match=r"^fast scan without refine has no range search; export without --refine -1$"
    ):
        container.range_search(index, q, 0.0)


FOLDED = [
    ("scq", "identity", {}),
    ("scq", "linear", {"cfa": "cosine"}),
    ("pq", "mlp", {}),
    ("pq", "mlp", {"raw": True}),
    ("opq", "mlp", {}),
    ("mopq", "identity", {}),
    ("mopq", "linear", {}),
    ("scq additive", "identity", {}),
    ("scq additive", "linear", {"cfa": "cosine"}),
]


@pytest.mark.parametrize(
    "method, encoder, settings, target",
    [
        (*folded, name)
        for folded in FOLDED
        for name in sorted(serving(Shape("additive" if "additive" in folded[0] else "product", 4, 4, 16)))
    ],
)
def test_raw_queries_search_a_folded_encoder(method, encoder, settings, target, one, tmp_path, plain_faiss):
    x, y = one
    model = train(method, x, y if "scq" in method else None, nbits=4, encoder=encoder, **settings)
    path, xb, xq = tmp_path / "g.faissindex", x[:N_BASE], x[-20:]
    scqfaiss.export(model, xb, path=path, target=target)
    D, I, _ = plain_faiss(path, xq, K)
    assert_hits(D, I, model.codebooks.scores(model.embed(xq), model.encode(xb)), np.arange(N_BASE), K)
    gallery = scqfaiss.open(path)  # no model needed
    assert gallery.metadata["encoder"] == ("folded" if model.chain.layers else "none")
    np.testing.assert_allclose(gallery.search(xq, K)[0], D, rtol=1e-5, atol=1e-5)


def test_an_encoder_that_cannot_be_folded_asks_for_the_model(trained, one, tmp_path):
    model = trained("scq", "one", 8)
    scqfaiss.export(model, one[0][:50], path=tmp_path / "g.faissindex")
    gallery = scqfaiss.open(tmp_path / "g.faissindex")
    with pytest.raises(ConfigError, match=r"needs the model its codes came from; give --model$"):
        gallery.search(one[0][:1])
    z = model.embed(one[0][:5])
    scores = scqfaiss.open(tmp_path / "g.faissindex", model=model).search(one[0][:5], 5)[0]
    assert_close(gallery.search(z, 5, encoded=True)[0], scores, roundings(model.chain) + 2 * model.codebooks.d)
    other = trained("scq", "one", 4)
    with pytest.raises(
        ConfigError, match=f"^the model is {other.sha256[:12]}, .* was made by {model.sha256[:12]}; give"
    ):
        scqfaiss.open(tmp_path / "g.faissindex", model=other)


@pytest.mark.parametrize("target", TARGETS)
def test_one_row_is_a_gallery_and_none_is_not(target, trained, one, tmp_path):
    product = "product" in find_target(target).INFO.kinds
    model = trained("pq", "none", 4) if product else trained("scq additive", "one", 4)
    scqfaiss.export(model, one[0][:1], ids=[2**62], path=tmp_path / "g.faissindex", target=target)
    D, I = scqfaiss.open(tmp_path / "g.faissindex", model=model).search(one[0][:3], 1)
    assert I.ravel().tolist() == [2**62] * 3
    z, codebooks = model.embed(one[0][:3]), model.codebooks
    code = model.encode(one[0][:1])
    # One dot product, of z that was computed beside others or not; additive codes are sums of M.
    size = np.linalg.norm(z, axis=1).max() * np.linalg.norm(codebooks.decode(code))
    assert_close(D, codebooks.scores(z, code), roundings(model.chain) + 2 * codebooks.d + codebooks.M, size)
    with pytest.raises(DataError, match=r"^xb holds 0 rows, a gallery needs at least 1$"):
        scqfaiss.export(model, one[0][:0], path=tmp_path / "none.faissindex", target=target)
    assert not (tmp_path / "none.faissindex").exists()


@pytest.mark.parametrize("method", METHODS)
def test_rows_that_cannot_train_are_refused(method, one):
    x, y = one
    needs = "labels" in method_class(method).needs
    with pytest.raises(DataError, match=r"^x holds 0 rows, training needs at least 1$|found 0$"):
        train(method, x[:0], y[:0] if needs else None)
    if needs:
        with pytest.raises(DataError, match=f"^x has no labels, which method {method} needs; bring them with"):
            train(method, x, None)
        with pytest.raises(DataError, match=f"^{method} needs at least 2 classes, found 1 \\('0'\\)$"):
            train(method, x, np.zeros(400, int))
        with pytest.raises(DataError, match=f"^{method} needs at least 2 classes, found 1"):
            train(method, x[:1], y[:1])
        two = train(method, x[:2], y[:2], nbits=4)  # a row each: little to learn, and no error
        assert two.encode(x).shape[0] == 400
    else:
        with pytest.raises(
            ConfigError, match=r"^1 rows cannot train K=16 codewords; need --nbits 0 or less$|^1 (rows|pair)"
        ):
            train(method, x[:1], None, nbits=4)


@pytest.mark.parametrize("method", OF_IMAGES)
def test_a_method_of_feature_maps_refuses_stored_rows(method, one):
    for encoder in ("auto", "identity", "linear", "mlp"):
        with pytest.raises(
            ConfigError, match=f"^{method} pools feature maps of images; for stored features use method"
        ):
            train(method, *one, encoder=encoder)


@pytest.mark.parametrize("labels", ["one", "many"])
def test_label_code_scores_are_probabilities(labels, trained, one):
    model, x = trained("label", labels, 8), one[0]
    p = model.embed(x)
    codes = model.encode(x)
    found = model.codebooks.scores(p, codes)
    if labels == "one":
        assert_close(p[np.arange(400), codes[:, 0]], p.max(1), terms=2 * 4 + 8)  # of two as probable, either
        assert_close(found, p[:, codes[:, 0]], terms=2 * 4)  # the posterior of the stored class
        assert model.codebooks.bits == 2
    else:
        clear = np.abs(p - 0.5) > 16 * np.finfo(np.float32).eps
        np.testing.assert_array_equal(codes[clear], (p > 0.5)[clear])
        assert_close(found, p @ codes.T, terms=2 * 4)  # the expected number of shared labels
        assert model.codebooks.shape.code_size == 1


# ------------------------------------------------------------------------------------------------ lists that are codes
LISTS = 6


def listed_cases():
    for method in [*METHODS, *VARIANTS]:
        cls = method_class(base(method)[0])
        for bits, nbits in ((8, 4), (8, 8), (0, 8)) if cls.takes_lists else ():
            if bits == 0 and method == "opq":
                continue  # a rotation changes no list
            labels = ("one", "many") if "labels" in cls.needs and nbits == 4 else ("one",)
            for kind in labels if "labels" in cls.needs else ("none",):
                marks = [pytest.mark.slow] if (kind == "many" or nbits == 8) and method != "scq" else []
                yield pytest.param(method, kind, bits, nbits, id=f"{method}-{kind}-{bits}of{nbits}", marks=marks)


LISTED = list(listed_cases())
_listed = {}


@pytest.fixture
def listed(one, multilabel):
    """(method, labels, bits, nbits) -> a model whose codes have lists, trained once."""

    def get(method, labels, bits, nbits):
        key = method, labels, bits, nbits
        if key not in _listed:
            x, y = {"one": one, "many": multilabel, "none": (one[0], None)}[labels]
            _listed[key] = train(method, x, y, nbits, bits=bits, lists=LISTS)
        return _listed[key]

    return get


@pytest.mark.parametrize("method, labels, bits, nbits", LISTED)
def test_codes_with_lists_have_their_shape_and_range(method, labels, bits, nbits, listed, one, multilabel, tmp_path):
    model, x = listed(method, labels, bits, nbits), one[0]
    codebooks, codes, cls = model.codebooks, model.encode(x), method_class(base(method)[0])
    C, asked = 0 if labels == "none" else 4, (bits // nbits, nbits) if bits else (0, 1)
    assert codebooks.shape.L == LISTS
    assert (codebooks.M, codebooks.nbits) == cls.shape(C, labels == "many", *asked, LISTS)
    assert codes.shape == (400, 1 + codebooks.M) and codes.dtype == codebooks.code_dtype
    assert codes[:, 0].max() < LISTS and (codes[:, 1:] < codebooks.K).all()
    assert len(np.unique(codes[:, 0])) > 1
    for n in (0, 1, 7):
        assert_encodes_as(model, x[:n], codes[:n])
    model.save(tmp_path / "m.safetensors")
    again = Model.load(tmp_path / "m.safetensors")
    assert again.to_bytes() == model.to_bytes()
    np.testing.assert_array_equal(again.encode(x), codes)
    x, y = {"one": one, "many": multilabel, "none": (x, None)}[labels]
    assert train(method, x, y, nbits, bits=bits, lists=LISTS).to_bytes() == model.to_bytes()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("method, labels, bits, nbits", LISTED)
def test_codes_with_lists_score_as_they_should(method, labels, bits, nbits, target, listed, one, tmp_path, plain_faiss):
    model, x = listed(method, labels, bits, nbits), one[0]
    path, xb, xq = tmp_path / "g.faissindex", x[:N_BASE], x[N_BASE : N_BASE + 20]
    if target not in serving(model.codebooks.shape):
        why = "its rows stand in no lists, and lists are part of these codes; use "
        why = why if model.codebooks.kind in find_target(target).INFO.kinds else ""
        with pytest.raises(ConfigError, match=f"^target {target} cannot serve these codes: {why}"):
            scqfaiss.export(model, xb, path=path, target=target)
        return
    ids = np.random.default_rng(1).permutation(N_BASE) * 7 + 2**62 - 10_000
    codes, z, metric = model.encode(xb), model.embed(xq), model.codebooks.metric
    scores = model.codebooks.scores(z, codes)
    # The file says how many lists plain FAISS visits: here all of them.
    scqfaiss.export(model, xb, ids=ids, path=path, target=target, nprobe=LISTS)
    D, I, found = plain_faiss(path, xq if model.chain.foldable else z, K)
    assert found["ntotal"] == N_BASE
    assert_hits(D, I, scores, ids, K, metric)
    # By itself it says as many as are needed for most hits; a search may ask for all, and finds as many as it asks for.
    scqfaiss.export(model, xb, ids=ids, path=path, target=target)
    gallery = scqfaiss.open(path, model=model)
    assert (gallery.target, gallery.metadata["lists"]) == (target, LISTS)
    assert_hits(*gallery.search(xq, K, nprobe=LISTS), scores, ids, K, metric)
    assert_hits(*gallery.search(xq, N_BASE), scores, ids, N_BASE, metric)
    assert_hits(*gallery.search(xq, K, allow=ids[::5], deny=ids[::2], nprobe=LISTS), scores[:, 5::10], ids[5::10], K)
    assert_same_codes(gallery.unpack(), model.codebooks, codes, ids)
    np.testing.assert_allclose(gallery.reconstruct(ids[:9]), model.codebooks.decode(codes[:9]), atol=1e-5)


# ------------------------------------------------------------------------------------------------------- content codes
# A content part stands behind the codes of any method alike: those of two methods, product and additive, are enough.
def beside_content(cases):
    return [case for case in cases if base(case.values[0])[0] in ("scq", "dpq")]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("method, labels, nbits", beside_content(CASES))
def test_codes_with_content_score_as_they_should(method, labels, nbits, target, trained, one, tmp_path, plain_faiss):
    model, (x, y) = trained(method, labels, nbits), one
    check_content(with_content(model, x, y), model, target, x, tmp_path, plain_faiss)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("method, labels, bits, nbits", beside_content(LISTED))
def test_codes_with_lists_and_content_score_as_they_should(
    method, labels, bits, nbits, target, listed, one, tmp_path, plain_faiss
):
    model, (x, y) = listed(method, labels, bits, nbits), one
    check_content(with_content(model, x, y), model, target, x, tmp_path, plain_faiss)


def check_content(model, base, target, x, tmp_path, plain_faiss):
    """Scores are <z, its codewords> + w <v, its codewords>, in plain FAISS and in our own reader, whatever is known."""
    path, xb, xq = tmp_path / "g.faissindex", x[:N_BASE], x[N_BASE : N_BASE + 20]
    if target not in serving(model.codebooks.shape):
        with pytest.raises(ConfigError, match=f"^target {target} cannot serve these codes: "):
            scqfaiss.export(model, xb, path=path, target=target)
        return
    ids = np.random.default_rng(1).permutation(N_BASE) * 7 + 2**62 - 10_000
    lists = {} if base.codebooks.lists is None else {"nprobe": LISTS}
    scqfaiss.export(model, xb, ids=ids, path=path, target=target, **lists)
    codes, content, columns = model.encode(xb), model.content, base.codebooks.columns
    np.testing.assert_array_equal(codes[:, :columns], base.encode(xb))
    numbers = () if content.codebooks.lists is None else (codes[:, :1],)
    decoded = content.codebooks.decode(np.concatenate([*numbers, codes[:, columns:]], axis=1))
    of_z = base.codebooks.scores(base.embed(xq), codes[:, :columns])
    of_v = content.chain(xq).astype(np.float64) @ decoded.astype(np.float64).T
    gallery = scqfaiss.open(path, model=model)
    assert gallery.metadata["content_bits"] == content.bits and gallery.needs_model
    told = np.linspace(0, 1, len(xq))
    for known in (None, AUTO, 0, 1, 0.3, told):
        of_gate = known is None or known is AUTO
        sure = asked(content.gate, base.embed(xq), content.chain(xq)) if of_gate else np.broadcast_to(known, len(xq))
        w = content.weight(sure)
        z = model.embed(xq, known=known)
        scores = model.codebooks.scores(z, codes)
        np.testing.assert_allclose(scores, of_z + w[:, None] * of_v, atol=1e-5 * np.abs(scores).max())
        D, I, found = plain_faiss(path, z, K)
        assert (found["ntotal"], found["d"]) == (N_BASE, model.codebooks.d)
        assert_hits(D, I, scores, ids, K)
        ours = gallery.search(xq, K, known=known, **lists)
        np.testing.assert_allclose(ours[0], D, atol=1e-5 * np.abs(scores).max())
        assert_hits(*ours, scores, ids, K)
    assert_same_codes(gallery.unpack(), model.codebooks, codes, ids)


@pytest.mark.parametrize("method", [m for m in METHODS if not method_class(m).takes_lists])
def test_a_method_without_lists_says_which_have_them(method, one):
    able = ", ".join(m for m in scqfaiss.methods.REGISTRY if method_class(m).takes_lists)
    with pytest.raises(ConfigError, match=f"^method {method} has codes without lists; {able} take --lists$"):
        train(method, one[0], one[1] if "labels" in method_class(method).needs else None, lists=LISTS)


# ------------------------------------------------------------------------------------ one file and one line are enough
@dataclass(frozen=True)
class ToySettings:
    seed_rows: int = 16


class ToyMethod:
    """Codewords are the first rows, cut in M pieces."""

    Config, PRESETS, long_name, needs, needs_encoder = ToySettings, {}, "toy", frozenset(), False
    rule, beam, list_beam, nested, takes_lists = "l2", 1, 1, False, False

    @classmethod
    def needs_of(cls, config):
        return cls.needs

    @staticmethod
    def unlabeled(config):
        return "error"

    def __init__(self, config, task):
        self.config, self.task = config, task

    @staticmethod
    def shape(C, multilabel, M, nbits, lists=1):
        return M, nbits

    @staticmethod
    def kind(config):
        return "product"

    @staticmethod
    def default_encoder(config):
        return "identity"

    @staticmethod
    def members(config, encoder):
        return 1

    @classmethod
    def check(cls, config, d_in, C, M, nbits, encoder, modality):
        pass

    def stages(self):
        return [Stage(name="copy", begin=self.copy)]

    def copy(self):
        x, _ = self.task.rows.sample(self.task.K, self.task.seed)
        self.centroids = np.ascontiguousarray(x.reshape(self.task.K, self.task.M, -1).transpose(1, 0, 2))

    def layers(self):
        return []

    def codebooks(self):
        return Codebooks("product", self.centroids)

    def summary(self):
        return {"toy": True}


@dataclass(frozen=True)
class ToyOptions:
    spare: int = option(0, 0, 9, "rows that the toy leaves room for.")


class ToyTarget(PQ):
    INFO = dataclasses.replace(PQ.INFO, name="toy")
    spared: ClassVar[list[int]] = []

    def build(self, codebooks, codes, ids, options=None, like=None):
        self.spared.append(options.spare)
        return super().build(codebooks, codes, ids)


def test_a_toy_method_and_a_toy_target_work_by_a_line_in_their_registry(monkeypatch, one, tmp_path, plain_faiss):
    methods, targets = types.ModuleType("toy_methods"), types.ModuleType("toy_target")
    methods.Toy, targets.Toy = ToyMethod, ToyTarget
    monkeypatch.setitem(sys.modules, "toy_methods", methods)
    monkeypatch.setitem(sys.modules, "toy_target", targets)
    monkeypatch.setitem(scqfaiss.methods.REGISTRY, "toy", "toy_methods:Toy")
    monkeypatch.setitem(scqfaiss.targets.REGISTRY, "toy", Entry("toy_target:Toy", ToyOptions))
    with open(tmp_path / "rows.h5", "w+b") as f:
        write_rows(f, one[0], ids=np.arange(400) + 1000)
    model, gallery = tmp_path / "m.safetensors", tmp_path / "g.faissindex"
    said = train_file(tmp_path / "rows.h5", model, TrainOptions("toy", bits=16, nbits=4), keys={})
    assert said.startswith(f"{model}: toy, 16 bits (4 x 4), rows of d=16 to z of d=16, codewords used")
    assert Model.load(model).config["training"]["toy"] is True
    export_file(model, tmp_path / "rows.h5", gallery, target="toy", spare=7, keys={})
    text = search_file(gallery, tmp_path / "rows.h5", k=3, keys={})
    assert text.startswith("400 queries, 3 hits each")
    D, I, _ = plain_faiss(gallery, one[0][:20], K)
    loaded = Model.load(model)
    scores = loaded.codebooks.scores(one[0][:20], loaded.encode(one[0]))
    assert_hits(D, I, scores, np.arange(400) + 1000, K)
    assert open_gallery(gallery).metadata["target"] == "toy"
    assert open_gallery(gallery).metadata["options"] == {"spare": 7}
    export = arguments.target_options(click.command(lambda **options: options))
    assert export.main(["--spare", "7"], standalone_mode=False) == {
        "spare": 7,
        "nlist": None,
        "nprobe": None,
        "refine": None,
    }
    assert "toy: rows that the toy" in " ".join(export.get_help(click.Context(export)).split())
    scqfaiss.append(gallery, one[0][:1], ids=[5000], model=model)
    assert ToyTarget.spared == [7, 7]
    with pytest.raises(ConfigError, match=r"^spare is 10, needs a whole number from 0 to 9$"):
        scqfaiss.export(model, one[0], path=gallery, target="toy", spare=10)
    with pytest.raises(ConfigError, match=r"^target pq takes no spare, toy can$"):
        scqfaiss.export(model, one[0], path=gallery, target="pq", spare=7)
    with pytest.raises(ConfigError, match=r"^unknown option 'sparse'; did you mean 'spare'.; there are nlist, "):
        scqfaiss.export(model, one[0], path=gallery, target="toy", sparse=7)


@pytest.mark.parametrize("name, near", [("scp", "scq"), ("ivfqp", "ivfpq")])
def test_an_unknown_name_comes_with_the_nearest_known_one(name, near, one, trained):
    with pytest.raises(ConfigError, match=f"^unknown (method|target) '{name}'; did you mean '{near}'.; there are "):
        if near in METHODS:
            train_unknown(name, one)
        else:
            build_index(trained("pq", "none", 4), np.zeros((1, 4), np.uint8), np.zeros(1, np.int64), name)


def train_unknown(name, one):
    scqfaiss.train(*one, method=name)
