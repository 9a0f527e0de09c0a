"""What a training says of its codes before any query is asked, held against the queries: thresholds that promise precision or
recall, probabilities of hits, and the mAP that it forecast.
"""

from __future__ import annotations

import time
from typing import Any

from ..calibration.forecast import Forecast
from ..errors import ScqError
from ..evaluation.promises import check
from ..evaluation.ranking import Relevance
from .models import Models
from .rows import Comparison, coding_of
from .unknown import map_of

CONFIDENCES = {"guess": 0.5, "sure": 0.9}  # that promises are made with: as likely kept as not, and nine times in ten


def measure_promises(c: Comparison, models: Models) -> None:
    """Of the first method with labels, in the length and lists of the charts; what is there already stays."""
    method = next((m for m in c.options.methods if m != "label"), None)
    if method is None:
        return
    bits, lists = c.charted
    key = f"{method}/{bits} in {lists} lists"
    held = c.results.document.get("promises") or {}
    if held.get("key") == key:
        return
    try:
        model, _ = models.get(method, bits, lists)
    except ScqError as error:
        c.results.save(promises={"key": key, "reason": str(error)})
        return
    calibration = model.calibration
    if calibration is None or model.calibrations is None:
        reason = "the training had too few labelled rows to hold some out"
        c.results.save(promises={"key": key, "reason": reason})
        return
    vectors = model.vectors(c.task.xb)
    coding = coding_of(model.codebooks, model.assign(vectors), model.embed(c.task.xq), vectors)
    relevance = Relevance(c.task.database, coding.words.inverse, len(coding.decoded))
    share = model.calibrations.share(coding.decoded, relevance.rows, bits)
    seen = {
        name: check(coding.scores(), c.task.queries, relevance, calibration, share, confidence)
        for name, confidence in CONFIDENCES.items()
    }
    told = model.config["training"].get("forecast")
    forecast = None if told is None else Forecast.unpack(told)
    found: dict[str, Any] = {
        "key": key,
        "reason": None,
        "method": method,
        "bits": bits,
        "lists": lists,
        "held_out": calibration.rows,
        "share": share,
        **{name: {kind: part[kind] for kind in ("recall", "precision")} for name, part in seen.items()},
        "ece": seen["guess"]["ece"],
        "reliability": seen["guess"]["reliability"],
        "map": map_of(coding, c.task.queries, c.task.database),
        "forecast": None if forecast is None else forecast.pack()["lengths"].get(str(bits)),
        "run": c.run,
    }
    c.results.save(promises=found)
    c.say(f"{time.strftime('%H:%M:%S')}  {key:<24} promises, expected calibration error {found['ece']:.4f}")
