"""A model's encoder as one ONNX file, for places without Python: what goes in there comes out as `z`, ready to search with.

Normalisation, network and chain stand inside, so that an app that holds the file and a gallery needs nothing else of ours.
The file is made by torch, read back by onnxruntime on the CPU, and held against Model.embed before it takes its place.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..arrays import Floats
from ..encoders.chain import Chain
from ..encoders.torch_chain import TorchChain
from ..errors import ConfigError, ScqError, format_bytes, printable
from ..features.source import InferenceOptions, front_encoder_of
from ..files import PathLike, atomic_write
from ..modality import IMAGES, ROWS
from ..model import Model

if TYPE_CHECKING:
    from ..encoders.backbone import Backbone

SUFFIX = ".onnx"
OPSET = 18  # read by every runtime of the last years; nothing here needs more
IR_VERSION = 10
MAX_BYTES = (1 << 31) - 1  # of a protocol buffer
TOLERANCE = 1e-3  # of the largest |z|: runtimes sum in another order
# Rows that the check sends through. More than one length: an exporter that took the first for a constant fails here.
CHECKED_ROWS = (1, 5)
_CHATTY = ("torch.onnx", "torch.export", "torch.fx", "onnxscript", "onnx_ir")


class Portable(TorchChain):
    """images (n, 3, size, size) uint8, or rows (n, d_in) float32 where there is no backbone -> z (n, d) float32."""

    def __init__(self, chain: Chain, backbone: Backbone | None = None) -> None:
        super().__init__(chain)
        self.backbone = backbone

    def forward(self, x: Tensor) -> Tensor:
        z = super().forward(x if self.backbone is None else self.backbone(x)[0])  # 1 n w -> n w
        return z.clone() if z is x else z  # an output of its own, not the input


def export_encoder(model_path: PathLike, out: PathLike, *, encoder: str | None = None) -> str:
    """Write the encoder of a model as ONNX; returns what to tell the user.

    Input `images` (n, 3, size, size) uint8 RGB of an image model, `rows` (n, d_in) float32 of any other; output `z` (n, d)
    float32, any n. Metadata: model_sha256, method, d, and of images size and fit. encoder: as in features.InferenceOptions.
    Raises ConfigError where ONNX's parts are too old or the network has a form that they cannot write, and where onnxruntime
    computes something else than the model does: nothing is written then.
    """
    with atomic_write(out, inputs=[model_path], suffix=SUFFIX, what="exported") as output:
        model = Model.load(model_path)
        if model.content is not None:
            raise ConfigError(
                f"{printable(model_path)} has content codes, whose queries are weighted when they are asked: ONNX writes models "
                "without them"
            )
        if model.chain.foldable and not model.modality.needs_encoder:
            raise ConfigError(
                f"galleries of {printable(model_path)} hold their encoder: they are searched with rows as they are, and none is "
                "needed before"
            )
        if model.modality not in (ROWS, IMAGES):
            raise ConfigError(f"{printable(model_path)} takes {model.modality.noun}, ONNX is for rows and images")
        backbone: Any = None
        if model.modality == IMAGES:
            backbone = front_encoder_of(model, InferenceOptions(encoder, device="cpu"), printable(model_path))
        weights = [a for _, arrays in model.chain.layers for a in arrays.values()]
        output.check_space(sum(a.nbytes for a in [*weights, *(model.backbone or {}).values()]))
        data = to_bytes(model, backbone, printable(model_path))
        output.write(
            lambda f: f.write(data),
            check=lambda temporary: check_file(temporary, model, backbone, output.name),
            nbytes=len(data),
        )
        takes = f"rows (n, {model.d_in})"
        if backbone is not None:
            takes = f"images (n, 3, {backbone.size}, {backbone.size}) uint8"
        return (
            f"{output.name}: {takes} to z (n, {model.codebooks.d}), {format_bytes(len(data))}, checked with onnxruntime"
        )


def to_bytes(model: Model, backbone: Backbone | None = None, name: str = "the model") -> bytes:
    """The ONNX file of a model's encoder, the same bytes for the same model and the same releases of torch and ONNX."""
    for part in ("onnx", "onnxscript", "onnxruntime"):  # missing ones are named before the slow part
        with _quiet():
            import_module(part)
    import onnx

    if backbone is None:
        input_name, example = "rows", torch.zeros(2, model.d_in)
    else:
        input_name, example = "images", torch.zeros(2, 3, backbone.size, backbone.size, dtype=torch.uint8)
    module = Portable(model.chain, backbone).eval()
    try:
        with _quiet(), _whole(backbone), torch.no_grad():
            program = torch.onnx.export(
                module,
                (example,),
                input_names=[input_name],
                output_names=["z"],
                dynamic_shapes=({0: torch.export.Dim("n", min=1)},),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
            proto = program.model_proto  # type: ignore[union-attr]
    except MemoryError:
        raise
    except Exception as error:  # the exporter raises whatever its many passes do
        why = " ".join(str(error).split())[:300]
        raise ConfigError(f"{name}: torch cannot write this encoder as ONNX ({type(error).__name__}: {why})") from error
    _strip(proto.graph)
    for tensors in (proto.graph.initializer, proto.graph.value_info):
        tensors.sort(key=lambda t: t.name)  # the exporter's order is that of a set
    for function in proto.functions:
        _strip(function)
    proto.ir_version = min(proto.ir_version, IR_VERSION)
    proto.doc_string = ""
    del proto.metadata_props[:]
    facts = {"model_sha256": model.origin, "method": model.config["method"], "d": model.codebooks.d}
    if backbone is not None:
        facts |= {"size": backbone.size, "fit": backbone.fit}
    onnx.helper.set_model_props(proto, {f"scqfaiss.{key}": str(value) for key, value in facts.items()})
    if proto.ByteSize() > MAX_BYTES:
        raise ConfigError(
            f"{name}: its encoder takes {format_bytes(proto.ByteSize())}, ONNX holds at most {format_bytes(MAX_BYTES)} in a file"
        )
    return bytes(proto.SerializeToString(deterministic=True))


@contextmanager
def _whole(backbone: Backbone | None) -> Iterator[None]:
    """Have the network run to its end: the exporter follows no exception that stops it early."""
    if backbone is None:
        yield
        return
    before, backbone.whole = backbone.whole, True
    try:
        yield
    finally:
        backbone.whole = before


def _strip(graph: Any) -> None:
    """Take out where in which source file each node came from: paths of this machine, other ones on the next."""
    graph.doc_string = ""
    del graph.metadata_props[:]
    for node in graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _strip(attribute.g)
    for value in [*graph.value_info, *getattr(graph, "initializer", ()), *_values(graph)]:
        value.doc_string = ""
        del value.metadata_props[:]


def _values(graph: Any) -> list[Any]:
    """Inputs and outputs: of a function they are names alone."""
    return [value for value in [*graph.input, *graph.output] if not isinstance(value, str)]


def check_file(path: Path, model: Model, backbone: Backbone | None, name: str) -> None:
    """Run an ONNX file on random input and hold it against the model. Raises ConfigError where they differ."""
    rng = np.random.default_rng(0)
    session = _session(path, name)
    for n in CHECKED_ROWS:
        if backbone is None:
            x: Any = rng.standard_normal((n, model.d_in)).astype(np.float32)
            want = model.embed(x)
        else:
            x = rng.integers(0, 256, (n, 3, backbone.size, backbone.size), np.uint8)
            want = model.embed(backbone.features(x))
        try:
            (z,) = session.run(["z"], {session.get_inputs()[0].name: x})
        except Exception as error:  # onnxruntime has no common class of errors
            raise ConfigError(f"{name}: onnxruntime cannot run it ({' '.join(str(error).split())[:300]})") from error
        _compare(z, want, name)


def _compare(z: Any, want: Floats, name: str) -> None:
    scale = float(np.abs(want).max(initial=0)) or 1.0
    far = float(np.abs(z - want).max(initial=0)) / scale if z.shape == want.shape else np.inf
    if not far <= TOLERANCE:  # NaN is no less either
        raise ConfigError(
            f"{name}: onnxruntime differs from the model by {far:.2g} of the largest |z|, at most {TOLERANCE:g} is let "
            "through; nothing was written"
        )


def _session(path: Path, name: str) -> Any:
    with _quiet():
        import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has no common class of errors
        if isinstance(error, ScqError | OSError):
            raise
        raise ConfigError(f"{name}: onnxruntime cannot load it ({' '.join(str(error).split())[:300]})") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what the exporter tells its own developers: warnings and log lines, for as long as it works."""
    loggers = [logging.getLogger(name) for name in _CHATTY]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before):
            logger.setLevel(level)
