"""What a training would do, without doing it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..codebooks import Shape
from ..data.items import ItemSource
from ..dependencies import missing
from ..encoders.chain import Chain
from ..errors import format_bytes
from ..files import PathLike, check_target
from ..model import SUFFIX
from ..options import TrainOptions
from . import class_numbers
from .calibrating import with_calibration
from .content_codes import joint_shape
from .fitting import build
from .interface import input_files, open_sources
from .outcome import model_bytes
from .planning import make_plan


def dry_run(
    path: PathLike,
    out: PathLike,
    options: TrainOptions,
    *,
    keys: Mapping[str, Any],
    **more: PathLike | None,
) -> str:
    """What a training would do: rows, steps, bytes, and which targets take its codes where. more: files of open_sources.

    Writes nothing, and reads no features unless similarity=means asks for class means.
    """
    from ..targets import REGISTRY as TARGETS

    check_target(out, inputs=input_files(path, options, more), suffix=SUFFIX)
    with open_sources(path, keys, options.method, **more) as sources:
        source = sources.rows
        plan = make_plan(options, source, sources.validation, sources.codebooks, sources.unlabelled)
        plan = with_calibration(plan, sources.calibration)
        method = build(plan, dry=True)
        stages = method.stages()
        n, chain = len(source), Chain(plan.d_in).then(*method.layers())
    shape = plan.shape(chain.d_out)
    form = f"of d={plan.d_in} ({format_bytes(4 * n * source.d)} as float32)"
    if isinstance(source, ItemSource):
        form = f"{source.form} ({format_bytes(n * source.d)}), to features of d={plan.d_in}"
    content = options.content_bits
    if content:
        shape = joint_shape(shape, content, options.nbits, plan.d_in)
    in_lists = f", in {shape.L:,} lists" if shape.L > 1 else ""
    lines = [
        f"{'pairs' if source.pairs else source.modality.items}: {n:,} {form}",
        f"classes: {class_numbers.described(plan.labels)}",
        f"codes: {shape.M} x {shape.nbits} bits, {shape.code_size} bytes a vector{in_lists}, z of d={shape.d}"
        + (f", {content} bits of them content codes" if content else ""),
        f"model: about {format_bytes(model_bytes(plan, chain))}",
        *(f"stage {s.name}: {s.epochs} epochs, {s.epochs * s.steps_per_epoch:,} steps" for s in stages if s.epochs),
        *(["labels: judged by 8 to 18 short trainings of the features, in folds"] if options.robust == "on" else []),
        f"device: {plan.device}",
    ]
    for name in TARGETS:
        lines.append(describe_support(name, shape))
    return "\n".join(lines)


def describe_support(name: str, shape: Shape) -> str:
    """A line about target `name` for codes of this shape: bytes for a million rows, CPU and GPU."""
    try:
        from ..targets import gpu, target

        container = target(name)
    except Exception as error:
        lacking = missing(error)
        if lacking is None:
            raise
        return f"target {name}: unknown: {lacking}"
    reason = container.supports(shape)
    if reason is not None:
        return f"target {name}: no ({reason})"
    on_gpu = gpu.unsupported_reason(shape)
    answer = f"CPU yes, GPU {'yes' if on_gpu is None else f'no ({on_gpu})'}"
    return f"target {name}: {format_bytes(container.nbytes(shape, 1_000_000))} a million rows, {answer}"
