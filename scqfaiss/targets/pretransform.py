"""An encoder inside the index file: affine layers and L2 norms as a FAISS pre-transform chain.

With it plain FAISS searches with the user's own query rows. Nothing else nonlinear exists in FAISS: every other encoder
runs before the search.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from .. import faiss_calls
from ..errors import ConfigError
from ..exponents import balanced


def wrap_index(index: Any, d_in: int, layers: Sequence[tuple[str, Mapping[str, NDArray[np.float32]]]]) -> Any:
    """A filled index behind `layers` ('linear', 'center', 'normalize', applied in order to rows of d_in).

    The index must be full already: add_sa_codes of an IndexPreTransform throws, and adding to the index inside leaves the
    outer count behind. Raises ConfigError for other layers.
    """
    transforms, d = [], d_in
    for op, arrays in layers:
        transforms.append(_transform(op, arrays, d))
        d = transforms[-1].d_out
    return prepend(transforms, index)


def prepend(transforms: Sequence[Any], index: Any) -> Any:
    """A filled index behind transforms, given in the order in which a query goes through them."""
    if not transforms:
        return index
    out = index if isinstance(index, faiss.IndexPreTransform) else faiss.IndexPreTransform(index)
    for t in reversed(transforms):
        out.prepend_transform(t)
    return out


def _transform(op: str, arrays: Mapping[str, NDArray[np.float32]], d: int) -> Any:
    if op == "linear":
        A = arrays["A"]
        t = faiss.LinearTransform(A.shape[1], A.shape[0], "b" in arrays)
        faiss.copy_array_to_vector(np.ascontiguousarray(A, np.float32).ravel(), t.A)
        if "b" in arrays:
            faiss.copy_array_to_vector(np.ascontiguousarray(arrays["b"], np.float32), t.b)
        t.is_trained = True
        t.set_is_orthonormal()
        return t
    if op == "center":
        t = faiss.CenteringTransform(d)
        faiss.copy_array_to_vector(np.ascontiguousarray(arrays["mean"], np.float32), t.mean)
        t.is_trained = True
        return t
    if op == "normalize":
        return faiss.NormalizationTransform(d, 2.0)
    raise ConfigError(f"an encoder layer '{op}' cannot stand inside a FAISS file")


def chain(index: Any) -> list[Any]:
    """The transforms in front of an index, in the order of use."""
    index = faiss.downcast_index(index)
    if not isinstance(index, faiss.IndexPreTransform):
        return []
    return [faiss.downcast_VectorTransform(index.chain.at(i)) for i in range(index.chain.size())]


def unclonable(index: Any) -> list[str]:
    """The classes of transforms in front of an index that faiss.clone_index, and with it a copy to a GPU, refuses.

    Only these keep files of ours from being cloned. No class that FAISS clones divides a row by its norm, and none needs to:
    whoever applies the chain to queries can clone the index behind it.
    """
    kinds = (faiss.LinearTransform, faiss.RemapDimensionsTransform)
    return [type(t).__name__ for t in chain(index) if not isinstance(t, kinds)]


def is_tile(transform: Any) -> bool:
    """Whether a transform repeats its input, as additive codes stored as product codes ask for (see reshape.py)."""
    if not isinstance(transform, faiss.RemapDimensionsTransform) or transform.d_out % transform.d_in:
        return False
    return bool((faiss.vector_to_array(transform.map) == np.arange(transform.d_out) % transform.d_in).all())


def may_overflow(index: Any) -> bool:
    """Whether the transforms can make of a finite row one that is not."""
    return any(isinstance(t, (faiss.LinearTransform, faiss.CenteringTransform)) for t in chain(index))


def kind_of(index: Any) -> str:
    """'additive' where queries are repeated for the codes, else 'product'."""
    return "additive" if any(map(is_tile, chain(index)[-1:])) else "product"


def encoded(index: Any, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows as the user has them -> the vectors that codes stand for, (n, d of the codebooks)."""
    for t in chain(index):
        x = x if is_tile(t) else _applied(t, x)
    return x


def _applied(t: Any, x: NDArray[np.float32]) -> NDArray[np.float32]:
    # FAISS takes the root of squares in float32, and makes zeros of what is too large or too small for that.
    return faiss_calls.apply(t, balanced(x) if isinstance(t, faiss.NormalizationTransform) else x)


def apply_transforms(index: Any, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows as the user has them -> rows as the index behind the transforms takes them."""
    for t in chain(index):
        x = _applied(t, x)
    return x


def tiled(index: Any, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows that live where codes do -> rows as the index behind the transforms takes them."""
    for t in chain(index):
        x = _applied(t, x) if is_tile(t) else x
    return x


# What FAISS's readers return already stands for the class that the index is of: a search would downcast it six times.
_LEAVES = (faiss.IndexIVFPQ, faiss.IndexPQ, faiss.IndexPreTransform)


def unwrap_index(index: Any) -> Any:
    """The index behind the chain, or the index itself."""
    if type(index) not in _LEAVES:
        index = faiss.downcast_index(index)
    return faiss.downcast_index(index.index) if isinstance(index, faiss.IndexPreTransform) else index


def layers(index: Any) -> list[tuple[str, dict[str, NDArray[np.float32]]]]:
    """The encoder in front of an index, as `wrap` takes it."""
    out: list[tuple[str, dict[str, NDArray[np.float32]]]] = []
    for t in chain(index):
        if isinstance(t, faiss.LinearTransform):
            arrays = {"A": faiss.vector_to_array(t.A).reshape(t.d_out, t.d_in)}
            out.append(("linear", arrays | ({"b": faiss.vector_to_array(t.b)} if t.have_bias else {})))
        elif isinstance(t, faiss.CenteringTransform):
            out.append(("center", {"mean": faiss.vector_to_array(t.mean)}))
        elif isinstance(t, faiss.NormalizationTransform):
            out.append(("normalize", {}))
    return out
