"""mAP of one model's codes in several containers, which must be the same. Prints JSON.

    python benchmarks/targets_map.py MODEL.safetensors QUERY.h5 DATABASE.h5 TARGET...

Each target exports the database to a file of its own and the package's own `evaluate` ranks it: `map` of the first target
named, `TARGET_map` of each, `same_map` 1 where all agree to the rounding of their sums.
"""

import json
import sys
import tempfile
from pathlib import Path

from scqfaiss.evaluation.files import evaluate_file
from scqfaiss.galleries.exporting import export_file

ROUNDING = 1e-6


def main(model: str, query: str, database: str, *targets: str) -> None:
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for target in targets:
            path = Path(folder) / f"{target}.faissindex"
            export_file(model, database, path, target=target, keys={})
            found[target] = evaluate_file(path, query, database, model=model, keys={})
            path.unlink()
    maps = [measures["map"] for measures in found.values()]
    out = {"map": maps[0]} | {f"{target}_map": measures["map"] for target, measures in found.items()}
    out["same_map"] = int(max(maps) - min(maps) <= ROUNDING)
    out["max_difference"] = max(maps) - min(maps)
    out["distinct_codes"] = found[targets[0]]["distinct_codes"]
    print(json.dumps(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
