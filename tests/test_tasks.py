"""Rows of runs: splits and seeds, data sets of a study, distinct rows, classes."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from pyro_vaeflow.datasets.splits import Split, first_of_each
from pyro_vaeflow.experiments.config import ExperimentConfig
from pyro_vaeflow.experiments.experiment import run
from pyro_vaeflow.experiments.fanout import run_all
from pyro_vaeflow.experiments.measurements import detection
from pyro_vaeflow.experiments.tables import write_tables
from pyro_vaeflow.experiments.tasks import TASKS, Task, load_task
from pyro_vaeflow.metrics import auroc, average_precision
from pyro_vaeflow.validation import ConfigError
from results.shared.classes import classes_of, flagged_by_class, write_by_class
from tests.test_config import study_of

pytestmark = pytest.mark.filterwarnings("ignore::pyro_vaeflow.KhatWarning")
CONFIG = ExperimentConfig(dataset="breast_cancer", preprocessing="standard", num_steps=1)


def test_without_a_seed_of_its_own_the_split_follows_the_seed() -> None:
    follows = replace(CONFIG, split_seed=None, seed=3)
    fixed = replace(CONFIG, split_seed=3, seed=0)
    assert torch.equal(load_task(follows).x_test, load_task(fixed).x_test)
    assert not torch.equal(load_task(replace(follows, seed=4)).x_test, load_task(fixed).x_test)
    assert replace(follows, seed=4).digest == follows.digest


def test_a_study_runs_each_variant_on_each_data_set() -> None:
    study = study_of(
        """
        datasets: [ring, breast_cancer]
        num_steps: 1
        latent_dim: 3
        seeds: [0, 1]
        variants: [{flow: diagonal}, {flow: iaf, num_flows: 2, flow_options: {hidden_dim: 5}}]
        quick: {dataset: ring}
        """
    )
    assert [(c.dataset, c.flow, c.seed) for c in study.expand()] == [
        (dataset, flow, seed)
        for dataset in ("ring", "breast_cancer")
        for flow in ("diagonal", "iaf")
        for seed in (0, 1)
    ]
    assert {c.dataset for c in study.expand(quick=True)} == {"ring"}
    assert len(study.expand({"dataset": "arrhythmia"}, seeds=[0])) == 2
    (options,) = {repr(c.flow_options) for c in study.expand({"flow": "planar", "num_flows": 1})}
    assert options == "{}"  # another posterior leaves the options behind


@pytest.mark.parametrize(
    "text",
    [
        "{datasets: [ring], dataset: ring, num_steps: 1}",
        "{datasets: [ring], num_steps: 1, variants: [{dataset: ring}]}",
    ],
)
def test_data_sets_are_named_in_one_place(text: str) -> None:
    with pytest.raises(ConfigError, match="datasets names them already"):
        study_of(text)


def test_the_first_of_rows_alike_in_columns_and_kind_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train = pd.DataFrame({"a": [0.0, 1.0], "b": ["x", "y"]})
    test = pd.DataFrame({"a": [0.0, 0.0, 5.0, 5.0, 0.0], "b": ["x", "x", "x", "x", "y"]}, [3] * 5)
    labels = np.array(["in", "in", "out", "in", "other"], dtype=object)
    split = Split(train, test, np.array([0, 0, 1, 0, 1]), labels)
    assert first_of_each(split).tolist() == [True, False, True, True, True]
    monkeypatch.setitem(TASKS, "five", lambda seed: split)
    five = replace(CONFIG, dataset="five", preprocessing="codes", likelihood="normal")
    task = load_task(five)
    assert task.x_test.tolist() == [[0, 0], [0, 0], [-1, 0], [-1, 0], [0, 1]]
    assert task.is_first.tolist() == [True, False, True, True, True]
    metrics = run(five).metrics
    assert (metrics["num_distinct"], metrics["num_test"]) == (4, 5)


def test_distinct_rows_count_once_whatever_their_number() -> None:
    draw = np.random.default_rng(0)
    truth, score = np.repeat([0, 1], [40, 20]), draw.normal(size=60)
    copies = np.repeat(np.arange(60), draw.integers(1, 5, 60))
    first = np.concatenate([[True], copies[1:] != copies[:-1]])
    x = torch.zeros(len(copies), 1)
    task = Task(x, x, truth[copies], truth[copies].astype(str), first)
    measured = detection(task, {"s": score[copies]})
    assert measured["num_distinct"] == 60
    of_score = measured["scores"]["s"]
    assert of_score["auroc_distinct"] == pytest.approx(auroc(truth, score))
    ap = average_precision(truth, score)
    assert of_score["average_precision_distinct"] == pytest.approx(ap)
    assert of_score["auroc"] != pytest.approx(auroc(truth, score))
    assert classes_of(task, {"s": score[copies]}) == {}  # of two classes recall says all


def test_the_share_flagged_of_each_class_is_its_mean_over_seeds(tmp_path, monkeypatch) -> None:
    draw = np.random.default_rng(0)
    x = pd.DataFrame(draw.normal(size=(120, 3)))
    x.iloc[60:80] += 9.0
    labels = np.repeat(np.array(["web", "dos", "mail"], dtype=object), [60, 20, 40])
    test, names = pd.concat([x, x.iloc[:30]]), np.concatenate([labels, labels[:30]])
    split = Split(x.iloc[80:], test, (names == "dos").astype(int), names)
    monkeypatch.setitem(TASKS, "three", lambda seed: split)
    config = replace(CONFIG, dataset="three", likelihood="normal", num_steps=3, num_samples=3)
    run_all([config, replace(config, seed=1)], tmp_path, progress=False)
    write_tables(tmp_path)
    assert "AUROC, distinct rows" in (tmp_path / "table.md").read_text()
    assert write_by_class(tmp_path / "none").empty
    table = write_by_class(tmp_path)
    assert len(pd.read_csv(tmp_path / "by_class.csv")) == len(table)
    ours = table[table["score"] == "importance"].set_index("class")
    assert ours["rows"].to_dict() == {"dos": 20, "mail": 40, "web": 90}
    assert ours["is_anomaly"].to_dict() == {"dos": 1, "mail": 0, "web": 0}
    for _, shares in table.groupby("score"):  # as many are flagged as are anomalies
        assert (shares["rows"] * shares["flagged"]).sum() == pytest.approx(20)
    classes, found = ["dos", "web", "dos", "mail"], [0.9, 0.8, 0.3, 0.1]
    shares = flagged_by_class([1, 0, 1, 0], classes, found)
    assert shares == {"dos": 0.5, "mail": 0.0, "web": 1.0}
