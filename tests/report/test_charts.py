"""Charts: they render, nothing overlaps, tables and words hold the drawn figures, and no results file can break them."""

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

pytest.importorskip("matplotlib")
from matplotlib.text import Text

from scqfaiss.comparison import selection
from scqfaiss.comparison.schema import cleaned
from scqfaiss.report.charts import CHARTS, Chart, Missing, charts, drawing, growth, plans
from scqfaiss.report.charts.codewords import narrowed
from scqfaiss.report.charts.drawing import (
    DARK,
    LIGHT,
    MOST,
    WIDTH,
    Plan,
    drawable,
    fitted,
    leading,
    rendered,
    spread,
    text_width,
    tick_text,
)
from scqfaiss.report.charts.looks import looks
from scqfaiss.report.charts.map_ms import front
from scqfaiss.report.charts.precision_recall import FEW_LINES

from .conftest import attack, promises

NAMES = {
    "comparison": ["map-bits", "map-ms", "probes", "precision-recall", "reliability", "codewords", "centers", "plane"],
    "scale": ["scale-time", "scale-memory"],
    "training": ["training"],
    "attack": ["attacked"],
}
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def comparison(
    C=10, bits=(8, 16, 32, 64), classes=None, n=200, methods=("pq", "opq", "ivfpq", "rq", "lsq", "fastscan"), lists=64
):
    """Results with made-up numbers: ours far above the baselines of the rows, a little above those of the embedding."""
    rng = np.random.default_rng(0)
    rows = []

    def row(role, method, space, container, b, quality, sweep=False, lists=1):
        probes = [1, 4, 16, 64] if sweep else [None]
        M = max(1, (b or 0) // 8)
        y = rng.integers(0, C, n)
        middles = rng.normal(0, 4 if role == "ours" else 0.5, (C, 2))
        inside = {
            "usage": rng.poisson(rng.gamma(0.5, 40, (M, 32))).tolist(),
            "centers": (np.eye(C) * 0.6 + 0.4 * (role != "ours")).tolist(),
            "plane": {
                "features": (middles[y] + rng.normal(0, 1, (n, 2))).round(2).tolist(),
                "labels": y.tolist(),
                "codewords": rng.normal(0, 4, (40, 2)).round(2).tolist(),
            },
        }
        rows.append(
            {
                "key": f"{method}/{space}/{b}/{container}" + f" {lists}" * (lists > 1),
                "role": role,
                "method": method,
                "space": space,
                "container": container,
                "bits": b,
                "lists": lists,
                "map": quality,
                **({"encode_ms": {"1000": {"one": {"p50": 0.02}}}} if role in ("ours", "label") else {}),
                "points": [
                    {
                        "nprobe": p,
                        "refine": None,
                        "ms": 0.01 * (p or 30),
                        "map": quality * (1 - 0.3 / (p or 99)),
                        "recall": 0.9,
                        "pareto": p != 16,
                    }
                    for p in probes
                ],
                "pr": {"recall": [0, 0.25, 0.5, 0.75, 1], "precision": [quality + 0.1, quality, 0.9 * quality, 0.1, 0]},
                **(inside if b == 32 else {}),
            }
        )

    for i, b in enumerate(bits):
        for container in ("ivfpq", "buckets"):
            row("ours", "scq", "trained", container, b, 0.62 + 0.004 * i, container == "ivfpq")
        row("ours", "dpq", "trained", "ivfpq", b, 0.615 + 0.004 * i)
        for k, method in enumerate(methods):
            row("baseline", method, "raw", "faiss", b, 0.22 + 0.01 * i + 0.001 * k, method == "ivfpq")
            row("baseline", method, "trained", "faiss", b, 0.55 + 0.01 * i + 0.001 * k)
    # No code of the rows has these lists, so that nothing is held against them but in the chart over nprobe.
    for role, method, quality in (("ours", "scq", 0.625), ("baseline", "ivfpq", 0.6)) if lists else ():
        row(role, method, "trained", "ivfpq" if role == "ours" else "faiss", bits[-1], quality, True, lists)
    row("label", "label", "trained", "ivfpq", 4, 0.51)
    row("ceiling", "flat", "raw", "IndexFlatIP", None, 0.24)
    row("ceiling", "flat", "trained", "IndexFlatIP", None, 0.634)
    return {
        "format": 1,
        "kind": "comparison",
        "promises": promises(),
        "name": "made-up",
        "classes": CLASSES[:C] if classes is None else classes,
        "embedding": {"method": "scq", "bits": 32},
        "data": {"database": {"rows": 54000, "d": 512}},
        "at": 54000,
        "sweep_at": 1000,
        "rows": rows,
    }


def scale(targets=("ivfpq", "pq", "buckets", "fastscan", "something new")):
    counts, far = [10**5, 10**6, 10**7], 10**9
    powers = {target: (1 / (1 + i), 1e-4 * (1 + i)) for i, target in enumerate(targets)}
    of = {
        t: {"ms": {"exponent": e, "factor": f}, "memory": {"exponent": 1.0, "factor": 12.0}}
        for t, (e, f) in powers.items()
    }
    return {
        "kind": "scale",
        "rows": [
            {"key": f"{t}/{n}", "target": t, "rows": n, "ms": f * n**e, "memory": 12 * n}
            for t, (e, f) in powers.items()
            for n in counts
        ],
        "fits": of,
        "extrapolation": {
            "rows": far,
            "targets": {t: {"ms": f * far**e, "memory": 12e9} for t, (e, f) in powers.items()},
        },
    }


def training(ratios=(5.1, 4.2, 70.0, 120.0)):
    kinds = [("codebook", 64), ("codebook", 512), ("feature", 64), ("feature", 512)]
    return {
        "kind": "training",
        "rows": [
            {
                "key": f"{what}/{batch}",
                "what": what,
                "batch": batch,
                "pairs": 15,
                "ratio": r,
                "ratio_low": 0.9 * r,
                "ratio_high": 1.2 * r,
                "ours_rows_per_s": 5000 * r,
                "plain_rows_per_s": 5000,
            }
            for (what, batch), r in zip(kinds, ratios)
        ],
    }


def small(**more):
    """A comparison of one length and few methods, for what has to be drawn often."""
    return comparison(**{"C": 4, "bits": (32,), "n": 50, "methods": ("ivfpq", "rq"), **more})


DOCUMENTS = {"comparison": comparison, "scale": scale, "training": training, "attack": attack}


@pytest.fixture(scope="module")
def drawn():
    """All charts of the stand-ins, by name."""
    return {chart.name: chart for make in DOCUMENTS.values() for chart in charts(make())}


@pytest.fixture(scope="module")
def undrawn():
    """The same before they are drawn: their tables and texts."""
    return {plan.name: plan for make in DOCUMENTS.values() for plan in plans(make())}


def faults(figure):
    """What is wrong with the texts of a figure: pairs that overlap, and those that leave the canvas."""
    texts = []  # that are drawn: axes hold labels of ticks beyond their limits, too

    def draw(text, renderer, *more):
        texts.extend([text] if text.get_visible() and text.get_text().strip() else [])

    with pytest.MonkeyPatch.context() as patch:
        figure.draw_without_rendering()  # lays everything out
        patch.setattr(Text, "draw", draw)
        figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()
    width, height = figure.canvas.get_width_height()
    # Of annotations the text alone, without their arrows.
    boxes = [(t.get_text(), Text.get_window_extent(t, renderer)) for t in texts]
    found = [
        f"outside: {text}" for text, b in boxes if b.x0 < 0 or b.y0 < 0 or b.x1 > width + 0.01 or b.y1 > height + 0.01
    ]
    for i, (text, a) in enumerate(boxes):
        for other, b in boxes[i + 1 :]:
            across, down = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
            if across > 0.5 and down > 1:  # boxes are a line high, letters less
                found.append(f"{text} | {other}: {across:.1f} x {down:.1f}")
    sizes = {round(t.get_fontsize() * 96 / 72, 2) for t in texts}
    return found + [f"{size} pixels" for size in sizes if size < 10.5]


def planned(document):
    """Its plans and Missing by name, as a report makes them."""
    return {plan.name: plan for plan in plans(cleaned(document))}


def check(document, themes=(LIGHT,), only=None):
    """Draw all plans of a document, or those named, and find nothing wrong with them; (drawn, Missing) by name."""
    held = planned(document)
    assert list(held) == NAMES[document["kind"]]
    for plan in held.values():
        if isinstance(plan, Missing):
            assert plan.reason and plan.title
            continue
        assert plan.alt and plan.caption and plan.title
        assert all(len(row) == len(plan.header) for row in plan.table)
        assert all(isinstance(cell, str) for row in (plan.header, *plan.table) for cell in row)
        for theme in themes if only is None or plan.name in only else ():
            with drawing.drawn(plan, theme) as figure:
                assert faults(figure) == [], plan.name
    return (
        {name: plan for name, plan in held.items() if not isinstance(plan, Missing)},
        {name: plan for name, plan in held.items() if isinstance(plan, Missing)},
    )


# The stand-ins


@pytest.mark.slow
def test_every_chart_is_drawn_in_both_themes(drawn):
    assert list(drawn) == [name for names in NAMES.values() for name in names]
    for chart in drawn.values():
        assert isinstance(chart, Chart)
        for svg in (chart.light, chart.dark):
            root = ElementTree.fromstring(svg)
            assert root.tag == "{http://www.w3.org/2000/svg}svg"
            assert float(root.get("viewBox").split()[2]) == WIDTH * 72 / 96
            assert root.get("width") == f"{WIDTH * 72 // 96}pt"
            assert len(svg) < 200_000
            assert b"<text" not in svg and b"<script" not in svg
        assert chart.light != chart.dark
        assert chart.png.startswith(b"\x89PNG\r\n\x1a\n")
        assert int.from_bytes(chart.png[16:20], "big") == 2 * WIDTH
    images = [drawn[name] for name in NAMES["comparison"]]
    assert sum(len(chart.light) + len(chart.dark) for chart in images) < 900_000


@pytest.mark.slow
@pytest.mark.parametrize("kind", DOCUMENTS)
def test_no_text_overlaps_or_leaves_the_canvas(kind):
    _, missing = check(DOCUMENTS[kind](), (LIGHT, DARK))
    assert not missing


def test_the_measurement_sees_overlaps_and_cut_text():
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 3), dpi=96)
    FigureCanvasAgg(figure)
    figure.text(0.5, 0.5, "one word", size=9)
    figure.text(0.52, 0.51, "another", size=9)
    figure.text(0.95, 0.1, "cut off here", size=9)
    figure.text(0.1, 0.1, "tiny", size=5)
    assert len(faults(figure)) == 3


@pytest.mark.slow
def test_same_results_same_bytes(drawn):
    assert charts(scale()) == [drawn[name] for name in NAMES["scale"]]
    assert rendered(planned(comparison())["plane"]) == drawn["plane"]


@pytest.mark.slow
def test_no_pyplot_and_no_settings_left_behind():
    code = (
        "import json, sys, matplotlib; before = matplotlib.rcParams.copy()\n"
        "from scqfaiss.report.charts import charts\n"
        "assert len(charts(json.load(sys.stdin))) == 1\n"
        "assert matplotlib.rcParams.copy() == before\n"
        "assert not {'matplotlib.pyplot', 'torch', 'faiss'} & set(sys.modules), 'too much is loaded'"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], input=json.dumps(training()), text=True, capture_output=True
    )
    assert (done.returncode, done.stderr) == (0, "")


# Figures in tables and words


def test_the_table_of_lengths_holds_every_map(undrawn):
    document, chart = comparison(), undrawn["map-bits"]
    assert chart.header == ("codes", "4 bits", "8 bits", "16 bits", "32 bits", "64 bits", "floats")
    table = {row[0]: row[1:] for row in chart.table}
    for row in selection.codings(document):
        column = f"{row['bits']} bits" if row["bits"] else "floats"
        assert table[selection.name_of(row)][chart.header.index(column) - 1] == f"{row['map']:.3f}"
    assert "SCQ with 0.628" in chart.alt and "LSQ" not in chart.alt and "PQ fast scan with 0.245" in chart.alt
    assert "The highest is 0.632, SCQ at 64 bits." in chart.alt
    assert "FAISS's codes of the embedding of SCQ at 32 bits; beside that point only the codes differ." in chart.caption


def test_the_table_of_operating_points_says_which_are_on_the_line(undrawn):
    chart = undrawn["map-ms"]
    rows = [row for row in chart.table if row[:2] == ("SCQ", "ivfpq")]
    assert [row[2] for row in rows] == ["1", "4", "16", "64"]
    assert [row[4] for row in rows] == ["0.010", "0.040", "0.16", "0.64"]
    assert [row[5] for row in rows] == ["0.030", "0.060", "0.18", "0.66"]
    # 64 lists: slower and no better than another container
    assert [row[-1] for row in rows] == ["yes", "yes", "no", "no"]
    assert rows[0][6] == f"{0.628 * 0.7:.3f}"
    assert "SCQ at 0.32 ms" in chart.alt and "the least time 0.010 ms, IVFPQ with a mAP of 0.169." in chart.alt


def operating(document, method, space, *points):
    """`document` with these operating points, (ms, mAP) each, for the rows of a method."""
    for row in document["rows"]:
        if (row["method"], row["space"]) == (method, space):
            row["points"] = [{"ms": ms, "map": m, "recall": 1, "pareto": True} for ms, m in points]
    return document


def test_times_hold_the_encoder_whose_embedding_is_searched():
    document = small(methods=("ivfpq", "rq"))
    chart = planned(document)["map-ms"]
    taken = {(row[0], row[1]): row[4:6] for row in chart.table}
    assert taken["DPQ", "ivfpq"] == ("0.30", "0.32") and taken["RQ", "faiss"] == ("0.30", "0.30")
    assert taken["RQ of the embedding", "faiss"] == ("0.30", "0.32")
    assert "Times are those of search and encoder; codes of the rows need none." in chart.caption
    assert "of the embedding of SCQ at 32 bits, and its encoder's time." in chart.caption
    # DPQ's encoder is not the one of the embedding that FAISS codes; without one that is named, nobody knows.
    for row in document["rows"]:
        if row["method"] == "dpq":
            row["encode_ms"] = {"1000": {"one": {"p50": 5.0}}}
    taken = {row[0]: row[4:6] for row in planned(document)["map-ms"].table}
    assert taken["DPQ"] == ("0.30", "5.30") and taken["RQ of the embedding"] == ("0.30", "0.32")
    for gone in ({**document, "embedding": None}, {**document, "embedding": {"method": "scq", "bits": 16}}):
        chart = planned(gone)["map-ms"]
        assert {row[0]: row[5] for row in chart.table}["RQ of the embedding"] == "–"
        assert (
            "Search alone, as its encoder was not measured: IVFPQ of the embedding, RQ of the embedding and IVFPQ (64 lists) of "
            "the embedding." in chart.caption
        )
        assert "SCQ at" not in chart.caption + planned(gone)["map-bits"].caption
    for row in document["rows"]:
        row["encode_ms"] = None
    assert "search and encoder" not in planned(document)["map-ms"].caption


def test_a_crowded_image_of_time_keeps_faiss_strongest_and_the_table_all():
    document = comparison(bits=(32,), lists=None)
    operating(document, "rq", "trained", (0.4, 0.62))  # the best of the embedding
    operating(document, "fastscan", "trained", (0.001, 0.5))  # the fastest
    for method in ("pq", "opq", "ivfpq", "lsq"):
        operating(document, method, "trained", (0.5, 0.49))
    for method in ("pq", "opq", "ivfpq", "rq", "lsq"):
        operating(document, method, "raw", (0.3, 0.2))
    operating(document, "fastscan", "raw", (0.002, 0.25))
    plan = planned(document)["map-ms"]
    assert {row[0] for row in plan.table} == set(selection.series(document)) - {"label code"}
    with drawing.drawn(plan, LIGHT) as figure:
        printable = {text.get_text() for text in figure.findobj(Text)}
    kept = {"SCQ", "DPQ", "IVFPQ", "PQ fast scan", "RQ of the embedding", "PQ fast scan of the embedding"}
    assert kept == printable & set(selection.series(document))
    assert "as good and as fast: 8 of them. The table holds them." in plan.caption


def test_fronts_are_made_of_what_no_point_beats():
    points = [{"ms": ms, "map": m} for ms, m in ((1, 0.5), (2, 0.4), (2, 0.6), (3, 0.6), (0.5, 0.1))]
    assert [(p["ms"], p["map"]) for p in front(points)] == [(0.5, 0.1), (1, 0.5), (2, 0.6)]


def test_the_table_of_precision_is_interpolated_at_tenths(undrawn):
    chart = undrawn["precision-recall"]
    assert chart.header[:3] == ("recall", "SCQ", "IVFPQ") and "PQ fast scan" in chart.header
    assert len(chart.header) <= 9
    at = [row[0] for row in chart.table]
    assert at == [f"{r / 10:.1f}" for r in range(11)]
    assert chart.table[5][1] == f"{0.9 * 0.628:.3f}"
    assert chart.table[0][2] == f"{0.242 + 0.1:.3f}"
    assert "0.565 for SCQ" in chart.alt and "the highest: floats of the embedding." in chart.alt
    assert "Of the embedding: the embedding of SCQ at 32 bits." in chart.caption


def test_the_table_of_codewords_holds_use_and_entropy(undrawn):
    chart, document = undrawn["codewords"], comparison()
    ours, base = selection.pair(document)
    for name, row in (("SCQ", ours), ("IVFPQ", base)):
        for m, codebook in enumerate(np.array(row["usage"])):
            p = codebook[codebook > 0] / codebook.sum()
            wanted = (
                name,
                str(m + 1),
                "32",
                str((codebook > 0).sum()),
                f"{-(p * np.log2(p)).sum():.2f}",
                f"{codebook.max():,}",
            )
            assert wanted in chart.table
    share = np.mean(np.array(ours["usage"]) > 0)
    assert f"SCQ: {share:.0%} used" in chart.alt and "of 5 bits" in chart.alt


def test_the_table_of_classes_holds_their_cosines(undrawn):
    chart = undrawn["centers"]
    assert chart.header == ("classes", "SCQ", "IVFPQ") and len(chart.table) == 45
    assert ("airplane – bird", "0.00", "0.40") in chart.table
    assert "pale" not in chart.caption  # on a dark page 0 is dark
    assert "airplane and automobile with 0.40 for IVFPQ: SCQ keeps its closest classes farther apart" in chart.alt


@pytest.mark.slow
def test_the_map_says_how_many_lie_by_their_own_class(drawn):
    from scipy.spatial import cKDTree

    ours, _ = selection.pair(comparison())
    x, y = np.array(ours["plane"]["features"]), np.array(ours["plane"]["labels"])
    share = np.mean(y[cKDTree(x).query(x, 2)[1][:, 1]] == y)
    assert f"{share:.0%} of SCQ's" in drawn["plane"].alt and "the most are SCQ's" in drawn["plane"].alt
    assert "200 rows and 40 codewords" in drawn["plane"].alt
    assert (drawn["plane"].header, drawn["plane"].table) == ((), ())


def test_figures_that_read_the_same_share_the_place():
    assert leading([("a", 0.5001), ("b", 0.5004), ("c", 0.4)], lambda v: f"{v:.3f}") == ("0.500", "a and b")
    assert leading([(str(i), 2.0) for i in range(9)], str, min) == ("2.0", "9 of them")
    document = small()
    for row in document["rows"]:
        row |= {"map": 0.5, "usage": [[3, 1]], "centers": [[1, 0.2], [0.2, 1]]}
        row["plane"] = {"features": [[0, 0], [0, 1]], "labels": [0, 0], "codewords": []}
    found = planned(document)
    assert "The highest is 0.500, 9 of them." in found["map-bits"].alt
    assert "Both fill their codes alike." in found["codewords"].alt
    assert "for IVFPQ: the same." in found["centers"].alt and "IVFPQ's; the same." in found["plane"].alt


def test_the_tables_of_growth_hold_what_was_measured_and_what_results_carry_on(undrawn):
    chart = undrawn["scale-time"]
    assert chart.header[-2:] == ("power", "1,000,000,000 rows, carried on")
    rows = {row[0]: row for row in chart.table}
    assert rows["ivfpq"][1:] == ("10.0 ms", "100 ms", "1,000 ms", "1.00", "100,000 ms")
    assert "is 0.013 ms, something new." in chart.alt and "that of something new, as the rows" in chart.alt
    assert "power of 0.20" in chart.alt
    assert undrawn["scale-memory"].table[0][1:] == ("1.2 MB", "12.0 MB", "120 MB", "12.0 GB")


def test_what_is_carried_on_is_the_results_own_figure_whatever_the_fit():
    document = scale()
    document["extrapolation"]["targets"]["buckets"] = {"ms": 77.0, "memory": 13.7e9}
    document["fits"]["buckets"]["memory"] = {"exponent": 0.9, "factor": 1.0}
    found = planned(document)
    for name, wanted, value in (("scale-time", "77.0 ms", 77.0), ("scale-memory", "13.7 GB", 13.7e9)):
        assert {row[0]: row[-1] for row in found[name].table}["buckets"] == wanted
        with drawing.drawn(found[name], LIGHT) as figure:
            (ax,) = figure.axes
        ends = [(line.get_xdata()[-1], line.get_ydata()[-1]) for line in ax.lines]
        assert (1e9, value) in ends
    with drawing.drawn(found["scale-memory"], LIGHT) as figure:
        assert not any("n^" in text.get_text() for text in figure.findobj(Text))


def test_the_table_of_training_holds_ratios_and_quartiles(undrawn):
    chart = undrawn["training"]
    assert chart.table[3] == ("feature", "512", "120×", "108 – 144", "15", "600,000", "5,000")
    assert "120 times, feature, batch 512" in chart.alt and "4.20 times, codebook, batch 512." in chart.alt


# Anything may be missing or odd


READ = ("role", "method", "space", "container", "bits", "map", "points", "pr", "usage", "centers", "plane")
ODD = (None, "nan", float("nan"), float("inf"), -1, 10**400, True, [], {}, [[1, 2], [3]], [[[]]], "x" * 40, ["$", "\n"])


@pytest.mark.parametrize("field", READ)
def test_rows_without_a_field(field):
    document = small(bits=(8, 32))
    for row in document["rows"]:
        row.pop(field, None)
    gone = {"pr": ["precision-recall"], "usage": ["codewords"], "centers": ["centers"], "plane": ["plane"]}
    gone["points"] = ["map-ms", "probes"]
    _, missing = check(document, only=() if field in ("container", *gone) else None)
    if field in gone:
        assert list(missing) == gone[field] and all(field in plan.reason for plan in missing.values())
    if field in ("bits", "map"):  # what probabilities are worth stands in no row
        assert list(missing) == [name for name in NAMES["comparison"] if name != "reliability"]


@pytest.mark.slow
@pytest.mark.parametrize("make", (small, scale, training))
def test_documents_without_a_part(make):
    for part in make():
        if part not in ("kind", "rows"):  # which every file that can be read has
            document = make()
            del document[part]
            check(document, only=None if part in ("classes", "fits", "extrapolation") else ())
    check({**make(), "rows": []})
    bare = planned({"kind": make()["kind"], "rows": []})
    assert all(isinstance(plan, Missing) for plan in bare.values())


@pytest.mark.slow
@pytest.mark.parametrize("odd", ODD, ids=range(len(ODD)))
def test_odd_values_count_as_missing(odd):
    # 10 ** 400 is an int of JSON, too, which no float holds.
    for make in (small, scale, training):
        whole = make()
        fields = {field for row in whole["rows"] for field in row}
        for field in fields - {"key"}:
            planned({**whole, "rows": [{**row, field: odd} for row in whole["rows"]]})
        for part in whole:
            if part not in ("kind", "rows"):
                planned({**whole, part: odd})
    for part in ("features", "labels", "codewords", "recall", "precision", "ms", "map", "recall", "nprobe"):
        document = small()
        for row in document["rows"]:
            for held in (row["plane"] if "plane" in row else {}, row["pr"], *row["points"]):
                if part in held:
                    held[part] = odd
        planned(document)
    for part in ("exponent", "factor", "ms", "memory", "ivfpq"):
        document = scale()
        for held in (document["fits"], document["fits"]["ivfpq"], document["fits"]["ivfpq"].get("ms"),
                     document["extrapolation"]["targets"], document["extrapolation"]["targets"]["ivfpq"]):  # fmt: skip
            if part in held:
                held[part] = odd
        planned(document)


@pytest.mark.parametrize(
    "usage", [[[1, 2], [3]], [[0, 0], [1, 2]], [[1, -1]], [[1, None]], [[]], [], 3, [[1, "2"]]], ids=repr
)
def test_use_of_a_wrong_shape_is_missing(usage):
    document = small()
    for row in document["rows"]:
        row["usage"] = usage
    assert planned(document)["codewords"] == Missing(
        "codewords", "Use of the codewords", "no row of 32 bits has codeword use (usage)"
    )


@pytest.mark.slow
@pytest.mark.parametrize("usage", [[[5]], [[5, 5]], [[1] + [0] * 255], np.full((64, 16), 3).tolist()], ids=len)
def test_use_of_odd_but_sound_shape_is_drawn(usage):
    document = small()
    for row in document["rows"]:
        row["usage"] = usage
    assert "codewords" in check(document, only=["codewords"])[0]


def test_wide_codebooks_are_averaged_not_cut():
    counts = np.sort(np.random.default_rng(0).integers(0, 50, (2, 2500)).astype(float))[:, ::-1]
    narrow = narrowed(counts, 1024)
    assert narrow.shape == (2, 834)
    assert narrow[0, 0] == counts[0, :3].mean() and narrow[1, -1] == counts[1, 2499]


@pytest.mark.slow
def test_only_ours_shown_where_the_baseline_has_no_image():
    document = small()
    for row in document["rows"]:
        if row["role"] != "ours":
            row["usage"] = row["centers"] = row["plane"] = None
    found, missing = check(document)
    assert not missing and "IVFPQ" not in found["codewords"].alt + found["centers"].alt + found["plane"].alt


def test_images_of_another_of_ours_are_better_than_none():
    document = small()
    for row in document["rows"]:
        if row["method"] == "scq":
            row["plane"] = None
    assert "DPQ" in planned(document)["plane"].alt


@pytest.mark.slow
@pytest.mark.parametrize("C", [1, 2, 12, 13, 40, 200])
def test_any_number_of_classes(C):
    document = small(C=C, classes=[f"class number {i} of them" for i in range(C)])
    found, missing = check(document, only=["centers", "plane"])
    assert list(missing) == (["centers"] if C == 1 else [])
    if C == 200:
        assert len(found["centers"].table) == 66 and "66 closest pairs" in found["centers"].caption
        assert "share 20 colours" in found["plane"].caption


@pytest.mark.slow
def test_a_thousand_classes_make_no_large_image():
    document = small(C=1000, classes=[], n=2000)
    rng = np.random.default_rng(0)
    for row in document["rows"]:
        if row["key"] in ("scq/trained/32/ivfpq", "ivfpq/raw/32/faiss"):
            row["centers"] = rng.uniform(-1, 1, (1000, 1000)).round(3).tolist()
        else:
            row["centers"] = row["plane"] = None
    found = planned(document)
    assert "Cells are means of up to 5 classes either way." in found["centers"].caption
    assert len(found["centers"].table) == 66 and "66 closest pairs" in found["centers"].caption
    chart = rendered(found["centers"])
    assert len(chart.light) + len(chart.dark) < 700_000
    assert len(rendered(found["plane"]).light) < 200_000


@pytest.mark.slow
@pytest.mark.parametrize("make, name", [(scale, "scale-time"), (training, "training"), (small, "map-bits")])
def test_long_results_do_not_make_long_images(make, name):
    document = make()
    copies = {"scale": "target", "training": "what", "comparison": "method"}[document["kind"]]
    first = document["rows"][0]
    document["rows"] += [{**first, "key": f"copy {i}", copies: f"copy {i}"} for i in range(1200)]
    plan = planned(document)[name]
    assert len(plan.table) > 1200 and f"holds {MOST} of 1,2" in plan.caption
    with drawing.drawn(plan, LIGHT) as figure:
        assert figure.get_figheight() * 96 < 1500


@pytest.mark.slow
@pytest.mark.parametrize(
    "names",
    [
        ("W" * 40, "gypsum jug " * 4, "l" * 40, "鳥"),
        ("$x^2$", "a\nb", "", "<b>&"),
        ("_", "$", "e\u0301\u0000", "\u202e!"),
    ],
)
def test_any_class_and_method_name(names):
    document = small(bits=(8, 32), classes=list(names), methods=("ivfpq", *(f"other{name}" for name in names)))
    for row in document["rows"]:
        if row["role"] != "baseline":
            row["method"] += names[0]
    found, _ = check(document)
    printable = {row[0] for row in found["map-bits"].table}  # whole, where nothing limits their width
    assert {f"scq{names[0]}", f"other{names[1]}", f"other{names[3].strip(chr(0x202E))}"} <= printable


@pytest.mark.slow
def test_one_length_many_series_and_crowded_lengths():
    crowded = ("map-bits", "map-ms", "precision-recall")
    check(small(bits=(24, 28, 31, 32, 33, 36, 1000)), only=crowded)
    document = small()
    for i in range(30):
        document["rows"].append({**document["rows"][0], "key": str(i), "method": f"a new method, number {i}"})
    check(document, only=crowded)
    for row in document["rows"]:
        row["map"] = 1.0
    check(document, only=crowded)
    for row in document["rows"]:
        row["map"] = 0.0
    check(document, only=crowded)


@pytest.mark.slow
def test_points_that_all_lie_together():
    document = small()
    for row in document["rows"]:
        row["plane"] = {"features": [[1e9, 1e9]] * 20, "labels": [i % 10 for i in range(20)], "codewords": []}
    assert "plane" in check(document)[0]


@pytest.mark.slow
def test_scales_of_every_width():
    check(scale(["buckets"]))
    check(scale([f"target {i}" for i in range(40)]))
    check(scale(["W" * 40, "$"]))
    single = scale()
    single["rows"] = single["rows"][:1]
    check({**single, "fits": None, "extrapolation": {"rows": 10**9}})
    check({**single, "extrapolation": {"rows": 10}})
    flat = scale(["pq"])
    for row in flat["rows"]:
        row["ms"], row["memory"] = 0.5, 1e12
    assert "carried on" not in " ".join(check({**flat, "extrapolation": None})[0]["scale-time"].header)


@pytest.mark.slow
def test_only_what_the_results_carry_on_is_carried_on():
    document = scale()
    del document["extrapolation"]["targets"]["buckets"]
    found, _ = check(document)
    rows = {row[0]: row for row in found["scale-time"].table}
    assert rows["buckets"][-1] == "–" and rows["pq"][-1] != "–"


@pytest.mark.parametrize("ratios", [(1, 1, 1, 1), (0.5, 0.9, 2, 3), (0.01, 1, 10, 1e5), (2,), (1e-6, 1e9), (9.96, 0.2)])
def test_trainings_of_every_ratio(ratios):
    check(training(ratios))
    renamed = training(ratios)
    renamed["rows"][0] |= {"what": "W" * 40, "batch": None, "ratio_low": None, "ratio_high": "x"}
    check(renamed)


# Parts


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(a, b):
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_contrast_of_the_themes(theme):
    assert contrast("#000000", "#ffffff") == 21
    for name in ("ink", "muted"):
        assert contrast(theme[name], theme["ground"]) >= 4.5
    for colour in theme["series"].values():  # end labels have the colour of their line
        assert contrast(colour, theme["ground"]) >= 4.5
    assert LIGHT["series"].keys() == DARK["series"].keys()
    assert len(set(theme["classes"])) == 8


def test_a_method_has_one_colour_everywhere():
    assert {look.colour for look in growth.TARGETS.values()} <= set(LIGHT["series"])
    found = looks(comparison())
    assert len({found[name].colour for name in ("SCQ", "DPQ", "label code", "IVFPQ", "RQ", "floats")}) == 6
    assert found["IVFPQ"].colour == found["IVFPQ of the embedding"].colour and found["IVFPQ of the embedding"].dash


def test_no_two_series_of_a_image_look_alike():
    document = comparison(methods=("pq", "opq", "ivfpq", "rq", "lsq", "fastscan", "new", "newer"))
    for method in ("scq:4", "phpq", "mecoq", "mopq"):
        document["rows"].append({**document["rows"][0], "key": method, "method": method})
    found = looks(document)
    assert len(found) == 27 and len(set(found.values())) == len(found)
    # Without markers, as precision and recall are drawn.
    curves = planned(document)["precision-recall"].header[1:]
    bare = [(found[n].colour, found[n].width, found[n].dash) for n in curves]
    assert len(set(bare)) == len(bare) == FEW_LINES
    # Beside FAISS's codes of an embedding stands the one whose it is, also where another of ours is better.
    for row in document["rows"]:
        if row["method"] == "dpq":
            row["map"] = 0.9
    assert {"DPQ", "SCQ"} <= set(planned(document)["precision-recall"].header)
    targets = [*growth.TARGETS.values(), *growth.OTHERS]
    assert len(set(targets)) == len(targets)


def test_spread_keeps_distance_order_and_bounds():
    rng = np.random.default_rng(0)
    for n in (0, 1, 2, 10):
        wanted = rng.uniform(-20, 120, n).tolist()
        places = spread(wanted, 10, 0, 100)
        assert [places[i] for i in np.argsort(wanted, kind="stable")] == sorted(places)
        assert all(b - a >= 10 - 1e-9 for a, b in zip(sorted(places), sorted(places)[1:]))
        assert all(-1e-9 <= p <= 100 + 1e-9 for p in places)
    assert spread([50, 50], 10, 0, 100) == [45, 55]
    assert spread([10, 90], 10, 0, 100) == [10, 90]


def test_text_is_cut_to_its_room():
    assert fitted("short", 100) == "short"
    cut = fitted("a name that is too long", 60)
    assert cut.endswith("…") and text_width(cut) <= 60
    assert text_width(cut[:-1] + "xxx…") > 60
    assert drawable("a\tb\n 鳥") == "a b \ufffd"


def test_ticks():
    assert [tick_text(v) for v in (0.001, 0.05, 1, 200, 5000, 1e5, 1e-4, 2e6)] == [
        "0.001", "0.05", "1", "200", "5,000", "10⁵", "10⁻⁴", "2·10⁶",
    ]  # fmt: skip


@pytest.mark.parametrize("low, high", [(0.9, 12), (1e-3, 1e6), (5, 5), (3, 4), (1.2e8, 1.3e8), (1e-9, 1e12)])
def test_axes_of_any_span_have_some_ticks_and_no_crowd(low, high):
    _, (ax,) = drawing.subplots(200)
    drawing.log_axis(ax.xaxis, [low, high], 0.05, tick_text)
    first, last = ax.get_xlim()
    assert first < low <= high < last and last / first >= 5
    ticks = [tick for tick in ax.get_xticks() if first <= tick <= last]
    assert 1 <= len(ticks) <= 7 and len({tick_text(tick) for tick in ticks}) == len(ticks)


def test_a_chart_is_a_function_and_a_line_of_the_registry(monkeypatch):
    def rows(document):
        count = len(document["rows"])
        if not count:
            return Missing("rows", "How many rows", "there are none")

        def draw(theme):
            figure, (ax,) = drawing.subplots(120)
            ax.bar(["rows"], [count], color=theme["series"]["scq"])
            return figure

        return Plan(
            "rows", "How many rows", f"{count} rows.", "More is more.", ("", "rows"), (("all", str(count)),), draw
        )

    monkeypatch.setitem(CHARTS, "training", (*CHARTS["training"], rows))
    chart = charts(training())[-1]
    assert chart.alt == "4 rows." and chart.light.startswith(b"<?xml") and chart.light != chart.dark
    assert charts({**training(), "rows": []})[-1] == Missing("rows", "How many rows", "there are none")
