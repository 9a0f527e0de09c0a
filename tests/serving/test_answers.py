"""What a service answers: the hits of Gallery.search, in every form, one by one and together."""

import asyncio
import json
import threading
from itertools import chain, pairwise

import life
import numpy as np
import pytest

import scqfaiss
from scqfaiss.errors import ScqError
from scqfaiss.galleries.alike import alike
from scqfaiss.serving import batching, fast_json
from scqfaiss.serving.queries import of_json
from scqfaiss.serving.settings import settings_of
from serving.conftest import GALLERIES, KEY, client_of

NAMES = (*GALLERIES, "sure")
XQ = life.XQ


def settings(shop, names=NAMES, **more):
    return settings_of(
        tuple(f"{name}={shop}/{name}.faissindex" for name in names),
        model=tuple(f"{name}={shop}/{name}.safetensors" for name in names),
        items=(f"sure={shop}/sure.csv",) if "sure" in names else (),
        port=0,
        reload=0,
        threads=1,
        **more,
    )


@pytest.fixture(scope="module")
def client(shop):
    with client_of(settings(shop)) as found:
        yield found


@pytest.fixture(scope="module")
def opened(shop):
    return {name: scqfaiss.open(shop / f"{name}.faissindex", model=str(shop / f"{name}.safetensors")) for name in NAMES}


def ask(client, name, status=200, **body):
    found = client.post(f"/v1/galleries/{name}/search", json=body)
    assert found.status_code == status, found.text
    return found.json() if status == 200 else found.json()["error"]["message"]


def assert_hits(answer, D, I):
    assert answer["ids"] == [row[row >= 0].tolist() for row in I]
    for scores, row, ids in zip(answer["scores"], D, I):
        np.testing.assert_allclose(scores, row[ids >= 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_hits_are_those_of_gallery_search(client, opened, name):
    gallery = opened[name]
    assert_hits(ask(client, name, queries=XQ.tolist(), k=7), *gallery.search(XQ, 7))
    assert_hits(ask(client, name, queries=XQ[0].tolist()), *gallery.search(XQ[:1], 10))  # one row without its brackets
    some = life.IDS[::3]
    for filters in ({"allow": some}, {"deny": some}, {"allow": some[:2]}):
        given = {key: ids.tolist() for key, ids in filters.items()}
        assert_hits(ask(client, name, queries=XQ.tolist(), k=5, **given), *gallery.search(XQ, 5, **filters))
    few = life.IDS[[5, 9, 5]]
    want = gallery.search(alike(gallery, few), 6, decoded=True)
    answer = ask(client, name, ids=few.tolist(), k=6)
    assert_hits(answer, *want)
    assert answer["version"] == gallery.checksum[:12]
    # A threshold between two scores: floats may differ in their last digits.
    values = np.sort(gallery.search(XQ, 400)[0], axis=None)
    middle = len(values) // 2 + np.diff(values[len(values) // 2 :][:200]).argmax()
    threshold = float(values[middle : middle + 2].mean())
    lims, _, I = gallery.range_search(XQ, threshold)
    answer = ask(client, name, queries=XQ.tolist(), threshold=threshold)
    assert [sorted(row) for row in answer["ids"]] == [sorted(I[a:b].tolist()) for a, b in pairwise(lims)]


@pytest.mark.parametrize("name", NAMES)
def test_bytes_in_bytes_out(client, opened, name):
    D, I = opened[name].search(XQ, 4)
    found = client.post(
        f"/v1/galleries/{name}/search?k=4",
        content=XQ.astype("<f4").tobytes(),
        headers={"content-type": "application/octet-stream"},
    )
    assert found.status_code == 200 and found.headers["content-type"] == "application/octet-stream"
    n, hits = int(found.headers["x-queries"]), int(found.headers["x-hits"])
    body = found.content
    lims = np.frombuffer(body, "<i8", n + 1)
    ids, scores = np.frombuffer(body, "<i8", hits, 8 * (n + 1)), np.frombuffer(body, "<f4", hits, 8 * (n + 1 + hits))
    assert len(body) == 8 * (n + 1 + hits) + 4 * hits
    np.testing.assert_array_equal(lims, 4 * np.arange(len(XQ) + 1))
    np.testing.assert_array_equal(ids.reshape(-1, 4), I)
    np.testing.assert_allclose(scores.reshape(-1, 4), D, rtol=1e-5, atol=1e-5)


def test_promises_probabilities_and_items(client, opened):
    gallery = opened["sure"]
    for promise in ({"precision": 0.5}, {"recall": 0.5}):
        lims, _, I = gallery.range_search(XQ, gallery.threshold(**promise))
        answer = ask(client, "sure", queries=XQ.tolist(), **promise)
        assert [len(row) for row in answer["ids"]] == np.diff(lims).tolist()
        assert [*chain(*answer["ids"])] == I.tolist()
    D, I = gallery.search(XQ, 3)
    answer = ask(client, "sure", queries=XQ.tolist(), k=3, probability=True)
    np.testing.assert_allclose(answer["probability"], gallery.probability(D), atol=1e-4)
    assert [[hit["title"] for hit in row] for row in answer["items"]] == [[f"number {i}" for i in row] for row in I]
    assert "calibrat" in ask(client, "folded", 422, queries=XQ.tolist(), precision=0.5)
    assert "known is given" in ask(client, "folded", 422, queries=XQ.tolist(), known=0.5)


def test_json_that_the_fast_reader_and_writer_refuse():
    assert fast_json.read(b'[1e400, -Infinity, 99999999999999999999, "\\ud800"]') == [
        np.inf,
        -np.inf,
        10**20 - 1,
        "\ud800",
    ]
    half = np.float32([0.1, 2.5])
    assert fast_json.written({"a": half, "b": [1]}) == b'{"a":[0.1,2.5],"b":[1]}'
    written = fast_json.written({"a": half, "b": [10**20, "\ud800"]})
    found = json.loads(written)
    assert found["b"] == [10**20, "\ud800"] and np.float32(found["a"]).tolist() == half.tolist()


def test_items_are_read_anew_where_their_file_changes(shop, tmp_path):
    gallery, items = tmp_path / "g.faissindex", tmp_path / "items.csv"
    gallery.write_bytes((shop / "sure.faissindex").read_bytes())
    items.write_text("id,title\n5,old\n")
    settings = settings_of((str(gallery),), model=(f"{shop}/sure.safetensors",), items=(str(items),), port=0, reload=0)
    with client_of(settings) as client:
        g = client.service.galleries["g"]

        def title():
            assert client.get("/page/items/g?ids=5").json()["items"][0]["title"] == g.items.get([5])[0]["title"]
            return ask(client, "g", ids=[5], k=1, allow=[5])["items"][0][0]["title"]

        assert (title(), g.reload()) == ("old", False)
        for text, fault in (("id,title\n5,a\n5,b\n", "occur once"), (None, "items.csv"), ("", "items.csv")):
            items.unlink()
            if text is not None:
                items.write_text(text)
            failures = g.failures
            assert not g.reload() and fault in g.fault and str(tmp_path) not in g.fault
            assert (title(), g.failures, g.reload(), g.failures) == ("old", failures + 1, False, failures + 1)
            items.write_text("")
        items.write_text("id,title\n5,new\n")
        assert g.reload() and (title(), g.fault, g.reload()) == ("new", "", False)


def test_known(client, opened):
    gallery = opened["content"]
    for known in ("auto", 0, 0.25, np.linspace(0, 1, len(XQ)).tolist()):
        D, I = gallery.search(XQ, 5, known=np.array(known) if isinstance(known, list) else known)
        assert_hits(ask(client, "content", queries=XQ.tolist(), k=5, known=known), D, I)
    few = life.IDS[:3]
    D, I = gallery.search(alike(gallery, few, 0.0), 5, decoded=True)
    assert_hits(ask(client, "content", ids=few.tolist(), k=5, known=0), D, I)


def test_what_is_short_is_searched_in_the_loop_itself(client, opened):
    """Once it is known to be: the first of a size goes to a thread."""
    service, gallery = client.service, opened["folded"]
    g, threads = service.galleries["folded"], []
    asked = [of_json(json.dumps({"queries": [row.tolist()], "k": 3}).encode(), service.settings, 16) for row in XQ[:4]]

    def run(many):
        threads.append(threading.current_thread().name)
        return g.search(many)

    async def twice():
        service.batcher._seconds.clear()
        found = []
        for _ in range(2):
            jobs = [service.batcher.submit(("folded", "short"), one, 1, run) for one in asked]
            found.append([await job.future for job in jobs])
            assert [job.together for job in jobs] == [4] * 4 and [job.first for job in jobs] == [True] + [False] * 3
            service.batcher._seconds = dict.fromkeys(service.batcher._seconds, 0.0)
        return found

    for answers in asyncio.run_coroutine_threadsafe(twice(), client.server._loop).result(10):
        for i, answer in enumerate(answers):
            np.testing.assert_array_equal(answer.I, gallery.search(XQ[i : i + 1], 3)[1][0])
    assert threads[0].startswith("scqfaiss-search") and not threads[1].startswith("scqfaiss-search")


def test_requests_of_every_kind_at_once(client, opened, monkeypatch):
    """They are searched together where they may be; a bad one is told so alone."""
    service, gallery = client.service, opened["folded"]
    g = service.galleries["folded"]
    monkeypatch.setattr(batching, "AT_ONCE", -1.0)  # all of them by the threads
    bodies = [{"queries": XQ[i : i + 1].tolist(), "k": 3 + i % 2} for i in range(8)]
    bodies += [{"ids": [int(i)]} for i in life.IDS[:3]] + [{"ids": [1]}]
    bodies += [{"queries": XQ[:1].tolist(), "allow": [5, 8]}, {"queries": XQ[:1].tolist(), "precision": 0.9}]
    sizes, go, search = [], threading.Event(), g.search
    monkeypatch.setattr(g, "search", lambda many: (sizes.append(len(many)), search(many))[1])

    async def all_of_them():
        blocker = service.batcher.submit(("block", None), None, 1, lambda many: [go.wait(5) for _ in many])
        asked = [of_json(json.dumps(body).encode(), service.settings, 16) for body in bodies]
        tasks = [asyncio.create_task(service.search(g, one)) for one in asked]
        await asyncio.sleep(0)
        while service.batcher.waiting < len(tasks):
            await asyncio.sleep(0.01)
        go.set()
        await blocker.future
        return await asyncio.gather(*tasks, return_exceptions=True)

    answers = asyncio.run_coroutine_threadsafe(all_of_them(), client.server._loop).result(10)
    # k=3, k=4, all ids together, and again one by one, as one of them is not there; the filter, the promise.
    assert sizes == [4, 4, 4, 1, 1, 1, 1, 1, 1]
    for i, answer in enumerate(answers[:8]):
        np.testing.assert_array_equal(answer.I, gallery.search(XQ[i : i + 1], 3 + i % 2)[1][0])
    for i, answer in zip(life.IDS[:3], answers[8:11]):
        np.testing.assert_array_equal(answer.I, gallery.search(gallery.reconstruct([i]), 10, decoded=True)[1][0])
    assert answers[11].status == 404 and answers[11].message == "ids 1 are not in folded (1 of 1)"
    assert set(answers[12].I.tolist()) == {5, 8, -1}
    assert isinstance(answers[13], ScqError) and "calibrat" in str(answers[13])


def test_facts_health_and_metrics(client, opened, shop):
    found = {one["name"]: one for one in client.get("/v1/galleries").json()["galleries"]}
    assert set(found) == set(NAMES) and found["sure"]["vectors"] == 400 and found["sure"]["query_d"] == 16
    facts = client.get("/v1/galleries/sure").json()
    assert facts["version"] == opened["sure"].checksum[:12] and facts["items"] is True and "calibration" in facts
    assert client.get("/healthz").json() == {"status": "ok"} and client.get("/readyz").json() == {"status": "ready"}
    before = client.get("/metrics").text
    ask(client, "folded", queries=XQ[:1].tolist(), k=3, allow=[5])
    after = client.get("/metrics").text

    def value(text, name):
        return float(next((line for line in text.splitlines() if line.startswith(name)), "0").split()[-1])

    for name in ('scqfaiss_queries_total{gallery="folded"}', 'scqfaiss_short_answers_total{gallery="folded"}'):
        assert value(after, name) == value(before, name) + 1
    for part in ("wait", "encode", "search", "total"):
        assert f'scqfaiss_request_seconds_count{{gallery="folded",part="{part}"}}' in after
    for text in (after, json.dumps(facts), client.get("/openapi.json").text):
        assert str(shop) not in text


def test_writes_take_a_key(shop, tmp_path):
    target = tmp_path / "g.faissindex"
    target.write_bytes((shop / "sure.faissindex").read_bytes())
    model = (f"{shop}/sure.safetensors",)
    with client_of(settings_of((str(target),), model=model, port=0, reload=0)) as closed:
        assert closed.request("DELETE", "/v1/galleries/g/items", json={"ids": [5]}).status_code == 403
    may = settings_of((str(target),), model=model, port=0, reload=0, allow_writes=True, api_key_file=str(shop / "keys"))
    with client_of(may) as client:
        path, key = "/v1/galleries/g/items", {"Authorization": f"Bearer {KEY}"}
        for headers in ({}, {"Authorization": "Bearer " + "x" * 32}, {"X-API-Key": KEY + "k"}, {"Authorization": KEY}):
            found = client.post(path, json={"rows": XQ.tolist()}, headers=headers)
            assert found.status_code == 401 and found.headers["www-authenticate"] == "Bearer"
            assert client.get("/v1/galleries", headers=headers).status_code == 401
        assert client.get("/healthz").status_code == 200
        before = target.read_bytes()
        found = client.post(path, json={"rows": XQ.tolist(), "ids": list(range(3000, 3009))}, headers=key)
        assert found.json()["vectors"] == 409, found.text
        assert target.read_bytes() != before
        body = {"queries": XQ[:1].tolist(), "allow": [3000]}
        search = client.post("/v1/galleries/g/search", json=body, headers={"X-API-Key": KEY})
        assert search.json()["ids"] == [[3000]]
        found = client.request("DELETE", path, json={"ids": [3000, 3001]}, headers=key)
        assert found.json()["vectors"] == 407
        for body in (
            {"rows": [[1.0]]},
            {"rows": XQ.tolist(), "ids": [1]},
            {"rows": XQ[:1].tolist(), "ids": [3002]},
            {},
        ):
            assert client.post(path, json=body, headers=key).status_code == 422
        assert client.request("DELETE", path, json={"ids": [1]}, headers=key).json()["vectors"] == 407
        assert scqfaiss.open(target, model=model[0]).ntotal == 407


def test_what_takes_long_does_not_run_in_the_loop(client, monkeypatch):
    """What a kind of request takes is known of itself alone: a range is not taken for a search of ten."""
    g, where = client.service.galleries["sure"], []
    search = g.search
    monkeypatch.setattr(g, "search", lambda many: (where.append(threading.current_thread().name), search(many))[1])
    for body in ({"k": 3}, {"k": 3}, {"k": 3}, {"threshold": -9.0}, {"k": 3, "allow": [5]}, {"k": 400}):
        ask(client, "sure", queries=XQ[:1].tolist(), **body)
    searching = ["scqfaiss-search" in name for name in where]
    assert searching[2:] == [False, True, True, True]
