"""The loop over stages: turns, hooks, clipping, precision, early stopping, metrics; and what several processes share."""

import json
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import scqfaiss
from scqfaiss import distributed
from scqfaiss.contract import OptimizerStep, Stage
from scqfaiss.encoders.base import Stats
from scqfaiss.encoders.linear import Linear
from scqfaiss.encoders.linear import Settings as LinearSettings
from scqfaiss.errors import ConfigError, DataError
from scqfaiss.files import atomic_write
from scqfaiss.training.engine import Engine
from scqfaiss.training.epoch_log import Log, log_to


class Method(nn.Module):
    """A weight pulled to the numbers it is shown, and whatever stages a test gives it."""

    def __init__(self, **stage):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2))
        self.register_buffer("seen", torch.zeros(1))
        self.of_stage, self.modes = stage, []

    def loss(self, x):
        self.modes.append(self.training)
        return {"near": (self.w - x).square().sum() / 2}

    def stages(self):
        sgd = [OptimizerStep(self.loss, lambda steps: (torch.optim.SGD([self.w], 0.5), None))]
        plain = {"epochs": 3, "steps_per_epoch": 2, "batches": lambda g: iter([(1.0,), (3.0,)]), "optimizer_steps": sgd}
        return [Stage(name="s", **(plain | self.of_stage))]


def test_turns_come_one_after_the_other_on_every_batch_each_with_its_own_parameters():
    method, order = Method(), []
    other = nn.Parameter(torch.zeros(1))

    def first(x):
        order.append(("first", x, method.w[0].item(), other.item()))
        return {"a": (method.w - x).square().sum() / 2 + 10 * other.sum()}

    def second(x):
        order.append(("second", x, method.w[0].item(), other.item()))
        return {"b": (other - x).square().sum() / 2 + 10 * method.w.sum()}

    rates = []

    def sgd(parameter, rate):
        def make(steps):
            rates.append(steps)
            optimizer = torch.optim.SGD([parameter], rate)
            return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.1)

        return make

    method.of_stage = {
        "optimizer_steps": [OptimizerStep(first, sgd(method.w, 0.5)), OptimizerStep(second, sgd(other, 1.0))],
        "epochs": 1,
    }
    assert Engine(method).run() == {"s": {"a": (1 + 16.25) / 2, "b": (10.5 + 37) / 2}}
    # w: 0 -> .5 -> 1.75 toward 1 and 3 at rate .5; other: 0 -> 1 -> 3 at rate 1; neither moves by the other's loss.
    assert order == [("first", 1.0, 0, 0), ("second", 1.0, 0.5, 0), ("first", 3.0, 0.5, 1), ("second", 3.0, 1.75, 1)]
    assert (method.w[0].item(), other.item(), rates) == (1.75, 3.0, [2, 2])


def test_hooks_are_called_in_their_order():
    method, order = Method(), []
    method.of_stage = {
        "begin": lambda: order.append("begin"),
        "on_epoch": lambda epoch: order.append(f"epoch {epoch}"),
        "after_step": lambda: order.append(("step", torch.is_grad_enabled())),
        "after_epoch": lambda epoch: order.append(("after", epoch, torch.is_grad_enabled())) or {},
        "validate": lambda: order.append(("validate", method.training, torch.is_grad_enabled())) or 0.0,
        "end": lambda: order.append("end"),
        "epochs": 1,
    }
    Engine(method).run()
    step = ("step", False)
    assert order == ["begin", "epoch 0", step, step, ("after", 0, False), ("validate", False, False), "end"]
    assert method.modes == [True, True]


@pytest.mark.parametrize("clip, moved", [(0, 0.5), (100, 0.5), (0.5, 0.5 * 0.5 / np.sqrt(2))])
def test_gradients_are_clipped_to_a_norm(clip, moved):
    method = Method(epochs=1, batches=lambda g: iter([(1.0,)]))
    Engine(method, clip_norm=clip).run()
    np.testing.assert_allclose(method.w.detach(), [moved, moved], rtol=1e-5)


@pytest.mark.parametrize("patience, stopped", [(0, 8), (1, 3), (2, 6), (3, 7)])
def test_a_stage_ends_with_what_was_best_on_validation(patience, stopped):
    values = [5.0, 3.0, 4.0, 2.5, 6.0, 7.0, 2.5, 9.0]  # one a epoch
    states, ran = [], []
    method = Method(epochs=8)

    def validate():
        states.append(method.w.detach().clone())
        return values[len(states) - 1]

    method.of_stage |= {"validate": validate, "on_epoch": ran.append, "end": lambda: ran.append("end")}
    Engine(method, patience=patience).run()
    assert ran == [*range(stopped), "end"]
    best = int(np.argmin(values[:stopped]))  # the first of equal ones
    assert torch.equal(method.w.detach(), states[best])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_validation_value_that_says_nothing_ends_the_training(value):
    with pytest.raises(
        ConfigError, match=rf"^the validation rows give a loss of {value} \(stage s\), needs a finite one"
    ):
        Engine(Method(validate=lambda: value)).run()


def test_an_epoch_is_a_line(tmp_path):
    method = Method(epochs=2, validate=lambda: 1.5, after_epoch=lambda e: {"codewords_used": [3, 4], "revived": e})
    with log_to(tmp_path / "m.jsonl", None) as log:
        Engine(method, log=log).run()
    one, two = map(json.loads, (tmp_path / "m.jsonl").read_text().splitlines())
    assert one.pop("seconds") >= one.pop("waited") >= 0
    assert one == {
        "stage": "s",
        "epoch": 1,
        "step": 2,
        "loss": {"near": pytest.approx((1 + 6.25) / 2)},
        "lr": [0.5],
        "codewords_used": [3, 4],
        "revived": 0,
        "validation": 1.5,
    }
    assert (two["epoch"], two["step"], two["revived"]) == (2, 4, 1)


def test_sums_are_taken_in_one_order_whatever_the_threads():
    """The gradient of x[index] is not, on several threads: it is what such a promise breaks on."""

    def trained():
        generator = torch.Generator().manual_seed(0)
        index, by = torch.randint(0, 7, (200_000,), generator=generator), torch.randn(200_000, generator=generator)
        w = nn.Parameter(torch.ones(7))
        turn = OptimizerStep(lambda x: {"a": (w[index] * by).sum()}, lambda steps: (torch.optim.SGD([w], 1.0), None))
        Engine(Method(optimizer_steps=[turn], epochs=1, batches=lambda g: iter([(1.0,)]))).run()
        return w.detach()

    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        first = trained()
        assert all(torch.equal(trained(), first) for _ in range(5))
    finally:
        torch.set_num_threads(threads)
    assert not torch.are_deterministic_algorithms_enabled()  # as it was before


def test_lines_after_the_step_that_is_gone_back_to_are_written_anew(tmp_path):
    path = tmp_path / "m.jsonl"
    whole = "".join(json.dumps({"step": step}) + "\n" for step in (2, 4, 6))
    path.write_text('{"step": "x"}\n' + whole + '{"step": 3')  # a strange one, and one cut off in the middle
    with atomic_write(path) as output:
        Log(output).start(4)
        assert path.read_text() == '{"step": 2}\n{"step": 4}\n'
        Log(output)({"step": 5})
        Log(output).start(0)
    assert path.read_text() == ""


def test_tensorboard_gets_every_number(tmp_path, monkeypatch):
    got = []
    writer = SimpleNamespace(add_scalar=lambda *a: got.append(a), close=lambda: got.append("closed"))
    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = lambda folder: got.append(folder) or writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    with log_to(None, tmp_path / "board") as log:
        log({"stage": "s", "epoch": 1, "step": 20, "loss": {"a": 1.5}, "lr": [0.1, 0.2], "revived": 3})
    values = [("s/loss/a", 1.5), ("s/lr/0", 0.1), ("s/lr/1", 0.2), ("s/revived", 3.0)]
    assert got == [str(tmp_path / "board"), *((name, value, 20) for name, value in values), "closed"]


def test_tensorboard_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"^tensorboard is not installed: pip install tensorboard$"):
        with log_to(None, tmp_path):
            pass


# ------------------------------------------------------------------------------------------------------------ precision
def test_the_encoder_alone_runs_in_half_precision_and_only_while_it_trains(monkeypatch):
    stats = Stats(9, np.zeros(4), np.ones(4), np.zeros(4), np.ones(4), 0.0)
    encoder = Linear(LinearSettings(input_dropout=0), stats)
    inside = []

    def forward(x):
        inside.append(torch.is_autocast_enabled("cpu"))
        return x @ torch.ones(4, 4) * (1 + 2**-12)

    monkeypatch.setattr(encoder, "forward", forward)
    x = torch.full((1, 4), 1 + 2**-12)
    plain = encoder(x)
    encoder.precision = torch.bfloat16
    mixed = encoder(x)
    assert mixed.dtype == torch.float32
    assert mixed[0, 0] == torch.tensor(4.0, dtype=torch.bfloat16) * (1 + 2**-12)  # the product lost the small part
    with torch.no_grad():
        assert torch.equal(encoder(x), plain)
    assert inside == [False, True, False]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_trains_nearly_the_same_model(one, precision):
    small = {"bits": 8, "nbits": 4, "encoder": "mlp", "hidden": 32, "epochs": 6, "seed": 3}
    full = scqfaiss.train(*one, **small)
    half = scqfaiss.train(*one, **small, precision=precision)
    assert half.to_bytes() != full.to_bytes()
    losses = [m.config["training"]["loss"]["features"]["ce"] for m in (full, half)]
    # float16 starts with a scale that overflows, and leaves out a few steps until it has found one that does not.
    np.testing.assert_allclose(*losses, rtol=0.02 if precision == "bfloat16" else 0.15)


def test_gradients_too_small_for_float16_are_scaled():
    method = Method(epochs=1, batches=lambda g: iter([(1.0,)]))
    scales = []
    method.loss = lambda x: {"a": _Scaled.apply(method.w, scales).sum()}
    Engine(method, precision="float16").run()
    assert scales == [65536.0]
    np.testing.assert_allclose(method.w.detach(), -0.5)  # and scaled back


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w, scales):
        ctx.scales = scales
        return w.clone()

    @staticmethod
    def backward(ctx, grad):
        ctx.scales.append(grad[0].item())
        return grad, None


# ----------------------------------------------------------------------------------------------------------- validation
def test_validation_is_checked_before_anything_is_read(one):
    x, y = one
    small = {"bits": 8, "nbits": 4, "epochs": 1, "encoder": "linear"}
    with pytest.raises(ConfigError, match=r"^validation: rows have d=8, x has d=16$"):
        scqfaiss.train(x, y, validation=(x[:, :8], y), **small)
    with pytest.raises(DataError, match=r"^validation has no labels, which validation needs"):
        scqfaiss.train(x, y, validation=x, **small)
    with pytest.raises(
        ConfigError, match=r"^validation has many labels a row and 9 classes, x has one label a row and 4"
    ):
        scqfaiss.train(x, y, validation=(x[:3], np.eye(3, 9)), **small)
    with pytest.raises(DataError, match=r"^validation holds 0 rows"):
        scqfaiss.train(x, y, validation=(x[:0], y[:0]), **small)


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"precision": "float61"}, "precision is 'float61', needs one of float32, bfloat16, float16; did you mean"),
        ({"clip_norm": -1.0}, "the largest norm of gradients is -1.0, needs a number from 0"),
        ({"clip_norm": float("nan")}, "the largest norm of gradients is nan, needs a number from 0"),
        ({"clip_norm": None}, "the largest norm of gradients is None, needs a number from 0"),
        ({"clip_norm": True}, "the largest norm of gradients is True, needs a number from 0"),
        ({"patience": -1}, "patience is -1, needs 0 or more"),
        ({"patience": 1.5}, "patience is 1.5, needs a whole number"),
        ({"checkpoint_every": -1}, "checkpoint-every is -1, needs 0 or more"),
        ({"checkpoint_every": "3"}, "checkpoint-every is '3', needs a whole number"),
        ({"resume": True}, "resume needs the folder of the checkpoints"),
        ({"seed": 0.5}, "seed is 0.5, needs a whole number"),
        ({"validation": (1, 2, 3)}, "validation is a tuple of 3, needs "),
    ],
)
def test_settings_of_the_engine_are_checked(one, wrong, said):
    with pytest.raises(ConfigError, match=f"^{said}"):
        scqfaiss.train(*one, **({"bits": 8, "nbits": 4} | wrong))


# ------------------------------------------------------------------------------------------------------------- parallel
def test_one_process_is_the_whole_world():
    t = torch.arange(6.0).view(3, 2).requires_grad_()
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    assert distributed.all_gather_with_grad(t) is t
    assert torch.equal(distributed.all_reduce_sum(t), t) and torch.equal(distributed.average(t), t)
    assert not distributed.all_reduce_sum(t).requires_grad
    assert distributed.shard((t, 1)) == (t, 1)
    assert distributed.all_reduce_max(2.5) == 2.5


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_batch_is_shared_evenly(rank, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    t = torch.arange(8)
    mine, same = distributed.shard((t, "same"))
    assert (mine.tolist(), same) == ([2 * rank, 2 * rank + 1], "same")
    with pytest.raises(ConfigError, match=r"^a batch has fewer rows than the 3 processes that share it"):
        distributed.shard((t[:2],))
