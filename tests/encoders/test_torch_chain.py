"""Every operation of a chain in torch is that in NumPy, and has a finite gradient wherever attacks may stand."""

import numpy as np
import pytest
import torch
from close import assert_close, roundings

from scqfaiss.encoders.chain import OPERATIONS, Chain
from scqfaiss.encoders.torch_chain import TorchChain


def f(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


AVERAGE = ("average", {"weights": f(3)})
HEADS = ("heads", {"A": f(3, 6, 4), "b": f(3, 6)})
ATTEND = ("attend", {"keys": f(20, 12), "mix": np.array([0.4, 3, 0.5], np.float32)})
LINEAR = ("linear", {"A": f(8, 12), "b": f(8)})
# Chains of one operation each; heads and their average come together.
SINGLE = {
    "linear": [LINEAR],
    "linear, no bias": [("linear", {"A": f(8, 12)})],
    "center": [("center", {"mean": f(12)})],
    "heads, average": [HEADS, AVERAGE],
    "normalize, attend": [("normalize", {}), ATTEND],  # as exp() of large numbers magnifies every rounding
    **{op: [(op, {})] for op in ("normalize", "power", "relu", "tanh", "softmax", "sigmoid")},
}
ALL = [
    *[
        ("normalize", {}),
        ATTEND,
        ("power", {}),
        ("center", {"mean": f(12)}),
        LINEAR,
        ("relu", {}),
        ("linear", {"A": f(12, 8)}),
    ],
    *[("tanh", {}), HEADS, ("sigmoid", {}), ("linear", {"A": f(5, 6), "b": f(5)}), ("softmax", {}), AVERAGE],
    *[("normalize", {}), ("linear", {"A": f(8, 5)})],
]
CHAINS = {"none": [], **SINGLE, "all": ALL}


def test_every_operation_is_among_these():
    assert {op for layers in SINGLE.values() for op, _ in layers} == {op for op, _ in ALL} == set(OPERATIONS)


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("seed", range(5))
def test_torch_computes_what_numpy_does(name, seed):
    chain = Chain(12, CHAINS[name])
    x = f(7, 12, seed=seed + 1) * np.float32(10.0) ** np.random.default_rng(seed).integers(-3, 4, (7, 1))
    x[2] = 0  # a row of length 0 stays there
    x = x.astype(np.float32)
    want = chain(x.copy())
    with torch.no_grad():
        z = TorchChain(chain)(torch.from_numpy(x.copy())).numpy()
    assert (z.dtype, z.shape) == (np.float32, want.shape)
    assert_close(z, want, roundings(chain, inputs=1 + (name == "all")), max(1, np.abs(want).max()))


@pytest.mark.parametrize("power", [-30, -20, 18, 30])
def test_lengths_out_of_reach_of_float32_squares(power):
    x = f(5, 12) * np.float32(10.0) ** power
    chain = Chain(12, SINGLE["normalize"])
    assert_close(TorchChain(chain)(torch.from_numpy(x)).numpy(), chain(x.copy()), roundings(chain), 1)


@pytest.mark.parametrize("name", CHAINS)
def test_gradients_are_those_of_finite_differences(name):
    chain = TorchChain(Chain(12, CHAINS[name])).double()
    x = torch.from_numpy(f(3, 12, seed=9)).double()
    x = x + 0.1 * x.sign()  # away from the corner of relu and the root of zero
    assert torch.autograd.gradcheck(chain, x.requires_grad_(), eps=1e-6, atol=1e-5)


@pytest.mark.parametrize("name", CHAINS)
def test_gradients_are_finite_at_zero(name):
    x = torch.zeros(2, 12, requires_grad=True)
    TorchChain(Chain(12, CHAINS[name]))(x).sum().backward()
    assert torch.isfinite(x.grad).all()
