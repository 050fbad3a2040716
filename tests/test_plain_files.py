"""Files written whole by several processes, and folders that somebody else has made."""

import gzip
import json
import os
import signal
import threading
import tracemalloc
from collections import deque
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from filelock import FileLock, Timeout
from safetensors.torch import save_file

from pyro_vaeflow import CheckpointError, VAEFlowDetector
from pyro_vaeflow.cli import main
from pyro_vaeflow.escaping import csv_text, markdown, visible
from pyro_vaeflow.experiments.config import ExperimentConfig, read_mapping
from pyro_vaeflow.experiments.fanout import run_all
from pyro_vaeflow.experiments.results import IDENTITY, finished_runs, read_arrays
from pyro_vaeflow.experiments.run_folder import load_programs
from pyro_vaeflow.experiments.tables import as_text
from pyro_vaeflow.files import scores_folder
from pyro_vaeflow.files.readers import Csv
from pyro_vaeflow.files.score import score_files
from pyro_vaeflow.inference import saved_folder
from pyro_vaeflow.locks import hold_lock
from pyro_vaeflow.plain_files import read_json, write_whole
from pyro_vaeflow.plots.charts import plot_contributions
from pyro_vaeflow.validation import ConfigError
from results.report import write_report

NASTY = "\x1b]0;owned\x07 | <b>\n# $\\foo$ & {"


def save(folder: Path, number: int) -> None:
    saved_folder.write(folder, {"n": number}, {"a": torch.full((3,), float(number))})


def in_fork(work) -> int:
    """The exit status of work in a fork of this process; 1 if it raised."""
    if not (child := os.fork()):
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1]


def test_a_folder_holds_one_of_two_saves_made_at_once(tmp_path: Path, monkeypatch) -> None:
    save(tmp_path, 0)
    write, inside = saved_folder.write_whole, threading.Event()

    def slowly(path: Path, data: bytes) -> None:
        write(path, data)
        inside.set()
        threading.Event().wait(0.1)

    monkeypatch.setattr(saved_folder, "write_whole", slowly)
    savers = [threading.Thread(target=save, args=(tmp_path, n)) for n in (1, 2, 3)]
    for saver in savers:
        saver.start()
    seen = set()
    while any(saver.is_alive() for saver in savers):  # what is read meanwhile is whole, too
        content, tensors = saved_folder.read(tmp_path)
        assert (tensors["a"] == content["n"]).all()
        seen.add(content["n"])
    assert len(seen) > 1 and len(list(tmp_path.iterdir())) == 2


def test_what_a_killed_save_has_left_is_swept_by_the_next(tmp_path: Path, monkeypatch) -> None:
    save(tmp_path, 0)
    monkeypatch.setattr(os, "fsync", lambda _: os.kill(os.getpid(), signal.SIGKILL))
    assert in_fork(lambda: save(tmp_path, 1)) == signal.SIGKILL
    assert in_fork(lambda: write_whole(tmp_path / "page.html", b"1")) == signal.SIGKILL
    monkeypatch.undo()
    assert len(list(tmp_path.glob(".*.partial"))) == 2
    save(tmp_path, 1)
    write_whole(tmp_path / "page.html", (part for part in (b"2", b"3")))
    assert not list(tmp_path.glob(".*")) and (tmp_path / "page.html").read_bytes() == b"23"


def test_of_two_writers_that_meet_neither_fails(tmp_path: Path, monkeypatch) -> None:
    path, replace = tmp_path / "part", os.replace

    def meet(*names) -> None:
        monkeypatch.setattr(os, "replace", replace)
        write_whole(path, b"other")  # which sweeps what the first is about to rename
        replace(*names)

    monkeypatch.setattr(os, "replace", meet)
    write_whole(path, b"first")
    assert path.read_bytes() == b"other" and list(tmp_path.iterdir()) == [path]


def test_a_forked_child_keeps_no_lock(tmp_path: Path) -> None:
    read, write = os.pipe()
    with hold_lock(tmp_path / "lock"):
        if not (child := os.fork()):
            os.read(read, 1)
            os._exit(0)
    try:
        with FileLock(tmp_path / "lock", timeout=5):
            pass
    except Timeout:
        pytest.fail("the child holds it")
    finally:
        os.write(write, b"1")
        os.waitpid(child, 0)


def test_links_lead_no_writer_and_no_reader_out_of_a_folder(tmp_path: Path) -> None:
    secret, study = tmp_path / "secret", tmp_path / "study"
    secret.mkdir()
    (secret / "file").write_text("mine")
    study.mkdir()
    (study / "table.md").symlink_to(secret / "file")
    write_whole(study / "table.md", b"theirs")
    assert (secret / "file").read_text() == "mine" and not (study / "table.md").is_symlink()
    (study / "failed").symlink_to(secret)
    with pytest.raises(ConfigError, match="failed is a link out of"):
        run_all([ExperimentConfig(num_steps=1)], study, progress=False)
    run = study / "runs" / "a"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(ExperimentConfig(num_steps=1).to_yaml())
    (run / "metrics.json").symlink_to(secret / "file")
    with pytest.raises(ConfigError, match=r"metrics.json is a link out of"):
        finished_runs(study)
    page = tmp_path / "page"
    page.mkdir()
    row = {"seed": 0, "score": "importance", "auroc": 0.5, **dict.fromkeys(IDENTITY, r"a$\foo$")}
    pd.DataFrame([row]).to_csv(page / "summary.csv")
    (page / "secret.png").symlink_to(secret / "file")
    with pytest.raises(ConfigError, match="secret.png is a link out of"):
        write_report(page)
    scores = tmp_path / "scores"
    scores.mkdir()
    (scores / "_rejects").symlink_to(secret)
    with pytest.raises(ConfigError, match="_rejects is a link out of"):
        scores_folder.open_folder(scores, "model", {}, {})


def refused_cheaply(work, error, match: str, limit: int = 2**27) -> None:
    """It is refused, and Python has taken little memory for it."""
    tracemalloc.start()
    try:
        with pytest.raises(error, match=match):
            work()
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


def test_sizes_are_known_before_memory_is_taken(tmp_path: Path) -> None:
    many = tmp_path / "detector.json"
    many.write_text('{"x":[' + 10**6 * "[]," + "[]]}")
    refused_cheaply(lambda: VAEFlowDetector.load(tmp_path), CheckpointError, "more than 2000000")
    refused_cheaply(lambda: read_json(many), ValueError, "more than 2000000")
    bomb = tmp_path / "scores.npz"
    np.savez_compressed(bomb, khat=np.zeros(10**8, np.float32))
    refused_cheaply(lambda: read_arrays(bomb), ConfigError, "bytes, more than")
    number = "seed: " + "1:" * 50_000 + "1"  # of base 60
    refused_cheaply(lambda: read_mapping(number, "it"), ConfigError, "a number of 100001 char")
    assert read_mapping("seed: 1:30", "it") == {"seed": 90}


def test_a_line_that_no_memory_holds_is_refused(tmp_path: Path) -> None:
    for name, start in {"header": b"", "row": b"a,b\n"}.items():
        path = tmp_path / f"{name}.csv.gz"
        path.write_bytes(gzip.compress(start + bytes(2**28), 1))
        work = partial(deque, Csv.chunks(path, "it", 9))
        refused_cheaply(work, ConfigError, "has a line of more than")


@pytest.mark.parametrize(
    "settings",
    [
        {"encoder_dims": (30_000, 30_000)},
        {"latent_dim": 10**7},
        {"flow": "iaf", "num_flows": 2, "flow_options": {"hidden_dim": 10**7}},
        {"flow": "spline", "num_flows": 2, "flow_options": {"count_bins": 10**7}},
        {"flow": "planar", "num_flows": 100},
    ],
)
def test_settings_of_wide_networks_are_compared_with_the_file(tmp_path, settings) -> None:
    config = ExperimentConfig(
        num_steps=1, **{"encoder_dims": (4,), "decoder_dims": (4,)} | settings
    )
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    (tmp_path / "metrics.json").write_text('{"num_features": 2}')
    save_file({str(n): torch.zeros(9) for n in range(9)}, tmp_path / "parameters.safetensors")
    with pytest.raises(CheckpointError, match="does not hold a run's programs"):
        load_programs(tmp_path)


def test_names_are_shown_as_text(tmp_path: Path, capsys) -> None:
    frame = pd.DataFrame({"dataset": [NASTY], "n": [-1]})
    page = as_text(frame, "md").splitlines()
    assert len(page) == 3 and page[2].replace(r"\|", "").count("|") == 3
    assert "\x1b" not in as_text(frame, "md") + as_text(frame, "latex") and r"\<b>" in page[2]
    assert r"\$" in as_text(frame, "latex") and r"\&" in as_text(frame, "latex")
    assert markdown("[a](b)") == r"[a]\(b)" and visible("é\t\n\u202e") == "é\t\n\\u202e"
    assert csv_text(pd.DataFrame({"=a": ["=1", "-x", "y"]})) == "'=a\n'=1\n'-x\ny\n"
    assert csv_text(pd.DataFrame({"a": ["\x1b[2J"]})) == "a\n\\x1b[2J\n"
    plot_contributions(pd.Series({r"a$\foo$": 1.0, "b": 2.0})).savefig(tmp_path / "a.png")
    with pytest.raises(SystemExit):
        main(["table", str(tmp_path / NASTY)])
    assert "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize("metrics", [{}, [], {"num_distinct": 1, "num_test": 1, "scores": []}])
def test_metrics_that_no_run_has_written_are_one_line(tmp_path, metrics, capsys) -> None:
    run = tmp_path / "runs" / "a"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(ExperimentConfig(num_steps=1).to_yaml())
    (run / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(SystemExit):
        main(["table", str(tmp_path)])
    assert "does not hold what a run measures" in capsys.readouterr().err


def test_scores_inside_their_own_glob_and_a_damaged_part_of_it(tmp_path: Path) -> None:
    data, model = tmp_path / "in", tmp_path / "model"
    data.mkdir()
    frame = pd.DataFrame({"a": np.random.default_rng(0).normal(size=40)})
    frame.to_parquet(data / "a.parquet")
    quick = {"num_steps": 2, "num_samples": 2, "hidden_dims": (4,), "random_state": 0}
    VAEFlowDetector(**quick).fit(frame).save(model)
    call = model, str(data / "**" / "*.parquet"), data / "scores"
    first = score_files(*call, explain="none")
    again = score_files(*call, explain="none")  # its own parts are no input
    assert first.num_scored == again.num_scored == 40 and again.num_resumed == 1
    sound = bytearray((data / "a.parquet").read_bytes())
    sound[8:200] = bytes(192)
    (data / "a.parquet").write_bytes(sound)
    with pytest.raises(ConfigError, match=r"a.parquet is no Parquet file that can be read"):
        score_files(model, str(data / "a.parquet"), tmp_path / "other", explain="none")
