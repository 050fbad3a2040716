"""Workers: each piece of work is done once, tried again where one died, given up in the end."""

import os
import signal
import threading
import time
from collections import Counter, deque
from concurrent.futures import BrokenExecutor, Future
from contextlib import suppress
from threading import Timer

import pytest
from distributed.scheduler import KilledWorker

from pyro_vaeflow.workers import DEATHS, Processes, as_ended, died


def test_work_is_tried_again_where_a_process_died_until_it_is_given_up() -> None:
    deaths = {"none": 0, "some": DEATHS - 1, "all": DEATHS, "more": DEATHS + 1}
    tried: Counter[str] = Counter()

    def submit(work: str) -> Future:
        tried[work] += 1
        future: Future = Future()
        if tried[work] <= deaths[work]:
            future.set_exception(BrokenExecutor())
        else:
            future.set_result(work.upper())
        return future

    ended = list(as_ended(deque(deaths), submit))
    assert sorted(work for work, _ in ended) == sorted(deaths)
    found = dict(ended)
    assert (found["none"].result(), found["some"].result()) == ("NONE", "SOME")
    assert all(died(found[work].exception()) for work in ("all", "more"))
    assert tried == {"none": 1, "some": DEATHS, "all": DEATHS, "more": DEATHS}


def test_what_ends_first_comes_first_and_may_be_put_back() -> None:
    futures: list[Future] = []

    def submit(work: str) -> Future:
        futures.append(Future())
        if work == "c":
            futures[1].set_result(None)
        return futures[-1]

    todo = deque("abc")
    ended = as_ended(todo, submit)
    assert next(ended) == ("b", futures[1])
    todo.append("b")
    futures[0].set_result(None)
    assert next(ended) == ("a", futures[0])
    futures[2].set_result(None)
    assert next(ended) == ("c", futures[2])
    with pytest.raises(ConnectionError, match="Dask scheduler has ended"):
        Timer(0.05, lambda: futures[3].cancel()).start()
        next(ended)
    assert len(futures) == 4 and not todo


def test_an_error_of_the_work_is_no_death() -> None:
    assert died(BrokenExecutor()) and died(KilledWorker("task", None, 3))
    assert not died(ValueError("of the work"))


def test_a_worker_ends_with_its_parent_however_that_ends() -> None:
    read, write = os.pipe()
    if not (parent := os.fork()):
        pool = Processes(1)
        os.write(write, str(pool.submit(os.getpid).result()).encode())
        pool.submit(time.sleep, 600)
        time.sleep(600)
    worker = int(os.read(read, 20))
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    ends = time.monotonic() + 60  # it looks each second; others may be at work on the machine
    with suppress(ProcessLookupError):
        while time.monotonic() < ends:
            os.kill(worker, 0)
            time.sleep(0.1)
        os.kill(worker, signal.SIGKILL)
        pytest.fail("the worker is alive")


def test_a_call_stopped_before_it_began_leaves_no_error_and_a_worker_warns_in_lines(
    monkeypatch,
) -> None:
    errors, before = [], set(threading.enumerate())
    monkeypatch.setattr(threading, "excepthook", errors.append)
    for _ in range(3):
        pool = Processes(1)
        shows = pool.submit(eval, "__import__('warnings').showwarning.__module__")
        assert shows.result() == "pyro_vaeflow.escaping"
        pool.submit(time.sleep, 600)
        pool.shutdown(wait=False)
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
    assert not errors
