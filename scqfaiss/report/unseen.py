"""What a comparison says of queries whose classes the training has not seen: a table, and words on which codes to use when."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import mean, stdev

from ..comparison.selection import NAMES, Document, Row, get, unknown_draws, unknown_means
from .tables import Cell, Group, Line, Table
from .words import AHEAD, BEHIND, EVEN, MIXED, Point, listed, score, verdict_of

TOPIC = "Unseen classes"
LABELS = {
    "auto": "with content codes, the gate weighs every query",
    "told": "with content codes, told which queries are of unseen classes",
    "semantic": "without content codes",
    "rows": "cosine of the rows, uncompressed",
}
PARTS = ("unseen", "seen", "all")
Means = Mapping[str, tuple[float, float]]  # by part: mean, standard deviation


def table(document: Document) -> Table | None:
    """mAP of queries of unseen classes, of the others and of all: means and standard deviations over the draws."""
    means, draws = unknown_means(document), unknown_draws(document)
    if not means:
        return None
    first, lines = draws[0], []
    both = (get(first, "bits") or 0) + (get(first, "content_bits") or 0)
    for name, parts in means.items():
        cells = [Cell(score(m) + f" ± {sd:.3f}" * (len(draws) > 1), m) for m, sd in (parts[part] for part in PARTS)]
        ours = NAMES.get(str(first.get("method")), str(first.get("method")))
        title = "rows" if name == "rows" else ours if name in LABELS else NAMES.get(name, name)
        lines.append(Line(title, cells, LABELS.get(name, f"of the rows, {both:.0f} bits")))
    for place in range(len(PARTS)):
        _mark([line.cells[place] for line, name in zip(lines, means) if name not in ("rows", "told")])
    left, classes = len(first.get("left_out") or []), get(first, "classes") or 0
    own, content = (get(first, name) or 0 for name in ("bits", "content_bits"))
    lead = (
        f"{len(draws)} training{'s' * (len(draws) > 1)}, each without {left} of {classes:.0f} classes, whose rows stay in the "
        f"database. Codes have {both:.0f} bits; ours split them into {own:.0f} that know labels and {content:.0f} of content. "
        "Mean and standard deviation. The best stands in bold, of codes that are told nothing."
    )
    header = [("mAP, unseen classes", ""), ("mAP, other classes", ""), ("mAP, all queries", "")]
    return Table("Unseen classes", "code", header, [Group("", lines)], lead)


def _mark(cells: list[Cell]) -> None:
    best = max(cell.value or 0.0 for cell in cells)
    for cell in cells:
        cell.best = len(cells) > 1 and cell.value == best


def point(document: Document) -> Point:
    """What to use when: codes that know labels, content codes beside them, or codes of the rows."""
    means, draws = unknown_means(document), unknown_draws(document)
    if "auto" not in means:
        reason = (document.get("unknown") or {}).get("reason")
        text = "Queries of classes that the training has not seen were not measured"
        return Point(TOPIC, f"{text}: {reason}." if reason else f"{text}.")
    own, first = means["auto"], draws[0]
    name = NAMES.get(str(first.get("method")), str(first.get("method")))
    text = (
        f"{name} with content codes has a mAP of {score(own['unseen'][0])} for queries of classes that the training has not seen "
        f"and {score(own['seen'][0])} for the others"
    )
    if "semantic" in means:
        text += (
            f"; without content codes {score(means['semantic']['unseen'][0])} and {score(means['semantic']['seen'][0])}"
        )
    rivals = {key: means[key] for key in ("pq", "opq", "ivfpq") if key in means}
    if not rivals:
        return Point(TOPIC, f"{text}. No code of the rows was measured beside it.", score(own["unseen"][0]))
    best = {part: max(rivals, key=lambda key: rivals[key][part][0]) for part in PARTS}
    verdicts = {part: _verdict(draws, part, best[part], own, rivals[best[part]]) for part in PARTS}
    there = " and ".join(score(rivals[best[part]][part][0]) for part in ("unseen", "seen"))
    held = listed(list(dict.fromkeys(NAMES[best[part]] for part in ("unseen", "seen"))))
    text += f". Codes of the rows in as many bits ({held}) have {there}. {_advice(verdicts, own, rivals[best['all']])}"
    if "told" in means:
        text += f" Told which queries are which: {score(means['told']['unseen'][0])}."
    verdict = verdicts["unseen"] if verdicts["unseen"] == verdicts["all"] else MIXED
    against = f"{NAMES[best['unseen']]} {score(rivals[best['unseen']]['unseen'][0])}"
    return Point(TOPIC, text, score(own["unseen"][0]), against, verdict)


def _verdict(draws: list[Row], part: str, rival: str, own: Means, theirs: Means) -> str:
    """Of the means as they are shown; EVEN where the difference is within twice its standard error over the draws."""
    gains = [(get(row, "maps", "auto", part) or 0.0) - (get(row, "maps", rival, part) or 0.0) for row in draws]
    if len(gains) > 1 and abs(mean(gains)) <= 2 * stdev(gains) / len(gains) ** 0.5:
        return EVEN
    return verdict_of(own[part][0], theirs[part][0])


def _advice(verdicts: dict[str, str], own: Means, rival: Means) -> str:
    if verdicts["unseen"] == BEHIND and verdicts["seen"] == AHEAD:
        gain, loss = own["seen"][0] - rival["seen"][0], rival["unseen"][0] - own["unseen"][0]
        share = 100 * gain / (gain + loss) if gain > 0 < loss else 0.0
        return (
            f"Use content codes where at most about {share:.0f} % of the queries are of unseen classes, and codes of the rows "
            "where more are."
        )
    if BEHIND not in verdicts.values():
        text = "Content codes serve both kinds of queries"
        return f"{text}." if AHEAD in verdicts.values() else f"{text} as well as codes of the rows."
    if AHEAD not in verdicts.values():
        return "Codes of the rows serve both kinds of queries at least as well."
    return "Which of the two to use depends on which queries you have."
