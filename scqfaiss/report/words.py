"""What a comparison says, in plain words, whichever way the figures go; and figures as text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..comparison import selection
from ..comparison.selection import (
    SPACES,
    Document,
    Row,
    best_baseline,
    best_of,
    best_ours,
    codings,
    embedded,
    get,
    lists_of,
    name_of,
)
from ..errors import format_bytes

AHEAD, EVEN, BEHIND, MIXED, OPEN = "ahead", "even", "behind", "mixed", ""
RECALL = 0.95  # of the operating points that times are taken from


@dataclass(frozen=True)
class Point:
    """One thing the results say.

    topic: its heading; text: whole sentences; figure, against: ours and theirs in short, '' where there is none; verdict: AHEAD,
    EVEN, BEHIND, MIXED (ahead here, behind there), or OPEN where nothing is held against anything.
    """

    topic: str
    text: str
    figure: str = ""
    against: str = ""
    verdict: str = OPEN


# ------------------------------------------------------------------------------------------------------------- figures
def score(value: float | None) -> str:
    """A fraction with three decimals; '' for None, as of all these."""
    return "" if value is None else f"{value:.3f}"


def count(value: float | None) -> str:
    """A whole number with separators: 54,000."""
    return "" if value is None else f"{value:,.0f}"


def format_number(value: float | None) -> str:
    """A time or ratio as people say it: two digits below 1, three above, whole from 100 on. 0.021, 1.25, 12.3, 4,210."""
    if value is None:
        return ""
    if value <= 0:
        return f"{value:.2f}" if value else "0"
    # The rounding itself may add a digit: 0.0997 is 0.10, not 0.100.
    significant = 3 if value >= 1 else 2
    first = math.floor(math.log10(float(f"{value:.{significant - 1}e}")))
    return f"{value:,.{max(0, significant - 1 - first)}f}"


def nbytes(value: float | None) -> str:
    """Bytes in the unit a person would choose; of vectors, of which one takes few, with one decimal."""
    return "" if value is None else format_bytes(value)


def listed(parts: list[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def length(bits: float) -> str:
    """'0 bytes', '1 byte' where the bits fill bytes, or else '12 bits'."""
    return f"{bits / 8:.0f} byte{'' if bits == 8 else 's'}" if bits % 8 == 0 else f"{bits:.0f} bits"


def target_of(row: Row) -> str:
    return str(row.get("target") or row["key"])


def verdict_of(ours: float, theirs: float) -> str:
    """AHEAD, EVEN or BEHIND, of two scores as they are shown."""
    return _held(ours, theirs)[0]


def _held(ours: float, theirs: float) -> tuple[str, str]:
    """(verdict, '0.395 more') of two scores as they are shown: what rounds to the same figure is the same."""
    a, b = round(ours, 3), round(theirs, 3)
    if a == b:
        return EVEN, "the same"
    return (AHEAD, f"{a - b:.3f} more") if a > b else (BEHIND, f"{b - a:.3f} less")


def _by_name(row: Row, value: float | None) -> str:
    """'RQ 0.238'."""
    return f"{name_of(row)} {score(value)}"


# ---------------------------------------------------------------------------------------------------------- comparison
def comparison(document: Document) -> list[Point]:
    """Quality at one length and at all, speed, and what holds the codes to honesty."""
    level = selection.shown_level(document)
    if level is None:  # nothing at one length: what there is
        held = {at: (best_ours(document, *at), best_baseline(document, *at)) for at in selection.levels(document)}
        level = max(held, key=lambda at: (held[at][0] is not None, held[at][1] is not None, at), default=None)
    ours = None if level is None else best_ours(document, *level)
    theirs = None if level is None else best_baseline(document, *level)
    if ours is None or level is None:
        text = "No code of ours has a mAP here, so nothing can be said about it."
        if theirs is None:
            return [Point("Ranking quality", text)]
        text += f" The best code without labels ({name_of(theirs)}) reaches {score(theirs['map'])} at {theirs['bits']}"
        text += " bits a vector."
        return [Point("Ranking quality", text, "", _by_name(theirs, theirs["map"]))]
    points = (
        quality(document, ours, theirs),
        speed(document, ours, theirs),
        lengths_won(document, level[1]),
        what_lists_add(document, level),
        label_code(document, ours),
        same_embedding(document),
        coding_loss(document),
    )
    return [point for point in points if point]


def quality(document: Document, ours: Row, theirs: Row | None) -> Point:
    """mAP at the length that stands for the others."""
    topic, own, bits = "Ranking quality", ours["map"], ours["bits"]
    on = f" on {document['name']}" if document.get("name") else ""
    text = f"At {bits} bits a vector {name_of(ours)} ranks with a mAP of {score(own)}{on}"
    if theirs is None:
        text += "; no code without labels was measured at this length, so there is nothing to hold it against."
        return Point(topic, text, score(own))
    verdict, by = _held(own, theirs["map"])
    text += f"; the best code without labels ({name_of(theirs)}) reaches {score(theirs['map'])}: "
    same = f"the same {length(bits)}" + (" and number of lists" if lists_of(ours) > 1 else "")
    text += f"{by} at {same}." if verdict != BEHIND else f"ours has {by} at {same}."
    return Point(topic, text, score(own), _by_name(theirs, theirs["map"]), verdict)


def lengths_won(document: Document, lists: int) -> Point | None:
    """At how many lengths ours is ahead, in so many lists on both sides; None where there is but one."""
    both = [
        (bits, ours["map"], theirs["map"])
        for bits, held in selection.levels(document)
        if held == lists
        and (ours := best_ours(document, bits, lists))
        and (theirs := best_baseline(document, bits, lists))
    ]
    if len(both) < 2:
        return None
    verdicts = [_held(ours, theirs)[0] for _, ours, theirs in both]
    said = {AHEAD: "more", EVEN: "the same", BEHIND: "less"}
    at = {verdict: [str(b[0]) for b, v in zip(both, verdicts, strict=True) if v == verdict] for verdict in said}
    (first, a, x), (last, b, y) = both[0], both[-1]
    text = f"From {first} to {last} bits our best mAP goes from {score(a)} to {score(b)}, that of codes without labels"
    text += f" from {score(x)} to {score(y)}{f', all in {lists:,} lists' if lists > 1 else ''}. "
    text += f"Ours has {'; '.join(f'{said[v]} at {listed(bits)}' for v, bits in at.items() if bits)} bits."
    # Behind anywhere is not ahead: the reader may need that very length.
    won, lost = at[AHEAD], at[BEHIND]
    verdict = MIXED if won and lost else AHEAD if won else BEHIND if lost else EVEN
    return Point("Every length", text, f"{len(won)} of {len(both)}", "lengths where ours has more mAP", verdict)


def what_lists_add(document: Document, level: tuple[int, int]) -> Point | None:
    """Our best mAP at one length with lists and without; None where only one of them was measured."""
    bits, lists = level
    with_lists, whole = best_ours(document, bits, lists), best_ours(document, bits)
    if lists == 1 or with_lists is None or whole is None:
        return None
    a, b = round(with_lists["map"], 3), round(whole["map"], 3)
    text = f"At {bits} bits the best of ours has a mAP of {score(a)} in {lists:,} lists and {score(b)} as codes of whole vectors."
    text += " The list that a vector stands in costs no byte."
    alone = best_ours(document, 0, lists)
    if alone is not None and bits:
        text += f" The list alone, a code of 0 bytes, has {score(alone['map'])}."
    return Point("What lists add", text, f"{a - b:+.3f}", f"{name_of(whole)} {score(b)}")


def speed(document: Document, ours: Row, theirs: Row | None) -> Point:
    """ms a query, with and without the encoder, of settings that miss little; against IVFPQ, and whatever is faster still."""
    topic, bits, lists = "Search time", ours["bits"], lists_of(ours)
    setting = "One thread, 1,000 queries at a time, settings that find at least 95 of 100 of the first 10."
    own = selection.fastest(document, str(ours.get("method")), str(ours.get("space")), bits, lists, RECALL)
    level = (r for r in document["rows"] if _codes_rows(r) and r.get("bits") == bits and lists_of(r) == lists)
    rows = {str(r.get("method")): r for r in level}
    timed = {m: float(at[1]["ms"]) for m in rows if (at := selection.fastest(document, m, "raw", bits, lists, RECALL))}
    first = min(timed, key=lambda method: timed[method], default="")
    usual = next((m for m in ("ivfpq", str((theirs or {}).get("method"))) if m in timed), first)
    # Where the usual one is the fastest, or shows the same figure, one is enough.
    if first and format_number(timed[first]) == format_number(timed[usual]):
        first = usual
    said = [f"{name_of(rows[m])} takes {format_number(timed[m])} ms" for m in dict.fromkeys((usual, first)) if m]
    if len(said) > 1:
        said[1] = said[1].replace(" takes", ", the fastest of FAISS's own codes of the rows, takes")
    if own is None:
        text = f"No time of {name_of(ours)} was measured at a setting that finds at least 95 of 100 of the first 10."
        return Point(topic, text + (f" There {listed(said)} a query." if said else ""))
    took, encode = float(own[1]["ms"]), selection.encoding(document, own[0])
    whole = took + (encode or 0.0)
    container = f", in {own[0]['container']}" if own[0].get("container") else ""
    text = f"A search takes {format_number(took)} ms a query ({name_of(ours)}{container})"
    more = f"Encoding the query takes {format_number(encode)} ms more" if encode else "Nothing has to be encoded"
    more = "The time to encode a query was not measured" if encode is None else more
    if not said:
        return Point(topic, f"{text}. {more}. Nothing else was timed. {setting}", f"{format_number(whole)} ms")
    verdict, held = _slower(took, timed[first])
    text += f"; {listed(said)}: {held}. {more}"
    if encode is None:
        # What takes longer without the encoder takes longer with it; what takes less may not.
        verdict = BEHIND if verdict == BEHIND else OPEN
    elif encode:
        verdict, held = _slower(whole, timed[first])
        text += f": {format_number(whole)} ms with the search, and {held}"
    against = f"{name_of(rows[first])} {format_number(timed[first])} ms"
    return Point(topic, f"{text}. {setting}", f"{format_number(whole)} ms", against, verdict)


def _codes_rows(row: Row) -> bool:
    return row.get("role") == "baseline" and row.get("space") == "raw"


def _slower(ours: float, theirs: float) -> tuple[str, str]:
    if format_number(ours) == format_number(theirs):
        return EVEN, "ours is as fast"
    return (AHEAD, "ours is faster") if ours < theirs else (BEHIND, "ours is slower")


def label_code(document: Document, ours: Row) -> Point | None:
    """The predicted class as the whole code: what a code that knows labels must beat."""
    row = best_of(r for r in codings(document) if r.get("role") == "label")
    if row is None:
        return None
    verdict, by = _held(ours["map"], row["map"])
    stored = f" in {row['bits']} bits" if row.get("bits") else ""
    text = f"The predicted class alone, stored{stored}, reaches a mAP of {score(row['map'])}. {name_of(ours)} has "
    text += {
        AHEAD: f"{by}: its codes hold more than a class.",
        EVEN: "the same: its codes rank no better than the class alone.",
        BEHIND: f"{by}: here the class alone ranks better than our codes.",
    }[verdict]
    return Point("Against the label code", text, score(ours["map"]), _by_name(row, row["map"]), verdict)


def embedding_of(document: Document) -> str:
    """'the embedding of SCQ at 32 bits': what FAISS's codes of space 'trained' code; 'the embedding' where nothing says whose."""
    row = embedded(document)
    return "the embedding" if row is None else f"the embedding of {name_of(row)} at {row['bits']} bits"


def same_embedding(document: Document) -> Point | None:
    """FAISS's own codes beside ours where both code the same: what is left of the gain that the codes themselves make.

    Every training learns an embedding of its own, so this speaks of the one method and length whose embedding FAISS codes.
    """
    ours = embedded(document)
    if ours is None:
        return None
    trained = [r for r in codings(document) if r.get("role") == "baseline" and r.get("space") == "trained"]
    row = best_of(r for r in trained if r.get("bits") == ours["bits"] and lists_of(r) == lists_of(ours))
    if row is None:
        return None
    verdict, by = _held(ours["map"], row["map"])
    text = (
        f"FAISS's own codes of {embedding_of(document)} reach {score(row['map'])} at the same length ({name_of(row)}); "
    )
    text += f"{name_of(ours)} has {by}"
    text += {
        AHEAD: ".",
        EVEN: ": the gain lies in the embedding, not in the codes.",
        BEHIND: ": the gain lies in the embedding, and FAISS codes it better.",
    }[verdict]
    return Point("On the same embedding", text, score(ours["map"]), _by_name(row, row["map"]), verdict)


def coding_loss(document: Document) -> Point | None:
    """What floats reach, before any coding; and what coding costs the method whose floats they are."""
    floats = {r.get("space"): get(r, "map") for r in codings(document) if r.get("role") == "ceiling"}
    ours, trained, raw = embedded(document), floats.get("trained"), floats.get("raw")
    parts = [
        f"{score(v)} as {what}" for v, what in ((trained, embedding_of(document)), (raw, "the rows")) if v is not None
    ]
    if not parts:
        return None
    text = f"Floats that are not coded at all rank with a mAP of {listed(parts)}."
    if trained is None:
        return Point("Without coding", text, score(raw), f"{SPACES['raw']}, as floats")
    if ours is not None:
        lost = round(trained, 3) - round(ours["map"], 3)
        text += f" {name_of(ours)}'s codes of {ours['bits']} bits have {score(ours['map'])}: coding "
        text += f"{'costs' if lost > 0 else 'adds'} {abs(lost):.3f}." if round(lost, 3) else "costs nothing."
    return Point("Without coding", text, score(trained), f"{SPACES['trained']}, as floats")


def class_name(document: Document, label: Any) -> str:
    """The name of a class by its number; what is a name already stays."""
    names = document.get("classes") or []
    if isinstance(label, int) and not isinstance(label, bool):
        return str(names[label]) if 0 <= label < len(names) else f"class {label}"
    return str(label)
