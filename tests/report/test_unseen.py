"""What a report says of classes that the training has not seen."""

from scqfaiss.comparison.schema import cleaned
from scqfaiss.report import unseen, words
from scqfaiss.report.gaps import gaps

from .conftest import comparison


def with_maps(**maps):
    document = comparison()
    for row in document["unknown"]["draws"]:
        row["maps"] |= {name: dict(zip(("unseen", "seen", "all"), values)) for name, values in maps.items()}
    return cleaned(document)


def test_the_table_tells_means_and_deviations():
    table = unseen.table(cleaned(comparison()))
    first = table.groups[0].lines[0]
    assert (first.name, first.note) == ("SCQ", "with content codes, the gate weighs every query")
    assert [cell.text for cell in first.cells] == ["0.220 ± 0.014", "0.600 ± 0.000", "0.520 ± 0.000"]
    assert [line.name for line in table.groups[0].lines] == ["SCQ", "SCQ", "SCQ", "rows", "PQ", "OPQ"]
    assert table.groups[0].lines[-1].note == "of the rows, 64 bits"
    # Of unseen classes PQ is the best that is told nothing; of the others, codes without content.
    assert [[cell.best for cell in line.cells] for line in table.groups[0].lines] == [
        [False, False, True],
        [False, False, False],
        [False, True, True],
        [False, False, False],
        [True, False, False],
        [False, False, False],
    ]
    assert (
        "2 trainings, each without 1 of 3 classes" in table.lead
        and "32 that know labels and 32 of content" in table.lead
    )
    one = comparison()
    del one["unknown"]["draws"][1]
    table = unseen.table(cleaned(one))
    assert table.groups[0].lines[0].cells[0].text == "0.210" and table.lead.startswith("1 training, each")


def test_words_say_which_codes_to_use_when():
    point = unseen.point(cleaned(comparison()))
    assert (point.figure, point.against, point.verdict) == ("0.220", "PQ 0.260", words.MIXED)
    assert point.text == (
        "SCQ with content codes has a mAP of 0.220 for queries of classes that the training has not seen and 0.600 for the "
        "others; without content codes 0.180 and 0.610. Codes of the rows in as many bits (PQ) have 0.260 and 0.250. Use content "
        "codes where at most about 90 % of the queries are of unseen classes, and codes of the rows where more are. "
        "Told which queries are which: 0.250."
    )
    ahead = unseen.point(with_maps(auto=(0.3, 0.6, 0.5)))
    assert ahead.verdict == words.AHEAD and "Content codes serve both kinds of queries. Told" in ahead.text
    behind = unseen.point(with_maps(auto=(0.2, 0.2, 0.2)))
    assert behind.verdict == words.BEHIND and "at least as well. Told" in behind.text
    even = unseen.point(with_maps(auto=(0.26, 0.25, 0.25)))
    assert even.verdict == words.EVEN and "queries as well as codes of the rows. Told" in even.text


def test_a_difference_within_the_spread_of_the_draws_is_none():
    document = comparison()
    for row, value in zip(document["unknown"]["draws"], (0.1, 0.5)):
        row["maps"]["auto"]["unseen"] = value
    point = unseen.point(cleaned(document))
    assert point.figure == "0.300" and point.verdict == words.MIXED  # even for unseen classes, ahead for all
    crossed = unseen.point(with_maps(auto=(0.5, 0.2, 0.3)))
    assert "depends on which queries you have" in crossed.text


def test_what_was_not_measured_says_so():
    document = comparison()
    document["unknown"] = {"reason": "rows of many labels are of seen and unseen classes at once", "draws": []}
    document = cleaned(document)
    assert unseen.table(document) is None
    assert unseen.point(document).text.endswith(
        "were not measured: rows of many labels are of seen and unseen classes at once."
    )
    assert [gap.reason for gap in gaps(document) if gap.title == "unseen classes"] == [document["unknown"]["reason"]]
    old = comparison()
    del old["unknown"]
    for held in old["rows"]:
        held["unseen_map"] = 0.2  # as results had it before
    old["left_out"] = ["bird"]
    old = cleaned(old)
    assert unseen.point(old).text == "Queries of classes that the training has not seen were not measured."
    assert [gap.reason for gap in gaps(old) if gap.title == "unseen classes"] == ["not in the results"]


def test_forged_draws_are_passed_over():
    for forged in (
        3,
        [],
        {"draws": 3},
        {"draws": [3, {"key": 3}]},
        {"draws": [{"key": "a", "maps": {"auto": {"unseen": 7}}}]},
    ):
        document = comparison()
        document["unknown"] = forged
        document = cleaned(document)
        assert unseen.table(document) is None and "not measured" in unseen.point(document).text
