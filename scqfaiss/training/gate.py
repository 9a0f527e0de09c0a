"""The gate and the weights of content codes, fitted on classes that trainings leave out in turn.

Whether a query's class is one of the training's, no training row can tell: all are. So the classes are dealt into folds. For each
fold the method is trained without its classes and without some rows of the others; these rows then stand for queries of
unknown and of known classes. On them the logistic regression of the gate is fitted, its AUC is measured by fitting on the
other folds alone, and the weights are chosen by mAP, each row a query among all others.

Unlabelled rows may hold rows of an unknown class, or none: then queries of it lie where no row is. Each fold is looked at both
ways, the second without the unlabelled rows that the whole model takes for those of its classes. A gate that was fitted the first
way alone told 1,000 sentences of no class from CLINC150's with an AUC of 0.913, less than the largest posterior (0.951). Weights
matter only to queries that have rows to find: their coefficients are fitted the first way alone.

n row   C class   G cluster   q query
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..arrays import Floats, Ints
from ..content import Content, Gate, assigned, between, sigmoid
from ..contract import Progress, drawn_rows
from ..methods.folds import rank_in_class
from ..model import Model
from .content_codes import cluster, content_chain, unit

Bools = NDArray[np.bool_]
Retrain = Callable[[Floats, Ints], Model]  # x (n, d_in), y (n,) -> a model of the same method and settings

FOLDS = 3
MIN_CLASSES = 4  # so that a fold leaves two to train on
HELD = 0.25  # share of the rows of each remaining class that a fold holds out
ROWS = 20_000  # that the folds are trained on, at most
BLOCK = 4096  # rows whose similarities to classes are held at a time
QUERIES = 1_500  # of each fold, at most
TEMPERATURE = 0.1  # of the softmax over clusters, in cosines
RIDGE = 1.0  # weight of the squared coefficients beside the log-likelihood of all rows, as scikit-learn's C = 1
# Weights in units of sd <z, z'> / sd <v, v'>, that of a query of a known class and of an unknown one.
KNOWN = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
UNKNOWN = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
DEFAULTS = (0.05, 4.0)  # where no fold can tell
CAUTIONS = tuple(0.5 * i for i in range(17))  # added to the logit before the gate sets a weight
MAX_LOSS = 0.005  # mAP that the gate may cost queries of known classes
MIN_GAIN = 0.01  # mAP that it has to bring queries of unknown ones, or it stays off


@dataclass(frozen=True)
class Fold:
    """The rows of a fold that no training saw: their features for the gate, whether their class is known, z, v and classes."""

    features: NDArray[np.float64]
    known: Bools
    z: Floats
    v: Floats
    y: Ints
    absent: NDArray[np.float64] | None = None  # the features where no unlabelled row is of a class that was left out


def fitted(
    model: Model,
    content: Content,
    x: Floats,
    y: Ints,
    bank: Floats | None,
    retrain: Retrain,
    progress: Progress,
) -> Content:
    """The content part with weights and, if the folds can tell, with a gate.

    x (n, d_in), y (n,) the training rows; bank (n2, d_in) rows without labels, None: the training rows are all there are.
    """
    seed = int(model.config["seed"])
    z, v = model.chain(x), content.chain(x)
    if len(np.unique(y)) < MIN_CLASSES:
        return replace(content, weights=default_weights(model, content, x))
    bank_z, bank_v = (z, v) if bank is None else (model.chain(bank), content.chain(bank))
    gate = gate_of(z, v, y, bank_z, bank_v, cluster(bank_v, seed))
    nearest = np.unique(y)[_nearest(bank_z, gate.classes_z)]
    folds = []
    for number, (trained, seen, known) in enumerate(deal(y, seed)):
        progress("gate", number, FOLDS, "")
        of_fold = retrain(x[trained], y[trained])
        z_trained, z_seen = of_fold.chain(x[trained]), of_fold.chain(x[seen])
        of_bank = (z_trained, v[trained]) if bank is None else (of_fold.chain(bank), bank_v)
        present = gate_of(z_trained, v[trained], y[trained], *of_bank, gate.clusters)
        fold = Fold(present.features(z_seen, v[seen]), known, z_seen, v[seen], y[seen])
        if bank is not None:
            kept = ~np.isin(nearest, np.setdiff1d(y, y[trained]))
            chain = content_chain(bank[kept], content.codebooks.M, True, seed)
            kept_v = chain(bank[kept])
            absent = gate_of(z_trained, chain(x[trained]), y[trained], of_bank[0][kept], kept_v, cluster(kept_v, seed))
            fold = replace(fold, absent=absent.features(z_seen, chain(x[seen])))
        folds.append(fold)
    progress("gate", FOLDS, FOLDS, "")
    weights, caution, facts = choose(folds)
    said, weighing = (logistic(*_together(of)).astype(np.float32) for of in (folds, _present(folds)))
    gate = replace(gate, coefficients=said, weighing=weighing, caution=caution, facts=facts)
    return replace(content, weights=weights, gate=gate)


def _nearest(z: Floats, classes: Floats) -> Ints:
    """Number of the class with the largest <z, class>, (n,)."""
    return np.concatenate([(part @ classes.T).argmax(1) for part in np.array_split(z, -(-len(z) // BLOCK))])


def default_weights(model: Model, content: Content, x: Floats) -> tuple[float, float]:
    """Weights that no left-out class chose, from the spread of the rows x (n, d_in)."""
    x = x[drawn_rows(len(x), QUERIES, int(model.config["seed"]))]
    scale = scale_of(model.chain(x), content.chain(x))
    return DEFAULTS[0] * scale, DEFAULTS[1] * scale


def deal(y: Ints, seed: int) -> Iterator[tuple[Ints, Ints, Bools]]:
    """y (n,) -> for each fold the rows to train on, those to look at, and which of these are of a known class.

    Every class is left out once. Of each other class HELD of the rows, rounded, are looked at; classes of one row are trained on.
    """
    random = np.random.default_rng(seed)
    rows = random.permutation(drawn_rows(len(y), ROWS, seed))
    classes = random.permutation(np.unique(y[rows]))
    rank = rank_in_class(y[rows])
    counts = np.bincount(y[rows])[y[rows]]
    held = rank < np.minimum(np.maximum(np.round(HELD * counts), 1), counts - 1)
    for part in np.array_split(classes, FOLDS):
        out = np.isin(y[rows], part)
        # Half of each at most: the unknown ones are more, and would leave no room for the others.
        seen = np.concatenate([of[: QUERIES // 2] for of in (rows[out], rows[held & ~out])])
        yield np.sort(rows[~out & ~held]), seen, ~np.isin(y[seen], part)


def gate_of(z: Floats, v: Floats, y: Ints, bank_z: Floats, bank_v: Floats, clusters: Floats) -> Gate:
    """What a gate knows of training rows z, v, y and of unlabelled ones; its coefficients are still 0.

    Shares are relative to those at the training rows, so that folds with fewer classes say the same of a known one.
    """
    classes = np.unique(y)
    of_z, of_v = (unit(np.stack([part[y == c].mean(0, dtype=np.float64) for c in classes])) for part in (z, v))
    near, near_bank = (assigned(part, clusters, TEMPERATURE) for part in (v, bank_v))
    counts = near_bank.sum(0)
    top = np.concatenate([(part @ of_z.T).max(1) for part in np.array_split(bank_z, -(-len(bank_z) // BLOCK))])
    tops = (near_bank.T @ top.astype(np.float64)) / np.maximum(counts, 1e-9)
    shares = np.log((near.sum(0) + 1) / (counts + 1))
    shares -= (near @ shares).mean()
    none = {"auc": 0.5, "loss": 0.0, "gain": 0.0, "on": False}
    numbers = [np.asarray(a, np.float32) for a in (clusters, tops, shares)]
    return Gate(of_z, of_v, numbers[0], TEMPERATURE, numbers[1], numbers[2], np.zeros(5, np.float32), none)


# --------------------------------------------------------------------------------------------------------- regression
def logistic(features: NDArray[np.float64], known: Bools) -> NDArray[np.float64]:
    """features (n, f), known (n,) -> (f + 1,): coefficients of the features as they are, the constant last.

    argmin of sum_i w_i log(1 + exp(-t_i (b . x_i + b0))) + RIDGE / 2 ||b||^2 with standardised x, t = +-1, and w such that
    both kinds of rows weigh the same: probabilities are those at even odds. A feature that never varies gets 0.
    """
    mean, sd = features.mean(0), features.std(0)
    x = torch.from_numpy((features - mean) / np.where(sd > 1e-12, sd, np.inf))
    t = torch.from_numpy(np.where(known, 1.0, -1.0))
    w = torch.from_numpy(len(known) / 2 / np.where(known, known.sum(), (~known).sum()))
    b = torch.zeros(features.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [b], max_iter=500, tolerance_grad=1e-9, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def loss() -> torch.Tensor:
        solver.zero_grad()
        value = (w * torch.nn.functional.softplus(-t * (x @ b[:-1] + b[-1]))).sum() + RIDGE / 2 * b[:-1].square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        solver.step(loss)
    found = b.detach().numpy()
    scaled = found[:-1] / np.where(sd > 1e-12, sd, np.inf)
    return np.append(scaled, found[-1] - scaled @ mean)


def area_under_curve(scores: NDArray[np.float64], known: Bools) -> float:
    """Share of pairs of a known and an unknown row whose scores are in order, ties one half; 0.5 without such pairs."""
    order = np.sort(scores[~known])
    below, upto = (np.searchsorted(order, scores[known], side) for side in ("left", "right"))
    pairs = known.sum() * (~known).sum()
    return float((below + upto).sum() / 2 / pairs) if pairs else 0.5


# ------------------------------------------------------------------------------------------------------------ weights
def choose(folds: list[Fold]) -> tuple[tuple[float, float], float, dict[str, Any]]:
    """The two weights, the caution of the gate, and its facts, by means over the folds."""
    scales = [scale_of(f.z, f.v) for f in folds]
    dots = [(f.z @ f.z.T, f.v @ f.v.T) for f in folds]
    logits, present, absent = [], [], []
    for i, fold in enumerate(folds):
        others = [f for j, f in enumerate(folds) if j != i]
        b, weighing = logistic(*_together(others)), logistic(*_together(_present(others)))
        logits.append(fold.features @ weighing[:-1] + weighing[-1])
        present.append(area_under_curve(fold.features @ b[:-1] + b[-1], fold.known))
        if fold.absent is not None:
            absent.append(area_under_curve(fold.absent @ b[:-1] + b[-1], fold.known))

    def ranked(weight_of: Callable[[int], Any], known: bool) -> float:
        """Mean mAP over the folds of the queries of known or unknown classes, where fold i weighs v by weight_of(i)."""
        values = []
        for i, (fold, (zz, vv)) in enumerate(zip(folds, dots)):
            rows = np.flatnonzero(fold.known == known)
            w = np.broadcast_to(np.asarray(weight_of(i), np.float32), len(fold.y))[rows, None]
            values.append(average_precision(zz[rows] + w * vv[rows], rows, fold.y).mean())
        return float(np.mean(values))

    of_known = [ranked(lambda i, w=w: w * scales[i], True) for w in KNOWN]  # type: ignore[misc]
    low = KNOWN[int(np.argmax(of_known))]
    of_unknown = [ranked(lambda i, w=w: w * scales[i], False) for w in UNKNOWN]  # type: ignore[misc]
    high = max(UNKNOWN[int(np.argmax(of_unknown))], low)
    ungated = ranked(lambda i: low * scales[i], False)
    facts: dict[str, Any] = {"auc": float(np.mean(present)), "loss": 0.0, "gain": 0.0, "on": False}
    if absent:
        facts["auc_absent"] = float(np.mean(absent))
    scale = float(np.mean(scales))
    for caution in CAUTIONS:

        def weight(i: int, caution: float = caution) -> Any:
            return scales[i] * between(sigmoid(logits[i] + caution), low, high)

        loss = max(of_known) - ranked(weight, True)
        if loss > MAX_LOSS:
            continue
        facts |= {"loss": loss, "gain": ranked(weight, False) - ungated}
        facts["on"] = facts["gain"] >= MIN_GAIN
        return (low * scale, high * scale), caution, facts
    return (low * scale, high * scale), 0.0, facts


def scale_of(z: Floats, v: Floats) -> float:
    """sd <z, z'> / sd <v, v'> over pairs of rows."""
    off = ~np.eye(len(z), dtype=bool)
    of_z, of_v = (float((part @ part.T)[off].std()) if len(z) > 1 else 0.0 for part in (z, v))
    return of_z / of_v if of_z > 0 and of_v > 0 else 1.0


def average_precision(scores: Floats, rows: Ints, y: Ints) -> NDArray[np.float64]:
    """scores (q, n) of all rows for the queries `rows` (q,) -> average precision of each, the query itself left out.

    Queries without another row of their class are left out; nan where none is left.
    """
    scores = scores.copy()
    scores[np.arange(len(rows)), rows] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, :-1]
    relevant = y[order] == y[rows, None]
    found = relevant.sum(1)
    precision = np.cumsum(relevant, 1) / np.arange(1, order.shape[1] + 1)
    return np.asarray((precision * relevant).sum(1)[found > 0] / found[found > 0])


def _present(folds: list[Fold]) -> list[Fold]:
    """The folds where unlabelled rows hold the classes that were left out."""
    return [replace(f, absent=None) for f in folds]


def _together(folds: list[Fold]) -> tuple[NDArray[np.float64], Bools]:
    both = [(features, f.known) for f in folds for features in (f.features, f.absent) if features is not None]
    return np.concatenate([features for features, _ in both]), np.concatenate([known for _, known in both])
