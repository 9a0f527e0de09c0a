"""Training on images, from the folder to the gallery: a network before the chain, alone and in two processes."""

import json
import os
import shutil
import socket
import subprocess
import sys

import numpy as np
import plain_steps
import pytest
from close import assert_as_good, assert_close, long_sum, roundings

pytest.importorskip("PIL")
import torch
from PIL import Image
from plain_steps import PlainSteps

from scqfaiss import distributed
from scqfaiss.arrays import Labels
from scqfaiss.attack.ascent import Schedule
from scqfaiss.attack.crafting import Crafter
from scqfaiss.attack.twin import Twin
from scqfaiss.cli.program import run as cli
from scqfaiss.data import open_rows
from scqfaiss.encoders.chain import Chain
from scqfaiss.errors import CheckpointError, ConfigError
from scqfaiss.features.source import as_rows
from scqfaiss.galleries import gallery
from scqfaiss.modality import IMAGES
from scqfaiss.model import Model
from scqfaiss.options import TrainOptions
from scqfaiss.training.fitting import fit
from scqfaiss.training.planning import make_plan
from scqfaiss.training.rows import ImageRows

SIZE = 32
LEARNS = {"backbone_lr": 1.0, "features.lr": 2e-3}
EPS = 32.0
pytestmark = pytest.mark.filterwarnings("ignore::scqfaiss.errors.ScqWarning")  # random weights, few rows


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """72 images of three classes, told apart by their colour; in the gallery 30 more."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for part, n in (("train", 24), ("gallery", 10)):
        for c, name in enumerate(("blue", "green", "red")):
            (folder / part / name).mkdir(parents=True)
            for i in range(n):
                x = rng.integers(0, 120, (SIZE, SIZE, 3), np.uint8)
                x[..., 2 - c] += 110
                Image.fromarray(x).save(folder / part / name / f"{100 * c + i}.png")
    return folder


def request(**changed):
    options = {"bits": 8, "nbits": 4, "encoder": "squeezenet", "epochs": 2, "batch_size": 24, "device": "cpu"}
    settings = {"size": SIZE, "augment": "light", "dropout": 0.0} | changed.pop("settings", {})
    if changed.get("method", "scq") == "scq":
        settings = {"codebooks.copies": 1} | settings
    return TrainOptions(**options | changed, settings=settings)


def trained(photos, memory=None, **changed):
    with open_rows(photos / "train") as source:
        return fit(make_plan(request(**changed), source), memory=memory)


@pytest.fixture(scope="module")
def model(photos):
    return trained(photos, epochs=12, settings=LEARNS)


def test_adversarial_training_moves_pixels(photos, model):
    """As many steps as the model above trained; an attack then moves queries less far."""
    hardened = trained(photos, epochs=12, settings=LEARNS | {"adversarial": EPS})
    assert hardened.config["settings"]["adversarial"] == EPS and "adversarial" not in model.config["settings"]
    with open_rows(photos / "gallery") as images:
        as_rows(images, model)
        x = images.read(0, 30)
    moved = []
    for m in (model, hardened):
        z = Twin(m)
        crafted = Crafter(m, schedule=Schedule(restarts=1)).craft(x, "feature", EPS).queries
        away = z(torch.from_numpy(crafted)) - z(torch.from_numpy(x))
        moved.append(float(away.norm(dim=1).mean()))
    assert moved[1] < 0.5 * moved[0]


@pytest.mark.parametrize("eps, words", [(300.0, "adversarial is 300.0, needs 0 to 255")])
def test_more_than_all_colours_are_refused(photos, eps, words):
    with pytest.raises(ConfigError, match=words):
        trained(photos, settings={"adversarial": eps})


def test_it_learns_and_its_file_holds_all(photos, model, tmp_path):
    model.save(tmp_path / "m.safetensors")
    again = Model.load(tmp_path / "m.safetensors")
    assert again.modality == IMAGES and again.to_bytes() == model.to_bytes()
    assert again.config["encoder"] == "scqfaiss.encoders.squeezenet:squeezenet1_0"
    assert again.config["backbone"]["size"] == SIZE and again.d_in == 512
    with open_rows(photos / "gallery") as images:
        rows = as_rows(images, again)
        x, y = rows.read(0, len(rows)), rows.labels.y
        assert x.shape == (30, 512) and x.dtype == np.float32
        p = again.embed(x)
    like = p @ p.T
    np.fill_diagonal(like, -1)
    assert (y[like.argmax(1)] == y).mean() > 2 / 3  # twice what chance finds


def test_a_gallery_of_images_is_that_of_their_features(photos, model, tmp_path, capsys):
    names = [str(tmp_path / n) for n in ("m.safetensors", "rows.h5", "a.faissindex", "b.faissindex")]
    model.save(names[0])
    images = str(photos / "gallery")
    assert cli(["features", images, "-o", names[1], "--model", names[0]]) == 0
    assert cli(["export", names[0], images, "-o", names[2]]) == 0
    assert cli(["export", names[0], names[1], "-o", names[3]]) == 0
    a, b = (gallery.open_gallery(n, model=model) for n in names[2:])
    (codebooks, codes, ids), (_, of_rows, ids_of_rows) = a.unpack(), b.unpack()
    np.testing.assert_array_equal(ids, ids_of_rows)
    with open_rows(names[1]) as rows:
        z = model.embed(rows.read(0, 30))
    terms = 500 + roundings(model.chain)  # of ten layers of windows, and what follows
    assert_as_good(codes, of_rows, codebooks, z, model.config["rule"], terms)
    assert sorted(a.unpack()[2]) == sorted([*range(10), *range(100, 110), *range(200, 210)])
    capsys.readouterr()
    assert cli(["search", names[2], f"{images}/green/103.png", "--model", names[0], "-k", "3"]) == 0
    assert "103.png" in capsys.readouterr().out
    assert cli(["evaluate", names[2], images, images, "--model", names[0], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["map"] > 2 / 3


@pytest.mark.slow
def test_streamed_images_train_the_same_bytes(photos):
    held, streamed = (trained(photos, memory) for memory in (None, 0))
    assert held.to_bytes() == streamed.to_bytes()


def test_rows_of_images_held_and_streamed(photos):
    with open_rows(photos / "train") as source:
        source.shaped(16, "crop")
        kept = np.array([3, 5, 40, 71])
        for rows in (ImageRows(source, 7, "cpu"), ImageRows(source, 7, "cpu", 0)):
            assert (rows.x is None) == (rows.memory == 0) and (len(rows), rows.d) == (72, 7)
            whole = np.concatenate([x for _, x in rows.blocks()])
            assert whole.shape == (72, 3, 16, 16) and whole.dtype == np.uint8
            seen = list(rows.batches(20, torch.Generator().manual_seed(0)))
            assert [len(i) for _, i in seen] == [18, 18, 18, 18]
            assert sorted(torch.cat([i for _, i in seen]).tolist()) == list(range(72))
            for x, index in seen:
                np.testing.assert_array_equal(x.numpy(), whole[index.numpy()])
            x, numbers = rows.sample(9, 4)
            np.testing.assert_array_equal(x, whole[numbers])
            some = ImageRows(source, 7, "cpu", rows.memory, kept)
            np.testing.assert_array_equal(np.concatenate([x for _, x in some.blocks()]), whole[kept])
            (x, index), *rest = some.batches(3, torch.Generator().manual_seed(1), np.array([0, 3]))
            assert not rest
            np.testing.assert_array_equal(x.numpy(), whole[kept[index.numpy()]])
            assert some.digest() != rows.digest()


def test_each_process_decodes_its_share_alone(photos, monkeypatch):
    with open_rows(photos / "train") as source:
        source.shaped(16, "crop")
        rows = ImageRows(source, 7, "cpu", 0)
        whole = list(rows.batches(15, torch.Generator().manual_seed(0)))
        asked = []
        take = type(source).take
        monkeypatch.setattr(type(source), "take", lambda self, index: asked.append(len(index)) or take(self, index))
        monkeypatch.setattr(distributed, "world_size", lambda: 2)
        shares = []
        for rank in (0, 1):
            monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
            shares.append([distributed.shard(b) for b in rows.batches(15, torch.Generator().manual_seed(0))])
        for (x, i), (x0, i0), (x1, i1) in zip(whole, *shares):
            n = len(i) // 2
            assert torch.equal(torch.cat([i0, i1]), i[: 2 * n]) and torch.equal(torch.cat([x0, x1]), x[: 2 * n])
        assert sum(asked) == sum(2 * (len(i) // 2) for _, i in whole)


def test_parts_of_a_batch_add_up_to_it(photos, monkeypatch):
    monkeypatch.setattr(torch.optim, "AdamW", PlainSteps)
    gradients, losses = [], []
    for parts in (1, 3):
        monkeypatch.setattr(PlainSteps, "first", None)
        still = {"augment": "none", "features.allow_reduced_precision": False, "features.lr": 0.1, "backbone_lr": 1.0}
        found = trained(photos, epochs=1, accumulate=parts, encoder="plain_steps:smooth", settings=still)
        gradients.append(PlainSteps.first)
        losses.append(found.config["training"]["loss"]["features"]["ce"])
    assert_same_steps(*gradients, *losses)


def assert_same_steps(one, other, loss, other_loss):
    """Gradients of one batch by two ways, and losses of a few steps along them."""
    assert len(one) == len(other) == 6  # two layers of the network, and the head
    for g, h in zip(one, other):
        assert np.abs(g).max() > 1e-5
        assert_close(g, h, terms=long_sum(30 * SIZE * SIZE))  # over the rows of a batch and their pixels
    # A step is as exact as its gradient, and a smooth loss as the weights.
    assert_close(loss, other_loss, terms=long_sum(30 * SIZE * SIZE))


@pytest.fixture(scope="module")
def kept(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("kept") / "m.safetensors"
    model.save(path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    "changed",
    [
        {"bits": 12, "settings": {"quantizer": "kmeans"}},
        {"method": "label"},
        {"method": "dpq", "bits": 12},
    ],
    ids=["scq", "label", "dpq"],
)
def test_other_codes_stand_on_the_same_network(photos, model, kept, changed):
    """What comes before the codebooks is that of the model: the same features, the same posterior."""
    again = started(photos / "train", kept, **changed)
    for name, t in model.backbone.items():
        np.testing.assert_array_equal(again.backbone[name], t)
    assert again.config["backbone"] == model.config["backbone"]
    g = np.random.default_rng(0).random((50, 512), np.float32)

    def posterior(m):
        layers = list(m.chain.layers)
        ops = [op for op, _ in layers]
        return Chain(512, layers[: ops.index("softmax") + 1])

    assert_close(posterior(again)(g), posterior(model)(g), roundings(posterior(model)), 1)
    assert "features" not in {k for k, v in again.config["training"]["loss"].items() if v}


def started(photos, kept, **changed):
    settings = changed.pop("settings", {})
    asked = TrainOptions(**{"bits": 8, "nbits": 4, "device": "cpu", "start": kept, **changed, "settings": settings})
    with open_rows(photos) as source:
        return fit(make_plan(asked, source))


def test_classes_of_a_start_are_known_by_name(photos, model, kept, tmp_path):
    """Whatever the folders number: the classifier keeps its order, and a class may be missing."""
    for name in ("green", "red"):
        shutil.copytree(photos / "train" / name, tmp_path / name)
    again = started(tmp_path, kept)
    assert list(again.config["class_names"]) == ["blue", "green", "red"] == list(model.config["class_names"])
    (tmp_path / "red").rename(tmp_path / "a_red")
    with pytest.raises(ConfigError, match="class 'a_red' is unknown here"):
        started(tmp_path, kept)


def test_numbers_of_a_start_are_those_it_was_trained_on(photos, tmp_path):
    """Images without class names: the same classes by number, whatever stands between them."""
    numbers = np.array([3, 17, 9999])
    with open_rows(photos / "train") as source:
        y = source.labels.y
        source.labels = Labels(numbers[y], 10_000)
        model = fit(make_plan(request(epochs=1), source))
        assert (model.config["C"], model.config["classes"]) == (3, numbers.tolist())
        model.save(tmp_path / "m.safetensors")
        asked = TrainOptions(method="label", device="cpu", start=tmp_path / "m.safetensors")
        source.labels = Labels(numbers[y % 2], 18)  # none of the last class
        again = fit(make_plan(asked, source))
        assert (again.config["C"], again.config["classes"]) == (3, numbers.tolist())
        source.labels = Labels(y, 3)
        with pytest.raises(ConfigError, match="the model to start from was not trained on class 0, 1, 2"):
            make_plan(asked, source)


def test_a_start_sees_colours_as_its_model_did(photos, model, tmp_path):
    record = model.config["backbone"] | {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.25, 0.125]}
    other = Model(model.chain, model.codebooks, model.config | {"backbone": record}, model.backbone)
    other.save(tmp_path / "m.safetensors")
    assert started(photos / "train", tmp_path / "m.safetensors").config["backbone"] == record


@pytest.mark.parametrize("broken", [{"factory": ["x"]}, {"size": "8"}, {"layers": 3}, {"mean": [1.0]}])
def test_a_start_with_a_forged_record_is_refused(photos, model, tmp_path, broken):
    config = model.config | {"backbone": model.config["backbone"] | broken}
    Model(model.chain, model.codebooks, config, model.backbone).save(tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match=f"{next(iter(broken))} is "):
        started(photos / "train", tmp_path / "m.safetensors")


@pytest.mark.parametrize("how", ["search", "features", "train", "export"])
def test_no_output_among_the_images(photos, kept, tmp_path, capsys, how):
    shutil.copytree(photos / "gallery", tmp_path / "db")
    before = sorted((tmp_path / "db").rglob("*"))
    m, db, g = str(kept), str(tmp_path / "db"), str(tmp_path / "g.faissindex")
    assert cli(["export", m, db, "-o", g]) == 0
    command = {
        "search": ["search", g, db, "--model", m, "-o", f"{db}/red/200.png"],
        "features": ["features", db, "--model", m, "-o", f"{db}/rows.h5"],
        "train": ["train", db, "--start", m, "--bits", "8", "--nbits", "4", "-o", f"{db}/red/m.safetensors"],
        "export": ["export", m, db, "-o", f"{db}/g.faissindex"],
    }[how]
    assert cli(command) == 2
    assert "is an input of this command" in capsys.readouterr().err
    assert sorted((tmp_path / "db").rglob("*")) == before


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"method": "mecoq"}, "method mecoq cannot start from a model"),
        ({"weights": "w.safetensors"}, "--weights goes with a network that is trained"),
        ({"settings": {"adversarial": 1.0}}, "adversarial is for a network and a head that train"),
        ({"settings": {"features.lr": 1e-3}}, "features.lr is for a network and a head that train"),
        ({"settings": {"size": 64}}, "size is that of the model to start from, 32"),
        ({"settings": {"cfa": "cosine"}}, "cfa=cosine needs linear, normalize, linear, softmax, or linear, softmax"),
        ({"method": "dpq", "settings": {"end_to_end": True}}, "stays as it is"),
        ({"encoder": "mlp"}, "^encoder mlp is not that of m.safetensors|^encoder mlp is not that of /"),
    ],
)
def test_what_cannot_start_from_a_model(photos, kept, changed, message):
    with pytest.raises(ConfigError, match=message):
        started(photos / "train", kept, **changed)


def test_validation_images_belong_to_the_classes_of_their_names(photos, tmp_path):
    """Of a folder that lacks a class, the others keep their place."""
    for name in ("green", "red"):
        shutil.copytree(photos / "gallery" / name, tmp_path / name)
    asked = request(epochs=1, patience=0)
    with open_rows(photos / "train") as source, open_rows(tmp_path) as held, open_rows(photos / "gallery") as whole:
        found = make_plan(asked, source, held)
        assert held.labels.class_names == ("blue", "green", "red") and set(held.labels.y) == {1, 2}
        assert fit(found).modality == IMAGES
        kept = np.flatnonzero(whole.labels.y > 0)
        whole.shaped(SIZE, "crop")
        np.testing.assert_array_equal(whole.take(kept), held.take(np.arange(20)))
    (tmp_path / "red").rename(tmp_path / "rot")
    with open_rows(photos / "train") as source, open_rows(tmp_path) as held:
        with pytest.raises(ConfigError, match="class 'rot' is unknown here"):
            make_plan(asked, source, held)


@pytest.mark.slow
def test_a_frozen_network_stays_as_it_was(photos):
    frozen, free = (trained(photos, epochs=1, settings={"frozen_epochs": n}) for n in (1, 0))
    again = trained(photos, epochs=0)
    moved = {
        name: (np.abs(frozen.backbone[name] - t).max(), np.abs(free.backbone[name] - t).max())
        for name, t in again.backbone.items()
        if t.dtype == np.float32 and t.ndim > 1 and t.size > 3
    }
    assert moved and all(a == 0 < b for a, b in moved.values())


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"encoder": "mlp"}, "holds images, encoder mlp takes rows of features"),
        ({"method": "pq"}, "holds images, method pq takes rows of features"),
        ({"encoder": "nothing.here:f"}, "nothing.here"),
        ({"encoder_args": {"clases": "3"}}, "clases"),
        ({"method": "mecoq", "accumulate": 2}, "compares the rows of a batch"),
        ({"settings": {"similarity": "means"}}, "means"),
    ],
)
def test_what_cannot_work_is_refused_first(photos, changed, message, monkeypatch):
    with open_rows(photos / "train") as source:
        monkeypatch.setattr(type(source), "take", lambda *a: pytest.fail("images were decoded"))
        with pytest.raises(ConfigError, match=message):
            fit(make_plan(request(**changed), source))


def test_rows_do_not_go_through_a_network_for_images(tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.zeros((9, 4), np.float32))
    assert (
        cli(["train", str(tmp_path / "x.npy"), "-o", str(tmp_path / "m.safetensors"), "--encoder", "squeezenet"]) == 2
    )
    assert "holds rows of features, encoder squeezenet takes images" in capsys.readouterr().err


def processes(here, n, *arguments):
    """n processes of one training, as torchrun starts them, in plain steps; arguments: of plain_steps.py, with {rank}."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    shared = {"WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": here}
    command = [sys.executable, plain_steps.__file__]
    return [
        subprocess.Popen(
            command + [a.format(rank=r) for a in arguments],
            env=os.environ | (shared | {"RANK": str(r)} if n > 1 else {}),
            **pipes,
        )
        for r in range(n)
    ]


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_two_processes_see_what_one_sees(photos, tmp_path):
    """Six steps of the joint batch, augmented: the same views, hence the same gradients and the same losses."""
    asked = ["train", str(photos / "train"), "--bits", "4", "--nbits", "4", "--encoder", "plain_steps:smooth"]
    asked += ["--device", "cpu", "--epochs", "3", "--batch-size", "30"]
    for setting in (
        "dropout=0",
        "codebooks.copies=1",
        "quantizer=kmeans",
        "features.allow_reduced_precision=false",
        "features.lr=0.1",
        "backbone_lr=1",
    ):
        asked += ["--set", setting]
    asked += ["--set", f"size={SIZE}"]
    losses, gradients = [], []
    for n in (1, 2):
        kept = [f"{n}.safetensors", "--metrics", f"{n}.jsonl"]
        running = processes(tmp_path, n, f"{n}-{{rank}}.npz", *asked, "-o", *kept)
        answers = [p.communicate(timeout=110) for p in running]
        assert [p.returncode for p in running] == [0] * n, answers
        lines = map(json.loads, (tmp_path / f"{n}.jsonl").read_text().splitlines())
        losses.append([line["loss"]["ce"] for line in lines if line["stage"] == "features"])
        for rank in range(n):
            with np.load(tmp_path / f"{n}-{rank}.npz") as found:
                gradients.append([found[name] for name in found.files])
    assert len(losses[0]) == 3 and losses[0][-1] < losses[0][0]
    whole, first, second = gradients
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert_same_steps(whole, first, *losses)


def test_images_need_a_model_with_a_network(photos, model):
    bare = Model(model.chain, model.codebooks, {k: v for k, v in model.config.items() if k != "backbone"})
    with open_rows(photos / "gallery") as images, pytest.raises(ConfigError, match="scqfaiss features"):
        as_rows(images, bare)
