"""Every fault that is looked for, in the order in which it is said."""

from __future__ import annotations

from .classes import no_labels, small_classes, unequal_classes
from .columns import constant_columns, unscaled_columns
from .copies import contradictions, repeated, shared
from .findings import Fault
from .labels import suspicious_labels
from .norms import not_finite, odd_norms, other_files, zero_rows

FAULTS: dict[str, Fault] = {
    "not finite": not_finite,
    "zero rows": zero_rows,
    "norms": odd_norms,
    "constant columns": constant_columns,
    "unscaled columns": unscaled_columns,
    "labels lack": no_labels,
    "small classes": small_classes,
    "unequal classes": unequal_classes,
    "copies": repeated,
    "contradictions": contradictions,
    "shared rows": shared,
    "other files": other_files,
    "suspicious labels": suspicious_labels,
}
TRAINING = ("suspicious labels",)  # faults for which classifiers are trained: a quick check passes them over
