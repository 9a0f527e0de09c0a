"""A trained encoder as a chain of named layers, run in NumPy: encoding needs no torch. torch_chain.py runs the same in torch.

A chain of affine layers and L2 norms alone can also stand inside a FAISS file (`foldable`); every other chain runs
before the search.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError, DataError
from ..exponents import balanced

Arrays = Mapping[str, NDArray[np.float32]]
Floats = NDArray[np.float32]

# Activations that go through all layers together: few enough to stay in a core's cache, enough for full matrix products.
BLOCK_ELEMENTS = 1 << 21
BLOCK_ROWS = (64, 4096)  # least and most rows of such a block


@dataclass(frozen=True)
class Operation:
    """One kind of layer, in NumPy and in torch.

    numpy: what it does to x (n, d) float32 with its arrays. torch: the same for tensors, differentiable wherever x is, with a
    finite gradient at zero too; between `heads` and `average` x is (n, E, d) there and (E n, d) in NumPy. It uses the methods
    of tensors alone, so that no torch is imported here.
    arrays: what it holds. foldable: whether it may stand in a FAISS file. in_place: whether NumPy writes over x.
    may_overflow: whether finite rows can leave float32 in it.
    """

    numpy: Callable[[Floats, Arrays], Floats]
    torch: Callable[[Any, Mapping[str, Any]], Any]
    arrays: tuple[str, ...] = ()
    foldable: bool = False
    in_place: bool = False
    may_overflow: bool = False


def _linear(x: Floats, a: Arrays) -> Floats:
    y = x @ a["A"].T
    if "b" in a:
        y += a["b"]
    return y


def _torch_linear(x: Any, a: Mapping[str, Any]) -> Any:
    y = x @ a["A"].mT
    return y + a["b"] if "b" in a else y


def _heads(x: Floats, a: Arrays) -> Floats:
    E, out, width = a["A"].shape
    y = np.matmul(x.reshape(len(x), E, width).transpose(1, 0, 2), a["A"].transpose(0, 2, 1))  # e n out
    y += a["b"][:, None]
    return np.asarray(y.reshape(E * len(x), out))


def _torch_heads(x: Any, a: Mapping[str, Any]) -> Any:
    E, _, width = a["A"].shape
    return (x.unflatten(1, (E, width)).transpose(0, 1) @ a["A"].mT).transpose(0, 1) + a["b"]  # e n out, then n e out


def _average(x: Floats, a: Arrays) -> Floats:
    E = len(a["weights"])
    return np.asarray(np.einsum("e,enc->nc", a["weights"], x.reshape(E, len(x) // E, x.shape[1])))


def _power(x: Floats, a: Arrays) -> Floats:
    y = np.abs(x)
    return np.copysign(np.sqrt(y, out=y), x, out=y)


def _normalize(x: Floats, a: Arrays) -> Floats:
    x = balanced(x)
    norm = np.sqrt(np.einsum("nd,nd->n", x, x))[:, None]
    return np.asarray(x / np.where(norm > 0, norm, 1))  # a zero row stays zero, as in FAISS


def _torch_normalize(x: Any, a: Mapping[str, Any]) -> Any:
    largest = x.abs().amax(-1, keepdim=True)  # the squares of large and small numbers leave float32
    x = x / largest.masked_fill(largest == 0, 1)
    square = x.square().sum(-1, keepdim=True)
    return x / square.masked_fill(square == 0, 1).sqrt()


def _softmax(x: Floats, a: Arrays) -> Floats:
    y: Floats = x - x.max(1, keepdims=True)
    np.exp(y, out=y)
    y /= y.sum(1, keepdims=True)
    return y


def _sigmoid(x: Floats, a: Arrays) -> Floats:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)), np.float32)  # no overflow at either end


def _attend(x: Floats, a: Arrays) -> Floats:
    share, scale, null = a["mix"]
    near = scale * (x @ a["keys"].T)
    top = np.maximum(near.max(1, keepdims=True), scale * null)
    weights = np.exp(near - top)
    weights /= weights.sum(1, keepdims=True) + np.exp(scale * null - top)
    return np.asarray((1 - share) * x + share * (weights @ a["keys"]), np.float32)


def _torch_attend(x: Any, a: Mapping[str, Any]) -> Any:
    share, scale, null = a["mix"]
    near = scale * (x @ a["keys"].mT)
    top = near.amax(-1, keepdim=True).clamp_min(scale * null)
    weights = (near - top).exp()
    weights = weights / (weights.sum(-1, keepdim=True) + (scale * null - top).exp())
    return (1 - share) * x + share * (weights @ a["keys"])


# A root whose slope stays finite: below this, the smallest normal number of float32, its argument counts as this.
_TINY = float(np.finfo(np.float32).tiny)

OPERATIONS: dict[str, Operation] = {
    # A (d_out, d_in), b (d_out,) optional
    "linear": Operation(_linear, _torch_linear, ("A", "b"), foldable=True, may_overflow=True),
    # mean (d,)
    "center": Operation(
        lambda x, a: np.asarray(x - a["mean"]),
        lambda x, a: x - a["mean"],
        ("mean",),
        foldable=True,
        may_overflow=True,
    ),
    # to L2 norm 1
    "normalize": Operation(_normalize, _torch_normalize, foldable=True),
    # sign(x) sqrt|x|
    "power": Operation(_power, lambda x, a: x.sign() * x.abs().clamp_min(_TINY).sqrt()),
    "relu": Operation(lambda x, a: np.maximum(x, 0, out=x), lambda x, a: x.relu(), in_place=True),
    "tanh": Operation(lambda x, a: np.tanh(x, out=x), lambda x, a: x.tanh(), in_place=True),
    "sigmoid": Operation(_sigmoid, lambda x, a: x.sigmoid()),
    "softmax": Operation(_softmax, lambda x, a: x.softmax(-1)),
    # E heads side by side: (n, E w) -> E times (n, d_out), each head by its own A (E, d_out, w) and b (E, d_out) ...
    "heads": Operation(_heads, _torch_heads, ("A", "b"), may_overflow=True),
    # ... and their mean by weights (E,): -> (n, d_out).
    "average": Operation(_average, lambda x, a: (x * a["weights"][:, None]).sum(1), ("weights",)),
    # keys (L, d), mix (3,) = (share, scale, null): (1 - share) x + share sum_l w_l keys_l, where w is the softmax of
    # scale <x, keys_l>, with one more term scale * null that belongs to no key: rows far from all keys stay where they are
    "attend": Operation(_attend, _torch_attend, ("keys", "mix"), may_overflow=True),
}


@dataclass(frozen=True, eq=False)
class Chain:
    """Layers applied in order to x (n, d_in) float32. Raises CheckpointError when they do not fit one another."""

    d_in: int
    layers: Sequence[tuple[str, Arrays]] = ()

    def __post_init__(self) -> None:
        d, E = self.d_in, 1
        for i, (op, arrays) in enumerate(self.layers):
            what = f"encoder layer {i} ({op})"
            if op not in OPERATIONS:
                raise CheckpointError(f"{what} is unknown, this version runs {', '.join(OPERATIONS)}")
            _check_arrays(op, arrays, what)
            if op == "linear":
                A, b = arrays["A"], arrays.get("b")
                if A.ndim != 2 or A.shape[1] != d or (b is not None and b.shape != A.shape[:1]):
                    raise CheckpointError(f"{what} is {A.shape}, needs {d} columns and a bias of its rows")
                d = A.shape[0]
            elif op == "heads":
                A, b = arrays["A"], arrays["b"]
                if E != 1 or A.ndim != 3 or A.shape[0] * A.shape[2] != d or b.shape != A.shape[:2]:
                    raise CheckpointError(f"{what} is {A.shape}, needs heads that share {d} inputs evenly")
                E, d = A.shape[:2]
            elif op == "average":
                if arrays["weights"].shape != (E,):
                    raise CheckpointError(f"{what} is {arrays['weights'].shape}, needs ({E},)")
                E = 1
            elif op == "attend":
                keys, mix = arrays["keys"], arrays["mix"]
                if keys.ndim != 2 or keys.shape[1] != d or not len(keys) or mix.shape != (3,):
                    raise CheckpointError(f"{what} is {keys.shape} and {mix.shape}, needs keys of {d} columns and (3,)")
            elif op == "center" and arrays["mean"].shape != (d,):
                raise CheckpointError(f"{what} is {arrays['mean'].shape}, needs ({d},)")
        if E != 1:
            raise CheckpointError(f"the encoder ends in {E} heads, needs their average")

    @property
    def d_out(self) -> int:
        return next((int(a["A"].shape[-2]) for op, a in reversed(self.layers) if op in ("linear", "heads")), self.d_in)

    @property
    def block_rows(self) -> int:
        """Rows that go through all layers together."""
        widest = max([self.d_in, *(len(a["A"]) for op, a in self.layers if op == "linear")])
        return min(max(BLOCK_ELEMENTS // widest, BLOCK_ROWS[0]), BLOCK_ROWS[1])

    @property
    def foldable(self) -> bool:
        """True where FAISS itself can run the chain inside an index file."""
        return all(OPERATIONS[op].foldable for op, _ in self.layers)

    def __call__(self, x: Floats, name: str = "rows", first: int = 0) -> Floats:
        """x (n, d_in) float32 -> z (n, d_out) float32. Other rows change a row's result by rounding at most.

        Raises DataError for a row whose numbers become too large for float32; name, first: how it calls the rows, and the
        number of the first of them.
        """
        if not self.layers:
            return x
        out, step = np.empty((len(x), self.d_out), np.float32), self.block_rows
        for i in range(0, len(x), step):
            y = x[i : i + step]
            with np.errstate(over="ignore", invalid="ignore"):  # looked for after each layer
                for n, (op, arrays) in enumerate(self.layers):
                    operation = OPERATIONS[op]
                    if n == 0 and operation.in_place:
                        y = y.copy()  # the caller's rows stay as they are
                    y = operation.numpy(y, arrays)
                    if operation.may_overflow and (row := _lost_row(y)) is not None:
                        row = first + i + row % len(x[i : i + step])  # heads: all rows of one after those of another
                        raise DataError(f"{name}: row {row:,} is too large for the encoder (layer {n}, {op})")
            out[i : i + step] = y
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
    arrays_of: list[dict[str, NDArray[Any]]] = [{} for _ in ops]
    for name, a in tensors.items():
        part = name.split(".")
        if part[0] == "encoder":
            number = part[1] if len(part) == 3 and len(part[1]) < 6 else ""
            if not number.isdecimal() or int(number) >= len(ops):
                raise CheckpointError(f"tensor {name} belongs to no encoder layer")
            arrays_of[int(part[1])][part[2]] = a
    return Chain(d_in, [(str(op), arrays) for op, arrays in zip(ops, arrays_of)])


def _check_arrays(op: str, arrays: Arrays, what: str) -> None:
    """Raise CheckpointError unless a layer holds its own arrays, finite and float32."""
    needed = set(OPERATIONS[op].arrays) - ({"b"} if op == "linear" else set())
    if not needed <= set(arrays) <= set(OPERATIONS[op].arrays):
        raise CheckpointError(f"{what} holds {', '.join(arrays) or 'no arrays'}")
    for name, a in arrays.items():
        if a.dtype != np.float32 or not np.isfinite(a).all():
            raise CheckpointError(f"{what}: {name} is {a.dtype} or not finite, needs finite float32")


def _lost_row(y: Floats) -> int | None:
    """The first row that is not finite. The sum of all tells in one fast pass that there is none, unless it overflows itself."""
    if math.isfinite(y.sum()):
        return None
    finite = np.isfinite(y).all(1)
    return None if finite.all() else int(np.argmin(finite))


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
