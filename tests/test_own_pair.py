"""``programs: my_pair.py:make``: a modeler's own file run by ``vaeflow run``."""

import hashlib
import io
import shutil
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from pyro_vaeflow import score, workers
from pyro_vaeflow.cli import main
from pyro_vaeflow.experiments.results import finished_runs, read_summary
from pyro_vaeflow.experiments.run_folder import load_programs
from pyro_vaeflow.experiments.study import load_study
from pyro_vaeflow.experiments.tasks import load_task
from pyro_vaeflow.inference import checkpoint
from pyro_vaeflow.inference.callbacks import RECORD
from pyro_vaeflow.inference.svi import OneOptimizer
from pyro_vaeflow.validation import ConfigError
from tests.processes import ForkedPool, die, is_killed

# Plain functions with parameters of their own and networks at the file's top level.
PAIR = """
import pyro
import pyro.distributions as dist
import torch

decoder, encoder = torch.nn.Linear(2, 30), torch.nn.Linear(30, 4)


def model(x):
    pyro.module("decoder", decoder)
    noise = pyro.param("noise", torch.ones(30), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(decoder(z), noise).to_event(1), obs=x)


def guide(x):
    pyro.module("encoder", encoder)
    loc, log_scale = encoder(x).chunk(2, dim=-1)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def make(settings, num_features, x):
    assert x.shape[1] == num_features == 30 and settings.num_steps == 12
    return model, guide
"""
STUDY = """
programs: my_pair.py:make
dataset: breast_cancer
preprocessing: standard
max_rows: 80
num_steps: 12
num_samples: 5
learning_rate: 0.01
annealing: {kind: linear, ratio: 0.5}
seeds: [0, 1, 2]
"""


def run_until_killed(argv: list[str]) -> None:
    """`vaeflow run` that keeps its state every 4 steps and dies at the tenth of its second run."""
    checkpoint.LEAST_EVERY = 4
    step, taken = OneOptimizer.__call__, []

    def step_or_die(optim: OneOptimizer, *args) -> None:
        taken.append(step(optim, *args))
        if len(taken) == 12 + 10:
            die()

    OneOptimizer.__call__ = step_or_die
    main(argv)


def write_study(folder: Path, pair: str = PAIR, study: str = STUDY) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "my_pair.py").write_text(pair)
    (folder / "study.yaml").write_text(study)
    return str(folder / "study.yaml")


def vaeflow(*argv: str | Path) -> tuple[int, str]:
    """Exit status of a command that was not refused, and what it printed."""
    printed = io.StringIO()
    with redirect_stdout(printed), redirect_stderr(printed):
        status = main([str(word) for word in argv])
    return status, printed.getvalue()


def arrays(run: Path) -> dict[str, torch.Tensor]:
    """Parameters, scores and history of a run: all of it but the clock's readings."""
    with np.load(run / "scores.npz") as scores:
        found = {name: torch.as_tensor(scores[name]) for name in scores}
    history = pd.read_csv(run / "history.csv").drop(columns="seconds")
    return (
        found
        | load_file(run / "parameters.safetensors")
        | {"history": torch.tensor(history.values)}
    )


def assert_same_runs(out: Path, expected: Path, *seeds: int) -> None:
    for seed in seeds:
        (one,), (other,) = (list(o.glob(f"runs/*-seed{seed}-*")) for o in (out, expected))
        assert one.name == other.name
        torch.testing.assert_close(arrays(one), arrays(other), rtol=0, atol=0, equal_nan=True)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study of three seeds, run in this process, and its results in ``out``."""
    folder = tmp_path_factory.mktemp("study")
    status, printed = vaeflow("run", write_study(folder), "--out", folder / "out")
    assert status == 0 and "3 run, 0 already finished, 0 failed" in printed
    return folder


def test_it_has_its_rows_in_the_summary_and_a_second_call_runs_nothing(study: Path) -> None:
    out, digest = study / "out", hashlib.sha256(PAIR.encode()).hexdigest()[:8]
    summary = pd.read_csv(out / "summary.csv")
    assert set(summary["programs"]) == {f"my_pair.py:make@{digest}"}
    assert sorted(zip(summary["seed"], summary["score"], strict=True)) == [
        (seed, name) for seed in range(3) for name in ("importance", "reconstruction")
    ]
    assert np.isfinite(summary[["elbo", "log_evidence", "kl", "auroc"]]).all(axis=None)
    assert "my_pair.py:make@" in (out / "table.md").read_text()
    assert all(run.folder.name.startswith("breast_cancer-my_pair-") for run in finished_runs(out))
    written = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/*")}
    status, printed = vaeflow("run", study / "study.yaml", "--out", out)
    assert status == 0 and "0 run, 3 already finished, 0 failed" in printed
    assert {path: path.stat().st_mtime_ns for path in out.glob("runs/*/*")} == written


def test_a_run_depends_on_its_seed_alone_not_on_those_before_it(study: Path, tmp_path) -> None:
    """From another folder too: of the file only its name and content count."""
    file = write_study(tmp_path / "elsewhere")
    assert vaeflow("run", file, "--seeds", "1", "--out", tmp_path)[0] == 0
    assert_same_runs(tmp_path, study / "out", 1)
    first, second, _ = (arrays(run.folder) for run in finished_runs(study / "out"))
    assert not torch.equal(first["history"][0], second["history"][0])  # nor are start values one


def test_a_killed_study_resumes_on_two_workers_bit_for_bit(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert is_killed(run_until_killed, ["run", str(study / "study.yaml"), "--out", str(tmp_path)])
    assert len(list((tmp_path / "runs").glob("[!.]*"))) == 1
    (kept,) = tmp_path.glob("unfinished/*-seed1-*/training-*.safetensors")
    assert (8, len(RECORD)) in [tensor.shape for tensor in load_file(kept).values()]
    monkeypatch.setattr(workers, "ProcessPoolExecutor", ForkedPool)
    status, printed = vaeflow("run", study / "study.yaml", "--out", tmp_path, "--jobs", "2")
    assert status == 0 and "2 run, 1 already finished, 0 failed" in printed
    assert not (tmp_path / "unfinished").exists()
    assert_same_runs(tmp_path, study / "out", 0, 1, 2)


def test_an_edited_file_is_another_run(study: Path, tmp_path: Path) -> None:
    shutil.copytree(study / "out", tmp_path / "out")
    file = write_study(tmp_path, PAIR.replace("torch.ones(30)", "torch.full((30,), 2.0)"))
    before = load_study(str(study / "study.yaml")).expand(seeds=[0])
    (config,) = load_study(file).expand(seeds=[0])
    assert config.run_name != before[0].run_name
    status, printed = vaeflow("run", file, "--seeds", "0", "--out", tmp_path / "out")
    assert status == 0 and "1 run, 0 already finished" in printed
    summary = read_summary(tmp_path / "out")
    assert summary.groupby("programs")["seed"].nunique().sort_values().tolist() == [1, 3]
    with pytest.raises(ConfigError, match=r"my_pair\.py has changed since '\w{8}'; leave out '@"):
        load_study(write_study(tmp_path, study=config.to_yaml(), pair=PAIR + "\n"))


def test_opening_somebody_elses_results_runs_no_code(study: Path, tmp_path: Path) -> None:
    out, trap = tmp_path / "out", tmp_path / "my_pair.py"
    shutil.copytree(study / "out", out)
    trap.write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\n{PAIR}")
    digest = hashlib.sha256(trap.read_bytes()).hexdigest()[:8]
    for run in list((out / "runs").iterdir()):  # each is now a run of the trap, in all its files
        config = run / "config.yaml"
        lines = config.read_text().splitlines()
        named = [f"programs: {trap}:make@{digest}" if "my_pair" in s else s for s in lines]
        config.write_text("\n".join(named))
        run.rename(run.with_name(load_study(str(config)).expand()[0].run_name))
    runs = finished_runs(out)
    assert len(runs) == 3 and all(digest in run.config.programs for run in runs)
    assert vaeflow("table", out)[0] == 0 and len(read_summary(out)) == 6
    with pytest.raises(
        ConfigError, match=r"code is not run to open a folder.*load_programs\(folder"
    ):
        load_programs(runs[0].folder)
    assert not (tmp_path / "sprung").exists()
    names: dict = {}
    exec(PAIR.partition("def make")[0], names)
    config, model, guide = load_programs(
        runs[0].folder, lambda *_: (names["model"], names["guide"])
    )
    x = load_task(config).x_test
    again = score(model, guide, x, num_samples=config.num_samples, seed=config.seed)
    kept = arrays(runs[0].folder)["log_evidence"]
    torch.testing.assert_close(again.log_evidence, kept, rtol=1e-5, atol=1e-4)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("programs", "said"),
    [
        (
            "none.py:make",
            "none.py cannot be read (",
        ),
        ("my_pair.py:mak", "my_pair.py has no function 'mak'; it has model, guide, make"),
        ("my_pair.py", "expected the name of registered programs, or FILE.py:FUNCTION, got 'my_pa"),
        ("vea", "unknown programs 'vea', did you mean 'vae'? allowed: vae, FILE.py:FUNCTION"),
        (
            "broken.py:make",
            "broken.py cannot be run: NameError(\"name 'nonsense' is not defined\")",
        ),
        ("my_pair.py:make@00000000", "my_pair.py has changed since '00000000'; leave out '@0000"),
    ],
)
def test_a_pair_that_cannot_be_made_is_refused_in_one_line(
    programs: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    file = write_study(tmp_path, study=STUDY.replace("my_pair.py:make", programs))
    (tmp_path / "broken.py").write_text("nonsense")
    with pytest.raises(SystemExit) as stopped:
        main(["run", file, "--out", str(tmp_path / "out")])
    err = capsys.readouterr().err
    assert stopped.value.code == 2 and err.count("\n") == 1 and said in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ("model", " must return (model, guide), two Pyro programs, got <function model"),
        ("3, guide", " must return (model, guide), two Pyro programs, got (3, "),
        (
            "guide, model",
            "the model observes nothing; it says obs=x at a site, and is passed first",
        ),
    ],
)
def test_a_function_that_returns_no_pair_fails_its_runs_by_name(
    returned: str, said: str, tmp_path: Path
) -> None:
    file = write_study(tmp_path, PAIR.replace("return model, guide", f"return {returned}"))
    status, printed = vaeflow("run", file, "--seeds", "0", "--out", tmp_path / "out")
    assert status == 1 and "0 run, 0 already finished, 1 failed" in printed
    failed = printed[printed.index("failed: breast_cancer-my_pair-") :]
    assert said in failed
    (error,) = (tmp_path / "out" / "failed").glob("*/error.txt")
    assert "Traceback" in error.read_text()
