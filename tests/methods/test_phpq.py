"""PHPQ: the composition of pool=pyramid and quantizer=attention on scq's head; refusals."""

import numpy as np
import pytest
import torch
from images import Drawn
from torch import nn

import scqfaiss
from scqfaiss.arrays import as_labels
from scqfaiss.contract import Task, configure
from scqfaiss.contract import settings as settings_of
from scqfaiss.encoders import backbone
from scqfaiss.encoders.backbone import Backbone
from scqfaiss.encoders.chain import Chain
from scqfaiss.errors import ConfigError
from scqfaiss.methods import scq
from scqfaiss.methods.phpq import PHPQ, Settings
from scqfaiss.modality import IMAGES
from scqfaiss.training.checkpoints import Checkpoints
from scqfaiss.training.engine import Engine
from scqfaiss.training.rows import ImageRows

SIDE, C = 8, 4


def drawn(n=64, seed=0):
    """x (n, 3, 8, 8) uint8 of 4 classes, told apart by where they are bright and by colour; y (n,)."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % C
    x = rng.integers(0, 90, (n, 3, SIDE, SIDE))
    for i, k in enumerate(y):
        x[i, k % 3, 4 * (k // 2) :][:4] += 120
    return x.astype(np.uint8), y


def network(stages=2, **settings):
    """A small network of convolutions, always of the same weights, that pools its last `stages` maps."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU())
    net.input_size, net.stage_layers = SIDE, ("1", "3")[-stages:]
    values = {"pool": "pyramid", "dropout": 0.0, "augment": "light", "backbone_lr": 1.0, **settings}
    return Backbone(configure(backbone.Settings, values), net, "toy:net", {})


def build(cls=PHPQ, y=None, encoder=None, epochs=2, lists=1, **settings):
    x, of = drawn()
    y = of if y is None else y
    encoder = encoder or network()
    torch.manual_seed(0)
    task = Task(
        rows=ImageRows(Drawn(x), encoder.width, "cpu", 1 << 20),
        labels=as_labels(y, len(x), "y"),
        M=2,
        nbits=3,
        encoder=encoder,
        encoder_name="toy:net",
        epochs=epochs,
        batch_size=16,
        lists=lists,
    )
    return cls(configure(cls.Config, {"top": 3, "codebooks.copies": 1, **settings}), task)


def numbers(method):
    return [a for _, arrays in method.layers() for a in arrays.values()] + [method.codebooks().centroids]


def test_it_is_scq_with_both_parts():
    methods = [build(), build(scq.SCQ, quantizer="attention")]
    for method in methods:
        losses = Engine(method, 0).run()
        assert set(losses["codebooks"]) == {"soft", "hard"}
    for a, b in zip(*map(numbers, methods)):
        np.testing.assert_array_equal(a, b)
    assert methods[0].summary() == methods[1].summary() | {"feature_maps": 2}
    assert PHPQ.encoder_defaults == {"pool": "pyramid"} and not PHPQ.takes_unlabelled


@pytest.mark.parametrize("multilabel", [False, True])
def test_network_head_and_codebooks_train(multilabel):
    x, y = drawn()
    labels = np.eye(C, dtype=np.uint8)[y] | np.eye(C, dtype=np.uint8)[(y + (y == 1)) % C] if multilabel else None
    method = build(y=labels, epochs=3)
    before = [p.detach().clone() for p in method.features.encoder.net.parameters()]
    Engine(method, 0).run()
    assert all(not torch.equal(a, b) for a, b in zip(before, method.features.encoder.net.parameters()))
    method.features.eval()
    g = method.features.encoder.features(x)
    assert g.shape == (64, 2 * (6 + 8))
    with torch.no_grad():
        z = method.features(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(Chain(g.shape[1]).then(*method.layers())(g), z, atol=1e-5)
    codebooks = method.codebooks()
    assert ((z - codebooks.decode(codebooks.assign(z, "l2"))) ** 2).mean() < (z**2).mean()


def test_lists_are_part_of_its_codes():
    method = build(lists=4)
    Engine(method, 0).run()
    assert method.codebooks().lists.shape[0] == 4 and np.isfinite(method.codebooks().centroids).all()


class Cut(Exception):
    """Stands for a kill between two steps."""


@pytest.mark.slow
@pytest.mark.parametrize("stage, steps", [("features", 5), ("codebooks", 1)])
def test_a_training_that_is_cut_off_and_resumed_comes_to_the_same_bits(stage, steps, tmp_path):
    def train(cut=None, folder=None):
        done = [0]

        def progress(what, *_):
            done[0] += what == stage
            if done[0] == cut:
                raise Cut

        method = build(encoder=network(dropout=0.1))
        kept = None if folder is None else Checkpoints(folder, dict, 1)
        Engine(method, 3, progress=progress, checkpoints=kept).run(resume=kept is not None)
        return method

    whole = train()
    with pytest.raises(Cut):
        train(steps, tmp_path / "c")
    for a, b in zip(numbers(whole), numbers(train(None, tmp_path / "c"))):
        np.testing.assert_array_equal(a, b)


def test_stored_features_are_refused(one):
    with pytest.raises(ConfigError, match=r"^phpq pools feature maps of images; for stored features use method scq$"):
        scqfaiss.train(*one, method="phpq", bits=16, nbits=4)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"top": 17}, r"^top is 17, needs 1 to K=16 codewords \(--nbits 4\)$"),
        ({"d": 30}, "^d=30 is not divisible by M=4 codebooks; need M of 3 or 5$"),
        ({"codebooks.kind": "additive"}, "^quantizer=attention learns product codebooks"),
        ({"recipe": "reference"}, "^recipe is 'reference', needs one of calibrated$"),
    ],
)
def test_what_cannot_work_is_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        PHPQ.check(configure(Settings, settings), 14, 4, 4, 4, "pkg:net", IMAGES)


def test_other_quantizers_are_allowed_and_a_mean_alone_is_not():
    PHPQ.check(configure(Settings, {"quantizer": "kmeans"}), 28, 4, 4, 4, "pkg:net", IMAGES)
    with pytest.raises(
        ConfigError, match=r"^phpq pools feature maps by pool=pyramid, got pool=average; method scq takes"
    ):
        build(encoder=network(pool="average"))
    assert build(encoder=network(pool="hybrid")).maps == 2


def test_settings_are_plain_values():
    assert all(type(f.default) in (int, float, bool, str) for f in settings_of(Settings).values())
