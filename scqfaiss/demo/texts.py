"""Labelled sentences to try things with, drawn from patterns, and a small encoder for them: NumPy alone.

For docs and tests: real embeddings come from a network, which this package does not bring.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from ..arrays import Floats

D = 512
NGRAM = 4  # characters of a piece of a word
PATTERNS = {
    "balance": ("how much money is in my {account}", "show the balance of my {account}", "what do I have on the {account}"),
    "transfer": ("send {amount} to {person}", "transfer {amount} from my {account} to {person}", "pay {person} {amount} back"),
    "lost card": ("I lost my {card} in {city}", "block the {card} please", "somebody stole my {card}"),
    "new card": ("I would like to order a new {card}", "when does my new {card} arrive", "send the new {card} to {city}"),
    "exchange rate": ("what are {amount} in {currency}", "how many {currency} do I get for {amount}", "rate of the {currency}"),
    "flight": ("book a flight to {city} on {day}", "is there a plane to {city} on {day}", "cheap flight from {city} to {city}"),
    "hotel": ("find a hotel in {city} for {day}", "I need a room in {city}", "which hotels in {city} take dogs"),
    "weather": ("will it rain in {city} on {day}", "how warm does it get in {city}", "do I need an umbrella on {day}"),
    "alarm": ("wake me up on {day} at {hour}", "set an alarm for {hour}", "cancel the alarm on {day}"),
    "music": ("play something by {person}", "turn the music down", "next song please, not {person} again"),
    "recipe": ("how do I cook {dish}", "what goes into {dish}", "give me a recipe for {dish} for {person}"),
    "restaurant": ("table for two in {city} on {day} at {hour}", "who serves good {dish} in {city}", "reserve a table at {hour}"),
}  # fmt: skip
WORDS = {
    "account": ("savings account", "checking account", "joint account", "account"),
    "amount": ("20 euros", "300 dollars", "50 pounds", "a thousand", "12.50"),
    "card": ("credit card", "debit card", "bank card", "card"),
    "city": ("Lisbon", "Oslo", "Nairobi", "Lima", "Osaka", "Toronto", "Dublin", "Perth"),
    "currency": ("yen", "francs", "rupees", "pesos", "crowns"),
    "day": ("Monday", "Friday", "Sunday", "the third of May", "New Year's Eve"),
    "dish": ("lasagne", "ramen", "goulash", "lentil soup", "pancakes", "paella"),
    "hour": ("seven", "half past eight", "noon", "6:45"),
    "person": ("Anna", "my landlord", "Ibrahim", "the children", "Yuki", "grandmother"),
}
OPENINGS = ("", "", "hello, ", "please ", "quick question: ", "sorry, ", "one more thing, ")
ENDINGS = ("", "", " please", " if you can", " thanks", " when you have a minute", " as always")


def draw(n: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """n sentences and the topic of each, one of 12, drawn evenly."""
    rng = np.random.default_rng(seed)
    topics = [list(PATTERNS)[i % len(PATTERNS)] for i in rng.permutation(n)]
    return [_sentence(PATTERNS[topic], rng) for topic in topics], topics


def _sentence(patterns: Sequence[str], rng: np.random.Generator) -> str:
    text = _one(patterns, rng)
    for name, words in WORDS.items():
        while "{" + name + "}" in text:
            text = text.replace("{" + name + "}", _one(words, rng), 1)
    return _one(OPENINGS, rng) + text + _one(ENDINGS, rng)


def _one(words: Sequence[str], rng: np.random.Generator) -> str:
    return words[int(rng.integers(len(words)))]


def features(texts: Sequence[str]) -> Floats:
    """Texts -> (n, 512) float32 of norm 1: words and pieces of 4 characters, counted by their CRC-32.

    Source: feature hashing with signs, Weinberger, Dasgupta, Langford, Smola, Attenberg, ICML 2009.
    """
    out = np.zeros((len(texts), D), np.float32)
    for row, text in zip(out, texts):
        for word in text.lower().split():
            padded = f"<{word}>"
            pieces = [padded[i : i + NGRAM] for i in range(max(1, len(padded) - NGRAM + 1))]
            for piece in {padded, *pieces}:
                place = zlib.crc32(piece.encode())
                row[place % D] += 1 if place >> 31 else -1
        row /= max(float(np.linalg.norm(row)), 1e-12)
    return out
