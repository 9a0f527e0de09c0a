"""What a report says of thresholds and probabilities."""

import pytest

from scqfaiss.comparison.schema import cleaned
from scqfaiss.report import promised
from scqfaiss.report.charts import Missing
from scqfaiss.report.charts.reliability import reliability
from scqfaiss.report.gaps import gaps
from scqfaiss.report.summary import summary

from .conftest import comparison


def test_the_table_holds_asked_for_against_seen():
    found = promised.table(cleaned(comparison()))
    assert [group.title for group in found.groups] == ["recall, of a query's rows", "precision, of all hits"]
    cells = {(g.title[:6], line.name): [c.text for c in line.cells] for g in found.groups for line in g.lines}
    assert cells == {
        ("recall", "0.5"): ["0.520", "0.550"],
        ("recall", "0.9"): ["0.893", "0.921"],
        ("precis", "0.9"): ["0.910", "0.897"],
        ("precis", "0.99"): ["not promised", "not promised"],
    }
    assert "by 1,000 labelled rows" in found.lead


def test_the_words_name_the_worst_and_count_what_was_kept():
    points = {p.topic: p for p in summary(cleaned(comparison()))}
    assert points["Thresholds"].text == (
        "Probabilities of SCQ's first 100 hits are off by 0.023 on average. Of 3 thresholds, the worst was asked for a recall of "
        "0.5 and had 0.520; with confidence 0.9, 2 of 3 were kept. The training forecast a mAP of 0.600 to 0.660, and it came to "
        "0.630."
    )
    assert points["Thresholds"].figure == "0.023"


def test_the_chart_has_a_dot_for_every_bin():
    plan = reliability(cleaned(comparison()))
    assert plan.table == (("0.100", "0.140", "900"), ("0.500", "0.480", "300"), ("0.950", "0.930", "1,800"))
    # |0.1 - 0.14| * 900 = |0.95 - 0.93| * 1,800 up to rounding: either may be named
    assert "Expected calibration error 0.023" in plan.alt and "32 bits" in plan.alt


def test_what_was_not_measured_is_said():
    document = comparison()
    document["promises"] = {"key": "scq/32", "reason": "too few rows"}
    told = cleaned(document)
    assert promised.table(told) is None
    assert promised.point(told).text == "Nothing is known of what scores mean: too few rows."
    assert isinstance(missing := reliability(told), Missing) and missing.reason == "too few rows"
    del document["promises"]
    old = cleaned(document)
    assert promised.table(old) is None and promised.point(old) is None and isinstance(reliability(old), Missing)
    assert [gap.reason for gap in gaps(old) if gap.title == "thresholds"] == ["not in the results"]


@pytest.mark.parametrize(
    "forged",
    [7, "x", [], {"ece": "x"}, {"ece": 0.1, "guess": 3}, {"ece": 0.1, "guess": {"recall": {"nan": 0.5, "x": 0.2, "0.5": "y"}}},
     {"ece": 0.1, "reliability": [{"probability": 2.0, "right": 0.5, "hits": 3}, 5, {"hits": 1e40}]}],
)  # fmt: skip
def test_edited_results_end_no_report(forged):
    document = comparison()
    document["promises"] = forged
    told = cleaned(document)
    promised.table(told), promised.point(told)
    assert isinstance(reliability(told), Missing)
