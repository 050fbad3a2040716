"""Many runs at once: what a killed worker costs, who makes a run, how many threads a worker has."""

import os
import signal
import threading
import time
from concurrent.futures import BrokenExecutor
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import joblib
import pandas as pd
import pytest
from distributed import Client

from pyro_vaeflow import workers
from pyro_vaeflow.experiments import experiment, fanout
from pyro_vaeflow.experiments.config import ExperimentConfig
from pyro_vaeflow.experiments.fanout import Call, attempt, run_all
from pyro_vaeflow.experiments.results import COLUMNS, finished_runs, read_summary
from pyro_vaeflow.experiments.run_folder import lock_of
from pyro_vaeflow.locks import hold_lock
from pyro_vaeflow.validation import ConfigError
from pyro_vaeflow.workers import THREADS, Processes
from tests.processes import CONTEXT, ForkedPool, dask_cluster, die, run_command, start

TINY = ExperimentConfig(
    dataset="breast_cancer", num_steps=4, num_samples=3, encoder_dims=(8,), decoder_dims=(8,)
)


def attempt_that_dies(config: ExperimentConfig, call: Call):
    """The run of seed 0 is killed before it scores, the first time.

    Each attempt leaves a line in ``out/attempts``.
    """
    log = call.out / "attempts"
    with log.open("a") as file:
        file.write(f"seed{config.seed}\n")
    if config.seed == 0 and log.read_text().count("seed0") == 1:
        experiment.score_rows = die
    return attempt(config, call)


def seeds(count: int, **changes) -> list[ExperimentConfig]:
    return [replace(TINY, seed=seed, **changes) for seed in range(count)]


def names_in(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "runs").iterdir())


# Locks


def hold(path: Path, answer: Connection) -> None:
    with hold_lock(path) as mine:
        answer.send(mine)
        time.sleep(60)


def test_a_lock_is_one_holders_until_it_is_killed(tmp_path) -> None:
    path = tmp_path / "work.lock"
    answer, theirs = CONTEXT.Pipe(duplex=False)
    holder = start(hold, path, theirs)
    assert answer.recv() is True
    with hold_lock(path, patience=0.1) as mine:
        assert not mine
    holder.kill()
    holder.join()
    assert path.exists()  # a dead holder's file, which means nothing
    with hold_lock(path, patience=10.0) as mine:
        assert mine
    assert not path.exists()


def test_of_many_at_once_one_has_the_lock_at_a_time(tmp_path) -> None:
    """Each waits for the others, over a file that every holder removes."""
    holders: list[int] = []
    seen = []

    def work(number: int) -> None:
        for _ in range(5):
            with hold_lock(tmp_path / "work.lock", patience=-1) as mine:
                holders.append(number)
                time.sleep(0.001)
                seen.append(mine and holders == [number])
                holders.remove(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [True] * 20


def test_a_run_that_another_process_is_at_is_left_to_it(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(fanout, "PATIENCE", 0.05)
    held, other = seeds(2)
    folder = tmp_path / "runs" / held.run_name
    folder.parent.mkdir()
    partial = folder.with_name(f".{held.run_name}.ab12.partial")
    done: list[str] = []

    def release() -> None:
        """Waits until the other run is made, and then makes this one."""
        with hold_lock(lock_of(folder)):
            partial.mkdir()
            started.set()
            while not (tmp_path / "runs" / other.run_name).exists():
                time.sleep(0.01)
            done.extend(names_in(tmp_path))
            run_all([held], tmp_path / "elsewhere", progress=False)
            partial.rmdir()
            (tmp_path / "elsewhere" / "runs" / held.run_name).rename(folder)

    started = threading.Event()
    thread = threading.Thread(target=release)
    thread.start()
    started.wait()
    # One run at a time in a process, but this thread must not keep the other from its own.
    monkeypatch.setattr(fanout, "ONE_THREAD", threading.RLock())
    outcome = run_all([held, other], tmp_path, progress=False)
    thread.join()
    assert partial.name in done  # no sweep has taken a living one's
    assert outcome.finished == [other.run_name] and outcome.skipped == [held.run_name]


# Processes of this machine


def test_a_killed_worker_takes_no_other_call_with_it(monkeypatch) -> None:
    for name in THREADS:
        monkeypatch.delenv(name, raising=False)
    pool = Processes(2)
    try:
        slow = pool.submit(time.sleep, 2.0)
        dead = pool.submit(os.kill, pool.submit(os.getpid).result(timeout=60), signal.SIGKILL)
        with pytest.raises(BrokenExecutor):
            dead.result(timeout=60)
        threads = pool.submit(os.getenv, "OMP_NUM_THREADS")
        assert threads.result(timeout=60) == str(max(1, joblib.cpu_count() // 2))
        assert slow.result(timeout=60) is None
    finally:
        pool.shutdown()


def test_the_run_of_a_killed_worker_is_made_again_and_no_other(tmp_path, monkeypatch) -> None:
    """And worker processes find the numbers of this one."""
    here, out = tmp_path / "here", tmp_path / "out"
    run_all(seeds(3), here, progress=False)
    monkeypatch.setattr(fanout, "attempt", attempt_that_dies)
    monkeypatch.setattr(workers, "ProcessPoolExecutor", ForkedPool)
    outcome = run_all(seeds(3), out, jobs=2, progress=False)
    names = [config.run_name for config in seeds(3)]
    assert sorted(outcome.finished) == names and not outcome.failed
    log = (out / "attempts").read_text().split()
    assert sorted(log) == ["seed0", "seed0", "seed1", "seed2"]
    assert [name for name in names_in(out) if not name.endswith(".lock")] == names
    columns = [name for name in COLUMNS if not name.endswith("_seconds")]
    one, two = (read_summary(folder)[columns] for folder in (here, out))
    pd.testing.assert_frame_equal(one, two, rtol=1e-4)


def test_a_run_under_which_processes_die_again_and_again_is_called_failed(
    tmp_path, monkeypatch
) -> None:
    calls = []

    def attempt_of_one_that_kills(config: ExperimentConfig, *rest) -> tuple[str, str]:
        calls.append(config.seed)
        if config.seed == 0:
            raise BrokenExecutor
        return "finished", ""

    monkeypatch.setattr(fanout, "attempt", attempt_of_one_that_kills)
    outcome = run_all(seeds(2), tmp_path, progress=False)
    first, second = (config.run_name for config in seeds(2))
    assert outcome.finished == [second] and calls == [0, 1, 0, 0]
    assert "worker processes died at it 3 times or more" in outcome.failed[first]
    assert "died at it 3 times" in (tmp_path / "failed" / first / "error.txt").read_text()


def test_two_studies_in_one_folder_share_the_runs(tmp_path) -> None:
    study, out = tmp_path / "mine.yaml", tmp_path / "out"
    study.write_text(TINY.to_yaml().replace("seed: 0", "seeds: [0, 1, 2, 3, 4, 5]"))
    call = ["run", str(study), "--out", str(out), "--num_steps", "50"]
    said = [tmp_path / "one", tmp_path / "two"]
    both = [start(run_command, call, path) for path in said]
    for process in both:
        process.join(300)
    assert [process.exitcode for process in both] == [0, 0]
    lines = [line for path in said for line in path.read_text().splitlines()]
    counts = [line.split() for line in lines if " run, " in line]
    made, found = (sum(int(words[place]) for words in counts) for place in (0, 2))
    assert (made, made + found) == (6, 12)
    assert len(names_in(out)) == len(finished_runs(out)) == 6
    assert set(pd.read_csv(out / "summary.csv")["seed"]) == set(range(6))
    assert sorted(p.name for p in out.iterdir()) == ["runs", "summary.csv", "table.md"]


# A Dask cluster


def test_a_dask_cluster_survives_the_death_of_a_worker(tmp_path) -> None:
    kept = {}

    def kill_a_worker(client) -> None:
        """Once a run is finished, that of a worker which is at another."""
        while not (finished := list(tmp_path.glob("runs/[!.]*/metrics.json"))):
            time.sleep(0.05)
        kept.update({path: path.stat().st_mtime_ns for path in finished})
        pids, busy = client.run(os.getpid), client.processing()
        os.kill(next(pids[name] for name, calls in busy.items() if calls), signal.SIGKILL)

    with dask_cluster() as address:
        with Client(address) as client:
            killer = threading.Thread(target=kill_a_worker, args=(client,))
            killer.start()
            configs = seeds(3, num_steps=100)
            outcome = run_all(configs, tmp_path, progress=False, dask=address)
            killer.join()
            assert not outcome.failed and kept
            assert {path: path.stat().st_mtime_ns for path in kept} == kept
            assert [run.config for run in finished_runs(tmp_path)] == configs
            with joblib.parallel_config(backend="dask"):
                again = run_all(seeds(4, num_steps=100), tmp_path, progress=False)
    assert len(again.finished) == 1 and len(again.skipped) == 3
    left = [name for name in names_in(tmp_path) if not name.endswith(".lock")]
    assert left == sorted(config.run_name for config in seeds(4, num_steps=100))


def test_dask_workers_with_many_threads_or_none_at_all_are_named() -> None:
    class Client:
        def __init__(self, threads: dict[str, int]) -> None:
            self.nthreads = lambda: threads

        def get_executor(self, pure):
            return None

    with pytest.warns(UserWarning, match=r"\['tcp://a:1'\] have more than one thread"):
        workers._on_dask(Client({"tcp://a:1": 4, "tcp://b:1": 1}))
    with pytest.warns(UserWarning, match="has no workers yet"):
        workers._on_dask(Client({}))


def test_no_scheduler_is_an_error_that_names_the_address(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(workers, "CONNECT", "0.1s")
    with pytest.raises(ConfigError, match=r"answers at 'tcp://127\.0\.0\.1:9'"):
        run_all([TINY], tmp_path, progress=False, dask="tcp://127.0.0.1:9")


def test_a_folder_that_workers_do_not_see_is_named(tmp_path) -> None:
    with pytest.raises(ConfigError, match="is not the folder of the study: give an --out"):
        attempt(TINY, Call(tmp_path, tmp_path / "runs" / ".gone.lock"))
