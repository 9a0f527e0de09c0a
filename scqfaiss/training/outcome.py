"""The model that a training comes to, and what its file tells of the training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..arrays import Floats
from ..calibration.forecast import Forecast
from ..codebooks import Codebooks
from ..contract import Method, flat
from ..data import Source
from ..data.items import ItemSource
from ..encoders.chain import Chain
from ..errors import warn
from ..model import Model
from .planning import Plan
from .robust import say

CHECK_ROWS = 100_000  # rows on which the use of codewords is counted after training
UNTOLD = {"adversarial": 0.0}  # where these are so, models do not tell it: their files stay those of before
CHECK_ITEMS = 1_000  # and images, each of which costs a pass through the network


def outcome(plan: Plan, method: Method, losses: Any) -> Model:
    """The model that a trained method comes to, with all that its file tells of the training."""
    options, source = plan.options, plan.sources.rows
    chain = Chain(plan.d_in).then(*method.layers())
    codebooks: Codebooks = method.codebooks()
    labels = plan.labels
    unlabeled = (
        int((labels.y.sum(1) == 0).sum()) if labels and labels.multilabel else 0
    )  # present only with unlabeled=drop
    config = {
        "method": options.method,
        "long_name": plan.method.long_name,
        "rule": method.rule,
        "bits": codebooks.bits,
        "encoder": options.encoder if plan.method.needs_encoder else "identity",
        "seed": options.seed,
        "settings": recorded(plan.config) | (recorded(plan.encoder_config) if plan.encoder else {}),
        "C": labels.C if labels else 0,
        "labels": "none" if labels is None else "many" if labels.multilabel else "one",
        "class_names": list(source.labels.class_names)
        if labels and source.labels and source.labels.class_names
        else None,
        "training": {"rows": len(source), "skipped_rows": source.dropped, "unlabeled_rows": unlabeled, "loss": losses}
        | method.summary(),
    }
    if labels and labels.numbers is not None:
        config["classes"] = labels.numbers.tolist()
    if method.beam != 1:
        config["beam"] = method.beam
    if method.list_beam != 1:
        config["list_beam"] = method.list_beam
    if method.nested:
        config["nested"] = True
    weights = None
    if plan.network is not None:
        weights, config["backbone"] = plan.network.record()
    model = Model(chain, codebooks, config, weights)
    use, looked_at = codeword_use(model, source, plan.network)
    model.config["training"]["codewords_used"] = use
    for m, used in enumerate(use):
        if used <= max(1.0, 0.02 * min(codebooks.K, looked_at)) and len(source) > 1:
            warn(f"codebook {m} uses {used} of {codebooks.K} codewords")
    return model


def model_bytes(plan: Plan, chain: Chain) -> int:
    """About the bytes of the model's file."""
    shape = plan.shape(chain.d_out)
    of_codebooks = shape.K * shape.d * (shape.M if shape.kind == "additive" else 1) + plan.lists * shape.d
    weights = sum(a.size for _, arrays in chain.layers for a in arrays.values()) + of_codebooks
    if plan.network is not None:
        weights += sum(t.numel() for t in plan.network.state_dict().values())
    return 4 * weights


def codeword_use(model: Model, source: Source, network: Any = None) -> tuple[list[int], int]:
    """How many codewords of each codebook the first rows use, or items evenly spaced; and how many were looked at."""
    seen = np.zeros((model.codebooks.M, model.codebooks.K), bool)

    def blocks() -> Iterator[Floats]:
        if isinstance(source, ItemSource):
            for rows in np.array_split(items, -(-n // source.block_rows)):
                yield network.features(source.take(rows))
            return
        for i in range(0, n, source.block_rows):
            x = source.read(i, min(i + source.block_rows, n))
            yield x[:, -model.d_in :]  # of pairs the keys, which stand behind their queries

    n = min(len(source), CHECK_ITEMS if source.modality.needs_encoder else CHECK_ROWS)
    items = np.linspace(0, len(source) - 1, n).astype(np.int64)
    for x in blocks():
        _, words = model.codebooks.split(model.encode(x))
        for m in range(model.codebooks.M):
            seen[m, words[:, m]] = True
    return [int(s) for s in seen.sum(1)], n


def describe(model: Model) -> str:
    """One line about a model."""
    b, use = model.codebooks, model.config["training"]["codewords_used"]
    lists = f" in {b.L:,} lists" if b.lists is not None else ""
    cleaned = model.config["training"].get("wrong_labels")
    labels = f", {say(cleaned)}" if cleaned else ""
    used = f"codewords used {min(use)} to {max(use)} of {b.K}, " if b.M else ""
    return (
        f"{model.config['method']}, {b.bits} bits ({b.M} x {b.nbits}){lists}, rows of d={model.d_in} to z of d={b.d}, "
        f"{used}{model.config['long_name']}, SHA-256 {model.origin[:12]}{labels}{forecast_of(model)}"
    )


def forecast_of(model: Model) -> str:
    """What a training tells of it, in a line of its own; "" where it has none."""
    training = model.config["training"]
    if "forecast" not in training:
        return ""
    if training["forecast"] is None:
        return (
            "\nno forecast, and nothing is known of what scores mean: too few labelled rows to hold 50 of them out; classes need "
            "4 or more"
        )
    return f"\n{Forecast.unpack(training['forecast'])}"


def recorded(config: Any) -> dict[str, Any]:
    """Settings as a model keeps them: file names without their folders, so that no path enters the artefact."""
    values = {k: v.rpartition("/")[2] if isinstance(v, str) else v for k, v in flat(config).items()}
    return {k: v for k, v in values.items() if k not in UNTOLD or v != UNTOLD[k]}
