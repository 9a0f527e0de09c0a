"""A report of codes that inverted lists are part of: what is held against what, and how many lists stand beside it."""

import pytest

from scqfaiss.comparison import selection
from scqfaiss.comparison.compare import verdict
from scqfaiss.comparison.schema import cleaned
from scqfaiss.report.charts import plans
from scqfaiss.report.charts.drawing import LIGHT, drawn
from scqfaiss.report.summary import summary
from scqfaiss.report.tables import tables

from .conftest import comparison, row


def with_lists(lists=64):
    """Ours and FAISS's codes of the rows and of the embedding, at 0, 16 and 32 bits in so many lists, beside whole vectors."""
    document = comparison()
    kept = [held for held in document["rows"] if held["role"] in ("ceiling", "label") or held.get("lists") == 1]
    document["rows"] = kept
    for bits, quality in ((0, 0.640), (16, 0.652), (32, 0.655)):
        for role, method, space, container, change in (
            ("ours", "scq", "trained", "ivfpq", 0.0),
            ("baseline", "ivfpq", "raw", "IndexIVFPQ", -0.4),
            ("baseline", "ivfrq", "raw", "IndexIVFResidualQuantizer", -0.39),
            ("baseline", "ivfpq", "trained", "IndexIVFPQ", -0.002),
        ):
            key = f"{method}/{space}/{bits} in {lists} lists/{container}"
            made = row(role, method, space, container, bits, quality + change, 0.05, key=key, lists=lists)
            document["rows"].append(made | {"usage": [[1, 2]]})
    return cleaned(document | {"bits": [0, 16, 32], "lists": [1, lists]})


def said(document, topic):
    (found,) = [point for point in summary(document) if point.topic == topic]
    return found


def test_codes_are_held_against_those_with_as_many_lists():
    document = with_lists()
    assert selection.levels(document) == [(0, 64), (16, 1), (16, 64), (32, 1), (32, 64)]
    assert selection.shown_level(document) == (32, 64)
    ours, base = selection.pair(document)
    assert ours["key"] == "scq/trained/32 in 64 lists/ivfpq" and base["key"] == "ivfpq/raw/32 in 64 lists/IndexIVFPQ"
    assert selection.name_of(base) == "IVFPQ (64 lists)"
    assert selection.best_ours(document, 32)["map"] == pytest.approx(0.63)
    assert selection.best_baseline(document, 32, 64)["method"] == "ivfrq"
    # Of one coding the fastest container, whatever the number of lists of the others.
    assert selection.fastest(document, "scq", "trained", 32, 64)[0]["key"] == ours["key"]
    assert selection.fastest(document, "scq", "trained", 32, None)[0]["container"] == "buckets"


def test_words_say_how_many_lists():
    document = with_lists()
    quality = said(document, "Ranking quality")
    assert quality.text.startswith("At 32 bits a vector SCQ (64 lists) ranks with a mAP of 0.655")
    assert quality.text.endswith("0.390 more at the same 4 bytes and number of lists.")
    assert quality.against == "IVF RQ (64 lists) 0.265"
    assert said(document, "Every length").text.startswith(
        "From 0 to 32 bits our best mAP goes from 0.640 to 0.655, that of codes without labels from 0.250 to 0.265, "
        "all in 64 lists. "
    )
    added = said(document, "What lists add")
    assert (added.figure, added.against) == ("+0.025", "SCQ 0.630")
    assert added.text.endswith("The list alone, a code of 0 bytes, has 0.640.")
    assert "IVFPQ (64 lists) takes 0.05 ms" in said(document, "Search time").text.replace("0.050", "0.05")
    assert not any(point.topic == "What lists add" for point in summary(cleaned(comparison())))


def test_the_table_has_a_group_for_each_number_of_lists():
    table, everything = tables(with_lists())
    assert [group.title for group in table.groups] == [
        "0 bits: 0 bytes a vector in 64 lists",
        "4 bits a vector",
        "16 bits: 2 bytes a vector",
        "16 bits: 2 bytes a vector in 64 lists",
        "32 bits: 4 bytes a vector",
        "32 bits: 4 bytes a vector in 64 lists",
        "floats, without a code",
    ]
    assert "same number of lists" in table.lead
    column = [label for label, _ in everything.header].index("lists of the code")
    assert {line.cells[column].text for line in everything.groups[0].lines} == {"1", "64"}


def test_charts_of_codes_of_no_bits():
    document = with_lists()
    held = {plan.name: plan for plan in plans(document)}
    lengths = held["map-bits"]
    assert lengths.header == ("codes", "0 bits", "4 bits", "16 bits", "32 bits", "floats")
    table = {line[0]: line[1:] for line in lengths.table}
    assert table["SCQ (64 lists)"] == ("0.640", "–", "0.652", "0.655", "–")
    assert table["SCQ"] == ("–", "–", "0.625", "0.630", "–")
    with drawn(lengths, LIGHT) as figure:
        (axes,) = figure.axes
        ticks = dict(zip((tick.get_text() for tick in axes.get_xticklabels()), axes.get_xticks()))
        assert ticks["0"] == 2 and ticks["32"] == 32  # the shortest but it has 4 bits
    probes = held["probes"]
    assert {line[0] for line in probes.table} == {"SCQ (64 lists)", "IVFPQ (64 lists) of the embedding"}
    assert [line[2] for line in probes.table] == ["1", "4", "1", "4"]
    with drawn(probes, LIGHT) as figure:
        assert len(figure.axes[0].lines) == 2


def test_results_that_tell_no_lists_are_read_as_they_were():
    document = comparison()
    document["rows"] = [
        {k: v for k, v in held.items() if k != "lists"} for held in document["rows"] if held.get("lists") != 64
    ]
    old = cleaned(document)
    assert selection.shown_level(old) == (32, 1) and selection.pair(old)[1]["method"] == "ivfpq"
    assert selection.name_of(selection.pair(old)[1]) == "IVFPQ"


def test_the_verdict_tells_every_length_and_number_of_lists():
    lines = verdict(with_lists()).splitlines()
    assert [line.partition(":")[0].strip() for line in lines[:-1]] == [
        "0 bits, 64 lists",
        "16 bits",
        "16 bits, 64 lists",
        "32 bits",
        "32 bits, 64 lists",
        "queries of classes that the training has not seen",
    ]
    assert '"auto_unseen": 0.22' in lines[-1]
    assert '"gain_32_64": 0.39' in lines[-1] and '"map_0_64": 0.64' in lines[-1]
    assert '"ratio_32": 2.5' in lines[-1]  # buckets, against the fastest IVFPQ in however many lists
