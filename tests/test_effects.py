"""Effects of flows: paired within cells, intervals that cover, a page whose words follow them."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pytest import approx

from pyro_vaeflow.experiments.effects import FEWEST, Effect, effect, effects, paired
from pyro_vaeflow.studies.flow_figures import FACTORIAL, complete, study_figures
from pyro_vaeflow.studies.flow_study import (
    answer,
    findings,
    iaf_helps,
    planar_is_limited,
    write_page,
)
from pyro_vaeflow.studies.flow_why import LIKELIHOOD, choices, moves
from pyro_vaeflow.studies.flow_words import wrapped
from pyro_vaeflow.studies.margins import margin, margins

SETS = ["kddcup99", "ring", "adbench:cardio", "adbench:letter", "adbench:campaign"]


def summary(gains: dict[str, float], seeds: int = 3, noise: float = 0.01) -> pd.DataFrame:
    """A study's table in which a flow has `gains` over the base, whatever the cell's own level."""
    draw = np.random.default_rng(0)
    rows = []
    for dataset in SETS:
        for seed in range(seeds):
            for latent_dim in (2, 8, 32):
                level = draw.normal(scale=5.0)
                for model, depth in [("diagonal", 0), *FACTORIAL]:
                    row = {"dataset": dataset, "seed": seed, "latent_dim": latent_dim}
                    row |= {"flow": model, "num_flows": depth, "kl": 3.0, "active_units": 2}
                    measures = [f"{m}_{s}" for m in ("auroc", "average_precision", "f1_top20",
                        "f1_true_ratio") for s in ("reconstruction", "importance")]  # fmt: skip
                    row |= {name: 0.9 + draw.normal(scale=noise) for name in measures}
                    for name in ("elbo", "log_evidence", "approximation_gap", "amortization_gap"):
                        row[name] = level + draw.normal(scale=noise)
                        row[name] += gains.get(name, 0.0) * (model != "diagonal")
                        row[name] += gains.get(f"{name} of {model} at {latent_dim}", 0.0)
                    row |= {"gap_khat_above_0.7": 0.1, "train_seconds": 1.0, "score_seconds": 1.0}
                    rows.append(row)
    return pd.DataFrame(rows)


def rows_of(table: pd.DataFrame) -> pd.DataFrame:
    """Margins of the table's flows: 40 nats between the classes, less than one added."""
    rows = table.loc[table["flow"] != "diagonal", ["dataset", "seed", "latent_dim", "flow"]]
    rows = rows.assign(num_flows=table["num_flows"], preprocessing="mixed", likelihood="mixed")
    nats = {"margin": 40.0, "slack_inliers": 0.2, "slack_outliers": 1.0, "gain_inliers": 0.5}
    nats |= {"gain_outliers": 0.1, "rank_correlation": 0.95}
    rows = rows.assign(**{"annealing.kind": "constant"}, **nats)
    noise = np.random.default_rng(0).normal(scale=1e-3, size=len(rows))
    return rows.assign(gain_inliers=0.5 + noise - noise.mean())


def test_a_pair_shares_all_but_the_posterior() -> None:
    table = summary({"elbo": 0.5}, noise=0.0)
    differences = paired(table)
    assert len(differences) == len(SETS) * 3 * 3 * len(FACTORIAL)
    np.testing.assert_allclose(differences["elbo"], 0.5)  # the cells' levels are gone
    alone = table[(table["flow"] != "diagonal") | (table["seed"] == 0)]
    assert set(paired(alone)["seed"]) == {0}
    sizes = paired(table, {"latent_dim": 2}, ("latent_dim",))
    assert set(sizes["latent_dim"]) == {8, 32} and len(sizes) == 2 / 3 * len(table)
    schedules = [table.assign(**{"annealing.kind": kind}) for kind in ("constant", "cyclical")]
    both = pd.concat(schedules, ignore_index=True)
    both.loc[both["annealing.kind"] == "cyclical", "elbo"] += 100.0
    np.testing.assert_allclose(paired(both)["elbo"], 0.5)


def test_an_interval_covers_the_mean_that_data_sets_scatter_around() -> None:
    draw = np.random.default_rng(1)
    covered = []
    for trial in range(100):
        of_set = draw.normal(0.3, 1.0, size=12)
        rows = pd.DataFrame(
            [
                {"dataset": place, "seed": seed, "elbo": mean + draw.normal(scale=0.2)}
                for place, mean in enumerate(of_set)
                for seed in range(3)
            ]
        )
        found = effect(rows, "elbo", seed=trial)
        covered.append(found.low <= 0.3 <= found.high)
    assert 0.82 <= np.mean(covered) <= 0.99  # 0.95 less what percentiles of 12 fall short


def test_a_mean_weighs_data_sets_alike_and_few_have_no_interval() -> None:
    rows = pd.DataFrame({"dataset": ["a"] * 3 + ["b"], "seed": [0, 0, 0, 0], "elbo": [1, 1, 1, 5]})
    found = effect(rows, "elbo")
    assert found.mean == 3.0 and np.isnan(found.low) and found.sign == 0
    many = pd.DataFrame({"dataset": "a", "seed": range(FEWEST), "elbo": 1.0})
    assert effect(many, "elbo") == Effect(1.0, 1.0, 1.0)
    assert np.isnan(effect(rows.assign(elbo=np.nan), "elbo").mean)


@pytest.mark.parametrize(("gain", "verb"), [(0.5, "raises"), (-0.5, "lowers"), (0.0, "does not")])
def test_the_words_follow_the_numbers(gain: float, verb: str) -> None:
    table = summary({"elbo": gain}, noise=0.02)
    said = findings(table, rows_of(table))["answer"]
    assert said.startswith(f"A more flexible posterior {verb}")
    number = re.search(r"the test bound, by ([+-]\d\.\d\d)", said)
    assert float(number[1]) == pytest.approx(gain, abs=0.015)


def test_the_answer_says_what_the_likelihood_does_where_both_have_run() -> None:
    table = summary({}, noise=0.0)
    other = table.assign(preprocessing="minmax", likelihood="bernoulli")
    other["auroc_importance"] -= 0.1
    mixed = table.assign(preprocessing="mixed", likelihood="mixed")
    both = pd.concat([mixed, other], ignore_index=True)
    of_both = choices(both)[LIKELIHOOD]
    base, flows = (table[(table["flow"] == "diagonal") == is_base] for is_base in (True, False))
    said = answer(paired(table), base, flows, of_both)
    assert "Bernoulli moves the former by +10.00" in said
    assert "Bernoulli" not in answer(paired(table), base, flows, None)


@pytest.mark.parametrize(("at_32", "verdict"), [(0.4, "Supported"), (-0.4, "Contradicted"),
                                                (0.0, "Not shown")])  # fmt: skip
def test_planar_is_limited_if_its_gap_grows_more_than_that_of_iaf(at_32, verdict) -> None:
    table = summary({"approximation_gap of planar at 32": at_32}, noise=0.05)
    assert verdict in planar_is_limited(table)


def test_iaf_helps_where_a_size_says_so() -> None:
    table = summary({"elbo of iaf at 32": 0.4}, noise=0.001)
    said = iaf_helps(paired(table))
    bound = re.search("the bound of (.*?) latents", said)
    assert {"IAF 5 at 32", "IAF 20 at 32"} <= set(bound[1].split(", ")) and "Supported" in said
    nothing = summary({"elbo": -1.0, "log_evidence": -1.0}, noise=0.0)
    assert "Not shown" in iaf_helps(paired(nothing))


def test_only_cells_with_all_flows_are_compared() -> None:
    table = summary({})
    gone = table[~((table["flow"] == "iaf") & (table["num_flows"] == 20) & (table["seed"] == 1))]
    assert set(complete(paired(gone))["seed"]) == {0, 2}


def test_the_page_is_written_from_the_csv_alone(tmp_path: Path) -> None:
    table = summary({"elbo": 0.5})
    table.to_csv(tmp_path / "summary.csv", index=False)
    rows_of(table).to_csv(tmp_path / "margins.csv", index=False)
    page = write_page(tmp_path).read_text()
    assert "{" not in page and "nan" not in page
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == {
        *study_figures(table, rows_of(table))
    }
    assert "by 1.0% of what already lies between them" in page  # 0.4 of 40 nats
    for name in ("Threats", "hypotheses", "of the 429 runs", "figures/effects.png"):
        assert name in page
    kept = pd.read_csv(tmp_path / "effects.csv")
    again = effects(complete(paired(summary({"elbo": 0.5}))), ["flow", "num_flows"], ["elbo"])
    np.testing.assert_allclose(kept["elbo"], again["elbo"], rtol=1e-4)


def test_paragraphs_are_wrapped_and_tables_are_not() -> None:
    text = wrapped("word " * 50 + "\n\n| " + "cell | " * 50 + "\n\n# Title")
    lines = text.splitlines()
    assert max(map(len, lines[:3])) <= 100 and max(map(len, lines)) > 300


def test_margins_are_of_the_flow_beside_the_base_of_its_cell(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    base = {"is_anomaly": np.repeat([0, 1], [80, 20]), "log_evidence": draw.normal(size=100)}
    base["elbo"] = base["log_evidence"] - np.repeat([0.5, 2.0], [80, 20])
    flow = {**base, "log_evidence": base["log_evidence"] + np.repeat([3.0, 1.0], [80, 20])}
    found = margin(base, flow)
    assert [found[name] for name in ("slack_inliers", "slack_outliers")] == approx([0.5, 2.0])
    assert [found[name] for name in ("gain_inliers", "gain_outliers")] == approx([3.0, 1.0])
    widened = margin(flow, flow)["margin"] - found["margin"]
    assert widened == approx(2.0) and margin(flow, flow)["rank_correlation"] == approx(1.0)
    assert margins(tmp_path).empty


def test_what_moves_detection_is_told_apart() -> None:
    table = summary({}, noise=0.0)
    table["auroc_importance"] += 0.02 * (table["latent_dim"] == 8)
    found = moves(choices(table)).set_index("choice")["by importance"]
    assert found["8 latents for 2"].startswith("+2.00")
    assert found["32 latents for 8"].startswith("-2.00")
    assert found["a flow for the diagonal"].startswith("+0.00")
