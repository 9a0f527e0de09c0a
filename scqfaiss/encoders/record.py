"""A Backbone as plain tensors and JSON values, and back; the code of its network is not among them, only its factory's name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import CheckpointError, ConfigError, printable
from . import BACKBONES
from .backbone import FITS, Backbone, Settings
from .factory import factory_name, network
from .network import MAX_SIZE
from .pooling import POOLS
from .weights import check_fit, first_few, put, state_of


def to_record(backbone: Backbone) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """(tensors by name, plain JSON values): all that from_record needs, but for the factory's code."""
    state = {f"net.{name}": t for name, t in state_of(backbone.net).items()}
    if backbone.config.pool == "hybrid":
        state["t"] = backbone.t.detach()
    # A number by itself is kept as one of a row: not every reader of arrays has arrays without dimensions.
    tensors = {
        name: (t.reshape(1) if t.ndim == 0 else t).detach().cpu().contiguous().numpy().copy()
        for name, t in state.items()
    }
    return tensors, {
        "factory": backbone.factory,
        "arguments": backbone.arguments,
        "size": backbone.size,
        "fit": backbone.fit,
        "mean": backbone.channels,
        "std": backbone.deviations,
        "layers": backbone.names,
        "pool": backbone.config.pool,
        "width": backbone.width,
        "mirror": backbone.config.mirror,
        "channels_last": backbone.config.channels_last,
    }


def from_record(
    tensors: Mapping[str, NDArray[Any]],
    config: Mapping[str, Any],
    device: str = "cpu",
    trusted: str | None = None,
) -> Backbone:
    """The inverse of Backbone.record, in evaluation mode on `device`.

    trusted: the factory that the user named. A record's word is enough for the factories of BACKBONES alone; any other raises
    ConfigError before anything of it is imported, unless it is the trusted one. Raises CheckpointError where tensors and
    network do not fit, or the record is no record.
    """
    values = check_record(config)
    factory = values["factory"]
    if factory not in BACKBONES.values() and (trusted is None or factory_name(trusted) != factory):
        raise ConfigError(f"the model's network is built by {factory}; name it with --encoder {factory} to allow that")
    where = f"the model's network ({factory})"
    weights = {name.removeprefix("net."): torch.tensor(a) for name, a in tensors.items() if name.startswith("net.")}
    others = {name: torch.tensor(a) for name, a in tensors.items() if not name.startswith("net.")}
    if factory in BACKBONES.values():  # before memory is taken for a network that a forged record makes huge
        with torch.device("meta"):
            check_fit(network(factory, values["arguments"]), weights, where, CheckpointError)
    net = network(factory, values["arguments"])
    check_fit(net, weights, where, CheckpointError)
    unknown = [*sorted(set(weights) - set(state_of(net))), *sorted(set(others) - {"t"})]
    if unknown:
        raise CheckpointError(f"{where} has no place for {len(unknown)} of the tensors: {first_few(unknown)}")
    put(net, weights)
    settings = Settings(
        size=values["size"],
        fit=values["fit"],
        layers=",".join(values["layers"]),
        pool=values["pool"],
        mirror=values["mirror"],
        channels_last=values["channels_last"],
        augment="none",
        dropout=0.0,
    )
    try:
        backbone = Backbone(settings, net, factory, values["arguments"])
    except ConfigError as error:
        raise CheckpointError(f"{where} is another one now: {error}") from error
    if backbone.width != values["width"]:
        raise CheckpointError(f"{where} gives {backbone.width} features, the model was made with {values['width']}")
    if ("t" in others) != (settings.pool == "hybrid") or ("t" in others and others["t"].shape != backbone.t.shape):
        raise CheckpointError(f"{where}: tensor t does not fit pool={settings.pool}")
    backbone.standardise(values["mean"], values["std"])
    if "t" in others:
        with torch.no_grad():
            backbone.t.copy_(others["t"])
    return backbone.to(device).eval()


def check_record(config: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a record. Raises CheckpointError for any that record() could not have written."""

    def texts(value: Any) -> bool:
        return isinstance(value, list) and all(isinstance(v, str) for v in value)

    def colours(value: Any) -> bool:
        return isinstance(value, list) and len(value) == 3 and all(type(v) is float and np.isfinite(v) for v in value)

    rules: dict[str, Callable[[Any], bool]] = {
        "factory": lambda v: isinstance(v, str) and v == printable(v) and ":" in v,
        "arguments": lambda v: isinstance(v, dict) and texts(list(v.values())),
        "size": lambda v: type(v) is int and 1 <= v <= MAX_SIZE,
        "fit": lambda v: v in FITS,
        "mean": colours,
        "std": lambda v: colours(v) and min(v) > 0,
        "layers": texts,
        "pool": lambda v: v in POOLS,
        "width": lambda v: type(v) is int and v >= 1,
        "mirror": lambda v: type(v) is bool,
        "channels_last": lambda v: type(v) is bool,
    }
    for key, sound in rules.items():
        if key not in config or not sound(config[key]):
            raise CheckpointError(
                f"the model's network: {key} is {printable(repr(config.get(key)))[:80]}, which is no record"
            )
    try:
        factory_name(config["factory"])
    except ConfigError as error:
        raise CheckpointError(f"the model's network: {error}") from error
    return {key: config[key] for key in rules}
