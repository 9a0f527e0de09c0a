"""Threads that wait for one another leave the cores to other processes, where these want them."""

import itertools
import os
import threading

import pytest
import torch
from faults.conftest import blobs

import scqfaiss
from scqfaiss.training import threads


def teams():
    return [t for t in threading.enumerate() if t.name == "scqfaiss-team"]


@pytest.fixture
def counted(monkeypatch):
    """counted(waits): each look finds our threads to have waited that much longer; -> an event after the last of them."""

    def set_up(waits, cores=2, of_torch=2):
        monkeypatch.setattr(threads, "PERIOD", 0.001)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(cores))
        monkeypatch.setattr(torch, "get_num_threads", lambda: of_torch)
        found, seen, over = itertools.accumulate([1, *waits]), [], threading.Event()

        def look():
            seen.append(len(teams()))
            value = next(found, None)
            if value is None:
                over.set()
                value = look.last
            look.last = value
            return value

        monkeypatch.setattr(threads, "waited", look)
        return seen, over

    return set_up


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    for name in threads.SAID:
        monkeypatch.delenv(name, raising=False)


LONG = 10**18  # nanoseconds: of any time between two looks all of it


def test_teams_are_kept_while_cores_are_wanted(counted):
    seen, over = counted([0, 0, LONG, 0, LONG, 0, 0])
    with threads.considerate():
        assert over.wait(50)
    assert seen[:8] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert teams() == []


def test_they_go_when_the_cores_are_our_own_again(counted):
    seen, over = counted([LONG, *[0] * (threads.PATIENCE + 3)])
    with threads.considerate():
        assert over.wait(50)
    assert seen[:3] == [0, 0, 1] and seen[threads.PATIENCE + 1 : threads.PATIENCE + 4] == [1, 0, 0]


@pytest.mark.parametrize("of_torch, cores, want", [(1, 2, 0), (2, 2, 1), (8, 8, 1), (4, 8, 2), (2, 64, 0), (3, 2, 1)])
def test_as_many_teams_as_make_more_threads_than_cores(of_torch, cores, want, counted):
    assert threads.teams_needed(of_torch, cores) == want
    if want:
        assert 1 + (of_torch - 1) * (1 + want) > cores
    seen, over = counted([LONG, 0], cores, of_torch)
    with threads.considerate():
        assert over.wait(50)
    assert max(seen) == want


@pytest.mark.parametrize("name", ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"])
def test_what_the_user_said_stands(name, monkeypatch):
    monkeypatch.setenv(name, "passive")
    monkeypatch.setattr(threading.Thread, "start", None)
    with threads.considerate():
        pass


def test_where_nobody_counts_nothing_happens(monkeypatch):
    monkeypatch.setattr(os, "listdir", lambda _: (_ for _ in ()).throw(FileNotFoundError()))
    assert threads.waited() is None
    with threads.considerate():
        assert teams() == []


def test_the_kernel_counts():
    first = threads.waited()
    if first is None:
        pytest.skip("a kernel without schedstat")
    assert first > 0


def test_a_thread_that_cannot_be_started_stops_no_training(monkeypatch):
    def refuse(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with threads.considerate():
        pass
    assert threads._teams(2) == []


@pytest.mark.parametrize("method", ["scq", "dpq"])
def test_a_training_comes_to_the_same_bytes(method, monkeypatch):
    x, y = blobs(300)
    asked = {"method": method, "bits": 8, "nbits": 4, "encoder": "linear", "epochs": 3}
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        plain = scqfaiss.train(x, y, **asked).sha256
        held, numbers = [], itertools.count(1, LONG)
        monkeypatch.setattr(threads, "PERIOD", 0.001)
        monkeypatch.setattr(threads, "waited", lambda: held.append(len(teams())) or next(numbers))
        assert scqfaiss.train(x, y, **asked).sha256 == plain
        assert max(held) >= 1 or len(os.sched_getaffinity(0)) > threads.MOST
    finally:
        torch.set_num_threads(before)
    assert teams() == []
