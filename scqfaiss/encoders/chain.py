"""A trained encoder as a chain of named layers, run in NumPy: encoding needs no torch.

A chain of affine layers and L2 norms alone can also stand inside a FAISS file (`foldable`); every other chain runs
before the search.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError

Arrays = Mapping[str, NDArray[np.float32]]
Floats = NDArray[np.float32]

# Rows that go through all layers together: 1,024-wide activations of this many rows stay in a core's cache.
BLOCK_ROWS = 1024


def _linear(x: Floats, a: Arrays) -> Floats:
    y = x @ a["A"].T
    if "b" in a:
        y += a["b"]
    return y


def _relu(x: Floats, a: Arrays) -> Floats:
    return np.maximum(x, 0, out=x)


def _power(x: Floats, a: Arrays) -> Floats:
    y = np.sqrt(np.abs(x))
    return np.copysign(y, x, out=y)


def _tanh(x: Floats, a: Arrays) -> Floats:
    return np.tanh(x, out=x)


def _center(x: Floats, a: Arrays) -> Floats:
    return np.asarray(x - a["mean"])


def _normalize(x: Floats, a: Arrays) -> Floats:
    norm = np.sqrt(np.einsum("nd,nd->n", x, x))[:, None]
    return np.asarray(x / np.where(norm > 0, norm, 1))  # a zero row stays zero, as in FAISS


def _softmax(x: Floats, a: Arrays) -> Floats:
    x = np.exp(x - x.max(1, keepdims=True))
    x /= x.sum(1, keepdims=True)
    return x


def _sigmoid(x: Floats, a: Arrays) -> Floats:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)), np.float32)  # no overflow at either end


# name -> (what it does to (n, d) float32, arrays it holds, may it stand in a FAISS file)
LAYERS: dict[str, tuple[Callable[[Floats, Arrays], Floats], tuple[str, ...], bool]] = {
    "linear": (_linear, ("A", "b"), True),  # A (d_out, d_in), b (d_out,) optional
    "center": (_center, ("mean",), True),  # mean (d,)
    "normalize": (_normalize, (), True),  # to L2 norm 1
    "power": (_power, (), False),  # sign(x) sqrt|x|
    "relu": (_relu, (), False),
    "tanh": (_tanh, (), False),
    "softmax": (_softmax, (), False),
    "sigmoid": (_sigmoid, (), False),
}
_IN_PLACE = {"relu", "tanh"}


@dataclass(frozen=True, eq=False)
class Chain:
    """Layers applied in order to x (n, d_in) float32. Raises CheckpointError when they do not fit one another."""

    d_in: int
    layers: Sequence[tuple[str, Arrays]] = ()

    def __post_init__(self) -> None:
        d = self.d_in
        for i, (op, arrays) in enumerate(self.layers):
            what = f"encoder layer {i} ({op})"
            if op not in LAYERS:
                raise CheckpointError(f"{what} is unknown, this version runs {', '.join(LAYERS)}")
            if set(arrays) - set(LAYERS[op][1]) or (op in ("linear", "center") and not arrays):
                raise CheckpointError(f"{what} holds {', '.join(arrays) or 'no arrays'}")
            for name, a in arrays.items():
                if a.dtype != np.float32 or not np.isfinite(a).all():
                    raise CheckpointError(f"{what}: {name} is {a.dtype} or not finite, needs finite float32")
            if op == "linear":
                A, b = arrays["A"], arrays.get("b")
                if A.ndim != 2 or A.shape[1] != d or (b is not None and b.shape != A.shape[:1]):
                    raise CheckpointError(f"{what} is {A.shape}, needs {d} columns and a bias of its rows")
                d = A.shape[0]
            elif op == "center" and arrays["mean"].shape != (d,):
                raise CheckpointError(f"{what} is {arrays['mean'].shape}, needs ({d},)")

    @property
    def d_out(self) -> int:
        return next((a["A"].shape[0] for op, a in reversed(self.layers) if op == "linear"), self.d_in)

    @property
    def foldable(self) -> bool:
        """True where FAISS itself can run the chain inside an index file."""
        return all(LAYERS[op][2] for op, _ in self.layers)

    def __call__(self, x: Floats) -> Floats:
        """x (n, d_in) float32 -> z (n, d_out) float32. Each row's result does not depend on the other rows."""
        if not self.layers:
            return x
        out = np.empty((len(x), self.d_out), np.float32)
        for i in range(0, len(x), BLOCK_ROWS):
            y = x[i : i + BLOCK_ROWS]
            for n, (op, arrays) in enumerate(self.layers):
                if n == 0 and op in _IN_PLACE:
                    y = y.copy()  # the caller's rows stay as they are
                y = LAYERS[op][0](y, arrays)
            out[i : i + BLOCK_ROWS] = y
        return out

    def then(self, *layers: tuple[str, Arrays]) -> Chain:
        """This chain followed by `layers`, neighbouring affine layers multiplied out (in float64)."""
        return Chain(self.d_in, _merge([*self.layers, *layers]))

    def pack(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """-> (tensors, config) as a bundle keeps them."""
        tensors = {f"encoder.{i}.{name}": a for i, (_, arrays) in enumerate(self.layers) for name, a in arrays.items()}
        return tensors, {"d_in": self.d_in, "layers": [op for op, _ in self.layers]}


def unpack(tensors: Mapping[str, NDArray[Any]], config: Mapping[str, Any]) -> Chain:
    """The inverse of Chain.pack. Raises CheckpointError on what no pack() has written."""
    ops, d_in = config.get("layers"), config.get("d_in")
    if not isinstance(ops, list) or type(d_in) is not int or d_in < 1:
        raise CheckpointError("the encoder's config needs d_in and a list of layers")
    found: list[dict[str, NDArray[Any]]] = [{} for _ in ops]
    for name, a in tensors.items():
        part = name.split(".")
        if part[0] == "encoder":
            if len(part) != 3 or not part[1].isdigit() or int(part[1]) >= len(ops):
                raise CheckpointError(f"tensor {name} belongs to no encoder layer")
            found[int(part[1])][part[2]] = a
    return Chain(d_in, [(str(op), arrays) for op, arrays in zip(ops, found)])


def _merge(layers: Sequence[tuple[str, Arrays]]) -> list[tuple[str, Arrays]]:
    out: list[tuple[str, Arrays]] = []
    for op, arrays in layers:
        if op == "linear" and out and out[-1][0] == "linear":
            first = {k: v.astype(np.float64) for k, v in out[-1][1].items()}
            A, b = arrays["A"].astype(np.float64), arrays.get("b", np.zeros(1)).astype(np.float64)
            merged = {"A": A @ first["A"], "b": A @ first.get("b", np.zeros(A.shape[1])) + b}
            out[-1] = ("linear", {k: v.astype(np.float32) for k, v in merged.items()})
        else:
            out.append((op, arrays))
    return out
