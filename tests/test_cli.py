"""The ``vaeflow`` command: what it refuses and how, what it prints, how it stops."""

import os
import signal
import time
from pathlib import Path

import pandas as pd
import pytest

from pyro_vaeflow import cli
from pyro_vaeflow.cli import main
from pyro_vaeflow.experiments.results import finished_runs
from pyro_vaeflow.experiments.study import preset_names
from tests.processes import run_command, start

STUDY = """
description: small
dataset: breast_cancer
num_steps: 5
num_samples: 3
encoder_dims: [8]
decoder_dims: [8]
seeds: [0, 1]
variants: [{flow: diagonal}, {flow: planar, num_flows: 2}]
quick: {num_steps: 3}
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(STUDY)
    return str(path)


def refusal(capsys, *argv: str) -> str:
    """What the command says when it refuses a call."""
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    said = capsys.readouterr().err
    assert stopped.value.code == 2
    assert said.count("\n") == 1
    assert said.startswith("vaeflow: ")
    return said


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("run ring --latent 3", "--latent 3; did you mean --latent_dim? allowed: --help --seeds"),
        ("run ring --xyz", "unrecognized arguments: --xyz; allowed: --help --seeds"),
        (
            "run ring --only flow=spline",
            "unknown flow of --only in ring 'spline'; allowed: diagonal",
        ),
        ("run ring --only flw=iaf", "unknown setting of --only 'flw', did you mean 'flow'?"),
        ("run ring --latent_dim many", "latent_dim"),
        ("run ring --jobs 2 --dask tcp://host:1", "give one of --jobs and --dask"),
        ("run ring --device meta", "device must be one that this machine has, got 'meta'"),
        ("run ring --latent_dim 0", "latent_dim: expected at least 1, got 0"),
        ("run ring --annealing.cycles 3", "--annealing.num_cycles"),
        (
            "run ring --flow iof --num_flows 3",
            "did you mean 'iaf'? allowed: diagonal, planar, iaf",
        ),
        ("run rnig", "did you mean 'ring'? allowed: adbench"),
        ("run none.yaml", "No such file or directory: 'none.yaml'"),
        ("run", "presets"),
        ("run ring --jobs 0", "jobs"),
        ("run ring --seeds a", "seeds"),
        ("run ring --seeds -1", "seed: expected at least 0, got -1"),
        ("table none", "none holds no finished run"),
        ("table none --format html", "md"),
        ("rn", "run"),
        ("", "{quickstart,run,table,presets,fit, ...}"),
    ],
)
def test_a_wrong_call_is_refused_in_one_line_with_what_is_allowed(
    argv: str, said: str, capsys, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refusal(capsys, *argv.split())
    assert not list(tmp_path.iterdir())


def test_run_writes_what_it_says_and_runs_nothing_twice(
    file, capsys, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = tmp_path / "out"
    assert main(["run", file, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "4 run, 0 already finished, 0 failed" in said
    assert "| planar 2 | importance " in said
    assert all(len(line) <= 80 for line in said.splitlines() if line.startswith("|"))
    assert str(out) in said
    assert len(pd.read_csv(out / "summary.csv")) == 4 * 2
    assert "vaeflow run " in (out / "table.md").read_text()
    assert main(["run", file, "--out", str(out), "--seeds", "1", "2"]) == 0
    assert "2 run, 2 already finished" in capsys.readouterr().out
    assert len(finished_runs(out)) == 6
    heads = {"md": "| dataset ", "csv": "dataset,flow,num_flows,seed,score,f1_top20"}
    for style, head in {**heads, "latex": r"\begin{tabular}"}.items():
        assert main(["table", str(out), "--format", style]) == 0
        assert capsys.readouterr().out.startswith(head)
    assert main(["table", str(out)]) == 0
    assert capsys.readouterr().out.startswith("| dataset ")


def test_overrides_reach_every_run(file, tmp_path) -> None:
    out = tmp_path / "out"
    change = "--seeds 3 --num_steps 2 --encoder_dims [6,5] --annealing.stop 0.5 --clip_norm 1"
    change += " --split_seed null"  # of its own for each seed
    assert main(["run", file, "--out", str(out), *change.split()]) == 0
    configs = [run.config for run in finished_runs(out)]
    assert [config.flow for config in configs] == ["diagonal", "planar"]
    for config in configs:
        assert (config.seed, config.num_steps, config.encoder_dims) == (3, 2, (6, 5))
        assert (config.annealing.stop, config.clip_norm) == (0.5, 1.0)
        assert (config.split_seed, config.rows_seed) == (None, 3)


def test_results_of_a_quick_call_lie_beside_those_of_a_study_and_each_study_has_a_folder(
    file, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", file, "--quick", "--seeds", "0"]) == 0
    runs = finished_runs(Path("results/mine-quick"))
    assert [run.config.num_steps for run in runs] == [3, 3]
    assert not Path("results/mine").exists()
    Path("other.yaml").write_text(STUDY.replace("num_steps: 5", "num_steps: 4"))
    assert main(["run", file, "other.yaml", "--out", "out", "--seeds", "0"]) == 0
    assert {path.name for path in Path("out").iterdir()} == {"mine", "other"}


def test_a_failed_run_is_reported_and_the_others_are_kept(file, capsys, tmp_path) -> None:
    out = tmp_path / "out"
    argv = ["run", file, "--out", str(out), "--learning_rate", "1e30", "--num_steps", "50"]
    assert main(argv) == 1
    captured = capsys.readouterr()
    assert "NonFiniteError" in captured.err
    assert "Traceback" not in captured.err
    assert "4 failed" in captured.out
    assert not (out / "summary.csv").exists()


def test_presets_are_listed_with_their_size(capsys) -> None:
    assert main(["presets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == preset_names()
    assert lines[0].startswith("adbench: 3 variants x 5 seeds x 19 data sets.")


@pytest.mark.parametrize(("stop", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("where", ["_parser", "_done"])
def test_a_signal_stops_with_its_status_and_a_line_wherever_it_comes(
    where: str, stop: signal.Signals, code: int, capsys, monkeypatch
) -> None:
    monkeypatch.setattr(cli, where, lambda *_, **__: signal.raise_signal(stop))
    before = signal.getsignal(signal.SIGTERM)
    assert main(["presets"]) == code
    assert capsys.readouterr().err.startswith("\nstopped; what is finished is kept")
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow
def test_an_interruption_keeps_finished_runs_and_leaves_no_worker(file, tmp_path) -> None:
    out, said = tmp_path / "out", tmp_path / "said"
    argv = ["run", file, "--out", str(out), "--jobs", "2", "--num_steps", "300"]
    process = start(run_command, [*argv, "--seeds", *map(str, range(20))], said)
    deadline = time.monotonic() + 400
    while not list(out.glob("runs/[!.]*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    process.join(60)
    assert process.exitcode == 130
    assert "stopped; what is finished is kept" in said.read_text()
    assert "Traceback" not in said.read_text()
    assert 0 < len(finished_runs(out)) < 40
    assert not list(out.glob("runs/.*.partial"))
    with pytest.raises(ProcessLookupError):
        for _ in range(100):  # workers end within ten seconds
            os.killpg(process.pid, 0)
            time.sleep(0.1)
