"""What three people do in their first hour: an analyst, a modeler, a scientist who scripts."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vaeflow import (
    Guide,
    Model,
    Study,
    VAEFlowDetector,
    inference_gap,
    load_study,
    plot_posteriors,
    read_summary,
    run_all,
    score,
    simulation_based_calibration,
    train,
)
from pyro_vaeflow.cli import main
from pyro_vaeflow.experiments import tasks
from pyro_vaeflow.experiments.results import finished_runs
from pyro_vaeflow.experiments.run_folder import load_programs
from pyro_vaeflow.inference import checkpoint
from pyro_vaeflow.inference.callbacks import InterruptedWarning
from pyro_vaeflow.inference.svi import OneOptimizer
from pyro_vaeflow.validation import ConfigError
from tests.processes import die, is_killed

PAIR = Path(__file__).parents[1] / "docs" / "examples" / "my_pair.py"
SMALL = ["--num_steps", "20", "--num_samples", "30", "--hidden_dims", "[8]"]


def orders(with_label: bool = True) -> pd.DataFrame:
    draw = np.random.default_rng(0)
    frame = pd.DataFrame(draw.normal(size=(160, 3)), columns=["size", "price", "weight"])
    frame.loc[140:] += 6.0
    return frame.assign(fraud=np.arange(160) >= 140) if with_label else frame


@pytest.fixture
def table(tmp_path: Path) -> Path:
    orders().to_csv(tmp_path / "orders.csv", index=False)
    shutil.copy(PAIR, tmp_path)
    return tmp_path / "orders.csv"


# The analyst: from a csv file to decisions.


def test_an_analyst_goes_from_a_csv_file_to_decisions(
    table: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, scores = table.parent / "model", table.parent / "scores"
    fit = ["fit", str(table), "--out", str(model), "--drop", "fraud", "--flow", "iaf", *SMALL]
    fit += ["--contamination", "0.125"]
    assert main(fit) == 0
    assert main(["score", str(model), str(table), str(scores)]) == 0
    decided = pd.read_parquet(scores)
    assert decided["flagged"].sum() < 30 and decided["flagged"][140:].sum() > 12
    assert set(decided["column_1"]) <= {"size", "price", "weight"}
    detector = VAEFlowDetector.load(model)
    assert detector.num_flows is None and len(detector.guide_.flow) == 5
    # A model that is there stays, unless it is said to go; and Ctrl-C leaves it, too.
    before = (model / "detector.json").read_bytes()
    with pytest.raises(SystemExit, match="2"):
        main(fit)
    assert "holds a model; choose another folder, or say --overwrite" in capsys.readouterr().err

    def stop(*args) -> None:
        raise InterruptedWarning

    monkeypatch.setattr(VAEFlowDetector, "fit", stop)
    assert main([*fit, "--overwrite", "--num_steps", "21"]) == 130
    assert "stopped in training" in capsys.readouterr().err
    assert (model / "detector.json").read_bytes() == before


def test_auto_says_so_where_it_flags_all_rows_or_none() -> None:
    frame = orders(with_label=False)
    detector = VAEFlowDetector(num_steps=20, hidden_dims=(8,), random_state=0).fit(frame[:140])
    with pytest.warns(UserWarning, match="flags all of 140 rows, and would flag 1 in 20"):
        detector.predict(frame[:140] + 50.0)
    detector.offset_ = -np.inf
    with pytest.warns(UserWarning, match="flags none of 140 rows"):
        detector.predict(frame[:140])


# The modeler: from a pair of one's own to gaps and pictures.


def test_a_modeler_goes_from_a_pair_to_gaps_and_pictures() -> None:
    """The exact posterior is normal, so a guide that can be it loses next to nothing."""
    pyro.set_rng_seed(0)
    loadings = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, -1.0]])
    x = torch.randn(300, 2) @ loadings + 0.5 * torch.randn(300, 3)
    encoder = torch.nn.Linear(3, 2)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ loadings, 0.5).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        scale = pyro.param("scale", 0.5 * torch.eye(2), dist.constraints.lower_cholesky)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(encoder(x), scale_tril=scale))

    history = train(model, guide, x, num_steps=400, learning_rate=2e-2, progress=False)
    scores = score(model, guide, x)
    gaps = inference_gap(model, guide, x[:5], num_samples=100, num_steps=5)
    assert gaps.summary()["mean"].abs().max() < 50 and scores.khat.median() < 0.5
    figure = plot_posteriors(model, {"normal": guide}, x[:1], num_samples=500)
    (axes,) = figure.axes
    lost = float(axes.get_title().split()[1])
    assert axes.get_title().startswith("normal: ") and -0.05 < lost < 0.1
    check = simulation_based_calibration(model, guide, x, num_simulations=200)
    for what, said in [
        (history, "History of 400 steps: ELBO -"),
        (scores, "Scores of 300 rows: log evidence -"),
        (check, "Calibration: the least p-value of uniform ranks is "),
    ]:
        assert repr(what).startswith(said) and len(repr(what)) < 250
        assert what.plot().axes
    assert "<table" in scores._repr_html_()


def test_a_picture_of_a_posterior_shows_each_guide_and_pairs_of_the_widest_dimensions() -> None:
    model, x = Model(3, latent_dim=4, dropout=0.0), torch.rand(2, 3)
    guides = {name: Guide(3, latent_dim=4, flow=name) for name in ("diagonal", "planar")}
    assert len(guides["planar"].flow) == 10  # a depth that suits it
    figure = plot_posteriors(model, guides, x[:1], num_samples=50)
    assert len(figure.axes) == 2 * 3
    assert [axes.get_title().partition(":")[0] for axes in figure.axes[:2]] == [*guides]
    with pytest.raises(ValueError, match="rows of row must be an integer from 1 to 1, got 2"):
        plot_posteriors(model, guides, x)


# The scientist: a table and a guide of one's own, three seeds, two flows.

STUDY = {
    "dataset": "orders.csv",
    "label": "fraud",
    "programs": "my_pair.py:make",
    "variants": [{"flow": "diagonal"}, {"flow": "spline"}],
    "num_steps": 12,
    "num_samples": 30,
    "seeds": [0, 1, 2],
}


def run_until_killed(folder: Path) -> None:
    """The study, killed in the middle of its fourth run."""
    checkpoint.LEAST_EVERY = 4
    step, taken = OneOptimizer.__call__, []

    def step_or_die(optim: OneOptimizer, *args) -> None:
        taken.append(step(optim, *args))
        if len(taken) == 3 * 12 + 6:
            die()

    OneOptimizer.__call__ = step_or_die
    run_all(Study.from_dict(STUDY, folder=folder).expand(), folder / "out", progress=False)


def test_a_scientist_goes_from_a_table_and_a_guide_to_a_frame_killed_and_resumed(
    table: Path,
) -> None:
    folder = table.parent
    assert is_killed(run_until_killed, folder)
    study = Study.from_dict(STUDY, folder=folder)
    outcome = run_all(study.expand(), folder / "out", progress=False)
    assert (len(outcome.skipped), len(outcome.finished), outcome.failed) == (3, 3, {})
    frame = read_summary(folder / "out")
    assert frame.groupby(["flow", "score"])["seed"].nunique().tolist() == [3, 3, 3, 3]
    assert frame["dataset"].str.startswith("orders.csv@").all()
    assert frame["auroc"].min() > 0.9
    run = finished_runs(folder / "out")[0]
    names: dict = {}
    exec(PAIR.read_text(), names)
    _, model, guide = load_programs(run.folder, names["make"])
    assert plot_posteriors(model, guide, torch.zeros(1, 3), num_samples=50).axes
    # Edited, the table is another one.
    orders().assign(size=0.0).to_csv(table, index=False)
    names = {c.run_name for c in Study.from_dict(STUDY, folder=folder).expand()}
    assert not names & {run.folder.name for run in finished_runs(folder / "out")}
    tasks._load.cache_clear()
    tasks._rows.cache_clear()
    with pytest.raises(ConfigError, match=r"dataset: .*orders.csv has changed since"):
        tasks.load_task(run.config)


@pytest.mark.parametrize("kind", ["csv", "parquet", "npz"])
def test_a_table_of_ones_own_is_a_data_set(kind: str, tmp_path: Path) -> None:
    path, frame = tmp_path / f"orders.{kind}", orders().assign(kind="a")
    if kind == "csv":
        frame.to_csv(path, index=False)
    elif kind == "parquet":
        frame.to_parquet(path)
    else:
        x = frame[["size", "price", "weight"]].to_numpy()
        np.savez(path, X=x, fraud=frame["fraud"].to_numpy().astype(int))
    study = Study.from_dict(
        {"dataset": str(path), "label": "fraud", "num_steps": 2, "num_samples": 3}
    )
    outcome = run_all(study.expand(), tmp_path / "out", progress=False)
    assert not outcome.failed and outcome.finished[0].startswith("orders-diagonal0-seed0-")
    (run,) = finished_runs(tmp_path / "out")
    assert (run.metrics["num_train"], run.metrics["num_test"]) == (70, 90)
    assert run.config.likelihood == run.config.preprocessing == "mixed"
    assert run.metrics["share_khat_above_0.7"] is None  # of three draws: not 0.0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"label": None}, "label: name the column of .*orders.csv that is 1 where"),
        ({"dataset": "none.csv"}, "dataset: .*none.csv cannot be read"),
        ({"dataset": "ring"}, "label: is for a file; dataset='ring' has its labels"),
        ({"dataset": "orders.txt"}, "unknown dataset 'orders.txt'.* FILE.csv, FILE.parquet"),
    ],
)
def test_a_data_set_that_cannot_be_is_refused_before_any_run(
    change: dict, said: str, table: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        study = Study.from_dict({**STUDY, **change}, folder=table.parent)
        run_all(study.expand(), table.parent / "out", progress=False)
    assert not (table.parent / "out").exists()


@pytest.mark.parametrize(
    ("label", "said"),
    [("frd", "has no column 'frd'; it has size, price"), ("size", "must be 1 for anomalies and 0")],
)
def test_a_label_that_is_none_fails_its_run_with_a_way_out(label, said, table: Path) -> None:
    study = Study.from_dict({**STUDY, "label": label, "seeds": [0]}, folder=table.parent)
    failed = run_all(study.expand(), table.parent / "out", progress=False).failed
    assert len(failed) == 2 and all(said in message for message in failed.values())


def test_a_study_file_runs_some_variants_on_a_budget_that_it_need_not_name(
    table: Path, capsys
) -> None:
    text = "{dataset: orders.csv, label: fraud, num_steps: 900, latent_dim: 2, seeds: [0], "
    text += "encoder_dims: [8], decoder_dims: [8], variants: [{flow: diagonal}, {flow: spline}]}"
    (table.parent / "mine.yaml").write_text(text)
    argv = ["run", str(table.parent / "mine.yaml"), "--out", str(table.parent / "out")]
    assert main([*argv, "--quick", "--only", "flow=spline", "num_flows=2"]) == 0
    (run,) = finished_runs(table.parent / "out")
    assert (run.config.flow, run.config.num_steps, run.config.max_rows) == ("spline", 20, 200)
    # The KL was annealed for 5 steps of 20: nothing was learned yet, and it says so.
    collapsed = run.metrics["kl"] < 0.05
    assert (f"({run.folder.name})" in capsys.readouterr().err) == collapsed
    assert load_study(str(table.parent / "mine.yaml")).expand()[0].num_flows == 0


def test_a_collapsed_run_is_said_to_be_one(table: Path, capsys) -> None:
    """Half an hour of nothing but KL: a beta of 1,000 leaves the latents nothing to say."""
    (table.parent / "mine.yaml").write_text(
        "{dataset: orders.csv, label: fraud, num_steps: 60, learning_rate: 0.05, "
        "annealing: {kind: constant, stop: 1000.0}, encoder_dims: [8], decoder_dims: [8]}"
    )
    assert main(["run", str(table.parent / "mine.yaml"), "--out", str(table.parent / "out")]) == 0
    assert "active unit: their scores do not depend on the latents" in capsys.readouterr().err
