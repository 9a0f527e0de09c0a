"""Rows for training: held in memory or streamed, features or images; the methods cannot tell."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from .. import distributed
from ..arrays import Floats, Ints
from ..contract import batch_count, drawn_rows
from ..data import Source
from ..encoders.base import Stats
from ..model import read_ahead

MEMORY_SHARE = 0.4  # of the free memory, for rows held at a time; more than that is streamed


def free_memory() -> int:
    """Bytes this process may still take: the smaller of free memory and what its control group leaves."""
    with open("/proc/meminfo") as f:
        free = next(int(line.split()[1]) * 1024 for line in f if line.startswith("MemAvailable"))
    try:
        with open("/sys/fs/cgroup/memory.max") as limit, open("/sys/fs/cgroup/memory.current") as used:
            free = min(free, int(limit.read()) - int(used.read()))
    except (OSError, ValueError):  # no control group, or one without a limit ("max")
        pass
    return free


class SourceRows:
    """The rows of a Source for training: held as one tensor if they fit into `memory` bytes, else streamed.

    kept: row numbers to use (default all); every row number given out counts among these.
    """

    def __init__(self, source: Source, device: str, memory: int | None = None, kept: Ints | None = None) -> None:
        self.source, self.device, self.kept, self.d = source, device, kept, source.d
        self.memory = int(MEMORY_SHARE * free_memory()) if memory is None else memory
        self.x: Tensor | None = None
        if 4 * source.d * len(self) <= self.memory:
            x = np.empty((len(self), source.d), np.float32)
            for i, block in self._read():
                x[i : i + len(block)] = block
            self.x = torch.from_numpy(x)

    def __len__(self) -> int:
        return len(self.source) if self.kept is None else len(self.kept)

    def _read(self) -> Iterator[tuple[int, Floats]]:
        place = 0
        for i, x in read_ahead(self.source.blocks()):
            if self.kept is not None:
                low, high = np.searchsorted(self.kept, [i, i + len(x)])
                x = x[self.kept[low:high] - i]
            if len(x):
                yield place, x
            place += len(x)

    def blocks(self) -> Iterator[tuple[int, Floats]]:
        if self.x is None:
            yield from self._read()
            return
        for i in range(0, len(self.x), self.source.block_rows):
            yield i, self.x[i : i + self.source.block_rows].numpy()

    def sample(self, limit: int, seed: int) -> tuple[Floats, Ints]:
        rows = drawn_rows(len(self), limit, seed)
        parts = [x[rows[slice(*np.searchsorted(rows, [i, i + len(x)]))] - i] for i, x in self.blocks()]
        return np.concatenate(parts or [np.zeros((0, self.d), np.float32)]), rows

    def batches(self, size: int, generator: Generator, rows: Ints | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        if self.x is not None:
            index = torch.arange(len(self)) if rows is None else torch.from_numpy(rows)
            index = index[torch.randperm(len(index), generator=generator)]
            for part in index.tensor_split(batch_count(len(index), size)):
                yield self.x[part].to(self.device), part.to(self.device)
            return
        yield from self._streamed(size, generator, rows)

    def _streamed(self, size: int, generator: Generator, rows: Ints | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Blocks in random order, several at a time mixed row by row: as near to a full shuffle as memory lets."""
        wanted = np.ones(len(self), bool)
        if rows is not None:
            wanted[:] = False
            wanted[rows] = True
        own = np.arange(len(self.source)) if self.kept is None else self.kept
        step = self.source.block_rows
        starts = torch.randperm(-(-len(self.source) // step), generator=generator).numpy() * step
        at_a_time = max(1, self.memory // (3 * 4 * self.d * step))  # the pool, its shuffled copy, the block being read

        def pools() -> Iterator[tuple[Floats, Ints]]:
            for j in range(0, len(starts), at_a_time):
                xs, indices = [], []
                for i in starts[j : j + at_a_time]:
                    end = min(int(i) + step, len(self.source))
                    low, high = np.searchsorted(own, [i, end])
                    index = np.arange(low, high)[wanted[low:high]]
                    if len(index):
                        xs.append(self.source.read(int(i), end)[own[index] - i])
                        indices.append(index)
                if xs:
                    yield np.concatenate(xs), np.concatenate(indices)

        count = batch_count(int(wanted.sum()), size)
        least, more = divmod(int(wanted.sum()), count)
        sizes = iter([least + 1] * more + [least] * (count - more))  # those of tensor_split
        wants = next(sizes)
        rest_x, rest_index = torch.zeros(0, self.d), torch.zeros(0, dtype=torch.int64)
        for pool_x, pool_index in read_ahead(pools()):
            x, index = (
                torch.cat([rest_x, torch.from_numpy(pool_x)]),
                torch.cat([rest_index, torch.from_numpy(pool_index)]),
            )
            order = torch.randperm(len(x), generator=generator)
            at = 0
            while wants and len(order) - at >= wants:
                part = order[at : at + wants]
                yield x[part].to(self.device), index[part].to(self.device)
                at, wants = at + wants, next(sizes, 0)
            rest_x, rest_index = x[order[at:]], index[order[at:]]


class ImageRows:
    """The images of a Source for training, as the network takes them: (b, 3, size, size) uint8.

    Decoded once and held if they fit into `memory` bytes; else decoded for every batch, by threads and ahead of the training.
    Over several processes each decodes its own share of a batch. d: dimension of the features that the network makes of a
    image. kept: row numbers to use (default all); every row number given out counts among these.
    """

    def __init__(self, source: Any, d: int, device: str, memory: int | None = None, kept: Ints | None = None) -> None:
        self.source, self.device, self.kept, self.d = source, device, kept, d
        self.memory = int(MEMORY_SHARE * free_memory()) if memory is None else memory
        self.x: Tensor | None = None
        if source.d * len(self) <= self.memory:  # a byte for each number
            x = np.empty((len(self), *source.item_shape), np.uint8)
            for i, block in self._read():
                x[i : i + len(block)] = block
            self.x = torch.from_numpy(x)

    def __len__(self) -> int:
        return len(self.source) if self.kept is None else len(self.kept)

    def _read(self) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        step: int = self.source.block_rows
        parts = ((i, np.arange(i, min(i + step, len(self)))) for i in range(0, len(self), step))
        yield from read_ahead((i, self._take(rows)) for i, rows in parts)

    def _take(self, rows: Ints) -> NDArray[np.uint8]:
        found: NDArray[np.uint8] = self.source.take(rows if self.kept is None else self.kept[rows])
        return found

    def blocks(self) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        if self.x is None:
            yield from self._read()
            return
        for i in range(0, len(self.x), self.source.block_rows):
            yield i, self.x[i : i + self.source.block_rows].numpy()

    def sample(self, limit: int, seed: int) -> tuple[NDArray[np.uint8], Ints]:
        rows = drawn_rows(len(self), limit, seed)
        return (self._take(rows) if self.x is None else self.x[torch.from_numpy(rows)].numpy()), rows

    def batches(self, size: int, generator: Generator, rows: Ints | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        index = torch.arange(len(self)) if rows is None else torch.from_numpy(rows)
        index = index[torch.randperm(len(index), generator=generator)]
        # Cut before decoding: what a process does not train on it need not decode.
        parts = (distributed.shard((part,)) for part in index.tensor_split(batch_count(len(index), size)))

        def decoded() -> Iterator[tuple[Tensor, Tensor]]:
            for (part,) in parts:
                yield torch.from_numpy(self._take(part.numpy())), part

        # Held images are picked out here: torch in a second thread would bring threads of its own, which wait by spinning
        # on the cores that the training needs.
        held = self.x
        batches = read_ahead(decoded()) if held is None else ((held[part], part) for (part,) in parts)
        for x, part in batches:
            yield distributed.LocalBatch((x.to(self.device), part.to(self.device)))

    def digest(self) -> str:
        """SHA-256 (hex) of the images as they are stored, not decoded."""
        found: str = self.source.digest(self.kept)
        return found


def statistics(rows: SourceRows, d: int | None = None) -> Stats:
    """Mean and standard deviation of x and of its signed square root, in one pass, summed in float64.

    d: dimension of what is encoded, default that of the rows; of pairs half of it, and queries and keys count alike.
    """
    d = d or rows.d
    sums, n = np.zeros((4, d)), len(rows) * rows.d // d
    minimum = np.inf
    for _, x in rows.blocks():
        x = x.reshape(-1, d)
        root = np.copysign(np.sqrt(np.abs(x)), x)
        sums += [
            x.sum(0, dtype=np.float64),
            np.einsum("nd,nd->d", x, x, dtype=np.float64),
            root.sum(0, dtype=np.float64),
            np.einsum("nd,nd->d", root, root, dtype=np.float64),  # not |x|: a constant column must come out as one
        ]
        minimum = min(minimum, float(x.min(initial=np.inf)))
    mean, square, root_mean, root_square = sums / max(n, 1)
    sd, root_sd = (np.sqrt(np.maximum(a - b * b, 0)) for a, b in ((square, mean), (root_square, root_mean)))
    return Stats(n, mean, sd, root_mean, root_sd, minimum)
