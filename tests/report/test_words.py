"""What the report says of results, whichever way they go."""

import pytest

from scqfaiss.comparison.schema import cleaned
from scqfaiss.report import words
from scqfaiss.report.summary import summary

from .conftest import comparison, row, scale, times, training


def said(document, topic):
    """The one Point of a topic."""
    (found,) = [point for point in summary(cleaned(document)) if point.topic == topic]
    return found


def topics(document):
    return [point.topic for point in summary(cleaned(document))]


def change(document, method, space="raw", **values):
    for held in document["rows"]:
        if (held["method"], held["space"]) == (method, space) and "map" in held:
            held.update(values)
    return document


def without(document, role):
    document["rows"] = [held for held in document["rows"] if held["role"] != role]
    return document


# ------------------------------------------------------------------------------------------------------------- figures
@pytest.mark.parametrize(
    "value, text",
    [
        (None, ""),
        (0, "0"),
        (0.0214, "0.021"),
        (0.0997, "0.10"),
        (0.3, "0.30"),
        (0.996, "1.0"),
        (1.254, "1.25"),
        (9.96, "9.96"),
        (12.34, "12.3"),
        (99.96, "100"),
        (4210.4, "4,210"),
        (0.00001234, "0.000012"),
        (-0.5, "-0.50"),
    ],
)
def test_amount(value, text):
    assert words.format_number(value) == text


def test_other_figures():
    assert (words.score(0.63349), words.score(None)) == ("0.633", "")
    assert (words.count(54000), words.count(None)) == ("54,000", "")
    assert (words.nbytes(657000), words.nbytes(None)) == ("657 kB", "")
    assert [words.listed(part) for part in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == [
        "",
        "a",
        "a and b",
        "a, b and c",
    ]
    assert [words.length(bits) for bits in (8, 32, 12)] == ["1 byte", "4 bytes", "12 bits"]


# ------------------------------------------------------------------------------------------------------------- quality
def test_ranking_ahead():
    point = said(comparison(), "Ranking quality")
    assert (point.verdict, point.figure, point.against) == (words.AHEAD, "0.630", "RQ 0.238")
    assert point.text == (
        "At 32 bits a vector SCQ ranks with a mAP of 0.630 on cifar10; the best code without labels (RQ) reaches 0.238: "
        "0.392 more at the same 4 bytes."
    )


def test_ranking_behind_and_even():
    point = said(change(comparison(), "rq", map=0.71), "Ranking quality")
    assert (point.verdict, point.text.split(": ")[1]) == (words.BEHIND, "ours has 0.080 less at the same 4 bytes.")
    point = said(change(comparison(), "rq", map=0.63004), "Ranking quality")
    assert (point.verdict, point.text.split(": ")[1]) == (words.EVEN, "the same at the same 4 bytes.")


def test_ranking_with_nothing_to_hold_it_against():
    point = said(without(comparison(), "baseline"), "Ranking quality")
    assert (point.verdict, point.figure, point.against) == (words.OPEN, "0.631", "")
    assert point.text.endswith(
        "; no code without labels was measured at this length, so there is nothing to hold it against."
    )


def test_nothing_of_ours():
    document = without(comparison(), "ours")
    assert topics(document) == ["Ranking quality"]
    assert said(document, "Ranking quality").text == (
        "No code of ours has a mAP here, so nothing can be said about it. "
        "The best code without labels (RQ) reaches 0.238 at 32 bits a vector."
    )
    bare = without(without(document, "baseline"), "label")
    assert said(bare, "Ranking quality").text == "No code of ours has a mAP here, so nothing can be said about it."


def test_no_rows():
    for make in (comparison, scale, training):
        point = said({**make(), "rows": []}, "Nothing measured")
        assert point.text == "These results hold no rows: there is nothing to say yet."


def test_ours_and_a_baseline_at_different_lengths():
    document = comparison()
    document["rows"] = [r for r in document["rows"] if (r["role"] == "ours") == (r["bits"] == 16)]
    assert said(document, "Ranking quality").text.startswith(
        "At 16 bits a vector SCQ ranks with a mAP of 0.625 on cifar10; no"
    )


def test_every_length():
    point = said(comparison(), "Every length")
    assert (point.verdict, point.figure) == (words.AHEAD, "2 of 2")
    assert point.text == (
        "From 16 to 32 bits our best mAP goes from 0.625 to 0.630, that of codes without labels from 0.233 to 0.238. "
        "Ours has more at 16 and 32 bits."
    )
    document = comparison()
    for held in document["rows"]:
        if held["method"] == "rq" and held["space"] == "raw":
            held["map"] = {16: 0.7, 32: 0.1}[held["bits"]]
    point = said(document, "Every length")
    assert (point.verdict, point.figure) == (words.MIXED, "1 of 2")
    assert point.text.endswith("Ours has more at 32; less at 16 bits.")
    point = said(change(comparison(), "rq", map=0.7), "Every length")
    assert (point.verdict, point.text.split(". ")[-1]) == (words.BEHIND, "Ours has less at 16 and 32 bits.")
    for quality, verdict in ((0.63, words.EVEN), (0.7, words.BEHIND), (0.1, words.AHEAD)):  # even at 16 bits
        for held in document["rows"]:
            if held["method"] == "rq" and held["space"] == "raw":
                held["map"] = {16: 0.625, 32: quality}[held["bits"]]
        assert said(document, "Every length").verdict == verdict
    document["rows"] = [r for r in document["rows"] if r["bits"] != 16]
    assert "Every length" not in topics(document)


# --------------------------------------------------------------------------------------------------------------- speed
SETTING = "One thread, 1,000 queries at a time, settings that find at least 95 of 100 of the first 10."


def test_search_faster_with_the_encoder_and_without():
    point = said(comparison(), "Search time")
    assert (point.verdict, point.figure, point.against) == (words.AHEAD, "0.040 ms", "IVFPQ 0.050 ms")
    assert point.text == (
        "A search takes 0.020 ms a query (SCQ, in buckets); IVFPQ takes 0.050 ms: ours is faster. Encoding the query takes "
        f"0.020 ms more: 0.040 ms with the search, and ours is faster. {SETTING}"
    )


def test_search_faster_and_slower_once_the_query_is_encoded():
    point = said(change(comparison(), "scq", "trained", encode_ms=times(0.09)), "Search time")
    assert point.verdict == words.BEHIND
    assert "IVFPQ takes 0.050 ms: ours is faster." in point.text
    assert "0.090 ms more: 0.11 ms with the search, and ours is slower." in point.text


def test_search_slower_and_as_fast():
    document = comparison()
    document["rows"] = [r for r in document["rows"] if r.get("container") != "buckets"]
    point = said(document, "Search time")
    assert point.verdict == words.BEHIND and "IVFPQ takes 0.050 ms: ours is slower." in point.text
    change(document, "ivfpq", encode_ms=times(0.27))  # rows as they are need no encoder, whatever a file says
    assert said(document, "Search time").against == "IVFPQ 0.050 ms"
    document = change(comparison(), "ivfpq", points=[{"ms": 0.04, "recall": 1.0}])
    assert said(document, "Search time").verdict == words.EVEN


def test_search_is_held_against_the_fastest():
    document = comparison()
    document["rows"].append(row("baseline", "fastscan", "raw", "IndexPQFastScan", 32, 0.2, 0.001))
    point = said(document, "Search time")
    assert (point.verdict, point.against) == (words.BEHIND, "PQ fast scan 0.0010 ms")
    assert point.text.startswith(
        "A search takes 0.020 ms a query (SCQ, in buckets); IVFPQ takes 0.050 ms and PQ fast scan, the fastest of FAISS's own "
        "codes of the rows, takes 0.0010 ms: ours is slower."
    )
    # One that misses too much is no rival, nor is one of another length, nor one that is no faster than IVFPQ.
    for odd in ({"points": [{"ms": 0.001, "recall": 0.9}]}, {"bits": 16}, {"points": [{"ms": 0.05, "recall": 1.0}]}):
        document["rows"][-1] = {**row("baseline", "fastscan", "raw", "IndexPQFastScan", 32, 0.2, 0.001), **odd}
        assert said(document, "Search time") == said(comparison(), "Search time")


def test_search_of_rows_that_need_no_encoder():
    document = comparison()
    document["rows"].append(row("ours", "scq", "raw", "pq", 32, 0.9, 0.02))
    point = said(document, "Search time")
    assert (point.verdict, point.figure) == (words.AHEAD, "0.020 ms") and "Nothing has to be encoded." in point.text


def test_search_where_the_encoder_was_not_timed():
    point = said(change(comparison(), "scq", "trained", encode_ms=None), "Search time")
    # 0.02 ms are less than 0.05, but the encoder may take more than the difference.
    assert point.verdict == words.OPEN and "The time to encode a query was not measured." in point.text
    document = change(comparison(), "ivfpq", points=[{"ms": 0.001, "recall": 1.0}])
    assert said(change(document, "scq", "trained", encode_ms=None), "Search time").verdict == words.BEHIND


def test_search_that_was_not_timed():
    point = said(change(comparison(), "scq", "trained", points=[]), "Search time")
    assert point.text == (
        "No time of SCQ was measured at a setting that finds at least 95 of 100 of the first 10. "
        "There IVFPQ takes 0.050 ms a query."
    )
    assert (
        said(change(comparison(), "scq", "trained", points=[{"ms": 0.1, "recall": 0.94}]), "Search time").figure == ""
    )
    document = without(change(comparison(), "scq", "trained", points=[]), "baseline")
    assert said(document, "Search time").text.endswith("of the first 10.")
    point = said(without(comparison(), "baseline"), "Search time")
    assert point.verdict == words.OPEN and "Nothing else was timed." in point.text


def test_search_is_held_against_the_best_code_where_no_ivfpq_was_timed():
    assert said(change(comparison(), "ivfpq", points=None), "Search time").against == "RQ 0.40 ms"


# ------------------------------------------------------------------------------------------------- what keeps it honest
def test_label_code():
    point = said(comparison(), "Against the label code")
    assert point.text == (
        "The predicted class alone, stored in 4 bits, reaches a mAP of 0.511. SCQ has 0.119 more: "
        "its codes hold more than a class."
    )
    point = said(change(comparison(), "label", "trained", map=0.7), "Against the label code")
    assert point.verdict == words.BEHIND
    assert point.text.endswith("SCQ has 0.070 less: here the class alone ranks better than our codes.")
    point = said(change(comparison(), "label", "trained", map=0.63), "Against the label code")
    assert point.verdict == words.EVEN and point.text.endswith("rank no better than the class alone.")
    assert "Against the label code" not in topics(without(comparison(), "label"))


def test_the_same_embedding():
    point = said(comparison(), "On the same embedding")
    assert point.text == (
        "FAISS's own codes of the embedding of SCQ at 32 bits reach 0.610 at the same length (RQ of the embedding); "
        "SCQ has 0.020 more."
    )
    point = said(change(comparison(), "rq", "trained", map=0.64), "On the same embedding")
    assert point.verdict == words.BEHIND and point.text.endswith("and FAISS codes it better.")
    point = said(change(comparison(), "rq", "trained", map=0.63), "On the same embedding")
    assert point.verdict == words.EVEN and "the gain lies in the embedding" in point.text


def test_the_same_embedding_is_that_of_one_method_and_length():
    document = comparison()
    document["rows"].append(row("ours", "dpq", "trained", "pq", 32, 0.9, 0.3))
    assert said(document, "Ranking quality").figure == "0.900"
    # DPQ learned another embedding: FAISS's codes do not code it.
    for topic in ("On the same embedding", "Without coding"):
        assert said(document, topic) == said(comparison(), topic) and "DPQ" not in said(document, topic).text
    document["embedding"] = {"method": "scq", "bits": 16}
    point = said(document, "On the same embedding")
    assert (point.figure, point.against) == ("0.625", "RQ of the embedding 0.605")
    for whose in (None, {}, {"method": "pq", "bits": 32}, {"method": "scq", "bits": 8}, {"method": "scq"}):
        document["embedding"] = whose
        assert "On the same embedding" not in topics(document)
        assert said(document, "Without coding").text == (
            "Floats that are not coded at all rank with a mAP of 0.634 as the embedding and 0.240 as the rows."
        )


def test_coding_loss():
    text = "Floats that are not coded at all rank with a mAP of "
    assert said(comparison(), "Without coding").text == (
        text + "0.634 as the embedding of SCQ at 32 bits and 0.240 as the rows. "
        "SCQ's codes of 32 bits have 0.630: coding costs 0.004."
    )
    point = said(change(comparison(), "flat", "trained", map=0.6), "Without coding")
    assert point.text.endswith("have 0.630: coding adds 0.030.")
    point = said(change(comparison(), "flat", "trained", map=0.63), "Without coding")
    assert point.text.endswith("have 0.630: coding costs nothing.")
    point = said(change(comparison(), "flat", "trained", map=None), "Without coding")
    assert (point.figure, point.text) == ("0.240", text + "0.240 as the rows.")
    assert "Without coding" not in topics(without(comparison(), "ceiling"))


def test_class_names():
    document = {"classes": ["cat"]}
    assert [words.class_name(document, k) for k in (0, 1, -1, "dog", True)] == [
        "cat",
        "class 1",
        "class -1",
        "dog",
        "True",
    ]
    assert words.class_name({}, 3) == "class 3"


# --------------------------------------------------------------------------------------------------- scale and training
def test_scale():
    document = scale()
    assert topics(document) == ["The largest gallery measured", "Growth", "Carried on"]
    assert said(document, "The largest gallery measured").text == (
        "Of 10,000,000 rows, the most that were measured, buckets needs 0.025 ms a query and finds 100 of 100 of the first 10; "
        "ivfpq, the slowest of 3 targets, 30.0 ms."
    )
    assert said(document, "Growth").text == (
        "Of 3 targets buckets grows slowest: its time rises with the power 0.20 of the rows, so that ten times the rows take "
        "1.58 times as long. The fastest growth is that of ivfpq, with the power 1.00."
    )
    assert said(document, "Carried on").text == (
        "Carried on to 1,000,000,000 rows, buckets would need 0.063 ms a query and 12.0 GB of memory. "
        "This was not measured: it rests on the growth fitted, and on the assumptions below."
    )


def test_scale_where_ours_is_not_the_one_that_grows_slowest():
    document = scale()
    document["fits"]["buckets"]["ms"]["exponent"] = 0.9
    assert said(document, "Growth").text.startswith("Of 3 targets faiss ivfpq grows slowest")


def test_scale_with_parts_missing():
    document = scale()
    document |= {"fits": None, "extrapolation": None}
    for held in document["rows"]:
        del held["ms"]
    assert [p.text for p in summary(cleaned(document))] == [
        "No search was timed.",
        "No growth was fitted to these times.",
    ]
    document = scale()
    document["extrapolation"]["targets"] = {"buckets": {}}
    assert "Carried on" not in topics(document)
    document["rows"] = [{"key": "a", "rows": 10, "ms": 2.0}]
    assert said(document, "The largest gallery measured").text == (
        "Of 10 rows, the most that were measured, a needs 2.00 ms a query."
    )


def test_training():
    points = summary(cleaned(training()))
    assert points[0].topic == "Codebook stage, batch 64"
    assert (points[0].verdict, points[0].figure) == (words.AHEAD, "5.10 ×")
    assert points[0].text == (
        "A step of the codebook stage at batches of 64 runs 5.10 times as fast as the released recipe's arithmetic; "
        "in the middle half of 15 rounds between 4.84 and 5.30 times."
    )


@pytest.mark.parametrize(
    "ratio, low, high, verdict, words_of_it",
    [
        (0.8, 0.7, 0.9, words.BEHIND, ", which is slower; in"),
        (1.02, 0.9, 1.1, words.EVEN, ", which is no clear difference; in"),
        (1.5, None, None, words.AHEAD, "arithmetic."),
        (1.0, None, None, words.EVEN, ", which is no clear difference."),
    ],
)
def test_training_that_is_not_faster(ratio, low, high, verdict, words_of_it):
    document = training()
    document["rows"] = [{"key": "x", "ratio": ratio, "ratio_low": low, "ratio_high": high}]
    (point,) = summary(cleaned(document))
    assert (point.topic, point.verdict) == ("X stage", verdict)
    assert words_of_it in point.text
    document["rows"][0]["ratio"] = None
    assert [p.text for p in summary(cleaned(document))] == ["No ratio was measured."]


def test_methods_that_nobody_knows_are_called_by_their_own_name():
    document = comparison()
    document["rows"].append(row("ours", "new <b>", "trained", "pq", 32, 0.9, 0.1))
    assert "new <b> ranks with a mAP of 0.900" in said(document, "Ranking quality").text
