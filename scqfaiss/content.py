"""Content codes: a second part of a code, for rows of classes that no training has seen. NumPy only.

The semantic part codes z, which knows the classes of the training and forgets all others. The content part codes v, which
knows no classes. A query decides the weights when it is asked: [z ; w v] is searched for among codes of [z ; v], so that FAISS
sees one set of codebooks and one vector. `known`, the probability that the query's class is one of the training's, sets w; a
gate can estimate it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import Floats
from .codebooks import MAX_BEAM, Codebooks, Codes
from .encoders import chain as chains
from .encoders.chain import Chain
from .errors import ConfigError, DataError, printable

PREFIX = "content."  # what the names of its tensors in a model file begin with
AUTO = "auto"  # the value of `known` that leaves it to the gate
WEIGHTS = (1e-18, 1e18)  # least and most of a weight: squares and products stay in float32
FEATURES = 4  # of a gate
GATE_ELEMENTS = 1 << 20  # similarities to classes or clusters that a gate holds at a time
_OF_GATE = ("classes_z", "classes_v", "clusters", "tops", "shares", "coefficients")
_WEIGHING = "weighing"  # of a gate, optional


@dataclass(frozen=True, eq=False)
class Gate:
    """Probability that a row's class is one of the training's: logistic regression on four features of its z and v.

    classes_z (C, d_z), classes_v (C, d_v): directions of the classes of the training. clusters (G, d_v), temperature: a row
    belongs to cluster g with a = softmax(v clusters^T / temperature). tops (G,): the mean of feature 0 over the unlabelled rows
    of a cluster; shares (G,): the log of its training rows over its unlabelled ones. coefficients (5,): of the features, the
    constant last. facts: 'auc'; 'loss' and 'gain', the mAP that it is expected to cost known classes and to bring unknown ones;
    'on', whether known='auto' asks it. weighing (5,): the coefficients that set a weight, fitted to galleries that hold rows of
    the unknown classes; None: those of the probability. caution: added to the logit that sets a weight.
    """

    classes_z: NDArray[np.float32]
    classes_v: NDArray[np.float32]
    clusters: NDArray[np.float32]
    temperature: float
    tops: NDArray[np.float32]
    shares: NDArray[np.float32]
    coefficients: NDArray[np.float32]
    facts: Mapping[str, Any]
    caution: float = 0.0
    weighing: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        dimensions = {"classes_z": 2, "classes_v": 2, "clusters": 2}
        for name in self.tensors:
            a = getattr(self, name)
            if a.dtype != np.float32 or a.ndim != dimensions.get(name, 1) or not len(a):
                raise ConfigError(
                    f"gate: {name} are {a.shape} {a.dtype}, need float32 in {dimensions.get(name, 1)} dimensions"
                )
            if not np.isfinite(a).all():
                raise DataError(f"gate: {name} are not finite")
        C, G, d_v = len(self.classes_z), len(self.clusters), self.clusters.shape[1]
        needed = {"classes_v": (C, d_v), "tops": (G,), "shares": (G,), "coefficients": (FEATURES + 1,)}
        if self.weighing is not None:
            needed["weighing"] = (FEATURES + 1,)
        for name, shape in needed.items():
            if getattr(self, name).shape != shape:
                raise ConfigError(f"gate: {name} are {getattr(self, name).shape}, need {shape}")
        if not _number(self.temperature) or self.temperature <= 0:
            raise ConfigError(f"gate: the temperature is {self.temperature!r}, needs a number above 0")
        if not _number(self.caution):
            raise ConfigError(f"gate: the caution is {self.caution!r}, needs a number")
        for name in ("auc", "loss", "gain"):
            if not _number(self.facts.get(name)):
                raise ConfigError(f"gate: {name} is {self.facts.get(name)!r}, needs a number")
        if type(self.facts.get("on")) is not bool:
            raise ConfigError(f"gate: on is {self.facts.get('on')!r}, needs true or false")

    @property
    def tensors(self) -> dict[str, NDArray[np.float32]]:
        """Its arrays by their names in a model file."""
        names = _OF_GATE if self.weighing is None else (*_OF_GATE, _WEIGHING)
        return {name: getattr(self, name) for name in names}

    @property
    def on(self) -> bool:
        """Whether known='auto' asks the gate; False where it would cost more than it brings."""
        return bool(self.facts["on"])

    def features(self, z: Floats, v: Floats) -> NDArray[np.float64]:
        """z (n, d_z), v (n, d_v) -> (n, 4): the largest <z, classes_z>, the largest <v, classes_v>, a . tops, a . shares."""
        out = np.empty((len(z), FEATURES))
        step = max(64, GATE_ELEMENTS // max(len(self.classes_z), len(self.clusters)))
        for i in range(0, len(z), step):
            part, of_z, of_v = (
                slice(i, i + step),
                z[i : i + step].astype(np.float64),
                v[i : i + step].astype(np.float64),
            )
            out[part, 0] = (of_z @ self._double["classes_z"].T).max(1)
            out[part, 1] = (of_v @ self._double["classes_v"].T).max(1)
            a = assigned(of_v, self._double["clusters"], self.temperature)
            out[part, 2], out[part, 3] = a @ self._double["tops"], a @ self._double["shares"]
        return out

    def __call__(self, z: Floats, v: Floats) -> Floats:
        """z (n, d_z), v (n, d_v) -> the probability of each row (n,), float32."""
        return sigmoid(self._logits(z, v, "coefficients")).astype(np.float32)

    def cautious(self, z: Floats, v: Floats) -> NDArray[np.float64]:
        """The same by the coefficients for weights, moved by the caution: what sets the weights of queries, (n,) float64."""
        name = "coefficients" if self.weighing is None else _WEIGHING
        return sigmoid(self._logits(z, v, name) + self.caution)

    def _logits(self, z: Floats, v: Floats, name: str) -> NDArray[np.float64]:
        coefficients = self._double[name]
        return np.asarray(self.features(z, v) @ coefficients[:-1] + coefficients[-1])

    @cached_property
    def _double(self) -> dict[str, NDArray[np.float64]]:
        """Sums of a product may differ by its number of rows: in float64 no probability shows it."""
        return {name: a.astype(np.float64) for name, a in self.tensors.items()}


@dataclass(frozen=True, eq=False)
class Content:
    """What codes the content part of a row.

    chain: x (n, d_in) -> v (n, d_v) of length 1. codebooks: M_c of them, metric 'ip'; their `lists` (L, d_v), where there are
    any, belong to the semantic lists: the mean v of the rows of each, which codewords leave out. weights: w of a query whose
    class is known for certain, and of one whose class is unknown. gate: None where known='auto' counts every class as known.
    beam: partial sums that the encoding of additive codebooks carries along.
    """

    chain: Chain
    codebooks: Codebooks
    weights: tuple[float, float]
    gate: Gate | None = None
    beam: int = 1

    def __post_init__(self) -> None:
        b = self.codebooks
        if b.M < 1:
            raise ConfigError("content codes have no codebooks, need 1 or more")
        if b.metric != "ip":
            raise ConfigError(f"content codebooks are of metric '{b.metric}', need 'ip'")
        if self.chain.d_out != b.d:
            raise ConfigError(f"the content encoder gives d={self.chain.d_out}, its codebooks need d={b.d}")
        if type(self.weights) is not tuple or len(self.weights) != 2 or not all(map(_weight, self.weights)):
            low, high = WEIGHTS
            raise ConfigError(f"the content weights are {self.weights!r}, need two numbers from {low:g} to {high:g}")
        if type(self.beam) is not int or not 1 <= self.beam <= MAX_BEAM:
            raise ConfigError(f"the beam of content codes is {self.beam!r}, needs a whole number from 1 to {MAX_BEAM}")
        if self.beam > 1 and b.kind != "additive":
            raise ConfigError(f"the beam of content codes is {self.beam}, and their codebooks are of kind '{b.kind}'")
        if self.gate is not None and self.gate.clusters.shape[1] != b.d:
            raise ConfigError(f"the gate takes v of d={self.gate.clusters.shape[1]}, the content encoder gives d={b.d}")

    @property
    def bits(self) -> int:
        """Bits that the content part of a code takes."""
        return self.codebooks.bits

    def assign(self, v: Floats, lists: NDArray[np.int64] | None) -> Codes:
        """v (n, d_v) -> codewords (n, M_c). lists (n,): the semantic list of each row, None without lists."""
        b = self.codebooks
        left = v if b.lists is None or lists is None else v - b.lists[lists]
        return b.residual.assign(left, "l2", self.beam)

    def known(self, z: Floats, v: Floats, known: Any = None) -> NDArray[np.float64]:
        """How certain the class of each query is one of the training's, (n,) of 0 to 1.

        known: one number or one for each row; None or 'auto' asks the gate, and says 1 where there is none or it is off. Raises
        ConfigError on anything else.
        """
        if known is not None and not (isinstance(known, str) and known == AUTO):
            return as_known(known, len(z))
        if self.gate is None or not self.gate.on:
            return np.ones(len(z))
        return self.gate.cautious(z, v)

    def weight(self, known: NDArray[np.float64]) -> Floats:
        """known (n,) -> w (n,) float32: between the two weights, evenly in their logarithms."""
        return between(known, *self.weights).astype(np.float32)

    # ------------------------------------------------------------------------------------------------------------ file
    def pack(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """-> (tensors, config) as a model file keeps them."""
        tensors, encoder = self.chain.pack()
        tensors["codebooks.centroids"] = self.codebooks.centroids
        if self.codebooks.lists is not None:
            tensors["codebooks.lists"] = self.codebooks.lists
        config = {"chain": encoder, "kind": self.codebooks.kind, "weights": list(self.weights), "beam": self.beam}
        if self.gate is not None:
            tensors |= {f"gate.{name}": a for name, a in self.gate.tensors.items()}
            gate = self.gate
            config["gate"] = {"temperature": gate.temperature, "caution": gate.caution, "facts": dict(gate.facts)}
        return {PREFIX + name: a for name, a in tensors.items()}, config

    @staticmethod
    def unpack(tensors: Mapping[str, NDArray[Any]], config: Mapping[str, Any]) -> Content:
        """The inverse of pack. Raises KeyError and TypeError for what is missing, ScqError for parts that do not fit."""
        own = {name.removeprefix(PREFIX): a for name, a in tensors.items() if name.startswith(PREFIX)}
        codebooks = Codebooks(config["kind"], own["codebooks.centroids"], "ip", own.get("codebooks.lists"))
        gate, names = None, {name for name in own if name.startswith("gate.")}
        if "gate" in config:
            arrays = {name: own[f"gate.{name}"] for name in _OF_GATE}
            if f"gate.{_WEIGHING}" in own:
                arrays[_WEIGHING] = own[f"gate.{_WEIGHING}"]
            of_gate = config["gate"]
            gate = Gate(
                **arrays,
                temperature=of_gate["temperature"],
                facts=dict(of_gate["facts"]),
                caution=of_gate["caution"],
            )
            names -= {f"gate.{name}" for name in arrays}
        if names:
            raise ConfigError(f"tensor {PREFIX}{printable(min(names))} belongs to no gate")
        chain = chains.unpack(own, config["chain"])
        return Content(chain, codebooks, tuple(config["weights"]), gate, config["beam"])


@dataclass(frozen=True, eq=False)
class Joint:
    """How a semantic part z and a content part v stand in one vector, and their codebooks in one set of codebooks.

    Product codebooks share one length of sub-vectors, the longer of the two: the others are padded with zeros at their ends.
    Additive codebooks are zero where the other part stands. Lists alone (M = 0) have no sub-vectors: they need additive
    content.
    """

    semantic: Codebooks
    content: Codebooks
    codebooks: Codebooks = field(init=False)

    def __post_init__(self) -> None:
        s, c = self.semantic, self.content
        if s.metric != "ip":
            raise ConfigError(f"content codes need codebooks of metric 'ip', these are of '{s.metric}'")
        kind = s.kind if s.M else "additive"
        if c.kind != kind:
            raise ConfigError(f"content codebooks are of kind '{c.kind}', beside these codes they need '{kind}'")
        if s.M and c.K != s.K:
            raise ConfigError(
                f"content codebooks hold {c.K} codewords each, the others {s.K}: all need the same number"
            )
        if c.lists is not None and c.L != s.L:
            raise ConfigError(f"there are {c.L:,} content centroids for {s.L:,} lists, needs one for each")
        object.__setattr__(self, "codebooks", self._joined())

    @property
    def dsub(self) -> int:
        """Length of a sub-vector of product codebooks."""
        return max(int(self.semantic.centroids.shape[2]), int(self.content.centroids.shape[2]))

    def _joined(self) -> Codebooks:
        s, c = self.semantic, self.content
        if c.kind == "product":
            parts = [np.pad(b.centroids, ((0, 0), (0, 0), (0, self.dsub - b.centroids.shape[2]))) for b in (s, c)]
        else:
            of_z = s.centroids if s.M else np.zeros((0, c.K, s.d), np.float32)
            parts = [np.pad(of_z, ((0, 0), (0, 0), (0, c.d))), np.pad(c.centroids, ((0, 0), (0, 0), (s.d, 0)))]
        lists = None
        if s.lists is not None:
            lists = self.join(s.lists, np.zeros((s.L, c.d), np.float32) if c.lists is None else c.lists)
        return Codebooks(c.kind, np.concatenate(parts), "ip", lists)

    def join(self, z: Floats, v: Floats, weight: Floats | None = None) -> Floats:
        """z (n, d_z), v (n, d_v) -> [z ; weight v] laid out for the joint codebooks, (n, d). weight (n,): 1 without it."""
        if weight is not None:
            v = v * weight[:, None]
        if self.content.kind == "additive":
            return np.concatenate([z, v], axis=1)
        M = self.semantic.M
        out = np.zeros((len(z), M + self.content.M, self.dsub), np.float32)
        for part, b, rows in ((z, self.semantic, slice(None, M)), (v, self.content, slice(M, None))):
            dsub = b.centroids.shape[2]
            out[:, rows, :dsub] = part.reshape(len(z), b.M, dsub)
        return out.reshape(len(z), out.shape[1] * self.dsub)

    def split(self, joint: Floats) -> tuple[Floats, Floats]:
        """The inverse of join with weights of 1: (n, d) -> z (n, d_z), v (n, d_v)."""
        s, c, n = self.semantic, self.content, len(joint)
        if c.kind == "additive":
            return joint[:, : s.d], joint[:, s.d :]
        words = joint.reshape(n, s.M + c.M, self.dsub)
        z, v = words[:, : s.M, : s.centroids.shape[2]], words[:, s.M :, : c.centroids.shape[2]]
        return z.reshape(n, s.d), v.reshape(n, c.d)


def as_known(known: Any, n: int) -> NDArray[np.float64]:
    """A number of 0 to 1, or n of them -> (n,) float64. Raises ConfigError on anything else."""
    needs = f"needs '{AUTO}', a number from 0 to 1, or {n:,} of them"
    if isinstance(known, str):
        raise ConfigError(f"known is '{printable(known)}', {needs}")
    try:
        values = np.asarray(known)
    except ValueError as error:  # rows of several lengths
        raise ConfigError(f"known is a list that is no array, {needs}") from error
    if values.dtype.kind not in "iuf" or values.shape not in ((), (n,)):
        raise ConfigError(f"known is {values.shape} {values.dtype}, {needs}")
    bad = np.flatnonzero(~((values >= 0) & (values <= 1)))
    if len(bad):
        raise ConfigError(f"known is {values.reshape(-1)[bad[0]]:g}, {needs}")
    return np.broadcast_to(values, (n,)).astype(np.float64)


def parse_known(text: str) -> str | float:
    """'auto' or a number as it is typed. Raises ConfigError on anything else."""
    if text == AUTO:
        return AUTO
    try:
        number = float(text)
    except ValueError:
        raise ConfigError(f"known is '{printable(text)}', needs '{AUTO}' or a number from 0 to 1") from None
    as_known(number, 1)
    return number


def assigned(v: NDArray[Any], clusters: NDArray[Any], temperature: float) -> NDArray[np.float64]:
    """v (n, d), clusters (G, d) -> softmax(v clusters^T / temperature), (n, G)."""
    near = v.astype(np.float64) @ clusters.astype(np.float64).T
    near -= near.max(1, keepdims=True)
    with np.errstate(over="ignore"):  # a tiny temperature: the nearest cluster alone
        a = np.exp(near / temperature)
    return np.asarray(a / a.sum(1, keepdims=True))


def between(known: NDArray[np.float64], of_known: float, of_unknown: float) -> NDArray[np.float64]:
    """known (n,) -> weights (n,) between those of a known and of an unknown class, evenly in their logarithms."""
    return np.asarray(np.exp(known * math.log(of_known) + (1 - known) * math.log(of_unknown)))


def sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 / (1 + exp(-t))."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * logits)))  # no overflow at either end


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _weight(value: Any) -> bool:
    return _number(value) and WEIGHTS[0] <= value <= WEIGHTS[1]
