"""The one loop over a method's stages: steps, checkpoints, early stopping, metrics, on one process or several."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import reduce
from itertools import islice
from operator import add
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor
from torch.utils import deterministic

from .. import distributed
from ..contract import Progress, Stage, seed_of, silent
from ..errors import CheckpointError, ConfigError, Stopped, WriteError, warn
from ..options import TrainOptions
from .checkpoints import Checkpoints
from .epoch_log import Log


@dataclass
class TrainState:
    """Where a training stands: everything that a checkpoint holds beside the method's own parameters and buffers."""

    stage: int = 0
    epoch: int = 0
    batch: int = 0  # of the epoch, the next one to train on
    step: int = 0  # of all stages, steps taken
    stage_step: int = 0
    sums: dict[str, float] = field(default_factory=dict)  # of each loss term over the epoch
    means: dict[str, float] = field(default_factory=dict)  # of each loss term in the last whole epoch
    losses: dict[str, dict[str, float]] = field(default_factory=dict)  # means of the finished stages
    finished: list[Any] = field(
        default_factory=list
    )  # parameters and buffers as each finished stage left them, or None
    best: float | None = None  # smallest validation value of the stage
    best_epoch: int = 0
    best_state: dict[str, Tensor] | None = None
    over: bool = False  # the stage was stopped early


@dataclass
class Engine:
    """Runs the stages of a method.

    seed: of the order and the noise of every epoch. precision: of devices.PRECISIONS; what runs in it is the encoder's own
    business, here it scales the gradients of float16. clip_norm: largest norm of the gradients of a turn, 0: any. patience:
    epochs without a better validation value after which a stage ends, 0: never. accumulate: parts in which a batch goes
    through the losses, whose gradients add up to those of the whole batch; less memory, the same step.
    """

    method: Any
    seed: int = TrainOptions.seed
    precision: str = TrainOptions.precision
    clip_norm: float = TrainOptions.clip_norm
    patience: int = TrainOptions.patience
    accumulate: int = TrainOptions.accumulate
    progress: Progress = silent
    checkpoints: Checkpoints | None = None
    log: Log = field(default_factory=Log)

    @classmethod
    def of(
        cls, method: Any, options: TrainOptions, progress: Progress, checkpoints: Checkpoints | None, log: Log
    ) -> Engine:
        """The engine of a training with these options."""
        o = options
        return cls(method, o.seed, o.precision, o.clip_norm, o.patience, o.accumulate, progress, checkpoints, log)

    def run(self, resume: bool = False) -> dict[str, dict[str, float]]:
        """Train -> mean of each loss term over the last epoch, by stage. Same seed, same machine: the same bits (on CPU).

        resume: go on from the newest checkpoint, if there is one. Raises ConfigError when a loss is not finite, Stopped
        (with a checkpoint written) on the first SIGINT or SIGTERM where checkpoints are kept.
        """
        place, state = TrainState(), None
        found = self.checkpoints.newest() if resume and self.checkpoints is not None else None
        if found is not None:
            state = found[1]
            place = TrainState(**state["place"])
        self.log.start(place.step - place.batch)  # the end of the last whole epoch
        for number, stage in enumerate(self.method.stages()):
            if number < place.stage:
                self._replay(stage, place.finished[number])
            else:
                self._stage(stage, number, place, state)
                state = None
        return place.losses

    # ---------------------------------------------------------------------------------------------------------- stages
    def _replay(self, stage: Stage, left: Mapping[str, Tensor] | None) -> None:
        """A finished stage once more, its epochs replaced by what they came to."""
        with _arithmetic(stage, self._device() == "cpu"):
            stage.begin()
            if left is not None:
                self.method.load_state_dict(left)
        stage.end()

    def _stage(self, stage: Stage, number: int, place: TrainState, state: Mapping[str, Any] | None) -> None:
        if state is None:
            place.stage, place.epoch, place.batch, place.stage_step = number, 0, 0, 0
            place.sums, place.means, place.over = {}, {}, False
            place.best, place.best_epoch, place.best_state = None, 0, None
        with _arithmetic(stage, self._device() == "cpu"):
            stage.begin()
            trains = stage.epochs > 0 and not stage.skipped()
            if trains:
                if stage.allow_reduced_precision:
                    torch.set_float32_matmul_precision("medium")
                with self._signals() as asked:
                    self._epochs(stage, place, state, asked)
                if place.best_state is not None:
                    self.method.load_state_dict(place.best_state)
        keep = trains and self.checkpoints is not None
        place.finished.append(self._state_dict() if keep else None)  # before end(), which a replay runs again
        stage.end()
        place.losses[stage.name] = place.means

    def _epochs(
        self, stage: Stage, place: TrainState, state: Mapping[str, Any] | None, asked: Callable[[], bool]
    ) -> None:
        assert stage.batches and stage.optimizer_steps
        total = stage.epochs * stage.steps_per_epoch
        optimizer_steps = [(turn.loss, *turn.make_optimizer(total)) for turn in stage.optimizer_steps]
        scaler = torch.amp.GradScaler(self._device(), enabled=self.precision == "float16")
        if state is not None:
            self._restore(state, optimizer_steps, scaler)
        while place.epoch < stage.epochs and not place.over:
            epoch = place.epoch
            # Every epoch starts from its own seed: what is drawn does not depend on what ran before.
            epoch_seed = seed_of(self.seed, place.stage, epoch)
            # Processes draw different noise, and the same order of rows.
            torch.manual_seed(epoch_seed + distributed.rank())
            stage.on_epoch(epoch)
            self._train_mode()
            batches = stage.batches(Generator().manual_seed(epoch_seed))
            if state is not None and place.batch:
                batches = self._mid_epoch(state, islice(batches, place.batch, None))
            state = None
            begun = time.monotonic()
            waited = Waited()
            for batch in waited.of(batches):
                value = self._step(stage, optimizer_steps, scaler, distributed.shard(batch), place)
                place.batch, place.step, place.stage_step = place.batch + 1, place.step + 1, place.stage_step + 1
                self.progress(stage.name, min(place.stage_step, total), total, f"loss {value:.4f}")
                self._pause(place, optimizer_steps, scaler, asked)
            self._end_of_epoch(stage, place, optimizer_steps, time.monotonic() - begun, waited.seconds)
            self._pause(place, optimizer_steps, scaler, asked)

    def _step(
        self, stage: Stage, optimizer_steps: Any, scaler: Any, batch: tuple[Any, ...], place: TrainState
    ) -> float:
        """The turns of one batch -> the last one's loss."""
        value = 0.0
        for loss_of, optimizer, scheduler in optimizer_steps:
            found: dict[str, Tensor] = {}
            optimizer.zero_grad(set_to_none=True)
            for part, weight in _parts(batch, self.accumulate):
                terms: dict[str, Tensor] = loss_of(*part)
                loss = reduce(add, terms.values())
                scaler.scale(loss if weight == 1 else weight * loss).backward()
                for name, term in terms.items():
                    found[name] = found[name] + weight * term.detach() if name in found else weight * term.detach()
            values = distributed.average(torch.stack(list(found.values()))).tolist()
            value = sum(values)
            if not np.isfinite(value):  # before the optimiser takes its step: what is kept is finite
                raise _diverged(stage, place, dict(zip(found, values)), optimizer, self.checkpoints)
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            distributed.average_gradients(parameters)
            if self.clip_norm:
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(parameters, self.clip_norm)
            scaler.step(optimizer)
            scaler.update()
            if scheduler is not None:
                scheduler.step()
            for name, mean in zip(found, values):
                place.sums[name] = place.sums.get(name, 0.0) + mean
        with torch.no_grad():
            stage.after_step()
        return value

    def _end_of_epoch(
        self, stage: Stage, place: TrainState, optimizer_steps: Any, seconds: float, waited: float
    ) -> None:
        steps = max(place.batch, 1)
        place.means = {name: s / steps for name, s in place.sums.items()}
        epoch = place.epoch
        facts: dict[str, Any] = {"stage": stage.name, "epoch": epoch + 1, "step": place.step, "loss": place.means}
        facts["lr"] = [optimizer.param_groups[0]["lr"] for _, optimizer, _ in optimizer_steps]
        with torch.no_grad():
            facts |= stage.after_epoch(epoch)
            if isinstance(self.method, torch.nn.Module):
                distributed.same_everywhere(self.method.state_dict().values())
            if stage.validate is not None:
                facts["validation"] = value = self._validate(stage)
                if place.best is None or value < place.best:
                    place.best, place.best_epoch, place.best_state = value, epoch, self._state_dict()
                place.over = 0 < self.patience <= epoch - place.best_epoch
        self.log(facts | {"seconds": seconds, "waited": waited})
        place.epoch, place.batch, place.sums = epoch + 1, 0, {}

    def _validate(self, stage: Stage) -> float:
        assert stage.validate is not None
        self.method.eval()
        value = distributed.all_reduce_max(float(stage.validate()))
        if not np.isfinite(value):
            raise ConfigError(f"the validation rows give a loss of {value} (stage {stage.name}), needs a finite one")
        self._train_mode()
        return value

    # ----------------------------------------------------------------------------------------------------------- state
    def _state_dict(self) -> dict[str, Tensor]:
        return {k: v.detach().clone() for k, v in self.method.state_dict().items()}

    def _train_mode(self) -> None:
        if isinstance(self.method, torch.nn.Module):
            self.method.train()

    def _device(self) -> str:
        found = next(self.method.parameters(), None) if isinstance(self.method, torch.nn.Module) else None
        return "cpu" if found is None else found.device.type

    def _pause(self, place: TrainState, optimizer_steps: Any, scaler: Any, asked: Callable[[], bool]) -> None:
        """Between two steps: write a checkpoint where it is time, and stop where that was asked."""
        if self.checkpoints is None:
            return
        wish = distributed.all_reduce_max(2.0 if asked() else 1.0 if self.checkpoints.due(place.step) else 0.0)
        if wish:
            random = {"cpu": torch.stack(distributed.all_gather(torch.get_rng_state()))}
            if self._device() == "cuda":
                random["cuda"] = torch.stack(distributed.all_gather(torch.cuda.get_rng_state()))
            state = {
                "place": vars(place),
                "method": self._state_dict(),
                "turns": [(o.state_dict(), None if s is None else s.state_dict()) for _, o, s in optimizer_steps],
                "scaler": scaler.state_dict(),
                "random": random,
            }
            try:
                self.checkpoints.save(place.step, state)
            except WriteError as error:
                if wish == 2:
                    raise
                warn(f"{error}; training goes on, and will try again")  # what was trained is worth more than its copy
        if wish == 2:
            raise Stopped(f"stopped at step {place.step:,}; continue with --resume")

    def _restore(self, state: Mapping[str, Any], optimizer_steps: Any, scaler: Any) -> None:
        """Method, optimisers and schedules as they were at a checkpoint."""
        try:
            self.method.load_state_dict(state["method"])
        except RuntimeError as error:
            raise CheckpointError("the checkpoint is of a model of another form; train anew") from error
        for (_, optimizer, scheduler), (of_optimizer, of_scheduler) in zip(
            optimizer_steps, state["turns"], strict=True
        ):
            optimizer.load_state_dict(of_optimizer)
            for p, kept in optimizer.state.items():  # in the parameter's layout of memory, along which fused steps run
                for name, value in kept.items():
                    if isinstance(value, Tensor) and value.shape == p.shape:
                        kept[name] = torch.empty_like(p).copy_(value)
            if scheduler is not None:
                scheduler.load_state_dict(of_scheduler)
        scaler.load_state_dict(state["scaler"])

    def _mid_epoch(self, state: Mapping[str, Any], batches: Iterator[Any]) -> Iterator[Any]:
        """The batches of an epoch that are still to come, after the start of the epoch was run once more."""
        first = next(batches, None)  # passes over those that were trained on
        self.method.load_state_dict(state["method"])  # whatever on_epoch did to it was done before
        for kind, setter in (("cpu", torch.set_rng_state), ("cuda", torch.cuda.set_rng_state)):
            if kind in state["random"]:
                setter(state["random"][kind][distributed.rank()].clone())  # a row of it is no state of its own
        if first is not None:
            yield first
            yield from batches

    @contextmanager
    def _signals(self) -> Iterator[Callable[[], bool]]:
        """The first SIGINT or SIGTERM asks to stop after the step; a second one stops at once."""
        got: list[int] = []
        if self.checkpoints is None or threading.current_thread() is not threading.main_thread():
            yield lambda: False
            return
        before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

        def note(number: int, frame: Any) -> None:
            got.append(number)
            for s, handler in before.items():
                signal.signal(s, handler)

        for s, handler in before.items():
            if handler not in (signal.SIG_IGN, None):
                signal.signal(s, note)
        try:
            yield lambda: bool(got)
        finally:
            for s, handler in before.items():
                if handler is not None:
                    signal.signal(s, handler)
        if got:  # after the last look: as if it came now
            signal.raise_signal(got[0])


@dataclass
class Waited:
    """Hands on batches, and counts the seconds for which they were not ready."""

    seconds: float = 0.0

    def of(self, batches: Iterator[Any]) -> Iterator[Any]:
        while True:
            begun = time.monotonic()
            batch = next(batches, None)
            self.seconds += time.monotonic() - begun
            if batch is None:
                return
            yield batch


def _parts(batch: tuple[Any, ...], count: int) -> Iterator[tuple[tuple[Any, ...], float]]:
    """A batch in at most `count` parts, each with its share of the rows."""
    n = min((len(t) for t in batch if isinstance(t, Tensor)), default=0)
    count = max(1, min(count, n))
    if count == 1:
        yield batch, 1.0
        return
    cuts = [t.tensor_split(count) if isinstance(t, Tensor) else [t] * count for t in batch]
    for i, part in enumerate(zip(*cuts)):
        yield part, (n // count + (i < n % count)) / n


@contextmanager
def _arithmetic(stage: Stage, on_cpu: bool) -> Iterator[None]:
    """Threads and products as the stage wants them. k-means, in begin(), is float32 whatever the steps are.

    On the CPU sums are taken in one order, whatever the threads: else the gradient of x[index] alone would end the promise of
    equal bytes.
    """
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    fixed, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fills = deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    try:
        if on_cpu and not fixed:
            torch.use_deterministic_algorithms(True)
            deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # it costs time
        if stage.one_thread:
            torch.set_num_threads(1)
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(fixed, warn_only=warns)
        deterministic.fill_uninitialized_memory = fills  # type: ignore[attr-defined]


def _diverged(
    stage: Stage, place: TrainState, terms: Mapping[str, float], optimizer: Any, checkpoints: Checkpoints | None
) -> ConfigError:
    name, term = next(((n, t) for n, t in terms.items() if not np.isfinite(t)), next(iter(terms.items())))
    what = "NaN" if np.isnan(term) else "infinite"
    rate = optimizer.param_groups[0]["lr"]
    kept = checkpoints.steps()[:1] if checkpoints is not None else []
    good = f"; step {kept[0]:,} is the last kept" if kept else ""
    return ConfigError(
        f"loss is {what} at step {place.stage_step:,} (stage {stage.name}, term {name}, lr {rate:g}); lower the rate{good}"
    )
