"""Several processes that train one model: each takes its share of every batch, and what they compute is brought together.

Without a process group, every function here is that of one process alone.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from . import forks
from .devices import torch_device
from .errors import ConfigError, ResourceError, ScqError, ScqWarning

TIMEOUT = 1800.0  # seconds that a process waits for the others: the slowest k-means and checkpoint must fit in
ROLL_CALL = 3.0  # seconds in which those who are alive say so, after one was lost


def one_thread_after_fork() -> None:
    """Set torch to one thread in a child made by fork; nothing elsewhere (see forks.py)."""
    forks.one_thread(torch.set_num_threads)


os.register_at_fork(after_in_child=one_thread_after_fork)
one_thread_after_fork()


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


class _Gather(torch.autograd.Function):
    """Forward: the pieces of all processes, one behind the other. Backward: every process used this process's piece."""

    @staticmethod
    def forward(ctx: Any, piece: Tensor) -> Tensor:
        pieces = [torch.empty_like(piece) for _ in range(world_size())]
        dist.all_gather(pieces, piece.contiguous())
        ctx.rows = len(piece)
        return torch.cat(pieces)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].contiguous()
        dist.all_reduce(total)
        at = rank() * ctx.rows
        return total[at : at + ctx.rows]


def all_gather_with_grad(piece: Tensor) -> Tensor:
    """(b, ...) of this process -> (world b, ...) of all, in the order of their ranks; b must be the same everywhere.

    The gradient is that of the sum of all processes' losses. As gradients of parameters are averaged over the processes, a
    loss that is the mean over the process's own b rows gives just the gradient of one process with all rows.
    Cross-device sampling of Xiao, Liu, Shao, Lian, Xie, EMNLP 2021, arXiv 2104.07858.
    """
    return piece if world_size() == 1 else _Gather.apply(piece)  # type: ignore[no-any-return,no-untyped-call]


def all_reduce_sum(t: Tensor) -> Tensor:
    """The sum over all processes, without gradient."""
    t = t.detach().clone()
    if world_size() > 1:
        dist.all_reduce(t)
    return t


def average(t: Tensor) -> Tensor:
    """The mean over all processes, without gradient."""
    return all_reduce_sum(t) / world_size()


def all_reduce_max(value: float) -> float:
    """The largest of all processes' values: a decision that every process takes alike."""
    if world_size() == 1:
        return value
    t = torch.tensor(value, dtype=torch.float64, device=_device())
    dist.all_reduce(t, dist.ReduceOp.MAX)
    return float(t)


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Put the mean over all processes in place of every gradient, in one exchange."""
    if world_size() == 1:
        return
    grads = [p.grad for p in parameters if p.grad is not None]
    if not grads:
        return
    flat = torch.cat([g.flatten() for g in grads])
    dist.all_reduce(flat)
    flat /= world_size()
    for g, mean in zip(grads, flat.split([g.numel() for g in grads])):
        g.copy_(mean.view_as(g))


def same_everywhere(tensors: Iterable[Tensor]) -> None:
    """Put the first process's values into these tensors everywhere: rounding must not let the processes drift apart."""
    if world_size() > 1:
        for t in tensors:
            dist.broadcast(t, 0)


def all_gather(t: Tensor) -> list[Tensor]:
    """The tensors of all processes, of one shape, in the order of their ranks; without gradient."""
    if world_size() == 1:
        return [t]
    mine = t.to(_device())
    pieces = [torch.empty_like(mine) for _ in range(world_size())]
    dist.all_gather(pieces, mine)
    return [piece.to(t.device) for piece in pieces]


class LocalBatch(tuple[Any, ...]):
    """A batch that is this process's part already."""


def shard(batch: tuple[Any, ...]) -> tuple[Any, ...]:
    """This process's part of a batch: as many rows for each process, the few left over dropped; Own stays as it is.

    Raises ConfigError where there are fewer rows than processes.
    """
    W, r = world_size(), rank()
    if W == 1 or isinstance(batch, LocalBatch):
        return batch
    n = min((len(t) for t in batch if isinstance(t, Tensor)), default=0) // W
    if n == 0:
        raise ConfigError(f"a batch has fewer rows than the {W} processes that share it; use a larger --batch-size")
    return tuple(t[r * n : (r + 1) * n] if isinstance(t, Tensor) else t for t in batch)


def _device() -> str:
    return "cuda" if dist.get_backend() == "nccl" else "cpu"


def launched() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


@contextmanager
def process_group(device: str) -> Iterator[None]:
    """Be one of the processes that torchrun started, if it did: `torchrun --nproc-per-node N -m scqfaiss train ...`.

    device: 'cpu' (gloo) or 'cuda...' (nccl). Raises ResourceError when another process is lost, naming it where it can.
    """
    if launched() == 1 or dist.is_initialized():
        yield
        return
    backend = "nccl" if device.startswith("cuda") else "gloo"
    if backend == "nccl":
        torch.cuda.set_device(device)  # what is exchanged lies on the GPU of its process
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=TIMEOUT))
    except (RuntimeError, ValueError) as error:
        raise ResourceError(f"the {launched()} processes found no way to each other ({_first_line(error)})") from error
    me, everyone = rank(), world_size()
    try:
        with warnings.catch_warnings():
            if me:  # what all of them have to say, the first one says
                warnings.simplefilter("ignore", ScqWarning)
            yield
    except ScqError:
        with suppress(RuntimeError, ValueError):
            dist.distributed_c10d._get_default_store().set(f"ended-{me}", "yes")
        raise
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or not _is_loss(error):
            raise
        raise ResourceError(
            f"process {me} of {everyone} {_missing(me, everyone)}; --resume goes on from the last checkpoint, if there is one"
        ) from error
    finally:
        with suppress(RuntimeError):
            dist.destroy_process_group()


def _is_loss(error: RuntimeError) -> bool:
    # gloo has no class of its own for this; NCCL's errors are DistBackendError.
    text = str(error)
    return isinstance(error, dist.DistError) or "gloo" in text or "Connection" in text or "Timed out" in text


def _missing(me: int, everyone: int) -> str:
    """'lost process 1', as far as it can be told: everyone who is alive signs in a shared list."""
    try:
        store = dist.distributed_c10d._get_default_store()
        store.set(f"alive-{me}", "yes")
        time.sleep(ROLL_CALL)
        ended = [r for r in range(everyone) if store.check([f"ended-{r}"])]
        if ended:
            return f"ends, as process {ended[0]} met an error"
        missing = [r for r in range(everyone) if r != me and not store.check([f"alive-{r}"])]
    except (RuntimeError, ValueError):  # the list went down with the process that kept it, which is the first
        missing = [0]
    return f"lost process {' and '.join(map(str, missing))}" if missing else "lost the connection to the others"


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def pick_device(name: str) -> str:
    """'auto', 'cpu', 'cuda' or 'cuda:N' -> a device torch has. Raises ConfigError.

    'cuda' is a GPU of its own for each of several processes.
    """
    number = int(os.environ.get("LOCAL_RANK", "0")) if launched() > 1 else None
    return torch_device(name, number=number)
