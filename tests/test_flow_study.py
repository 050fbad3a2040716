"""The study of flow posteriors: its design, gaps measured in runs, a row a run, effects."""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pyro_vaeflow.cli import main
from pyro_vaeflow.experiments.config import ExperimentConfig, GapSettings
from pyro_vaeflow.experiments.experiment import run
from pyro_vaeflow.experiments.measured_gaps import held_out_rows
from pyro_vaeflow.experiments.study import combinations, load_study, parse_study
from pyro_vaeflow.experiments.tables import by_run, by_score, read_summary
from pyro_vaeflow.experiments.tasks import load_task
from pyro_vaeflow.inference.inference_gap import inference_gap
from pyro_vaeflow.programs.vae import Guide, Model
from pyro_vaeflow.validation import ConfigError

RING = ExperimentConfig(
    dataset="ring", preprocessing="none", likelihood="normal", latent_dim=2, encoder_dims=(16,),
    decoder_dims=(16,), dropout=0.0, num_steps=60, num_samples=20, max_rows=300,
    gaps=GapSettings(rows=12, num_steps=3, draws_per_step=4, num_samples=50),
)  # fmt: skip

# Of the configurations that finished runs are named by, from before runs could measure gaps: a
# hash of each preset's digests in order, and how many there are.
DIGESTS = {
    "adbench": (57, "f0c3dff3"),
    "kdd": (5, "b1d11e54"),
    "kdd-paper": (5, "d85551f8"),
    "kdd-width": (6, "d901a9d0"),
    "quickstart": (6, "094792a2"),  # the layers of its iaf have a gate now
    "ring": (3, "a0499079"),  # and of this one
}


@pytest.mark.parametrize("name", sorted(DIGESTS))
def test_finished_runs_keep_their_names(name: str) -> None:
    digests = sorted({config.digest for config in load_study(name).expand()})
    found = hashlib.sha256(" ".join(digests).encode()).hexdigest()[:8]
    assert (len(digests), found) == DIGESTS[name]


def test_settings_that_measure_no_gaps_are_not_in_the_file() -> None:
    without = ExperimentConfig(num_steps=3)
    assert "gaps" not in without.to_dict()
    assert ExperimentConfig.from_yaml(without.to_yaml()) == without
    assert ExperimentConfig.from_yaml(RING.to_yaml()) == RING
    with pytest.raises(ConfigError, match="num_steps: rows=0 ignores it"):
        GapSettings(num_steps=3)
    with pytest.raises(ConfigError, match="expected 0, or at least 2"):
        GapSettings(rows=1)


def test_a_run_measures_its_gaps_on_its_own_test_rows() -> None:
    gaps = run(RING).metrics["gaps"]
    assert gaps["rows"] == 12
    parts = gaps["elbo"] + gaps["amortization_gap"] + gaps["approximation_gap"]
    assert parts == pytest.approx(gaps["log_evidence"], abs=1e-5)
    assert gaps["log_evidence_stderr"] > 0 and gaps["active_units"] in (0, 1, 2)
    task = load_task(RING)
    x = held_out_rows(RING, task, 12)
    inliers = task.x_test[torch.as_tensor(task.is_anomaly == 0)]
    assert len(x.unique(dim=0)) == 12 and all((inliers == row).all(1).any() for row in x)


def test_a_fixed_encoder_leaves_the_family_as_it_is() -> None:
    torch.manual_seed(0)
    model, guide = (
        Model(3, latent_dim=2, hidden_dims=(8,)),
        Guide(3, latent_dim=2, hidden_dims=(8,)),
    )
    x = torch.rand(4, 3)
    options = {"num_samples": 500, "num_steps": 150, "learning_rate": 0.1}
    free = inference_gap(model, guide, x, **options)
    guide.encoder.requires_grad_(False)
    fixed = inference_gap(model, guide, x, **options)
    torch.testing.assert_close(fixed.local_elbo, free.local_elbo, atol=0.02, rtol=0.0)
    assert (free.amortization_gap > 0.05).any()  # untrained: there is a way to go


def test_every_combination_of_a_block_is_a_variant() -> None:
    study = parse_study(
        """
        num_steps: 5
        seeds: [0, 1]
        seeds_first: true
        crossed:
          - - [{latent_dim: 2}, {latent_dim: 4}]
            - [{flow: diagonal}, {flow: planar, num_flows: 3}]
          - [[{latent_dim: 8}]]
        """
    )
    found = [(c.seed, c.latent_dim, c.flow) for c in study.expand()]
    once = [(2, "diagonal"), (2, "planar"), (4, "diagonal"), (4, "planar"), (8, "diagonal")]
    assert found == [(seed, *cell) for seed in (0, 1) for cell in once]


@pytest.mark.parametrize("blocks", [3, [[]], [[{}]], [[[{"seed": 1}], [1]]], [[[]]], "ring"])
def test_a_design_that_is_none_is_refused(blocks) -> None:
    if blocks == [[]]:
        assert combinations(blocks) == [{}]  # the empty product
        return
    with pytest.raises(ConfigError, match="crossed: expected blocks of axes"):
        combinations(blocks)


def test_the_design_is_balanced() -> None:
    study = load_study("flow-study")
    configs = study.expand()
    per_seed = len(configs) // len(study.seeds)
    first = configs[:per_seed]
    assert {c.seed for c in first} == {0}
    later = [c.digest for c in configs[per_seed:]]
    assert later == [c.digest for c in first] * (len(study.seeds) - 1)
    posteriors = [("diagonal", 0), ("planar", 5), ("planar", 20), ("iaf", 5), ("iaf", 20)]
    cells = {(c.dataset, c.latent_dim, c.flow, c.num_flows) for c in first}
    for dataset in {c.dataset for c in first}:
        assert all((dataset, d, *p) in cells for d in (2, 8, 32) for p in posteriors)
    # every cell with a flow has a diagonal to be compared with, alike in all else
    apart = ("flow", "num_flows", "flow_options", "gaps")
    of_base = {key(c, apart) for c in first if c.flow == "diagonal"}
    assert all(key(c, apart) in of_base for c in first)


def key(config: ExperimentConfig, apart: tuple[str, ...]) -> str:
    return repr({k: v for k, v in config.to_dict().items() if k not in apart})


def test_the_study_runs_on_its_small_budget_with_a_row_a_run(tmp_path: Path, capsys) -> None:
    few = "--dataset ring --preprocessing none --likelihood normal --count_power 1 --latent_dim 2"
    few += (
        " --learning_rate 0.01 --annealing.kind constant --annealing.stop 1 --gaps.rows 4 --seeds 0"
    )
    assert main(f"run flow-study --quick {few} --out {tmp_path}".split()) == 0
    table = pd.read_csv(tmp_path / "summary.csv")
    assert not (tmp_path / "benchmark.md").exists()
    posteriors = [("diagonal", 0), *((m, d) for m in ("planar", "iaf") for d in (5, 20, 50))]
    found = set(zip(table["flow"], table["num_flows"], strict=True))
    assert found == {*posteriors, ("spline", 2)} and len(table) == len(found)
    wanted = [f"{m}_{s}" for m in ("f1_top20", "f1_true_ratio", "auroc", "average_precision")
              for s in ("reconstruction", "importance")]  # fmt: skip
    wanted += ["elbo", "log_evidence", "log_evidence_stderr", "approximation_gap", "kl"]
    wanted += ["amortization_gap", "active_units", "share_khat_above_0.7", "train_seconds"]
    assert not table[wanted].isna().any(axis=None)
    capsys.readouterr()
    assert main(["table", str(tmp_path), "--format", "csv"]) == 0
    assert "reconstruction" in capsys.readouterr().out


def test_a_row_a_run_and_a_row_a_score_say_the_same(tmp_path: Path) -> None:
    scores = ["reconstruction", "importance"]
    long = pd.DataFrame(
        {
            "dataset": np.repeat(["ring", "kddcup99"], 4),
            "flow": "iaf", "num_flows": 5,
            "seed": [0, 0, 1, 1] * 2,
            "score": scores * 4,
            "auroc": np.linspace(0.1, 0.8, 8),
            "latent_dim": np.repeat([2.0, np.nan], 4),
            "auroc_distinct": np.linspace(0.2, 0.9, 8),
            "approximation_gap": np.repeat([0.1, 0.2, 0.3, 0.4], 2),
        }
    )  # fmt: skip
    wide = by_run(long)
    assert len(wide) == 4 and wide["auroc_importance"].tolist() == long["auroc"].tolist()[1::2]
    columns = list(long)
    pd.testing.assert_frame_equal(by_score(wide)[columns], long)
    pd.testing.assert_frame_equal(by_score(long), long)
    wide.to_csv(tmp_path / "summary.csv", index=False)
    pd.testing.assert_frame_equal(read_summary(tmp_path)[columns], long)
