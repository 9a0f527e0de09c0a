"""Results with every part, small and made up: what the tests of the report draw pages from."""

import base64
import io
import json

import pytest
from PIL import Image

MACHINE = {
    "cpu": "Example 9005",
    "cores": 2,
    "memory": 25 << 30,
    "gpu": None,
    "system": "Linux x86_64",
    "versions": {"python": "3.11.2", "scqfaiss": "0.1.0", "torch": "2.13.0", "faiss": "1.15.1", "numpy": "2.4.6"},
}
COMMAND = "python benchmarks/ivfpq.py --train train.h5 --query query.h5 --database database.h5"
DATA = {
    part: {"file": f"{part}.h5", "sha256": f"{k:02x}" * 32, "rows": n, "d": 512}
    for k, (part, n) in enumerate({"train": 5000, "query": 1000, "database": 54000}.items(), 1)
}
RUN = {
    "command": COMMAND,
    "seed": 0,
    "versions": MACHINE["versions"],
    "cpu": MACHINE["cpu"],
    "cores": MACHINE["cores"],
    "gpu": None,
    "data": {part: held["sha256"] for part, held in DATA.items()},
}
HEAD = {
    "format": 1,
    "seed": 0,
    "written": "2026-11-21T20:00:00+00:00",
    "command": COMMAND,
    "machine": MACHINE,
}
CLASSES = ["airplane", "automobile", "bird"]


def fresh(document):
    """A copy in which no two parts are one object, as a file would give it."""
    return json.loads(json.dumps(document))


def times(one):
    """Of batches of 1,000 on one thread `one` ms at p50, the rest from it."""

    def spread(p50):
        return {"p50": p50, "p95": 1.2 * p50, "p99": 1.7 * p50}

    return {
        "1": {"one": spread(4 * one), "all": spread(5 * one)},
        "1000": {"one": spread(one), "all": spread(0.6 * one)},
    }


def row(role, method, space, container, bits, quality, ms, **more):
    """A row of a comparison with every figure."""
    lists = 16 if "lists" in container or method == "ivfpq" or more.get("lists", 1) > 1 else None
    point = {"nprobe": 4 if lists else None, "refine": None, "ms": ms, "map": quality, "precision_at_10": quality}
    n = DATA["database"]["rows"]
    held = n * ((bits or 16384) // 8 + 8)
    return {
        "key": f"{method}/{space}/{bits}/{container}",
        "role": role,
        "method": method,
        "space": space,
        "container": container,
        "factory": None if role == "ours" else "PQ4np",
        "bits": bits,
        "lists": 1,
        "nlist": lists,
        "nprobe": 4 if lists else None,
        "refine": None,
        "map": quality,
        "precision_at_k": {"10": quality + 0.05},
        "label_recall_at_k": {"1": 0.0001, "10": 0.001, "100": 0.01},
        "neighbours": {"coded": {"1": 0.3, "10": 0.4, "100": 0.6}, "raw": {"1": 0.02, "10": 0.05, "100": 0.2}},
        "ms": times(ms),
        "encode_ms": times(0.02) if role in ("ours", "label") else None,
        "seconds": {"train": 8.1, "encode": 1.2, "add": 0.3},
        "bytes": {"memory": held, "disk": held + 9000},
        "open_ms": 3.2,
        "points": [
            {**point, "recall": 1.0, "pareto": True},
            {**point, "nprobe": 1, "ms": ms / 2, "map": 0.9 * quality, "recall": 0.6, "pareto": True},
        ],
        "pr": {"recall": [0.0, 0.5, 1.0], "precision": [min(1.0, quality + 0.2), quality, quality / 2]},
        "usage": [[40 * k + m for k in range(16)] for m in range((bits or 8) // 8)],
        "distinct_codes": 900,
        "mse": 0.0123,
        "run": RUN,
        **more,
    }


def draw(number, more):
    """A training without a class: ours with content codes behind PQ of the rows on unseen classes, ahead on the others."""
    maps = {
        "auto": (0.21 + more, 0.60, 0.52),
        "told": (0.25, 0.61, 0.54),
        "semantic": (0.18, 0.61, 0.52),
        "rows": (0.24, 0.24, 0.24),
        "pq": (0.26, 0.25, 0.25),
        "opq": (0.25, 0.24, 0.24),
    }
    return {
        "key": f"scq/32+32 in 1 lists/{number}",
        "method": "scq",
        "bits": 32,
        "content_bits": 32,
        "lists": 1,
        "left_out": [["bird", "cat"][number]],
        "classes": 3,
        "auc": 0.8,
        "maps": {name: dict(zip(("unseen", "seen", "all"), values)) for name, values in maps.items()},
        "seconds": 12.0,
        "run": RUN,
    }


def plane(step):
    features = [[step * (k % 3) + 0.1 * k, 2.0 * (k % 3) - 0.05 * k] for k in range(30)]
    return {"features": features, "labels": [k % 3 for k in range(30)], "codewords": features[:9]}


def jpeg(colour, side=32):
    f = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(f, "JPEG")
    return {"type": "image/jpeg", "data": base64.b64encode(f.getvalue()).decode()}


def comparison():
    """Ours ahead at 16 and 32 bits, behind on unseen classes, with images."""
    centers = [[1.0, 0.1, 0.2], [0.1, 1.0, -0.1], [0.2, -0.1, 1.0]]
    rows = []
    for bits in (16, 32):
        more = {"centers": centers, "plane": plane(3.0)} if bits == 32 else {}
        rows += [
            row("ours", "scq", "trained", "ivfpq", bits, 0.62 + bits / 3200, 0.3, **more),
            row("ours", "scq", "trained", "buckets", bits, 0.62 + bits / 3200, 0.02),
            row("baseline", "ivfpq", "raw", "IndexIVFPQ", bits, 0.22 + bits / 3200, 0.05, **more),
            row("baseline", "rq", "raw", "IndexResidualQuantizer", bits, 0.228 + bits / 3200, 0.4),
            row("baseline", "rq", "trained", "IndexResidualQuantizer", bits, 0.6 + bits / 3200, 0.4),
        ]
    # No code of the rows has as many lists, so that nothing is held against these but in the chart over nprobe.
    rows += [
        row("ours", "scq", "trained", "ivfpq", 32, 0.631, 0.1, lists=64, key="scq/trained/32 in 64 lists/ivfpq"),
        row(
            "baseline",
            "ivfpq",
            "trained",
            "IndexIVFPQ",
            32,
            0.629,
            0.1,
            lists=64,
            key="ivfpq/trained/32 in 64 lists",
        ),
        row("label", "label", "trained", "ivfpq", 4, 0.511, 0.3),
        row("ceiling", "flat", "raw", "IndexFlatIP", None, 0.24, 1.5),
        row("ceiling", "flat", "trained", "IndexFlatIP", None, 0.634, 1.5),
        {
            "key": "lsq/raw/32",
            "role": "baseline",
            "method": "lsq",
            "space": "raw",
            "bits": 32,
            "lists": 1,
            "reason": "out of time",
        },
    ]
    images = {f"p{k}": jpeg((60 * k, 120, 200 - 60 * k)) for k in range(3)}
    queries = [{"id": 50000 + k, "labels": [k], "picture": f"p{k}"} for k in range(3)]
    hits = [
        [
            {"id": 100 * q + j, "labels": [(q + j // 7) % 3], "right": j < 7, "picture": f"p{(q + j // 7) % 3}"}
            for j in range(10)
        ]
        for q in range(3)
    ]
    sides = [{"key": key, "hits": hits} for key in ("scq/trained/32/ivfpq", "ivfpq/raw/32/IndexIVFPQ")]
    return fresh(
        {
            **HEAD,
            "kind": "comparison",
            "name": "cifar10",
            "data": DATA,
            "classes": CLASSES,
            "many_labels": False,
            "embedding": {"method": "scq", "bits": 32},
            "at": 54000,
            "sweep_at": 1000,
            "bits": [16, 32],
            "lists": [1],
            "rows": rows,
            "unknown": {"reason": None, "draws": [draw(0, 0.0), draw(1, 0.02)]},
            "promises": promises(),
            "gallery": {"queries": queries, "sides": sides},
            "pictures": images,
        }
    )


def promises():
    guess = {"recall": {"0.5": 0.52, "0.9": 0.893}, "precision": {"0.9": 0.91, "0.99": None}}
    sure = {"recall": {"0.5": 0.55, "0.9": 0.921}, "precision": {"0.9": 0.897, "0.99": None}}
    curve = [(0.1, 0.14, 900.0), (0.5, 0.48, 300.0), (0.95, 0.93, 1800.0)]
    return {
        "key": "scq/32 in 1 lists",
        "reason": None,
        "method": "scq",
        "bits": 32,
        "lists": 1,
        "held_out": 1000,
        "share": 0.1,
        "guess": guess,
        "sure": sure,
        "ece": 0.0234,
        "reliability": [dict(zip(("probability", "right", "hits"), entry)) for entry in curve],
        "map": 0.63,
        "forecast": {"map": 0.62, "low": 0.6, "high": 0.66},
        "run": RUN,
    }


def scale():
    rows, fits, carried = [], {}, {}
    for target, power, factor in (("ivfpq", 1.0, 3e-6), ("buckets", 0.2, 1e-3), ("faiss ivfpq", 0.5, 1e-4)):
        for n in (100_000, 1_000_000, 10_000_000):
            rows.append(
                {
                    "key": f"{target}/{n}",
                    "target": target,
                    "rows": n,
                    "ms": factor * n**power,
                    "single_ms": 2 * factor * n**power,
                    "build_seconds": 1e-6 * n,
                    "memory": 12 * n,
                    "disk": 12 * n + 9000,
                    "recall": 1.0,
                    "distinct": n // 2,
                    "nlist": None,
                    "nprobe": None,
                    "run": RUN,
                }
            )
        fits[target] = {
            "ms": {"exponent": power, "factor": factor},
            "single_ms": {"exponent": power, "factor": 2 * factor},
            "build_seconds": {"exponent": 1.0, "factor": 1e-6},
            "memory": {"exponent": 1.0, "factor": 12.0},
        }
        ms = factor * 1e9**power
        carried[target] = {"ms": ms, "single_ms": 2 * ms, "build_seconds": 1000.0, "memory": 12e9}
    return fresh(
        {
            **HEAD,
            "kind": "scale",
            "name": "scale",
            "how": "Rows drawn with replacement from the database, with noise.",
            "assumptions": ["The growth goes on.", "Everything fits into memory."],
            "rows": rows,
            "fits": fits,
            "extrapolation": {"rows": 10**9, "targets": carried},
        }
    )


def training():
    rows = [
        {
            "key": f"{what}/{batch}",
            "what": what,
            "batch": batch,
            "pairs": 15,
            "ratio": ratio,
            "ratio_low": 0.95 * ratio,
            "ratio_high": 1.04 * ratio,
            "ours_rows_per_s": 5000 * ratio,
            "plain_rows_per_s": 5000,
            "run": RUN,
        }
        for what, batch, ratio in (("codebook", 64, 5.1), ("codebook", 512, 4.2), ("feature", 64, 70.0))
    ]
    return fresh({**HEAD, "kind": "training", "name": "upstream", "rows": rows})


def attack():
    rows = []
    for name, eps, left in (("clean", 0.0, 0.93), ("random", 0.02, 0.92), ("aod", 0.02, 0.08), ("aod", 0.04, 0.03)):
        more = {} if name == "clean" else {"crafted": "m"}
        measured = {"map": left, "map_symmetric": left, "changed_codes": 1 - left, "run": RUN}
        rows.append({"key": f"{name}/{eps}", "attack": name, "eps": eps, "searched": "m", **more, **measured})
    hits = [[{"id": 100 + j, "labels": [(q + j) % 3], "right": (q + j) % 3 == 0} for j in range(10)] for q in range(2)]
    queries = [{"id": f"7, {when}", "labels": [0], "picture": f"p{k}"} for k, when in enumerate(("before", "aod"))]
    return fresh(
        {
            **HEAD,
            "kind": "attack",
            "name": "attacked",
            "data": {"model": DATA["train"], "query": DATA["query"], "database": DATA["database"]},
            "space": "rows",
            "attack": {"steps": 5, "step": 0.25, "restarts": 3, "beta": 10.0},
            "queries": 300,
            "database": 54000,
            "classes": CLASSES,
            "gallery": {"queries": queries, "sides": [{"key": "first hits", "hits": hits}]},
            "pictures": {f"p{k}": jpeg((60 * k, 120, 200)) for k in range(2)},
            "rows": rows,
        }
    )


KINDS = {"comparison": comparison, "scale": scale, "training": training, "attack": attack}


@pytest.fixture
def files(tmp_path, monkeypatch):
    """comparison.json, scale.json, training.json in the current folder; files(name=document, ...) writes more."""
    monkeypatch.chdir(tmp_path)

    def write(**documents):
        for name, document in documents.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(document))
        return [f"{name}.json" for name in documents]

    write(**{name: make() for name, make in KINDS.items()})
    return write


@pytest.fixture
def plain_charts(monkeypatch):
    """One chart and one that is missing in place of the drawn ones, which take seconds."""
    from scqfaiss.report import page
    from scqfaiss.report.charts import Chart, Missing

    def svg(colour):
        shape = f'<rect x="20" y="20" width="400" height="260" fill="{colour}"/>'
        return f'<svg xmlns="http://www.w3.org/2000/svg" width="440" height="300">{shape}</svg>'.encode()

    png = io.BytesIO()
    Image.new("RGB", (44, 30), "white").save(png, "PNG")
    text = 'A <b>plain</b> chart: "0.630" & more.'
    table = (("SCQ", "0.630"), ("IVFPQ", ""))
    chart = Chart("map-bits", "Quality", text, text, svg("#0b5cad"), svg("#82b7ff"), png.getvalue(), ("", "mAP"), table)
    monkeypatch.setattr(page, "charts", lambda document: [chart, Missing("plane", "The map", "no row has <plane>")])
