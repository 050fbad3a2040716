"""What the importance score is made of, from the scores that finished runs keep."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from pyro_vaeflow.experiments.config import ExperimentConfig
from pyro_vaeflow.experiments.fanout import run_all
from pyro_vaeflow.experiments.results import finished_runs
from pyro_vaeflow.studies import score_study
from pyro_vaeflow.studies.score_study import parts
from pyro_vaeflow.validation import ConfigError

TINY = {
    "dataset": "ring", "preprocessing": "none", "likelihood": "normal", "latent_dim": 2,
    "encoder_dims": (8,), "decoder_dims": (8,), "dropout": 0.0, "num_samples": 5,
}  # fmt: skip


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ring")
    # Of two lengths of training: what tells runs of one posterior apart is a column.
    configs = [ExperimentConfig(**TINY, num_steps=n, seed=s) for n in (2, 4) for s in (1, 0)]
    peer = ExperimentConfig(dataset="ring", preprocessing="none", detector="knn1")
    run_all([*configs, peer], folder, progress=False)
    return folder


def test_each_run_has_a_row_with_the_scores_that_it_measured(out: Path) -> None:
    table = score_study.study(out)
    assert sorted(zip(table["num_steps"], table["seed"], strict=True)) == [
        (2, 0), (2, 1), (4, 0), (4, 1),
    ]  # fmt: skip
    runs = {(r.config.num_steps, r.config.seed): r for r in finished_runs(out)}
    for row in table.to_dict("records"):
        run = runs[row["num_steps"], row["seed"]]
        for score in ("reconstruction", "importance"):
            assert row[f"auroc_{score}"] == run.metrics["scores"][score]["auroc"]
        assert row["gain"] == row["auroc_importance"] - row["auroc_reconstruction"]
        found = parts(run)
        assert {name: row[name] for name in found} == found
    page = (out / "parts.md").read_text()
    assert f"python -m pyro_vaeflow.studies.score_study {out}" in page and "knn1" not in page
    assert page.count("| ring ") == 2


def test_the_parts_are_those_of_the_bound(out: Path, tmp_path: Path) -> None:
    """A KL term that finds all anomalies beside a reconstruction that ranks them upside down."""
    shutil.copytree(out, tmp_path / "copy")
    run = next(r for r in finished_runs(tmp_path / "copy") if not r.config.is_peer)
    is_anomaly = np.array([0, 0, 0, 1, 1])
    kl = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    for weight, expected in ((0.5, 1.0), (2.0, 0.0)):
        likelihood = weight * kl
        arrays = {"expected_log_likelihood": likelihood, "elbo": likelihood - kl}
        np.savez(run.folder / "scores.npz", is_anomaly=is_anomaly, **arrays)
        spreads = {"spread_reconstruction": weight, "spread_kl": 1.0}
        assert parts(run) == {"auroc_kl": 1.0, "auroc_bound": expected, **spreads}


def test_folders_without_runs_or_scores_are_refused(out: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no finished run of ours"):
        score_study.study(tmp_path)
    shutil.copytree(out, tmp_path / "copy")
    for path in (tmp_path / "copy").rglob("scores.npz"):
        path.unlink()
    with pytest.raises(ConfigError, match="has no scores.npz: remove the folder and run again"):
        score_study.study(tmp_path / "copy")


def test_the_command_writes_both_files(out: Path, tmp_path: Path, monkeypatch) -> None:
    shutil.copytree(out, tmp_path / "copy")
    monkeypatch.setattr("sys.argv", ["score_study", str(tmp_path / "copy")])
    score_study.main()
    assert (tmp_path / "copy/parts.csv").is_file() and (tmp_path / "copy/parts.md").is_file()
