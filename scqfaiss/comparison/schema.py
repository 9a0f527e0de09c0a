"""What stands in a results file: kinds of results, their parts and fields, with bounds, titles and descriptions.

Results files are text that anybody may have edited. What has the wrong kind, or cannot be true, counts as not measured: `cleaned`
leaves None there, so that readers meet numbers, names and lists where they look for them, or nothing. Fields that are not named
here are passed over. Scores of quality are fractions, times what their names say, sizes bytes, arrays nested lists.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from .fields import (
    Bits,
    ByRank,
    ByRun,
    Bytes,
    Cosine,
    Count,
    Figure,
    Maybe,
    Ms,
    Named,
    Part,
    Rate,
    Ratio,
    Rows,
    Scalar,
    Seconds,
    Share,
    Text,
    TrainState,
    files_by_name,
    objects,
    part,
)


# ---------------------------------------------------------------------------------------------------------------- rows
class Machine(Part):
    """What was measured with, as `results.machine` makes it."""

    cpu: Scalar = None
    cores: Scalar = None
    memory: Maybe[Bytes] = None
    gpu: Scalar = None
    system: Scalar = None
    versions: Named = None


class Run(Machine):
    """What a row was measured with."""

    command: Scalar = None
    seed: Scalar = None
    data: Named = part("", "SHA-256 by name")


class Row(Part):
    key: Text
    reason: Maybe[Text] = part("", "why it could not be measured")


class Point(Part):
    """An operating point; one thread, batches of 1,000."""

    nprobe: Maybe[Count] = None
    refine: Maybe[Count] = None
    ms: Maybe[Ms] = None
    map: Maybe[Share] = None
    precision_at_10: Maybe[Share] = None
    recall: Maybe[Share] = part("", "of the first 10 of the same codes, all of them looked at")
    pareto: Maybe[bool] = None


class Plane(Part):
    features: Maybe[list[list[TrainState]]] = part("", "(n, 2)")
    labels: Maybe[list[Annotated[int, Field(ge=-1, le=10**6)]]] = part("", "(n,), -1 where unknown")
    codewords: Maybe[list[list[TrainState]]] = part("", "(u, 2)")


class ComparisonRow(Row):
    role: Maybe[Text] = part("role", "'ours', 'label' (the predicted class as code), 'baseline' or 'ceiling' (floats)")
    method: Maybe[Text] = part("method", "scq, dpq, label, ivf, pq, opq, ivfpq, rq, ivfrq, lsq, fastscan, rabitq, flat")
    space: Maybe[Text] = part(
        "space", "what is coded: 'raw' (rows, cosine) or 'trained' (what an encoder makes of them)"
    )
    container: Maybe[Text] = part("container", "target, or FAISS class")
    factory: Maybe[Text] = part("FAISS's factory strings", "of baselines", some=True)
    bits: Maybe[Bits] = part("bits", "of a code, None of floats; 0: the list of a row is its code")
    lists: Maybe[Rows] = part("number of lists", "inverted lists that are part of the code; 1: codes of whole vectors")
    nlist: Maybe[Count] = part("nlist", "of the row's own operating point", some=True)
    nprobe: Maybe[Count] = part("nprobe", "of the row's own operating point", some=True)
    refine: Maybe[Count] = part("refine", "of the row's own operating point", some=True)
    map: Maybe[Share] = part("mAP")
    precision_at_k: ByRank = part("precision@10", "{'10'}")
    label_recall_at_k: ByRank = part("label recall", "{'1', '10', '100'}")
    neighbours: Maybe[dict[str, ByRank]] = part(
        "recall of exact neighbours",
        "{'coded' | 'raw': {'1', '10', '100'}}: share of the exact neighbours, by the floats that were coded and by the cosine "
        "of the rows, that stand among as many hits",
    )
    ms: ByRun = part(
        "search times",
        "{batch '1' | '1000': {threads 'one' | 'all': {'p50', 'p95', 'p99'}}} a query, search alone",
    )
    encode_ms: ByRun = part("encoding times", "the same of the encoder")
    seconds: Maybe[dict[str, Maybe[Seconds]]] = part("building times", "{'train', 'encode', 'add'}")
    bytes: Maybe[dict[str, Maybe[Bytes]]] = part("bytes", "{'memory', 'disk'}")
    open_ms: Maybe[Ms] = part("opening time")
    points: Annotated[Maybe[list[Point]], BeforeValidator(objects)] = part("operating points")
    pr: Maybe[dict[str, Maybe[list[Maybe[Share]]]]] = part(
        "precision-recall curves", "{'recall', 'precision'}", some=True
    )
    usage: Maybe[list[list[Rate]]] = part("use of codewords", "(M, K) rows that use each codeword", some=True)
    distinct_codes: Maybe[Count] = part("distinct codes", some=True)
    mse: Maybe[Figure] = part("error of coding", "mean squared", some=True)
    centers: Maybe[list[list[Cosine]]] = part(
        "similarity of classes", "(C, C) cosines of the mean embeddings", some=True
    )
    plane: Maybe[Plane] = part("the map of embeddings", "t-SNE of embeddings and codewords", some=True)
    run: Maybe[Run] = part("where the figures come from")


class ScaleRow(Row):
    target: Maybe[Text] = part("target")
    rows: Maybe[Rows] = part("number of rows")
    ms: Maybe[Ms] = part("search times in batches", "a query, one thread")
    single_ms: Maybe[Ms] = part("search times of single queries")
    build_seconds: Maybe[Seconds] = part("building times")
    memory: Maybe[Bytes] = part("memory")
    disk: Maybe[Bytes] = part("bytes on disk")
    recall: Maybe[Share] = part("recall", "of the exact first 10")
    distinct: Maybe[Count] = part("distinct codes")
    nlist: Maybe[Count] = part("nlist", some=True)
    nprobe: Maybe[Count] = part("nprobe", some=True)
    run: Maybe[Run] = part("where the figures come from")


class TrainingRow(Row):
    what: Maybe[Text] = part("stage", "'codebook', 'feature'")
    batch: Maybe[Rows] = part("batch")
    pairs: Maybe[Rows] = part("rounds")
    ratio: Maybe[Ratio] = part("ratio", "median over the rounds")
    ratio_low: Maybe[Ratio] = part("lower quartile of the ratio")
    ratio_high: Maybe[Ratio] = part("upper quartile of the ratio")
    ours_rows_per_s: Maybe[Rate] = part("our rows a second")
    plain_rows_per_s: Maybe[Rate] = part("plain rows a second")
    run: Maybe[Run] = part("where the figures come from")


class AttackRow(Row):
    attack: Maybe[Text] = part("attack", "'clean', or one of attack.registry")
    eps: Maybe[Figure] = part("strength", "of rows a share of their norm, of images steps of 255")
    crafted: Maybe[Text] = part("the model attacked", "which queries were made against; none of clean ones", some=True)
    searched: Maybe[Text] = part("model", "that is searched with")
    map: Maybe[Share] = part("mAP")
    map_symmetric: Maybe[Share] = part("mAP with the query's code")
    map_floats: Maybe[Share] = part("", "mAP of the floats that the codes are of")
    map_label: Maybe[Share] = part("", "mAP of the predicted class as code")
    changed_codes: Maybe[Share] = part("changed codes", "share of queries of whose code any part changed")
    changed_codewords: Maybe[Share] = part("", "share of all codewords that changed")
    known_auc: Maybe[Share] = part("", "of the model's gate, between clean queries and these")
    change: Maybe[Figure] = part("", "the largest, in the unit of eps")
    lost: Maybe[Count] = part("", "steps not taken, as a gradient was not finite")
    seconds: Maybe[Seconds] = part("", "of making the queries")
    run: Maybe[Run] = part("where the figures come from")


# ----------------------------------------------------------------------------------------------------------- documents
class DataFile(Part):
    file: Scalar = None
    sha256: Scalar = None
    rows: Maybe[Rows] = None
    d: Maybe[Rows] = None


class Shown(Part):
    """A row of the gallery."""

    id: Scalar = None
    labels: Maybe[list[Scalar]] = None
    picture: Maybe[Text] = part("", "key of `pictures` or None")
    right: Maybe[bool] = part("", "of hits")


class Side(Part):
    key: Scalar = part("", "of a row")
    hits: Maybe[list[Maybe[list[Maybe[Shown]]]]] = part("", "of each query")


class UnknownDraw(Part):
    """A training without some classes, with content codes."""

    key: Text
    method: Maybe[Text] = None
    bits: Maybe[Bits] = None
    content_bits: Maybe[Bits] = None
    lists: Maybe[Rows] = None
    left_out: Maybe[list[Scalar]] = part("", "names of the classes")
    classes: Maybe[Rows] = part("", "how many there are")
    auc: Maybe[Share] = part("", "of the gate, between queries of seen and of unseen classes")
    maps: Maybe[dict[Text, ByRank]] = part(
        "",
        "{'auto' | 'told' | 'semantic': ours, 'rows': their cosine, 'pq' | 'opq': FAISS's codes of the rows in as many bits: "
        "{'unseen', 'seen', 'all'}} mAP of the queries of classes left out, of the others, of all",
    )
    seconds: Maybe[Seconds] = part("", "of the training")
    run: Maybe[Run] = None


class Unknown(Part):
    reason: Maybe[Text] = part("", "why it could not be measured")
    draws: Annotated[Maybe[list[UnknownDraw]], BeforeValidator(objects)] = None


class Reliability(Part):
    """The hits of a bin of probabilities."""

    probability: Maybe[Share] = part("", "their mean")
    right: Maybe[Share] = part("", "how many are")
    hits: Maybe[Figure] = None


class Promised(Part):
    """What was asked for, and what queries saw."""

    recall: Maybe[dict[Text, Maybe[Share]]] = part("", "{asked for: seen, None where nothing was promised}")
    precision: Maybe[dict[Text, Maybe[Share]]] = part("", "{asked for: seen}")


class Expected(Part):
    map: Maybe[Share] = None
    low: Maybe[Share] = None
    high: Maybe[Share] = None


class Promises(Part):
    """What a training said of its codes, held against the queries."""

    key: Maybe[Text] = None
    reason: Maybe[Text] = part("", "why it could not be measured")
    method: Maybe[Text] = None
    bits: Maybe[Bits] = None
    lists: Maybe[Rows] = None
    held_out: Maybe[Rows] = part("", "labelled rows that did not train, by which scores are known")
    share: Maybe[Share] = part("", "of rows relevant to a query, as estimated")
    guess: Maybe[Promised] = part("", "without a margin")
    sure: Maybe[Promised] = part("", "with confidence 0.9")
    ece: Maybe[Share] = part("", "expected calibration error of the first 100 hits")
    reliability: Annotated[Maybe[list[Reliability]], BeforeValidator(objects)] = None
    map: Maybe[Share] = None
    forecast: Maybe[Expected] = part("", "of mAP, before")
    run: Maybe[Run] = None


class Gallery(Part):
    queries: Maybe[list[Maybe[Shown]]] = None
    sides: Maybe[list[Maybe[Side]]] = None


Names = Annotated[Maybe[list[Text]], BeforeValidator(lambda v: [*map(str, v)] if isinstance(v, list) else v)]


class Growth(Part):
    """factor * rows ** exponent"""

    exponent: Maybe[Annotated[float, Field(ge=-5, le=5)]] = None
    factor: Maybe[Figure] = None


class Extrapolation(Part):
    rows: Maybe[Rows] = None
    targets: Maybe[dict[Text, Maybe[dict[str, Maybe[Bytes]]]]] = part(
        "", "{target: {'ms', 'single_ms', 'build_seconds', 'memory'}}"
    )


class Results(Part):
    """What results of every kind have."""

    format: Scalar = None
    kind: str
    name: Maybe[Text] = part("the name of the results")
    seed: Scalar = part("the seed")
    written: Maybe[Text] = part("the date")
    command: Maybe[Text] = part("the command")
    machine: Maybe[Machine] = part("the machine")
    data: Annotated[Maybe[dict[Text, DataFile]], BeforeValidator(files_by_name)] = None


class Comparison(Results):
    """Label-aware codes beside FAISS's own at equal bits a vector."""

    data: Annotated[Maybe[dict[Text, DataFile]], BeforeValidator(files_by_name)] = part(
        "the data files", "train, query, database"
    )
    classes: Names = part("names of the classes")
    many_labels: Maybe[bool] = part("whether rows have several labels")
    embedding: Named = part(
        "whose embedding FAISS codes", "{'method', 'bits', 'lists'}; in baselines and the ceiling of 'trained'"
    )
    at: Maybe[Rows] = part("the ranks that count in mAP", "divided by the relevant rows within them")
    sweep_at: Maybe[Rows] = part(
        "the ranks that count at operating points",
        "divided by what could have been found: min(ranks, all relevant rows)",
    )
    bits: Maybe[list[Scalar]] = part("the lengths asked for")
    lists: Maybe[list[Scalar]] = part("the numbers of lists asked for")
    unknown: Maybe[Unknown] = part("unseen classes")
    promises: Maybe[Promises] = part("thresholds")
    gallery: Maybe[Gallery] = part("the retrieval gallery")
    pictures: Maybe[dict[Text, Named]] = part("images of the gallery", "{'type': 'image/png', 'data': base64} by key")
    rows: list[ComparisonRow]


class Scale(Results):
    """Time and memory against rows."""

    how: Maybe[Text] = part("how the codes came about")
    assumptions: Maybe[list[Scalar]] = part("what stands behind the extrapolation", "sentences")
    fits: Maybe[dict[Text, Maybe[dict[str, Maybe[Growth]]]]] = part(
        "fitted growth", "{target: {field of rows: growth}}"
    )
    extrapolation: Maybe[Extrapolation] = part("the extrapolation")
    rows: list[ScaleRow]


class Training(Results):
    """A step of training beside the released recipe's arithmetic."""

    rows: list[TrainingRow]


class Attack(Results):
    """Searches with queries that were changed to mislead them."""

    data: Annotated[Maybe[dict[Text, DataFile]], BeforeValidator(files_by_name)] = part(
        "the data files", "model, query, database"
    )
    space: Maybe[Text] = part("what was changed", "'rows' or 'pixels'")
    attack: Named = part("the settings of the attacks", "steps, step, restarts, beta, smooth and others")
    queries: Maybe[Rows] = part("the number of queries")
    database: Maybe[Rows] = part("the rows that are searched")
    classes: Names = part("names of the classes")
    gallery: Maybe[Gallery] = part("queries before and after")
    pictures: Maybe[dict[Text, Named]] = part("images of these", "as in a comparison")
    rows: list[AttackRow]


KINDS: dict[str, tuple[type[Results], type[Row]]] = {
    "comparison": (Comparison, ComparisonRow),
    "scale": (Scale, ScaleRow),
    "training": (Training, TrainingRow),
    "attack": (Attack, AttackRow),
}


def cleaned(document: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a document of `results.read_results` in which every part has its kind and can be true, or is None."""
    model, _ = KINDS[document["kind"]]
    return model.model_validate(document).model_dump(exclude_unset=True)
