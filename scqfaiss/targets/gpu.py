"""Codes on a GPU: one form that FAISS can move there, whatever container they came from.

Of our containers FAISS's classical GPU kernels know IndexIVFPQ alone, with 8-bit codebooks, by_residual, and certain numbers of
codebooks. Codes and codebooks are all that any container holds, so every one of them is put into that form: additive codes
lifted, 4-bit codebooks merged, codebooks added up to the next number that is taken. Scores are those of the CPU, and exact also
where the container itself was approximate. Lists that are part of the code stay lists, of which a search may visit a few.
"""

from __future__ import annotations

import ctypes
import threading
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from .. import faiss_calls
from ..codebooks import Codebooks, Codes, Shape
from ..devices import parse_device
from ..errors import ConfigError, ResourceError
from ..faiss_calls import Hits
from .base import Ids
from .code_lists import real_lists
from .ivfpq import one_list
from .pretransform import chain, prepend, unwrap_index
from .reshape import as_product, filled, merged, merged_shape, padded

# Codebooks that the kernels of IVFPQ take (faiss/gpu/impl/IVFPQ.cu) and whose look-up tables, 4 M 256 bytes, fit into the 48 KiB
# of memory that the threads of a block share.
GPU_M = (1, 2, 3, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48)
MAX_K = 2048
MAX_NPROBE = 2048  # lists that the kernels can choose
# One list is scanned by one block of threads a query, which leaves a GPU idle unless queries are many. Of the scores the best
# are then taken by at most 8 blocks a query (IVFUtils.cu), so that many more lists cannot gain much.
ZERO_LISTS = 16
# Queries a call: FAISS runs up to 65,536 at a time, a CUDA grid holds 65,535, and one too many ends the process.
MAX_BATCH = 1 << 14


def unsupported_reason(shape: Shape) -> str | None:
    """None, or why codes of this shape cannot be searched on a GPU."""
    stored = merged_shape(shape)
    if stored.nbits != 8 and shape.M:
        return f"the GPU kernels need nbits 8, or 4 in an even number of codebooks; got {shape.M} x {shape.nbits}"
    if stored.M > GPU_M[-1]:
        return (
            f"the look-up tables of {stored.M} codebooks exceed the shared memory of the GPU; at most {GPU_M[-1]} fit"
        )
    if shape.kind == "additive" and shape.metric != "ip":
        return "additive codes are searched there by inner product alone"
    return None


def count() -> int:
    """GPUs that this FAISS can use; 0 for a build for the CPU.

    Without a driver get_num_gpus itself ends the process (CUDA error 35) in versions of FAISS, so that is looked for first.
    """
    options = faiss.get_compile_options().split()
    if "GPU" not in options:
        return 0
    if not any("ROCM" in option for option in options):
        try:
            ctypes.CDLL("libcuda.so.1")
        except OSError:
            return 0
    return int(faiss.get_num_gpus())


def number_of(device: str) -> int:
    """'cuda' -> 0, 'cuda:1' -> 1. Raises ConfigError for other names and where FAISS has no such GPU."""
    number = parse_device(device, auto=False).number or 0
    if "GPU" not in faiss.get_compile_options().split():
        raise ConfigError(f'device {device}: this FAISS is built for the CPU: pip install "scqfaiss[gpu]"')
    available = count()
    if number >= available:
        raise ConfigError(f"device {device}: FAISS sees {available} GPUs")
    return number


def form(codebooks: Codebooks, codes: Codes, ids: Ids, nlist: int = ZERO_LISTS) -> Any:
    """Any codes -> the IndexIVFPQ, behind transforms, that a GPU takes. Raises ConfigError as `unsupported_reason` says.

    nlist: lists of zero centroids, for codes that have no lists of their own.
    """
    why = unsupported_reason(codebooks.shape)
    if why is not None:
        raise ConfigError(f"these codes cannot be searched on a GPU: {why}")
    # Merged first: the sum of two additive codewords is half as wide as both side by side.
    stored_codebooks, codes = merged(*filled(codebooks, codes, nbits=8))
    product, tile = as_product(stored_codebooks)
    product, codes, zeros = padded(product, codes, min(M for M in GPU_M if M >= product.M))
    if product.lists is None:
        return prepend([*tile, *zeros], one_list(product, codes, ids, min(nlist, max(1, len(codes)))))
    index = real_lists(product, codes, ids)
    index.nprobe = min(index.nlist, MAX_NPROBE)
    return prepend([*tile, *zeros], index)


def _places(index: Any) -> NDArray[np.int64]:
    """Which dimension of the query each dimension of the index behind the transforms holds; -1: zero."""
    places = np.arange(index.d)
    for t in chain(index):  # `form` puts nothing but RemapDimensionsTransforms there
        moved = faiss.vector_to_array(t.map)
        places = np.where(moved < 0, -1, places[moved])
    return places


def _why(error: RuntimeError) -> str:
    """What a FAISS exception says, without the place in its source."""
    return " ".join(str(error).rpartition("failed: ")[2].split())


class OnGpu:
    """An index on a GPU. One search at a time: FAISS's GPU indexes and their resources are not made for several threads,
    and a lock costs less memory than a copy of the index for each thread.
    """

    def __init__(self, index: Any, number: int, nprobe: int | None = None) -> None:
        """index: as `form` made it; nothing of it is kept. nprobe: lists that a search visits, as many as the GPU can unless
        told. Raises ResourceError where the GPU does not take it.
        """
        self._lock = threading.Lock()
        # FAISS's cloner would copy these transforms to the CPU again; a gather of columns takes their place.
        self._d, self._places = int(index.d), _places(index)
        core = unwrap_index(index)
        self._nlist, self._nprobe = int(core.nlist), min(nprobe or core.nprobe, MAX_NPROBE)
        self._resources = faiss.StandardGpuResources()
        options = faiss.GpuClonerOptions()
        # The classical kernels are the ones that `form` serves. Where FAISS is built with cuVS, that searches the zero
        # centroids all the same (GpuIndexIVF.cu); that it finds each of them once is asked by tools/gpu_check.py.
        if hasattr(options, "use_cuvs"):
            options.use_cuvs = False
        try:
            self._core = faiss.index_cpu_to_gpu(self._resources, number, unwrap_index(index), options)
        except RuntimeError as error:
            raise ResourceError(f"the GPU does not take the index ({_why(error)})") from error

    def search(self, x: NDArray[np.float32], k: int, nprobe: int | None = None) -> Hits:
        """x: encoded rows, (nq, d of the codebooks) or wider by repeating themselves, as additive containers ask for.

        The rows are finite, as queries.prepared gives them: no list is found for any other, and the kernels for wide codebooks
        do not look. nprobe: lists to visit, for codes that have lists; without it, as told before, and more for queries that
        have fewer than k hits then. Raises ConfigError for k or nprobe above 2,048, ResourceError without memory.
        """
        if k > MAX_K:
            raise ConfigError(f"k is {k:,}, a GPU search gives at most {MAX_K:,}; use device cpu")
        if nprobe is not None and nprobe > MAX_NPROBE:
            raise ConfigError(f"nprobe is {nprobe:,}, a GPU search visits at most {MAX_NPROBE:,} lists; use device cpu")
        D, I = self._visit(x, k, nprobe or self._nprobe)
        todo, visited = np.flatnonzero((I < 0).any(1)), self._nprobe
        while nprobe is None and len(todo) and visited < min(self._nlist, MAX_NPROBE):
            visited = min(8 * visited, self._nlist, MAX_NPROBE)
            D[todo], I[todo] = self._visit(x[todo], k, visited)
            todo = todo[(I[todo] < 0).any(1)]
        return D, I

    def _visit(self, x: NDArray[np.float32], k: int, nprobe: int) -> Hits:
        D, I = np.empty((len(x), k), np.float32), np.empty((len(x), k), np.int64)
        params = faiss.SearchParametersIVF(nprobe=nprobe)
        for i in range(0, len(x), MAX_BATCH):
            q = x[i : i + MAX_BATCH, : self._d]
            q = np.where(self._places < 0, np.float32(0), q[:, self._places])
            try:
                with self._lock:
                    D[i : i + len(q)], I[i : i + len(q)] = faiss_calls.search(self._core, q, k, params)
            except RuntimeError as error:
                raise ResourceError(f"the GPU search failed ({_why(error)}); use device cpu") from error
        return D, I
