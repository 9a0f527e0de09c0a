"""What a key holder can do to a service with queries alone, bounded in their number. Prints JSON.

    python benchmarks/black_box.py GALLERY MODEL QUERY.h5 DATABASE.h5 [QUERIES] [ASKED] [EPS]

Each of QUERIES (50) drawn queries is changed within EPS (0.02) of its norm, by what `scqfaiss serve` answers on 127.0.0.1 and by
nothing else: in ROUNDS rounds, the scores of pairs of opposite small changes tell in which direction the first clean hits fall
(natural evolution strategies, as Ilyas, Engstrom, Athalye, Lin, "Black-box adversarial attacks with limited queries and
information", ICML 2018, but with orthogonal directions). No query is asked in more than ASKED (500) forms. `clean`, `random`,
`after_100`, ...: precision of the first 10 hits by the labels; random: signs of the same size, one form. `asked`: forms in all;
`seconds`; `asked_a_second`. The server listens on 127.0.0.1 and ends with the script.
"""

import http.client
import json
import sys
import time
from typing import Any

import numpy as np
from serve_load import serving

from scqfaiss.data import open_rows
from scqfaiss.data.classes import align

K, WATCHED = 100, 10  # hits asked for, and the clean ones that shall fall
ROUNDS = 5
PROBE = 0.5  # of the radius: how far the forms of a round lie from where it starts


class Service:
    """The one door: rows in, scores and ids out; every row is counted."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        self.asked = 0

    def ask(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        body = json.dumps({"queries": rows.astype(np.float32).tolist(), "k": K})
        self.connection.request("POST", "/v1/galleries/g/search", body, {"Content-Type": "application/json"})
        answer = self.connection.getresponse()
        found = json.loads(answer.read())
        if answer.status != 200:
            raise SystemExit(f"the service answers {answer.status}: {found}")
        self.asked += len(rows)
        return np.array(found["scores"]), np.array(found["ids"])


def standing(scores: np.ndarray, ids: np.ndarray, watched: np.ndarray) -> np.ndarray:
    """(n, K) scores and ids -> how well the clean hits stand in each answer, (n,): their mean score less the best of the others.

    Those that are not found count as the last hit.
    """
    mine = np.isin(ids, watched)
    own = np.where(mine, scores, 0).sum(1) + (len(watched) - mine.sum(1)) * scores[:, -1]
    return own / len(watched) - np.where(mine, scores[:, -1:], scores).max(1)


def attack(service: Service, x: np.ndarray, most: int, eps: float, rng: np.random.Generator) -> dict[int, np.ndarray]:
    """x (d,) -> {forms asked so far: ids of the first hits}."""
    radius, d, start = eps * np.linalg.norm(x), len(x), service.asked
    scores, ids = service.ask(x[None])
    watched = ids[0, :WATCHED]
    best, kept, delta, looks = float(standing(scores, ids, watched)[0]), watched, np.zeros(d), {}
    pairs = min(d, (most // ROUNDS - 1) // 2)
    for _ in range(ROUNDS):
        directions = np.linalg.qr(rng.standard_normal((d, pairs)))[0].T  # rows of length 1, at right angles
        forms = x + delta + PROBE * radius * np.concatenate([directions, -directions])
        value = standing(*service.ask(forms), watched)
        slope = (value[:pairs] - value[pairs:]) @ directions
        if slope.any():
            delta = delta - radius / 2 * slope / np.linalg.norm(slope)
            delta *= min(1, radius / np.linalg.norm(delta))
        scores, ids = service.ask((x + delta)[None])
        here = float(standing(scores, ids, watched)[0])
        if here < best:
            best, kept = here, ids[0, :WATCHED]
        looks[service.asked - start] = kept
    return looks


def main(
    gallery: str, model: str, query: str, database: str, n: str = "50", most: str = "500", eps: str = "0.02"
) -> None:
    with open_rows(query) as q, open_rows(database) as b:
        align(q, b)
        assert q.labels and b.labels
        x, y, of_id = q.read(0, len(q)), q.labels.y, dict(zip(b.ids.tolist(), b.labels.y.tolist()))
    rng = np.random.default_rng(0)
    rows = rng.permutation(len(x))[: int(n)]
    server = serving(gallery, model)
    service, found, start = Service(server.port), {}, time.perf_counter()

    def note(name: str, row: int, ids: Any) -> None:
        found.setdefault(name, []).append(np.mean([of_id[i] == y[row] for i in ids[:WATCHED].tolist()]))

    try:
        for row in rows:
            signs = rng.choice([-1, 1], x.shape[1])
            note("clean", row, service.ask(x[row][None])[1][0])
            away = float(eps) * np.linalg.norm(x[row]) / np.sqrt(x.shape[1])
            note("random", row, service.ask((x[row] + away * signs)[None])[1][0])
            for after, ids in attack(service, x[row], int(most), float(eps), rng).items():
                note(f"after_{after}", row, ids)
    finally:
        server.end()
    seconds = time.perf_counter() - start
    out = {name: float(np.mean(values)) for name, values in found.items()}
    print(json.dumps(out | {"asked": service.asked, "seconds": seconds, "asked_a_second": service.asked / seconds}))


if __name__ == "__main__":
    main(*sys.argv[1:])
