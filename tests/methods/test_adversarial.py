"""Adversarial training: what one step makes of a batch, and that nothing changes where nobody asks for it."""

import numpy as np
import pytest
import torch
from test_cfa import X, features

import scqfaiss
from scqfaiss.errors import ConfigError
from scqfaiss.methods.adversarial import STEP, hardened, worst_of_one_step
from scqfaiss.methods.spaces import PixelBox, RowBall, space_of, unit, within
from scqfaiss.modality import IMAGES, ROWS, Modality


def seen(x):
    return x


def test_one_step_is_that_of_a_slow_twin():
    """On a loss whose gradient is known: the start is the random one, the step goes straight up, the ball holds."""
    x, w, eps = torch.from_numpy(X).double(), torch.linspace(-1, 1, X.shape[1]).double(), 0.1

    def loss(x, index):
        return {"linear": x @ w}

    index = torch.arange(len(x))
    torch.manual_seed(5)
    found = worst_of_one_step(loss, x, index, eps, RowBall()).numpy()
    torch.manual_seed(5)
    drawn = torch.randn(x.shape).numpy()
    share = torch.rand(len(x), 1).numpy() ** (1 / x.shape[1])
    for i, row in enumerate(x.numpy()):
        radius = eps * np.linalg.norm(row)
        away = radius * share[i] * drawn[i] / np.linalg.norm(drawn[i])
        away = away + STEP * radius * w.numpy() / np.linalg.norm(w.numpy())
        away *= min(1, radius / np.linalg.norm(away))
        np.testing.assert_allclose(found[i], row + away, rtol=1e-5)


def test_one_step_of_images_is_that_of_a_slow_twin():
    """Signs, boxes and borders of pixels; 250 of 255 and more cannot rise by 8."""
    x, eps = torch.randint(0, 256, (3, 3, 4, 4), generator=torch.Generator().manual_seed(0)).float(), 8.0
    x[0, 0, 0, :2] = torch.tensor([0.0, 255.0])
    w = torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(1))

    def loss(x, index):
        return {"linear": (x * w).sum((1, 2, 3))}

    torch.manual_seed(5)
    found = worst_of_one_step(loss, x, torch.arange(3), eps, PixelBox())
    torch.manual_seed(5)
    drawn = torch.rand(x.shape)
    for at in np.ndindex(*x.shape):
        pixel = x[at].item()
        q = min(255.0, max(0.0, pixel + eps * (2 * drawn[at].item() - 1)))
        q = q + STEP * eps * float(np.sign(w[at[1:]].item()))
        assert found[at].item() == pytest.approx(min(255.0, max(0.0, min(pixel + eps, max(pixel - eps, q)))), abs=1e-4)


@pytest.mark.parametrize("b", [1, 2, 3, 9, 10])
def test_half_of_a_batch_is_moved_and_its_loss_rises(b):
    f = features(encoder="mlp", logits="inner")
    x, index = torch.from_numpy(X[:b]).double(), torch.arange(b)
    given = {}

    def loss(x, index):
        given["x"], given["index"] = x, index
        return f.loss(x, index)

    hardened(loss, 0.3, RowBall(), seen)(x, index)
    half = {1: 1, 2: 2, 3: 2, 9: 4, 10: 5}[b]
    assert torch.equal(given["x"][half:], x[half:]) and torch.equal(given["index"], index)
    away = (given["x"][:half] - x[:half]).norm(dim=1) / x[:half].norm(dim=1)
    assert (away > 0).all() and (away <= 0.3 * (1 + 1e-5)).all()
    assert f.loss(given["x"][:half], index[:half])["ce"] > f.loss(x[:half], index[:half])["ce"]


def test_zeros_stay_where_their_gradient_is_no_number():
    """sign(x) sqrt|x|, as encoders take it of rows without negative values: autograd gives NaN at zero. One such row used to end
    a training.
    """
    x = torch.tensor([[0.0, 0.0, 0.0], [1.0, 4.0, 2.0]])

    def loss(x, index):
        return {"root": (x.sign() * x.abs().sqrt()).sum(1)}

    found = worst_of_one_step(loss, x, torch.arange(2), 0.1, RowBall())
    assert torch.equal(found[0], x[0])
    assert loss(found, None)["root"][1] > loss(x, None)["root"][1]


def test_a_training_on_rows_of_zeros_ends_well(one):
    x, y = one
    x = np.abs(x)
    x[::7] = 0
    how = {"bits": 8, "nbits": 4, "encoder": "linear", "epochs": 1, "forecast": "off", "codebooks.copies": 1}
    assert np.isfinite(scqfaiss.train(x, y, **how, adversarial=0.1).vectors(x)).all()


def test_every_modality_has_its_space_or_is_refused():
    assert isinstance(space_of(ROWS), RowBall) and isinstance(space_of(IMAGES), PixelBox)
    with pytest.raises(ConfigError, match="tunes cannot be attacked: needs rows or images"):
        space_of(Modality("tunes", "tunes", "tunes", encoder_class="a.b:C"))


def test_directions_of_tiny_gradients_are_kept():
    x = torch.tensor([[3e-30, 4e-30], [0.0, 0.0], [3e30, -4e30]])
    torch.testing.assert_close(unit(x), torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.6, -0.8]]))
    torch.testing.assert_close(within(torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0]])), torch.tensor([[1.2, 1.6]]))
    torch.testing.assert_close(within(torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0]])), torch.zeros(1, 2))


def test_models_tell_it_only_where_it_was_used(one):
    x, y = one
    how = {"bits": 8, "nbits": 4, "encoder": "linear", "epochs": 1, "forecast": "off", "codebooks.copies": 1}
    off, on = (scqfaiss.train(x, y, **how, adversarial=eps) for eps in (0.0, 0.1))
    assert off.sha256 != on.sha256
    assert "adversarial" not in off.config["settings"] and on.config["settings"]["adversarial"] == 0.1


@pytest.mark.parametrize(
    "how, words",
    [
        ({"cfa": "reference"}, "adversarial=0.1 needs cfa=calibrated or cosine, got reference"),
        ({"method": "dpq", "end_to_end": True}, "adversarial=0.1 trains the head alone, end_to_end=true more than it"),
        ({"adversarial": 1.5}, "adversarial=1.5 for rows of features needs 0 to 1 of the norm"),
        ({"adversarial": 256}, "adversarial is 256.0, needs 0 to 255"),
    ],
)
def test_heads_that_cannot_are_refused(one, how, words):
    with pytest.raises(ConfigError, match=words):
        scqfaiss.train(*one, bits=8, **{"adversarial": 0.1, **how})
