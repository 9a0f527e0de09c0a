"""scqfaiss attack: the stand-in for codes against a slow twin, gradients against differences, and what an attack may not do."""

import json

import numpy as np
import pytest
import torch
from contents import with_content
from faults.conftest import run, write_h5  # noqa: F401

import scqfaiss
from scqfaiss.arrays import Labels
from scqfaiss.attack.ascent import Schedule, ascend
from scqfaiss.attack.crafting import Crafter
from scqfaiss.attack.registry import REGISTRY, objective
from scqfaiss.attack.scoring import Searched
from scqfaiss.attack.smoothing import Smoothing
from scqfaiss.attack.soft_codes import CleanQueries, SoftCodes
from scqfaiss.attack.twin import Twin
from scqfaiss.codebooks import Codebooks
from scqfaiss.encoders.chain import Chain
from scqfaiss.errors import ConfigError, DataError
from scqfaiss.methods.spaces import PixelBox, RowBall

# ruff: noqa: F811  (fixtures are imported by name)
pytestmark = pytest.mark.filterwarnings("ignore::scqfaiss.errors.ScqWarning")
KINDS = ("product", "additive", "product lists", "additive lists", "lists alone")
AIMED = [name for name, place in REGISTRY.items() if place]


def rows(n=60, d=12, C=3, seed=0):
    """x (n, d) around C points, y (n,)."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % C
    points = np.random.default_rng(7).standard_normal((C, d)) * 2
    return (points[y] + rng.standard_normal((n, d))).astype(np.float32), y


def codebooks(kind, d=6, M=3, K=8, seed=1):
    rng = np.random.default_rng(seed)
    base, _, lists = kind.partition(" ")
    centroids = rng.standard_normal((M, K, d // M if base == "product" else d)).astype(np.float32) * 0.5
    of_lists = rng.standard_normal((4, d)).astype(np.float32) if lists else None
    if base == "lists":
        return Codebooks.of_lists(of_lists)
    return Codebooks(base, centroids, "ip", of_lists)


def model(kind="product", d=12, seed=2):
    """A classifier of random weights with two heads and codes of its posterior: every kind of layer that a head ends in."""
    rng = np.random.default_rng(seed)

    def f(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    layers = [
        ("center", {"mean": f(d)}),
        ("linear", {"A": f(16, d) / 4, "b": f(16)}),
        ("relu", {}),
        ("heads", {"A": f(2, 3, 8), "b": f(2, 3)}),
        ("softmax", {}),
        ("average", {"weights": np.full(2, 0.5, np.float32)}),
        ("linear", {"A": f(6, 3)}),
    ]
    return scqfaiss.Model(Chain(d, layers), codebooks(kind), {"method": "scq", "rule": "l2", "encoder": "mlp"})


# ---------------------------------------------------------------------------------------------------------------- twins
def slow_log_p(b, vectors, code, beta):
    """[codebook][query]: log p of each codeword, by loops, in float64."""
    lists, words = b.split(code)
    found = []

    def of(z, table):
        cosines = [z @ w / max(np.linalg.norm(z) * np.linalg.norm(w), 1e-12) for w in table.astype(np.float64)]
        e = np.exp(beta * np.array(cosines))
        return np.log(e / e.sum())

    if lists is not None:
        found.append([of(z, b.lists) for z in vectors])
    for m in range(b.M):
        part = []
        for q, z in enumerate(vectors):
            left = z - (0 if lists is None else b.lists[lists[q]].astype(np.float64))
            if b.kind == "additive":
                for e in range(m):
                    left = left - b.centroids[e, words[q, e]]
            s = b.centroids.shape[2]
            part.append(of(left[m * s : (m + 1) * s] if b.kind == "product" else left, b.centroids[m]))
        found.append(part)
    return [np.array(part) for part in found]


@pytest.mark.parametrize("kind", KINDS)
def test_soft_codes_are_those_of_a_slow_twin(kind):
    b, rng = codebooks(kind), np.random.default_rng(3)
    z, changed = rng.standard_normal((2, 5, b.d)).astype(np.float32)
    code = b.assign(z, "l2")
    clean = CleanQueries.of(SoftCodes(b, 10.0), torch.from_numpy(z), code)
    want, of_clean = slow_log_p(b, changed, code, 10.0), slow_log_p(b, z, code, 10.0)
    got = [p.numpy() for p in clean.log_p(torch.from_numpy(changed))]
    assert len(got) == b.columns
    for p, q in zip(got, want):
        np.testing.assert_allclose(p, q, atol=2e-4)
    # The three objectives follow from them.
    peak = -sum(p[np.arange(5), c] for p, c in zip(want, code.T))
    overall = sum((np.exp(p) * (p - q)).sum(1) for p, q in zip(of_clean, want))
    for name, value in (("apd", peak), ("aod", overall), ("feature", ((changed - z) ** 2).sum(1))):
        np.testing.assert_allclose(objective(name)(torch.from_numpy(changed), clean), value, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", [*KINDS, "content", "content additive"])
def test_the_twin_makes_the_vectors_that_a_gallery_codes(kind):
    x, y = rows()
    base = kind.removeprefix("content").strip() or "product"
    made = model(base if "content" in kind else kind)
    if "content" in kind:
        made = with_content(made, x, y)
    want = made.vectors(x)
    got = Twin(made)(torch.from_numpy(x)).numpy()
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("kind", ["product lists", "additive"])
@pytest.mark.parametrize("name", AIMED)
def test_gradients_are_those_of_finite_differences(kind, name):
    x, _ = rows(4)
    made, aim = model(kind), objective(name)
    twin = Twin(made).double()
    x = torch.from_numpy(x).double()
    clean = CleanQueries.of(SoftCodes(made.codebooks, 10.0), twin(x), made.encode(x.float().numpy()))
    q = (x + 0.05 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).double()).requires_grad_()
    slope = torch.autograd.grad(aim(twin(q), clean).sum(), q)[0]
    assert slope.abs().max() > 0
    h = 1e-5
    with torch.no_grad():
        for i in range(x.shape[1]):
            away = torch.zeros_like(x)
            away[:, i] = h
            difference = (aim(twin(q + away), clean) - aim(twin(q - away), clean)) / (2 * h)
            np.testing.assert_allclose(slope[:, i], difference, atol=1e-4 * float(slope.abs().max()))


# -------------------------------------------------------------------------------------------------------- within the ball
def pixels(n=3, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (n, 3, 4, 4))).float()


def squares(q):
    return (q - 100).square().flatten(1).sum(1)


@pytest.mark.parametrize("eps", [0.5, 2.0, 40.0])
def test_images_stay_within_their_box_and_their_range(eps):
    x, space = pixels(), PixelBox()
    found = ascend(squares, x, space, eps, Schedule(), torch.Generator().manual_seed(0))
    control = space.signs(x, eps, torch.Generator().manual_seed(0))
    for q in (found.queries, control, space.finished(found.queries, x, eps)):
        assert float((q - x).abs().max()) <= eps + 255e-7 and 0 <= float(q.min()) and float(q.max()) <= 255
    whole = space.finished(found.queries, x, eps)
    assert torch.equal(whole, whole.round())
    with pytest.raises(DataError, match=r"^image 1 has pixels outside of 0 to 255$"):
        space.check(torch.stack([x[0], x[1] + 200]))


@pytest.mark.parametrize("eps", [1e-3, 0.1, 2.0])
def test_rows_stay_within_their_ball(eps):
    x, space = torch.from_numpy(rows(20)[0]), RowBall()
    found = ascend(lambda q: q.sum(1), x, space, eps, Schedule(), torch.Generator().manual_seed(0))
    for q in (found.queries, space.signs(x, eps, torch.Generator()), space.start(x, eps, torch.Generator())):
        assert ((q - x).norm(dim=1) <= eps * x.norm(dim=1) * (1 + 1e-4)).all()
    assert space.change(found.queries, x) == pytest.approx(eps, rel=1e-3)  # straight up, to the border


@pytest.mark.parametrize("space, x", [(RowBall(), torch.ones(5, 4)), (PixelBox(), pixels(5))])
def test_the_best_of_all_steps_and_restarts_is_returned(space, x):
    seen = []

    def bumpy(q):
        value = (q.flatten(1) * 37).sin().sum(1)
        seen.append(value.detach())
        return value

    schedule = Schedule(steps=4, restarts=3)
    found = ascend(bumpy, x, space, 0.5, schedule, torch.Generator().manual_seed(1))
    every = torch.stack(seen).view(3, 5, len(x))  # restart, step, query
    torch.testing.assert_close(found.value, every.amax((0, 1)))
    torch.testing.assert_close(found.first, every[:, 0].amax(0))
    assert (found.value >= found.first).all() and found.lost == 0
    torch.testing.assert_close(bumpy(found.queries), found.value)


def test_a_row_whose_gradient_is_lost_stays_and_is_counted():
    x = torch.from_numpy(rows(3)[0])

    def broken(q):
        weights = torch.tensor([1.0, float("nan"), 1.0])
        return (q * q).sum(1) * weights

    found = ascend(broken, x, RowBall(), 0.1, Schedule(5, 0.25, 2), torch.Generator())
    assert found.lost == 10
    assert torch.equal(found.queries[1], x[1])
    assert not torch.equal(found.queries[0], x[0])
    with pytest.raises(ConfigError, match="passes no gradient"):
        ascend(lambda q: q.detach().sum(1), x, RowBall(), 0.1, Schedule(), torch.Generator())


# ------------------------------------------------------------------------------------------------------------ whole attacks
@pytest.mark.parametrize("kind", ["product", "additive lists", "content"])
def test_attacks_change_what_is_found_and_nothing_else(kind):
    x, y = rows(150)
    made = model("product" if kind == "content" else kind)
    if kind == "content":
        made = with_content(made, x, y)
    labels = Labels(made.chain(x) @ made.chain.layers[-1][1]["A"], 3)
    labels = Labels(labels.y.argmax(1), 3)  # what the random classifier says is the truth here
    before = made.to_bytes()
    side = Searched(made, x[60:], labels.take(np.arange(60, 150)), x[:60], labels.take(np.arange(60)))
    words = side.words.codes.copy(), side.words.inverse.copy(), side.vectors.copy()
    crafter = Crafter(made, batch_size=25)
    clean = side.figures(x[:60])
    for name in AIMED:
        none = crafter.craft(x[:60], name, 0.0)
        assert np.array_equal(none.queries, x[:60]) and none.change == 0
        assert side.figures(none.queries) == clean
    strong = {name: side.figures(crafter.craft(x[:60], name, 0.5).queries) for name in REGISTRY}
    for name in AIMED:
        assert strong[name]["map"] < min(clean["map"], strong["random"]["map"]), name
        assert strong[name]["changed_codes"] > 0
        assert ("known_auc" in strong[name]) == (kind == "content")
    assert clean["changed_codes"] == clean["changed_codewords"] == 0
    assert made.to_bytes() == before
    assert all(map(np.array_equal, words, (side.words.codes, side.words.inverse, side.vectors)))


def test_equal_seeds_make_equal_queries_and_smoothing_is_attacked_too():
    x, y = rows(50)
    made = model()
    smooth = Smoothing(4, 0.05)
    found = [Crafter(made, smoothing=smooth, seed=seed).craft(x, "aod", 0.2).queries for seed in (0, 0, 1)]
    assert np.array_equal(found[0], found[1]) and not np.array_equal(found[0], found[2])
    labels = Labels(y, 3)
    plain, smoothed = (Searched(made, x, labels, x, labels, smoothing=s) for s in (None, Smoothing(400, 1e-5)))
    assert smoothed.figures(x)["map"] == pytest.approx(plain.figures(x)["map"], abs=0.01)


# ---------------------------------------------------------------------------------------------------------- the command
@pytest.fixture
def files(tmp_path, monkeypatch):
    """a.safetensors, b.safetensors, q.h5, db.h5."""
    monkeypatch.chdir(tmp_path)
    x, y = rows(80)
    write_h5("q.h5", x[:20], y[:20])
    write_h5("db.h5", x[20:], y[20:])
    model().save("a.safetensors")
    model("additive", seed=3).save("b.safetensors")
    return tmp_path


def test_the_command_writes_results_and_goes_on(files, run):
    words = ["attack", "a.safetensors", "q.h5", "db.h5", "--out", "out", "--transfer", "b.safetensors", "--eps", "0.1"]
    assert run(*words, "--attacks", "random,aod", "--floats").code == 0
    held = json.loads((files / "out/results.json").read_text())
    keys = ["clean/a", "clean/b", *(f"{name}/0.1/a/{side}" for name in ("random", "aod") for side in "ab")]
    assert [row["key"] for row in held["rows"]] == keys
    assert held["kind"] == "attack" and held["space"] == "rows" and held["attack"]["steps"] == 5
    for row in held["rows"]:
        assert {"map", "map_symmetric", "map_floats", "map_label", "changed_codes"} <= row.keys()
    done = run(*words, "--attacks", "random,aod,apd", "--all-pairs", "--floats")
    assert done.code == 0
    more = json.loads((files / "out/results.json").read_text())
    assert more["rows"][: len(keys)] == held["rows"] and len(more["rows"]) == 2 + 3 * 2 * 2
    assert len(done.out.splitlines()) == 1 + len(more["rows"])
    few = run(*words, "--attacks", "random", "--sample", "7", "--database-sample", "30", "--fresh")
    fewer = json.loads((files / "out/results.json").read_text())
    assert few.code == 0 and (fewer["queries"], fewer["database"], len(fewer["rows"])) == (7, 30, 4)
    done = run(*words, "--steps", "3")
    assert done.code == 2 and "holds results with another attack" in done.err
    assert run("report", "out", "-o", "page.html").code == 0
    page = (files / "page.html").read_text()
    assert "Adversarial queries" in page and "What attacks leave" in page and "queries made against a" in page


@pytest.mark.parametrize(
    "words, message",
    [
        (["--attacks", "adp"], "unknown attack 'adp'; did you mean 'apd'?"),
        (["--eps", "-1"], "--eps: '-1' needs auto, or numbers from 0 on"),
        (["--step", "0"], "--step is 0, needs a number above 0"),
        (["--all-pairs"], "--all-pairs needs --transfer"),
        (["--transfer", "a.safetensors"], "two models are called 'a'"),
        (["--transfer", "wide.safetensors"], "q.h5 has d=12, wide needs d=16"),
    ],
)
def test_bad_requests_are_refused(files, run, words, message):
    model(d=16).save("wide.safetensors")
    done = run("attack", "a.safetensors", "q.h5", "db.h5", "--out", "out", *words)
    assert done.code == 2 and message in done.err
    assert not (files / "out/results.json").exists()


def test_files_without_labels_are_refused(files, run):
    write_h5("bare.h5", rows(5)[0])
    done = run("attack", "a.safetensors", "bare.h5", "db.h5", "--out", "out")
    assert done.code == 3 and "bare.h5 has no labels, which an attack is scored by" in done.err


def test_images_are_attacked_through_their_network(tmp_path, monkeypatch, run):
    pytest.importorskip("PIL", reason="images need Pillow")
    from images import SIZE, photos
    from images import model as of_images

    from scqfaiss.data import open_rows

    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "db", 4)
    photos(tmp_path / "q", 1, seed=1)
    made = of_images()
    made.save("m.safetensors")
    with open_rows("q") as source:
        source.shaped(SIZE, "crop")
        x = source.read(0, len(source))
    crafter = Crafter(made, schedule=Schedule(2, 0.5, 1))
    features = crafter.twin.front.features(x)
    got, want = crafter.twin(torch.from_numpy(x).float()).detach().numpy(), made.vectors(features)
    np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())
    found = crafter.craft(x, "feature", 8.0)
    assert found.queries.dtype == np.uint8
    assert 0 < np.abs(found.queries.astype(int) - x).max() <= 8 and found.change <= 8
    moved = np.linalg.norm(made.vectors(crafter.twin.front.features(found.queries)) - want, axis=1)
    control = made.vectors(crafter.twin.front.features(crafter.craft(x, "random", 8.0).queries))
    assert (moved > np.linalg.norm(control - want, axis=1)).all()
    words = ("attack", "m.safetensors", "q", "db", "--out", "out", "--eps", "4", "--steps", "1", "--restarts", "1")
    assert run(*words, "--attacks", "random,apd").code == 0
    held = json.loads((tmp_path / "out/results.json").read_text())
    assert held["space"] == "pixels" and all(row["change"] <= 4 for row in held["rows"][1:])
    shown = held["gallery"]["queries"]  # before and after, one beside the other
    assert [q["id"] for q in shown[:2]] == ["0, before", "0, apd, 4"] and set(held["pictures"]) == {
        q["picture"] for q in shown
    }
    assert len({p["data"] for p in held["pictures"].values()}) == len(shown)
    write_h5("rows.h5", np.ones((3, made.d_in), np.float32), np.arange(3))
    done = run("attack", "m.safetensors", "rows.h5", "db", "--out", "out2")
    assert done.code == 2 and "rows.h5 holds rows, and m is attacked by images" in done.err
