"""What methods make of images: a batch at a time in any number of processes, and what those made for features refuse."""

import sys

import numpy as np
import pytest
import torch
from images import Drawn
from processes import in_two
from torch import nn

from scqfaiss.arrays import as_labels
from scqfaiss.contract import Subset, Task, configure, drawn_rows
from scqfaiss.encoders import backbone, encoder_class
from scqfaiss.encoders.backbone import Backbone
from scqfaiss.encoders.chain import Chain
from scqfaiss.errors import ConfigError
from scqfaiss.methods import cfa, dpq, items, label, mecoq, scq
from scqfaiss.modality import IMAGES, ROWS
from scqfaiss.training.engine import Engine
from scqfaiss.training.rows import ImageRows

C = 3


def drawn(n=60, seed=0):
    """x (n, 3, 8, 8) uint8 of 3 classes by colour, y (n,)."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % C
    x = rng.integers(0, 100, (n, 3, 8, 8))
    x[np.arange(n), y] += 100
    return x.astype(np.uint8), y


def rows_of(x, held=True):
    return ImageRows(Drawn(x), 6, "cpu", 1 << 20 if held else 0)


def network(**settings):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU())
    net.input_size = 8
    return Backbone(
        configure(backbone.Settings, {"dropout": 0.0, "channels_last": False, **settings}), net, "toy:net", {}
    )


# ------------------------------------------------------------------------------------------------------------- items
def test_an_encoder_of_images_is_known_by_its_name():
    assert encoder_class("pkg.nets:small").modality is IMAGES
    assert all(encoder_class(name).modality is ROWS for name in ("identity", "linear", "mlp"))


def test_some_rows_are_drawn_alike_each_time():
    rows = rows_of(drawn()[0])
    np.testing.assert_array_equal(drawn_rows(len(rows), 60, 0), np.arange(60))
    few = drawn_rows(len(rows), 10, 3)
    assert len(np.unique(few)) == 10 and (np.diff(few) > 0).all()
    np.testing.assert_array_equal(few, drawn_rows(len(rows), 10, 3))
    assert not np.array_equal(few, drawn_rows(len(rows), 10, 4))


@pytest.mark.parametrize("held", [True, False])
def test_what_is_made_of_images_comes_in_their_order(held, monkeypatch):
    monkeypatch.setattr(items, "BATCH", 7)
    x, seen = drawn()[0], []

    def make(batch):
        seen.append(len(batch))
        return batch.float().mean((2, 3))

    for numbers in (np.arange(60), np.array([3, 4, 9, 20, 59]), np.array([8])):
        out, found = items.map_items(rows_of(x, held), numbers, make)
        np.testing.assert_array_equal(found, numbers)
        np.testing.assert_allclose(out, x[numbers].mean((2, 3)), rtol=1e-5)
    assert max(seen) <= 8


def made_by_two(rank, file):
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    torch.save(
        items.map_items(rows_of(drawn()[0]), np.arange(60), lambda x: x.float().mean((2, 3))), f"{file}.{rank}.pt"
    )
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="gloo by file")
def test_two_processes_make_half_each_and_have_all(tmp_path):
    in_two(made_by_two, str(tmp_path / "meet"))
    for rank in range(2):
        out, found = torch.load(tmp_path / f"meet.{rank}.pt")
        np.testing.assert_array_equal(found, np.arange(60))
        np.testing.assert_allclose(out, drawn()[0].mean((2, 3)), rtol=1e-5)


# ------------------------------------------------------------------------------------------------------------ refusals
@pytest.mark.parametrize("check, Settings", [(scq.SCQ.check, scq.Settings), (label.LabelCode.check, label.Settings)])
@pytest.mark.parametrize(
    "settings, words",
    [
        (
            {"similarity": "means"},
            "^similarity=means takes the mean features of each class, and images have none before",
        ),
        ({"cfa": "none"}, "^cfa=none takes rows that are the embedding already, which images are not; use cfa=cal"),
    ],
)
def test_what_needs_features_is_refused(check, Settings, settings, words):
    config = configure(Settings, settings)
    with pytest.raises(ConfigError, match=words):
        check(config, 6, C, 2, 8, "pkg:net", IMAGES)
    check(configure(Settings, {}), 6, C, 1, 8, "pkg:net", IMAGES)


def test_dpq_of_images_needs_a_network_that_trains():
    with pytest.raises(
        ConfigError, match=r"^supervision=none codes rows as they are, and images need a network that trai"
    ):
        dpq.DPQ.check(configure(dpq.Settings, {"supervision": "none"}), 6, 0, 2, 4, "pkg:net", IMAGES)
    with pytest.raises(ConfigError, match=r"^similarity=means takes"):
        dpq.DPQ.check(configure(dpq.Settings, {"similarity": "means"}), 6, C, 2, 4, "pkg:net", IMAGES)
    dpq.DPQ.check(configure(dpq.Settings, {}), 6, C, 2, 4, "pkg:net", IMAGES)


# ----------------------------------------------------------------------------------------------------------------- dpq
def dpq_of_images(settings, **of_network):
    x, y = drawn()
    encoder = network(backbone_lr=0.5, **of_network)
    task = Task(
        rows=rows_of(x),
        labels=as_labels(y, len(y), "y"),
        M=2,
        nbits=3,
        encoder=encoder,
        encoder_name="toy:net",
        validation=Subset(rows_of(x[:20]), as_labels(y[:20], 20, "y")),
        epochs=2,
        batch_size=20,
    )
    return dpq.DPQ(configure(dpq.Settings, {"codebooks.copies": 2, **settings}), task)


@pytest.mark.parametrize(
    "settings", [{}, {"end_to_end": True, "top": 3}, {**dpq.REFERENCE, "recipe": "reference", "d": 8}]
)
def test_dpq_trains_on_images(settings):
    method = dpq_of_images(settings)
    before = method.features.encoder.net[0].weight.detach().clone()
    losses = Engine(method, 0).run()
    assert list(losses) == ["features", "encode rows", "codebooks"]
    codebooks = method.codebooks()
    assert np.isfinite(codebooks.centroids).all() and len(codebooks.centroids) == 2
    assert not torch.equal(before, method.features.encoder.net[0].weight)
    g = method.features.encoder.features(drawn()[0])
    z = cfa.Features.forward(method.features.eval(), torch.from_numpy(drawn()[0])).detach().numpy()
    assert g.shape == (60, 6) and ((z - codebooks.decode(codebooks.assign(z, "l2"))) ** 2).mean() < (z**2).mean()


@pytest.mark.parametrize("cls, settings", [(label.LabelCode, {}), (scq.SCQ, {"top": 3}), (mecoq.MeCoQ, {})])
def test_every_method_of_images_pools_a_pyramid(cls, settings):
    x, y = drawn()
    encoder = network(pool="pyramid", layers="0,1", backbone_lr=0.5)
    labels = as_labels(y, len(y), "y") if cls.needs else None
    M, nbits = cls.shape(C, False, 2, 3)
    task = Task(rows_of(x), labels, M, nbits, encoder=encoder, encoder_name="toy:net", epochs=1, batch_size=20)
    method = cls(configure(cls.Config, settings), task)
    before = encoder.net[0].weight.detach().clone()
    Engine(method, 0).run()
    assert encoder.width == 2 * (6 + 6) and not torch.equal(before, encoder.net[0].weight)
    chain = Chain(encoder.width).then(*method.layers())
    assert np.isfinite(chain(encoder.features(x))).all() and np.isfinite(method.codebooks().centroids).all()


def test_the_network_has_its_own_rate_and_decay_beside_the_codebooks():
    method = dpq_of_images({"end_to_end": True, "codebooks.encoder_lr": 0.01, "features.decay": 0.2})
    optimizer = method.joint_optimizer(10)[0]
    rates = {id(p): (g["initial_lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert rates[id(method.features.encoder.net[0].weight)] == (0.005, 0.05)
    assert rates[id(method.features.encoder.net[0].bias)] == (0.005, 0.0)
    assert rates[id(method.features.project)] == (0.01, 0.2)
    assert rates[id(method.codewords)] == (1e-3, 0.0)
    method = dpq_of_images({**dpq.REFERENCE, "recipe": "reference", "d": 8})
    optimizer = method.features.reference_optimizer()[0]
    rates = {id(p): g["initial_lr"] for g in optimizer.param_groups for p in g["params"]}
    trained = {id(p) for p in method.features.parameters() if p.requires_grad}
    assert rates.keys() == trained
    assert rates[id(method.features.project)] == rates[id(method.features.encoder.net[0].weight)] * 2 == 0.01


def test_a_network_that_was_frozen_at_first_is_not_frozen_again_when_the_codebooks_join():
    method = dpq_of_images({"end_to_end": True}, frozen_epochs=1)
    seen = []
    of_encoder = method.features.encoder.on_epoch
    method.features.encoder.on_epoch = lambda epoch: (seen.append(epoch), of_encoder(epoch))
    Engine(method, 0).run()
    assert seen == [0, 1, 2, 3]
    assert method.features.encoder.net[0].weight.requires_grad
