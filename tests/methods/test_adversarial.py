"""Adversarial training: what one step makes of a batch, and that nothing changes where nobody asks for it."""

import numpy as np
import pytest
import torch
from test_cfa import X, features

import scqfaiss
from scqfaiss.errors import ConfigError
from scqfaiss.methods.adversarial import STEP, hardened, unit, within, worst_of_one_step


def test_one_step_is_that_of_a_slow_twin():
    """On a loss whose gradient is known: the start is the random one, the step goes straight up, the ball holds."""
    x, w, eps = torch.from_numpy(X).double(), torch.linspace(-1, 1, X.shape[1]).double(), 0.1

    def loss(x, index):
        return {"linear": x @ w}

    index = torch.arange(len(x))
    torch.manual_seed(5)
    found = worst_of_one_step(loss, x, index, eps).numpy()
    torch.manual_seed(5)
    share = torch.rand(len(x), 1).numpy() ** (1 / x.shape[1])
    drawn = torch.randn_like(x).numpy()
    for i, row in enumerate(x.numpy()):
        radius = eps * np.linalg.norm(row)
        away = radius * share[i] * drawn[i] / np.linalg.norm(drawn[i])
        away = away + STEP * radius * w.numpy() / np.linalg.norm(w.numpy())
        away *= min(1, radius / np.linalg.norm(away))
        np.testing.assert_allclose(found[i], row + away, rtol=1e-5)


def test_the_loss_is_half_that_of_moved_rows_and_rises_with_them():
    f = features(encoder="mlp", logits="inner")
    x, index = torch.from_numpy(X).double(), torch.arange(len(X))
    assert hardened(f.loss, 0.0) == f.loss
    torch.manual_seed(1)
    (value,) = hardened(f.loss, 0.3)(x, index).values()
    torch.manual_seed(1)
    moved = worst_of_one_step(f.loss, x, index, 0.3)
    assert ((moved - x).norm(dim=1) <= 0.3 * x.norm(dim=1) * (1 + 1e-5)).all()
    clean, worse = f.loss(x, index)["ce"], f.loss(moved, index)["ce"]
    assert value.item() == pytest.approx(0.5 * (clean + worse).item(), rel=1e-9)
    assert worse > clean


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
        ({"adversarial": 1.5}, "adversarial is 1.5, needs 0 to 1"),
    ],
)
def test_heads_that_cannot_are_refused(one, how, words):
    with pytest.raises(ConfigError, match=words):
        scqfaiss.train(*one, bits=8, **{"adversarial": 0.1, **how})
