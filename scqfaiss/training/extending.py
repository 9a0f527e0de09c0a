"""New classes for a trained model, without a new encoder: old codes stay as they are, byte for byte.

z = sum_k p_k c_k: the new classes' centers stand on dimensions of their own, where old codewords are 0. What is new in a code is
its list, which costs no byte: old rows stay in theirs (of a model without lists in list 0, the origin), and rows of new classes
come to stand in lists behind, which are learned from z of the new rows.

n row   M codebook   K codeword   L list   d dimension of z
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..arrays import Floats, Ints, Labels
from ..codebooks import MAX_LISTS, Codebooks
from ..contract import Layers, Progress, silent
from ..data import ArraySource, Source, open_rows
from ..data.classes import class_key, numbered_as
from ..encoders.chain import Chain
from ..errors import ConfigError, DataError, printable
from ..files import PathLike, atomic_write
from ..methods.class_kmeans import class_kmeans
from ..methods.list_counts import PER_NEW_CLASS
from ..methods.lists import BEAM
from ..modality import ROWS
from ..model import SUFFIX, Model, check_width
from ..options import TrainOptions
from .new_heads import Classifier, learn

COPIES, NOISE = 8, 1.5  # rows with Gaussian noise, in standard deviations of each feature: as codebooks learn from
IS_NEW = 0.2  # rows whose probability of a new class is below teach no list
LEAST_ROWS = 2  # of a new class: one has no deviation from its mean
NAMED = 5  # classes that a message names
MODELS = "extend takes models whose classifier is calibrated for one label a row (method scq on rows, cfa=calibrated)"


def extend(
    model: Model | PathLike,
    x: Any,
    y: Any,
    *,
    class_names: Any = None,
    lists: int = PER_NEW_CLASS,
    seed: int = TrainOptions.seed,
    progress: Progress = silent,
) -> Model:
    """The model with classes more: x (n, d_in) rows of classes y (n,) that it was not trained on, 2 or more of each.

    Codes that the old model made are codes of the new one: galleries of the old are searched with the new, and rows appended.
    lists: for each new class; rows of it are told apart by them and by the old codewords. class_names: as for train.
    Raises ConfigError for a model that cannot be extended, or that knows one of the classes, DataError on bad arrays.
    """
    loaded = model if isinstance(model, Model) else Model.load(model)
    source = ArraySource(x, y, None, class_names, name="x", allow_duplicate_ids=True)
    return _extended(loaded, source, lists, seed, progress)


def extend_file(
    model: PathLike,
    rows: PathLike,
    out: PathLike,
    *,
    lists: int = PER_NEW_CLASS,
    seed: int = TrainOptions.seed,
    keys: Mapping[str, Any],
    progress: Progress = silent,
) -> str:
    """Extend a model by a file of rows and write the new one; returns what to tell the user. keys: arguments of open_rows."""
    with atomic_write(out, inputs=[model, rows], suffix=SUFFIX, what="extended") as output:
        with open_rows(rows, **keys, needed_by="extend", repeated_ids=True) as source:
            old = Model.load(model)
            new = _extended(old, source, lists, seed, progress)
        new.save_to(output)
    before, after = old.config["C"], new.config["C"]
    return (
        f"{output.name}: {after - before:,} classes more, {after:,} in all, {new.codebooks.L - old.codebooks.L:,} lists "
        f"more, codes of {new.codebooks.bits} bits as before, SHA-256 {new.origin[:12]}"
    )


def _extended(model: Model, source: Source, lists: int, seed: int, progress: Progress) -> Model:
    layers = taken_apart(model)
    if type(lists) is not int or not 1 <= lists <= MAX_LISTS:
        raise ConfigError(f"lists is {lists!r}, needs a whole number from 1 to {MAX_LISTS:,}")
    if source.modality != ROWS:
        raise ConfigError(f"{source.name} holds {source.modality.noun}: {MODELS}")
    check_width(model, source)
    numbers, new, y, names = _classes(model, source)
    x = np.concatenate([part for _, part in source.blocks()]).astype(np.float32)
    front, (_, head), after = layers
    A, b = (head["A"], head["b"]) if head["A"].ndim == 3 else (head["A"][None], head["b"][None])
    kappa = model.config["training"].get("kappa", 1.0) if isinstance(model.config.get("training"), dict) else 1.0
    more_A, more_b = learn(Classifier(Chain(model.d_in, front), A, b, float(kappa)), x, y, len(new), seed, progress)
    C = len(numbers)
    order = np.argsort(np.concatenate([numbers, new]), kind="stable")  # class numbers of a model rise
    A, b = np.concatenate([A, more_A], 1)[:, order], np.concatenate([b, more_b], 1)[:, order]
    head = {"A": A, "b": b} if head["A"].ndim == 3 else {"A": A[0], "b": b[0]}
    posterior: Layers = [*front, (layers[1][0], head), *after[:-1]]
    centers = _centers(after[-1][1], model.codebooks, len(new))
    last = {name: a[:, order] if name == "A" else a for name, a in centers.items()}
    chain = Chain(model.d_in, [*posterior, ("linear", last)])
    p = Chain(model.d_in, posterior)
    place = np.flatnonzero(order >= C)  # of the new classes in p
    centroids = _lists(x, p, place, last, lists * len(new), seed)
    codebooks = with_room(model.codebooks, len(new), centroids)
    config = _config(model, np.concatenate([numbers, new])[order], new, names, len(source))
    return Model(chain, codebooks, config)


def taken_apart(model: Model) -> tuple[Layers, tuple[str, Any], Layers]:
    """Layers before the heads, the heads, and those behind. Raises ConfigError for a model that cannot be extended."""
    layers = list(model.chain.layers)
    if model.modality.needs_encoder:
        raise ConfigError(f"the model sees {model.modality.items}: {MODELS}")
    if model.content is not None:
        raise ConfigError(
            "the model has content codes, whose gate knows the old classes; extend one without, or train anew"
        )
    if "prefix" in model.config:
        raise ConfigError("the model is cut from another; extend the whole one")
    if model.config["rule"] != "l2":
        raise ConfigError(f"the assignment rule is '{model.config['rule']}', the lists of new classes need 'l2'")
    for ends in (["heads", "softmax", "average", "linear"], ["linear", "softmax", "linear"]):
        if [op for op, _ in layers[-len(ends) :]] == ends and model.config.get("labels") == "one":
            head = layers[-len(ends)]
            if "b" in head[1] and layers[-1][1]["A"].shape[1] == model.config.get("C"):
                return layers[: -len(ends)], head, layers[len(layers) - len(ends) + 1 :]
    found = ", ".join(op for op, _ in layers) or "no layers"
    raise ConfigError(f"{MODELS}; this is {printable(model.config['method'])} with {found}")


def _classes(model: Model, source: Source) -> tuple[Ints, Ints, NDArray[np.int64], list[str] | None]:
    """Numbers of the old classes and of the new, which new class each row is of (n,), and the names of all numbers."""
    labels = source.labels
    if labels is None or labels.multilabel:
        raise DataError(f"{source.name} has {'no labels' if labels is None else 'many labels a row'}, needs one a row")
    numbers = np.asarray(model.config.get("classes", range(model.config["C"])), np.int64)
    names = model.config.get("class_names")
    if names and labels.class_names:
        known = {class_key(name) for name in names}
        used = [labels.class_names[int(c)] for c in np.flatnonzero(labels.counts())]
        names = [*names, *(name for name in used if class_key(name) not in known)]
        labels = numbered_as(labels, names, source.name, "the model")
    counts = labels.counts()
    new = np.flatnonzero(counts)
    _check_new(labels, numbers, new, counts, source.name)
    names = names if names and int(new.max()) < len(names) else None
    return numbers, new, np.searchsorted(new, labels.y), names


def _check_new(labels: Labels, numbers: Ints, new: Ints, counts: Ints, name: str) -> None:
    def listed(chosen: Ints) -> str:
        return ", ".join(printable(labels.class_name(int(c))) for c in chosen[:NAMED]) + (
            ", ..." if len(chosen) > NAMED else ""
        )

    known = np.intersect1d(new, numbers)
    if len(known):
        raise ConfigError(f"{name}: the model knows class {listed(known)} already; leave its rows out")
    few = new[counts[new] < LEAST_ROWS]
    if not len(new) or len(few):
        what = f"class {listed(few)} has 1 row" if len(few) else "no row has a class"
        raise DataError(f"{name}: {what}, a new class needs {LEAST_ROWS} or more")


def _parts(codebooks: Codebooks) -> int:
    """Sub-vectors that z is cut into: each gets room at its end."""
    return codebooks.M if codebooks.kind == "product" and codebooks.M else 1


def _centers(last: Mapping[str, Any], codebooks: Codebooks, n: int) -> dict[str, Any]:
    """Centers (d, C) and perhaps a bias -> those with n classes more, each on a dimension of its own."""
    parts, A = _parts(codebooks), last["A"]
    C, e = A.shape[1], -(-n // parts)
    dsub = len(A) // parts
    wide = np.zeros((parts, dsub + e, C + n), np.float32)
    wide[:, :dsub, :C] = A.reshape(parts, dsub, C)
    k = np.arange(n)
    wide[k % parts, dsub + k // parts, C + k] = np.linalg.norm(A, axis=0).mean()
    out = {"A": wide.reshape(-1, C + n)}
    return out | ({"b": padded(last["b"][None], parts, e)[0]} if "b" in last else {})


def padded(z: Floats, parts: int, e: int) -> Floats:
    """z (n, d) -> (n, d + parts e): e zeros behind each of its sub-vectors."""
    return np.pad(z.reshape(len(z), parts, -1), ((0, 0), (0, 0), (0, e))).reshape(len(z), -1)


def with_room(codebooks: Codebooks, n: int, centroids: Floats) -> Codebooks:
    """The codebooks with zeros on the dimensions of n new classes, and the lists `centroids` (T, new d) behind their own."""
    parts = _parts(codebooks)
    e = -(-n // parts)
    before = np.zeros((1, codebooks.d), np.float32) if codebooks.lists is None else codebooks.lists
    lists = np.concatenate([padded(before, parts, e), centroids])
    if codebooks.M == 0:
        return Codebooks.of_lists(lists, codebooks.metric)
    wide = np.pad(codebooks.centroids, ((0, 0), (0, 0), (0, e)))
    return Codebooks(codebooks.kind, wide, codebooks.metric, lists)


def _lists(x: Floats, posterior: Chain, place: Ints, centers: Mapping[str, Any], T: int, seed: int) -> Floats:
    """Centroids of at most T lists (T, d): k-means of z within each new class, of its rows beside noisy copies of them."""
    rng = np.random.default_rng(seed)
    spread = NOISE * x.std(0)
    noisy = [x + spread * rng.standard_normal(x.shape, np.float32) for _ in range(COPIES)]
    p = posterior(np.concatenate([x, *noisy]), "rows beside noise")
    p = p[p[:, place].sum(1) > IS_NEW]
    if not len(p):
        raise DataError(
            "the rows of the new classes are taken for old ones, all of them; are they classes of their own?"
        )
    z = Chain(p.shape[1], [("linear", centers)])(p)
    of = torch.from_numpy(p[:, place].argmax(1))
    return class_kmeans(torch.from_numpy(z), of, T, torch.Generator().manual_seed(seed)).numpy()


def _config(model: Model, numbers: Ints, new: Ints, names: list[str] | None, n: int) -> dict[str, Any]:
    """What the new model's file tells, 'extends' of the models before it: the last of them first."""
    step = {"sha256": model.origin, "C": model.config["C"], "lists": model.codebooks.L, "rows": n}
    config = {key: value for key, value in model.config.items() if key != "classes"}
    config |= {
        "C": len(numbers),
        "class_names": names,
        "extends": [step | {"new_classes": new.tolist()}, *model.config.get("extends", [])],
    }
    if numbers[-1] != len(numbers) - 1:
        config["classes"] = numbers.tolist()
    if model.codebooks.M:
        config["list_beam"] = max(BEAM, model.config.get("list_beam", 1))
    return config
