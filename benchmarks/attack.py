"""The figures of results of `scqfaiss attack`, as JSON.

    python benchmarks/attack.py OUT [OUT2 ...]

`clean`, `clean_floats`, `clean_label`: mAP of unchanged queries, searched with the attacked model; `aod_2`: after aod of eps 0.02
(hundredths, of rows) or 2 (of images); `worst_2`: after the strongest of the attacks with gradients; `aod_2_floats`,
`aod_2_label`, `aod_2_changed` (share of changed codes), `aod_2_known` (AUC of the model's gate); `worst_2_on_NAME`: searched with
another model. Several results are told apart by the names of their folders before these.
"""

import json
import sys
from pathlib import Path
from typing import Any

from scqfaiss.comparison.results import read_results

PARTS = {"": "map", "_floats": "map_floats", "_label": "map_label", "_changed": "changed_codes", "_known": "known_auc"}


def figures(document: dict[str, Any]) -> dict[str, float]:
    rows, out = document["rows"], {}
    own = rows[0]["searched"]
    scale = 1 if document["space"] == "pixels" else 100
    for row in rows:
        strength = f"_{scale * row['eps']:g}" if row["attack"] != "clean" else ""
        if row["searched"] == own and row.get("crafted", own) == own:
            name = f"{row['attack']}{strength}"
            out |= {name + end: row[field] for end, field in PARTS.items() if row.get(field) is not None}
        if row["attack"] in ("clean", "random"):
            continue
        worst = f"worst{strength}" + ("" if row["searched"] == own else f"_on_{row['searched']}")
        if row["crafted"] == own:
            out[worst] = min(row["map"], out.get(worst, 1.0))
    return out


if __name__ == "__main__":
    found: dict[str, float] = {}
    for path in map(Path, sys.argv[1:]):
        before = f"{path.name}_" if len(sys.argv) > 2 else ""
        found |= {before + name: value for name, value in figures(read_results(path)).items()}
    print(json.dumps({name: round(value, 4) for name, value in found.items()}))
