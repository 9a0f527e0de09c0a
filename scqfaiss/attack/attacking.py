"""`scqfaiss attack`: queries changed against a model, and what a search with them is worth, with this model and with others.

Nothing of a model or a database changes. OUT/results.json is written row by row; the same command goes on where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import Floats, Ints, Labels
from ..comparison.inputs import label_files, row_facts
from ..comparison.measuring import run_facts, typed
from ..comparison.results import FILE, Results, file_hash, results_file
from ..contract import Progress, drawn_rows, silent
from ..data import Source, keys_for, open_rows
from ..data.classes import align, check_classes
from ..data.items import ItemSource
from ..errors import ConfigError, DataError, printable
from ..evaluation.ranking import same_classes
from ..features.source import DEFAULT_INFERENCE, InferenceOptions, as_rows
from ..files import PathLike, make_folder
from ..model import Model
from ..training.threads import considerate
from .ascent import Schedule
from .crafting import Crafter
from .examples import examples
from .options import PIXEL_STRENGTHS, ROW_STRENGTHS, AttackOptions
from .registry import REGISTRY
from .scoring import Searched
from .smoothing import Smoothing

CLEAN = "clean"  # the name of queries that nothing changes


@dataclass(frozen=True)
class Inputs:
    """queries: rows (n, d), or images (n, 3, size, size) uint8; database (m, d_in): rows, or features of images, by model."""

    queries: NDArray[Any]
    query_labels: Labels
    database: Mapping[str, Floats]
    database_labels: Labels
    ids: tuple[Ints, Ints]  # of both


def attack_files(
    model: PathLike,
    queries: PathLike,
    database: PathLike,
    options: AttackOptions,
    *,
    keys: Mapping[str, Any],
    inference_options: InferenceOptions = DEFAULT_INFERENCE,
    progress: Progress = silent,
) -> str:
    """Attack labelled queries against a model and write what is missing of the results -> a table of them, as text.

    Raises ConfigError where models, files and options do not fit together, DataError on files without labels.
    """
    paths = [Path(model), *options.transfer]
    models = _load(paths)
    inputs = _read(queries, database, models, options, keys, inference_options)
    files = {"model": Path(model), "query": Path(queries), "database": Path(database)}
    files |= {f"transfer {path.stem}": path for path in options.transfer}
    files |= label_files(keys, first="query")
    data = {part: {"file": path.name, "sha256": file_hash(path)} for part, path in files.items()}
    facts = row_facts(keys) | {
        "data": data,
        "seed": options.seed,
        "space": "pixels" if inputs.queries.ndim == 4 else "rows",
        "classes": None if inputs.query_labels.class_names is None else list(inputs.query_labels.class_names),
        "attack": options.facts,
    }
    command = typed("scqfaiss attack")
    make_folder(options.out)
    with results_file(options.out / FILE, inputs=list(files.values()), what="measured") as output:
        results = Results(output, "attack", options.out.name, command, facts, fresh=options.fresh)
        run = run_facts(command, options.seed, {name: str(part["sha256"]) for name, part in data.items()})
        with considerate():
            for row in measured(models, inputs, options, results, inference_options, progress):
                results.add(row | {"run": run})
        results.finish(queries=len(inputs.queries), database=len(inputs.database_labels))
    return text_of(results.document)


def _load(paths: list[Path]) -> dict[str, Model]:
    """The models by the names of their files. Raises ConfigError where two have one name."""
    names = [path.stem for path in paths]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two models are called '{printable(name)}'; give one of the files another name")
    return {path.stem: Model.load(path) for path in paths}


def _read(
    queries_path: PathLike,
    database_path: PathLike,
    models: Mapping[str, Model],
    options: AttackOptions,
    keys: Mapping[str, Any],
    inference_options: InferenceOptions,
) -> Inputs:
    with ExitStack() as stack:
        queries = stack.enter_context(open_rows(queries_path, **keys_for(keys), role="queries"))
        database = stack.enter_context(open_rows(database_path, **keys_for(keys, "database"), role="keys"))
        for source in (queries, database):
            if source.labels is None:
                raise DataError(
                    f"{source.name} has no labels, which an attack is scored by; name them with --labels-key, or bring "
                    f"them with {'--labels' if source is queries else '--database-labels'} FILE"
                )
            if len(source) == 0:
                raise DataError(f"{source.name} holds 0 rows, an attack needs some")
        kept = drawn_rows(len(database), options.database_sample or len(database), options.seed)
        database.leave_out(np.setdiff1d(np.arange(len(database)), kept, assume_unique=True))
        align(queries, database)
        check_classes(queries, database)
        assert queries.labels is not None and database.labels is not None
        of_queries, of_database = same_classes(queries.labels, database.labels, queries.name, database.name)
        chosen = drawn_rows(len(queries), options.sample or len(queries), options.seed)
        x = _queries(queries, models, inference_options)[chosen]
        rows = {name: _rows(database, name, model, inference_options) for name, model in models.items()}
    ids = queries.ids[chosen], database.ids
    return Inputs(x, of_queries.take(chosen), rows, of_database, ids)


def _queries(source: Source, models: Mapping[str, Model], options: InferenceOptions) -> NDArray[Any]:
    """Queries in the form that every model takes. Raises ConfigError where there is no such form."""
    if not isinstance(source, ItemSource):
        for name, model in models.items():
            if model.modality.needs_encoder:
                noun = model.modality.noun
                raise ConfigError(
                    f"{source.name} holds rows, and {printable(name)} is attacked by {noun}; give it {noun}"
                )
            if model.d_in != source.d:
                raise ConfigError(f"{source.name} has d={source.d}, {printable(name)} needs d={model.d_in}")
        return source.read(0, len(source))
    forms = {name: _form(source, name, model, options) for name, model in models.items()}
    if len(set(forms.values())) > 1:
        shown = ", ".join(f"{printable(name)} {size} px by {fit}" for name, (size, fit) in forms.items())
        raise ConfigError(f"the models take images of several forms ({shown}): one changed image cannot serve all")
    return source.read(0, len(source))


def _form(source: ItemSource, name: str, model: Model, options: InferenceOptions) -> tuple[int, str]:
    """Side in pixels, and how images become square. Raises ConfigError where the model takes no images."""
    encoder = getattr(as_rows(source, model, options, printable(name)), "encoder")  # noqa: B009  raises for a model of rows
    return encoder.size, encoder.fit


def _rows(source: Source, name: str, model: Model, options: InferenceOptions) -> Floats:
    rows = as_rows(source, model, options, printable(name))
    if rows.d != model.d_in:
        raise ConfigError(f"{source.name} has d={rows.d}, {printable(name)} needs d={model.d_in}")
    return np.concatenate([block for _, block in rows.blocks()])


# ------------------------------------------------------------------------------------------------------------- measuring
def measured(
    models: Mapping[str, Model],
    inputs: Inputs,
    options: AttackOptions,
    results: Results,
    inference_options: InferenceOptions,
    progress: Progress,
) -> Iterator[dict[str, Any]]:
    """Every row that is asked for and that results do not hold."""
    smoothing = Smoothing(options.smooth, options.smooth_noise) if options.smooth else None
    x = inputs.queries
    searched = {
        name: Searched(
            model,
            inputs.database[name],
            inputs.database_labels,
            x,
            inputs.query_labels,
            at=options.at,
            smoothing=smoothing,
            options=inference_options,
            seed=options.seed,
        )
        for name, model in models.items()
    }
    for name, side in searched.items():
        key = f"{CLEAN}/{name}"
        if key not in results:
            yield {"key": key, "attack": CLEAN, "eps": 0.0, "searched": name} | side.figures(x, options.floats)
    schedule = Schedule(options.steps, options.step, options.restarts)
    strengths = options.eps or (PIXEL_STRENGTHS if x.ndim == 4 else ROW_STRENGTHS)
    attacked = list(models) if options.all_pairs else [next(iter(models))]
    shown = next((a for a in reversed(options.attacks) if REGISTRY[a]), None), strengths[len(strengths) // 2]
    for name in attacked:
        crafter: Crafter | None = None
        for attack in options.attacks:
            for eps in strengths:
                keys = {target: f"{attack}/{eps:g}/{name}/{target}" for target in models}
                if all(key in results for key in keys.values()):
                    continue
                crafter = crafter or Crafter(
                    models[name],
                    options.beta,
                    schedule,
                    smoothing=smoothing,
                    options=inference_options,
                    batch_size=options.batch_size,
                    seed=options.seed,
                )
                start = time.perf_counter()
                found = crafter.craft(x, attack, eps, progress)
                how = {"seconds": round(time.perf_counter() - start, 3), "change": found.change, "lost": found.lost}
                if name == attacked[0] and (attack, eps) == shown:
                    text = f"{attack}, {eps:g}"
                    results.document |= examples(x, found.queries, searched[name], inputs.ids, text)
                for target, key in keys.items():
                    figures = searched[target].figures(found.queries, options.floats)
                    names = {"key": key, "attack": attack, "eps": eps, "crafted": name, "searched": target}
                    yield names | figures | how


# ------------------------------------------------------------------------------------------------------------------ text
COLUMNS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "mAP": lambda row: row.get("map"),
    "with the query's code": lambda row: row.get("map_symmetric"),
    "floats": lambda row: row.get("map_floats"),
    "label code": lambda row: row.get("map_label"),
    "codes changed": lambda row: row.get("changed_codes"),
    "AUC of known": lambda row: row.get("known_auc"),
}


def text_of(document: Mapping[str, Any]) -> str:
    """A line for each row: the attack, its strength, and what is left of the search."""
    rows = document["rows"]
    columns = {name: value for name, value in COLUMNS.items() if any(value(row) is not None for row in rows)}
    several = len({row["searched"] for row in rows}) > 1
    order = {name: i for i, name in enumerate((CLEAN, *REGISTRY))}
    lines = [["attack", "eps", *columns]]
    for row in sorted(rows, key=lambda r: (r["searched"], r.get("crafted", ""), r["eps"], order[r["attack"]])):
        name = row["attack"]
        if several:
            name += f", searched with {row['searched']}"
            name += f", made against {row['crafted']}" if row.get("crafted") not in (None, row["searched"]) else ""
        values = (value(row) for value in columns.values())
        lines.append([name, f"{row['eps']:g}", *("-" if v is None else f"{v:.4f}" for v in values)])
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths)).rstrip() for line in lines)
