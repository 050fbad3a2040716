"""Runs and their folders: reproducible, skipped when finished, never finished by a kill."""

import json
import os
import shutil
from dataclasses import fields, replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pyro.distributions import transforms

from pyro_vaeflow.datasets.splits import Split
from pyro_vaeflow.experiments import experiment
from pyro_vaeflow.experiments.config import ExperimentConfig
from pyro_vaeflow.experiments.experiment import check_registered, run
from pyro_vaeflow.experiments.fanout import run_all
from pyro_vaeflow.experiments.measurements import measure
from pyro_vaeflow.experiments.results import COLUMNS, finished_runs, read_summary
from pyro_vaeflow.experiments.run_folder import load_programs
from pyro_vaeflow.experiments.study import load_study, preset_names
from pyro_vaeflow.experiments.tables import aggregate, as_text, write_tables
from pyro_vaeflow.experiments.tasks import TASKS, Task, load_task
from pyro_vaeflow.inference.scoring import Scores, score
from pyro_vaeflow.programs import fitting
from pyro_vaeflow.programs.fitting import annealing, build, fit
from pyro_vaeflow.programs.flows import FLOWS
from pyro_vaeflow.programs.settings import AnnealingConfig
from pyro_vaeflow.programs.vae import ACTIVATIONS
from pyro_vaeflow.tables.distinct_rows import distinct_rows, training_rows
from pyro_vaeflow.validation import ConfigError
from tests.processes import die, is_killed

TINY = ExperimentConfig(
    dataset="breast_cancer",
    preprocessing="minmax",
    num_steps=4,
    num_samples=3,
    encoder_dims=(8,),
    decoder_dims=(8,),
)


PAPER = [("diagonal", 0), ("planar", 5), ("planar", 50), ("iaf", 5), ("iaf", 50)]


def run_and_die(at: str, config: ExperimentConfig, out: Path) -> None:
    """A run that is killed at one place."""
    if at == "training":
        fitting.annealing = lambda *_: (lambda step: die() if step == 2 else 1.0, None)
    else:
        setattr(*{
            "scoring": (experiment, "score_rows"),
            "writing": (np, "savez_compressed"),
            "moving": (Path, "rename"),
        }[at], die)  # fmt: skip
    run_all([config], out, progress=False)


def by_name(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# One run


def test_a_run_depends_on_its_configuration_and_seed_alone() -> None:
    config = replace(TINY, flow="iaf", num_flows=2)
    first, again, other = run(config), run(config), run(replace(config, seed=1))
    for name, array in first.arrays.items():
        np.testing.assert_array_equal(array, again.arrays[name])
    assert not np.array_equal(first.arrays["elbo"], other.arrays["elbo"])
    assert first.history["loss"].tolist() == again.history["loss"].tolist()


def test_training_lowers_the_loss_and_sorts_the_rows() -> None:
    config = replace(TINY, num_steps=300, learning_rate=5e-3, preprocessing="standard")
    result = run(replace(config, likelihood="normal", latent_dim=4, dropout=0.0))
    assert result.history["elbo"][-20:].mean() > result.history["elbo"][:20].mean() + 5
    assert all(result.metrics["scores"][s]["auroc"] > 0.9 for s in ("reconstruction", "importance"))
    assert result.metrics["log_evidence"] >= result.metrics["elbo"]


def test_the_encoding_is_learned_on_training_inliers_alone() -> None:
    task = load_task(TINY)
    assert task.x_train.min(0).values.tolist() == [0.0] * 30
    assert task.x_train.max(0).values.tolist() == [1.0] * 30
    malignant = task.x_test[task.is_anomaly == 1]
    assert (malignant == 1.0).any()  # beyond the inliers' range, and clipped


def test_nats_are_means_over_test_inliers_and_a_high_score_is_odd() -> None:
    names, first = np.array(["in", "out", "in"]), np.array([True, True, False])
    task = Task(torch.zeros(1, 2), torch.zeros(3, 2), np.array([0, 1, 0]), names, first)
    known = {
        "log_evidence": torch.tensor([-1.0, -1e6, -3.0]),
        "expected_log_likelihood": torch.tensor([-2.0, -1.0, -3.0]),
        "elbo": torch.tensor([-4.0, -1e6, -6.0]),
    }
    scores = Scores(**{f.name: known.get(f.name, torch.ones(3)) for f in fields(Scores)})
    metrics = measure(task, scores)
    assert (metrics["log_evidence"], metrics["elbo"], metrics["kl"]) == (-2.0, -5.0, 2.5)
    assert metrics["scores"]["importance"]["auroc"] == 1.0
    assert metrics["scores"]["reconstruction"]["auroc"] == 0.0


@pytest.mark.parametrize(
    ("config", "steps", "values"),
    [
        (AnnealingConfig(kind="constant", stop=0.3), (0, 99), (0.3, 0.3)),
        (AnnealingConfig(kind="linear", stop=2.0, ratio=0.5), (0, 25, 99), (0.0, 1.0, 2.0)),
        (AnnealingConfig(kind="cyclical", num_cycles=2, ratio=0.8), (0, 20, 50), (0.0, 0.5, 0.0)),
        (AnnealingConfig(kind="capacity", stop=25.0, ratio=1.0), (0, 50), (0.0, 12.5)),
    ],
)
def test_annealing_is_the_schedule_that_was_named(config, steps, values) -> None:
    schedule, loss = annealing(config, num_steps=100)
    assert [schedule(step) for step in steps] == pytest.approx(values)
    assert getattr(loss, "gamma", None) == (1000.0 if config.kind == "capacity" else None)


def test_the_budget_and_the_learning_rate_are_those_of_the_configuration() -> None:
    config = replace(TINY, num_steps=None, num_epochs=2, batch_size=100)
    config = replace(config, learning_rate=1.0e-2, learning_rate_schedule="linear")
    rates = run(config).history["learning_rate"]
    assert len(rates) == round(2 * 286 / 100)
    assert rates.iloc[0] == 1.0e-2
    assert rates.is_monotonic_decreasing


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dataset": "rnig"}, "unknown dataset 'rnig', did you mean 'ring'"),
        ({"preprocessing": "rank"}, "allowed: none, mixed, minmax, standard"),
        ({"likelihood": "gauss"}, "unknown likelihood 'gauss'"),
        ({"flow": "iof"}, "unknown flow 'iof', did you mean 'iaf'? allowed: diagonal, planar"),
        ({"activation": "relu6"}, "unknown activation 'relu6'; allowed: leaky_relu, silu, tanh"),
        ({"num_flows": 3}, "num_flows must be 0"),
        ({"flow": "iaf"}, "num_flows must be an integer from 1 to 100"),
        ({"flow": "iaf", "num_flows": 2, "flow_options": {"width": 3}}, "allowed: hidden_dim"),
        ({"likelihood": "normal", "likelihood_options": {"scale": 3}}, "allowed: min_scale"),
    ],
)
def test_names_that_no_registry_holds_are_refused_before_any_run(change, said, tmp_path) -> None:
    with pytest.raises(ConfigError) as refused:
        run_all([TINY, replace(TINY, **change)], tmp_path, progress=False)
    assert said in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_a_registered_posterior_data_set_and_activation_run_by_name(monkeypatch) -> None:
    def radial(latent_dim, num_flows, context_dim=None):
        make = transforms.conditional_radial
        return [make(latent_dim, context_dim) for _ in range(num_flows)]

    monkeypatch.setitem(FLOWS, "radial", radial)
    monkeypatch.setitem(TASKS, "mine", TASKS["breast_cancer"])
    monkeypatch.setitem(ACTIVATIONS, "gelu", torch.nn.GELU)
    config = replace(TINY, flow="radial", num_flows=2, dataset="mine", activation="gelu")
    assert run(config).metrics["num_test"] == 114


def test_held_out_rows_are_scored_and_not_trained_on(monkeypatch) -> None:
    seen = []
    train = fitting.train
    monkeypatch.setattr(fitting, "train", lambda *a, **k: seen.append(a[2]) or train(*a, **k))
    rows = load_task(TINY).x_train
    for held_out in (86, len(rows) - 1):
        metrics = run(replace(TINY, held_out_rows=held_out)).metrics
        assert torch.equal(seen.pop(), rows[held_out:])
        assert metrics["num_train"] == len(rows) - held_out
        assert metrics["held_out_elbo"] <= metrics["held_out_log_evidence"]
    whole = run(TINY).metrics
    assert "held_out_elbo" not in whole
    assert whole["num_train"] == len(rows)
    for held_out in (len(rows), len(rows) + 1):
        with pytest.raises(
            ConfigError, match=f"held_out_rows={held_out} leaves none of {len(rows)}"
        ):
            run(replace(TINY, held_out_rows=held_out))


# Folders


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """Two posteriors, one of them with two widths of its layers, one with two of its encoder."""
    out = tmp_path_factory.mktemp("study")
    narrow = replace(TINY, flow="iaf", num_flows=2, flow_options={"hidden_dim": 12})
    configs = [TINY, narrow, replace(narrow, flow_options={"hidden_dim": 24})]
    all_runs = [replace(config, seed=seed) for config in configs for seed in (0, 1)]
    all_runs.append(replace(TINY, encoder_dims=(8, 8)))
    run_all(all_runs, out, command="vaeflow run mine", progress=False)
    write_tables(out)
    return out


@pytest.fixture
def copy(study, tmp_path) -> Path:
    """Its folder, to be changed."""
    return shutil.copytree(study, tmp_path / "copy")


def test_finished_runs_are_skipped_and_others_are_not(copy) -> None:
    configs, before = [TINY, replace(TINY, seed=1)], by_name(copy)
    third = replace(TINY, learning_rate=2e-3)
    outcome = run_all([*configs, third], copy, progress=False)
    assert outcome.skipped == [config.run_name for config in configs]
    assert outcome.finished == [third.run_name]
    assert {name: data for name, data in by_name(copy).items() if name in before} == before


def test_a_runs_folder_holds_all_of_it(study) -> None:
    folder = study / "runs" / TINY.run_name
    assert ExperimentConfig.from_yaml((folder / "config.yaml").read_text()) == TINY
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["command"] == "vaeflow run mine"
    assert {"torch", "pyro-ppl", "pyro-vaeflow", "python"} <= metrics["versions"].keys()
    history = pd.read_csv(folder / "history.csv")
    assert len(history) == TINY.num_steps
    assert {"step", "loss", "elbo", "kl", "anneal", "learning_rate", "grad_norm"} <= set(history)
    with np.load(folder / "scores.npz", allow_pickle=False) as kept:
        assert len(kept["log_evidence"]) == len(kept["is_anomaly"]) == 114


@pytest.mark.parametrize("at", ["training", "scoring", "writing", "moving"])
def test_a_killed_run_never_looks_finished_and_the_next_call_completes(at, tmp_path) -> None:
    assert is_killed(run_and_die, at, TINY, tmp_path)
    assert finished_runs(tmp_path) == []
    assert write_tables(tmp_path) is None
    assert run_all([TINY], tmp_path, progress=False).finished == [TINY.run_name]
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [TINY.run_name]


def test_a_folder_of_another_run_or_without_a_file_is_refused_and_not_skipped(copy) -> None:
    folder = copy / "runs" / TINY.run_name
    (folder / "config.yaml").write_text(replace(TINY, num_steps=5).to_yaml())
    with pytest.raises(ConfigError, match="choose another --out"):
        run_all([TINY], copy, progress=False)
    (folder / "config.yaml").write_text(TINY.to_yaml())
    (folder / "scores.npz").unlink()
    with pytest.raises(ConfigError, match=r"lacks scores\.npz; remove it"):
        run_all([TINY], copy, progress=False)


def test_a_run_that_fails_keeps_its_history_and_stops_no_other(tmp_path) -> None:
    diverging = replace(TINY, learning_rate=1e30, num_steps=50)
    outcome = run_all([diverging, TINY], tmp_path, progress=False)
    assert outcome.finished == [TINY.run_name]
    assert "NonFiniteError" in outcome.failed[diverging.run_name]
    kept = tmp_path / "failed" / diverging.run_name
    assert 0 < len(pd.read_csv(kept / "history.csv")) < 50
    assert "NonFiniteError" in (kept / "error.txt").read_text()
    assert [run.config for run in finished_runs(tmp_path)] == [TINY]


def test_a_finished_runs_programs_give_its_scores_again(study) -> None:
    for done in finished_runs(study):
        config, model, guide = load_programs(done.folder)
        assert config == done.config
        x, options = load_task(config).x_test, {"num_samples": 3, "seed": config.seed}
        again = score(model, guide, x, **options)
        with np.load(done.folder / "scores.npz") as kept:
            for name in ("log_evidence", "expected_log_likelihood"):
                np.testing.assert_allclose(getattr(again, name), kept[name], rtol=1e-5)


# Tables and figures


def test_the_summary_has_one_row_a_run_and_score_and_the_columns_asked_for(study) -> None:
    table = pd.read_csv(study / "summary.csv")
    asked = "dataset flow num_flows seed score f1_top20 f1_true_ratio auroc average_precision"
    asked += " elbo log_evidence kl train_seconds score_seconds"
    assert asked.split() == COLUMNS == list(table.columns)[: len(COLUMNS)]
    assert table["score"].tolist() == ["reconstruction", "importance"] * 7
    # and settings that tell runs apart
    more = set(table.columns) - set(COLUMNS)
    assert more == {"encoder_dims", "flow_options.hidden_dim"}
    assert not table.duplicated(["flow", "num_flows", "seed", "score", *more]).any()
    for whole in (table, read_summary(study)):
        means = aggregate(whole).query("flow == 'diagonal'")
        assert len(aggregate(whole)) == 4 * 2
        assert {*zip(means["encoder_dims"], means["seeds"], strict=True)} == {
            ("[8]", 2), ("[8, 8]", 1),
        }  # fmt: skip


def test_the_table_is_the_mean_and_standard_deviation_over_seeds(study) -> None:
    table = read_summary(study)
    of = "flow == 'diagonal' and score == 'importance' and encoder_dims == '[8]'"
    chosen, row = table.query(of)["auroc"], aggregate(table).query(of).iloc[0]
    assert row["AUROC"] == f"{chosen.mean():.4f} ± {chosen.std():.4f}"
    assert row["seeds"] == 2


def test_the_table_says_what_made_it(study) -> None:
    text = (study / "table.md").read_text()
    for part in ("vaeflow run mine", "torch " + torch.__version__, "seeds: [0, 1]", "num_steps: 4"):
        assert part in text
    assert "hidden_dim: 24" in text
    assert "Paper" not in text  # it has no number for this data set


def test_without_run_folders_the_summary_is_what_it_was(study, tmp_path) -> None:
    (tmp_path / "summary.csv").write_bytes((study / "summary.csv").read_bytes())
    pd.testing.assert_frame_equal(
        read_summary(tmp_path), read_summary(study), check_dtype=False, rtol=1e-5
    )
    assert write_tables(tmp_path) is None  # nothing is rebuilt from nothing
    with pytest.raises(ConfigError, match="no finished run"):
        read_summary(tmp_path / "none")


def test_tables_as_text() -> None:
    frame = pd.DataFrame({"a_b": ["x", None], "F1, %": [1, 20]})
    assert as_text(frame, "md").splitlines() == [
        "| a_b | F1, % |",
        "| --- | ----- |",
        "| x   | 1     |",
        "|     | 20    |",
    ]
    assert as_text(frame, "csv") == 'a_b,"F1, %"\nx,1\n,20'
    assert r"a\_b & F1, \% \\" in as_text(frame, "latex")


def test_a_map_has_its_second_coordinate_along_its_rows() -> None:
    config = replace(TINY, dataset="ring", preprocessing="none", likelihood="normal", map_size=5)
    result = run(replace(config, max_rows=100))
    axis, kept = result.density_map["axis"], result.density_map["reconstruction"]
    assert kept.shape == (5, 5)
    task = load_task(replace(config, max_rows=100))
    model, guide = build(config, 2)
    fit(config, model, guide, task.x_train, None, progress=False)
    point = torch.tensor([[axis[3], axis[1]]])
    expected = score(model, guide, point, num_samples=config.num_samples, seed=0).reconstruction
    assert kept[1, 3] == pytest.approx(expected.item(), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", preset_names())
def test_each_preset_runs_in_its_small_budget(name: str, tmp_path) -> None:
    configs = load_study(name).expand(seeds=[0], quick=True)
    configs = configs[:: max(1, len(configs) // 5)]  # of a large design some
    needs_files = configs[0].dataset.startswith(("kddcup99", "adbench:"))
    if needs_files and "VAEFLOW_DATA" not in os.environ:
        pytest.skip("needs VAEFLOW_DATA")
    outcome = run_all(configs, tmp_path, progress=False)
    assert not outcome.failed
    assert write_tables(tmp_path) is not None
    assert set(read_summary(tmp_path)["dataset"]) == {config.dataset for config in configs}
    if name == "kdd-paper":
        assert [(c.flow, c.num_flows) for c in configs] == PAPER
        import_module("results.kdd-paper.make").write_paper(tmp_path)
        assert "0.938 ± 0.0008" in (tmp_path / "paper.md").read_text()


def test_a_missing_folder_of_data_names_the_way_out(monkeypatch) -> None:
    monkeypatch.delenv("VAEFLOW_DATA", raising=False)
    with pytest.raises(ConfigError, match="VAEFLOW_DATA"):
        check_registered(replace(TINY, dataset="adbench:thyroid"))


def test_the_learning_rate_rises_in_its_share_and_falls_to_its_stop() -> None:
    config = ExperimentConfig(
        num_steps=100, learning_rate=0.01, learning_rate_warmup=0.2,
        learning_rate_schedule="cosine", learning_rate_stop=0.001,
    )  # fmt: skip
    rate = fitting.learning_rate(config, 100)
    found = [rate(step) for step in range(101)]
    assert found[0] == 0.0 and found[10] == pytest.approx(0.005)
    assert max(found) == found[20] == pytest.approx(0.01) and found[100] == pytest.approx(0.001)


def test_rows_labels_and_kinds_are_cut_together(monkeypatch) -> None:
    y = np.tile([0, 1], 50)
    frame = pd.DataFrame({"y": y.astype(float), "i": np.arange(100.0)})
    split = Split(frame, frame, y, y.astype(str).astype(object))
    monkeypatch.setitem(TASKS, "cut", lambda seed: split)
    config = ExperimentConfig(dataset="cut", preprocessing="none", num_steps=1, max_rows=30)
    task = load_task(config)
    assert len(task.x_train) == len(task.x_test) == 30
    assert task.x_test[:, 0].tolist() == task.is_anomaly.tolist()
    assert task.labels.tolist() == task.is_anomaly.astype(str).tolist()


def test_missing_entries_do_not_split_rows_that_are_alike() -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randint(0, 3, (500, 4), generator=draw).double()
    x = x.masked_fill(torch.rand(500, 4, generator=draw) < 0.2, torch.nan)
    distinct, weights = training_rows(x, 0.5)
    expected = pd.DataFrame(x.numpy()).value_counts(dropna=False)
    assert len(distinct) == len(expected)
    roots = torch.tensor(expected.to_numpy()).double().sqrt()
    torch.testing.assert_close(weights.sort().values, roots.sort().values)
    kept, place, _ = distinct_rows(x)
    torch.testing.assert_close(kept[place], x, rtol=0, atol=0, equal_nan=True)
