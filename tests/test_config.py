"""Configurations: what they refuse, and that a file holds all of them; studies made of them."""

import re
from collections.abc import Mapping
from dataclasses import fields, replace
from itertools import product

import pytest

from pyro_vaeflow.experiments.config import ExperimentConfig, GapSettings, read_mapping
from pyro_vaeflow.experiments.study import Study, load_study, merge, preset_names
from pyro_vaeflow.programs.settings import AnnealingConfig
from pyro_vaeflow.validation import ConfigError

CONFIG = ExperimentConfig(num_steps=10)
OTHER = {
    "study": "b", "dataset": "kddcup99", "split_seed": 1, "max_rows": 5, "preprocessing": "none",
    "likelihood": "normal", "likelihood_options": {"min_scale": 0.1}, "flow": "iaf",
    "num_flows": 3, "conditioned": False, "flow_options": {"stable": True}, "latent_dim": 2,
    "encoder_dims": (8,), "decoder_dims": (8,), "dropout": 0.2, "num_steps": 11,
    "num_epochs": 2.5, "batch_size": 7, "learning_rate": 0.1, "learning_rate_schedule": "linear",
    "learning_rate_stop": 0.01, "annealing": AnnealingConfig(kind="capacity", gamma=3.0),
    "clip_norm": 1.0, "num_samples": 9, "map_size": 4, "seed": 1,
    "activation": "silu", "held_out_rows": 3, "input_dropout": 0.1, "count_power": 0.5,
    "learning_rate_warmup": 0.2, "validation_share": 0.1, "prior": "exemplar",
    "start_scale": 0.1, "label": "fraud", "gaps": GapSettings(rows=4),
    "detector": "knn1", "detector_options": {"epoch_num": 2},
}  # fmt: skip
# What a setting needs beside it to mean anything.
NEEDS: Mapping[str, dict] = {
    "num_epochs": {"num_steps": None},
    "detector_options": {"detector": "pyod_vae"},
    "learning_rate_stop": {"learning_rate_schedule": "linear"},
}


def study_of(text: str) -> Study:
    return Study.from_dict(read_mapping(text, "study 'study'"))


def changed(name: str) -> ExperimentConfig:
    return replace(CONFIG, **{name: OTHER[name]}, **NEEDS.get(name, {}))


NAMES = [entry.name for entry in fields(ExperimentConfig)]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "programs"])
def test_every_setting_survives_its_file_and_counts_in_the_digest(name: str) -> None:
    config = changed(name)
    assert config != CONFIG
    assert ExperimentConfig.from_yaml(config.to_yaml()) == config
    assert (config.digest == CONFIG.digest) is (name in ("seed", "study"))
    assert (config.run_name == CONFIG.run_name) is (name == "study")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"latent_dims": 3}, "unknown key 'latent_dims', did you mean 'latent_dim'? allowed:"),
        ({"latent_dim": 0}, "latent_dim: expected at least 1, got 0"),
        ({"latent_dim": 2.5}, "latent_dim: expected int, got 2.5"),
        ({"latent_dim": True}, "latent_dim: expected int, got True"),
        ({"conditioned": 1}, "conditioned: expected bool, got 1"),
        ({"encoder_dims": [8, 0]}, "encoder_dims: expected at least 1, got 0"),
        ({"encoder_dims": []}, "encoder_dims: expected at least one"),
        ({"encoder_dims": 8}, "encoder_dims: expected tuple"),
        ({"dropout": 1.0}, "dropout: expected at least 0 and less than 1, got 1.0"),
        ({"learning_rate": "fast"}, "learning_rate: expected float, got 'fast'"),
        ({"learning_rate": float("nan")}, "learning_rate: expected more than 0, got nan"),
        ({"learning_rate": float("inf")}, "learning_rate: expected"),
        ({"num_flows": 101}, "num_flows: expected at least 0 and at most 100, got 101"),
        ({"seed": None}, "seed: expected int, got None"),
        ({"seed": -1}, "seed: expected at least 0, got -1"),
        ({"annealing": {"kind": "sine"}}, "expected one of constant, linear, cyclical, capacity"),
        ({"annealing": {"cycles": 3}}, "did you mean 'num_cycles'?"),
        (
            {"learning_rate_schedule": "constant", "learning_rate_stop": 1e-5},
            "learning_rate_stop: learning_rate_schedule=constant ignores it; leave it out, got",
        ),
        ({"annealing": {"start": 0.5}}, "annealing: start: kind=constant ignores it"),
        ({"annealing": {"ratio": 0.3}}, "annealing: ratio: kind=constant ignores it"),
        ({"annealing": {"kind": "linear", "gamma": 3}}, "gamma: kind=linear ignores it"),
        ({"annealing": {"kind": "linear", "num_cycles": 3}}, "num_cycles: kind=linear ignores it"),
        ({"annealing": {"kind": "capacity", "num_cycles": 3}}, "num_cycles: kind=capacity"),
        ({"annealing": {"kind": "cyclical", "gamma": 3}}, "gamma: kind=cyclical"),
        ({"num_epochs": 2}, "give one of num_steps and num_epochs"),
        ({"num_steps": None}, "give one of num_steps and num_epochs"),
    ],
)
def test_a_wrong_key_or_value_is_refused_with_what_is_allowed(values: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        ExperimentConfig.from_dict({"num_steps": 10} | values)


def test_what_a_file_says_is_what_counts() -> None:
    """Numbers that YAML reads as text, seed 0, the last rate, options as they were at first."""
    text, options = "{num_steps: 10, learning_rate: 5e-4}", {"hidden_dim": 8}
    assert ExperimentConfig.from_yaml(text).learning_rate == 5e-4
    assert "seed: 0\n" in CONFIG.to_yaml()
    assert study_of("{num_steps: 1, seed: 0, seeds: [0, 3]}").expand()[0].seed == 0
    config = changed("learning_rate_stop")
    assert replace(config, learning_rate_stop=0.02).digest != config.digest
    config = replace(CONFIG, flow_options=options)
    options["hidden_dim"] = 9
    assert config.flow_options == {"hidden_dim": 8}


@pytest.mark.parametrize("name", preset_names())
def test_presets_are_complete(name: str) -> None:
    study = load_study(name)
    assert study.name == name
    assert study.description
    assert study.quick
    size = len(study.variants) * len(study.seeds) * max(1, len(study.datasets))
    assert len({config.run_name for config in study.expand()}) == size


def test_kdd_paper_is_the_published_protocol() -> None:
    configs = load_study("kdd-paper").expand()
    models = [("diagonal", 0), ("planar", 5), ("planar", 50), ("iaf", 5), ("iaf", 50)]
    assert [(c.flow, c.num_flows, c.seed) for c in configs] == [
        (*model, seed) for model in models for seed in range(5)
    ]
    for c in configs:
        assert (c.split_seed, c.batch_size, c.learning_rate) == (42, 1000, 5e-4)
        assert (c.encoder_dims, c.decoder_dims) == ((128, 64), (64, 128))
        assert (c.latent_dim, c.dropout, c.num_samples) == (12, 0.2, 100)
        assert (c.annealing.kind, c.annealing.num_cycles, c.annealing.ratio) == ("cyclical", 6, 0.8)


def test_kdd_width_is_kdd_paper_but_for_the_layers_and_the_rows_that_choose_them() -> None:
    studies = load_study("kdd-paper"), load_study("kdd-width")
    paper = next(c for c in studies[0].expand() if (c.flow, c.num_flows) == ("iaf", 5))
    for config in studies[1].expand(seeds=[0]):
        kept = ("flow_options", "num_flows", "held_out_rows")
        alike = {name: getattr(paper, name) for name in kept}
        assert replace(config, study=paper.study, **alike) == paper


def test_later_settings_win_from_shared_to_variant_to_quick_to_override() -> None:
    study = study_of(
        """
        num_steps: 1
        batch_size: 1
        latent_dim: 1
        num_samples: 2
        variants: [{batch_size: 2, latent_dim: 2, num_samples: 3}]
        quick: {latent_dim: 3, num_samples: 4}
        """
    )
    (config,) = study.expand({"num_samples": 5}, seeds=[7], quick=True)
    settings = config.num_steps, config.batch_size, config.latent_dim, config.num_samples
    assert (*settings, config.seed) == (1, 2, 3, 5, 7)


def test_an_override_of_the_budget_or_the_posterior_leaves_no_contradiction() -> None:
    assert merge({"num_epochs": 5}, {"num_steps": 3}) == {"num_steps": 3}
    base = {"flow": "iaf", "flow_options": {"stable": True}}
    assert merge(base, {"flow": "spline"}) == {"flow": "spline"}
    assert merge(base, {"flow_options": {"hidden_dim": 8}})["flow_options"] == {
        "stable": True,
        "hidden_dim": 8,
    }
    head = {"likelihood": "normal", "likelihood_options": {"min_scale": 0.1}}
    assert merge(head, {"likelihood": "bernoulli"}) == {"likelihood": "bernoulli"}
    assert merge(head, {"likelihood": "normal"}) == head


@pytest.mark.parametrize("name", preset_names())
def test_an_override_of_a_schedule_drops_what_the_new_one_ignores(name) -> None:
    study, kinds = load_study(name), ("constant", "linear", "cyclical", "capacity")
    for rate, kind in product(("constant", "linear", "cosine"), kinds):
        change = {"learning_rate_schedule": rate, "annealing": {"kind": kind}}
        for config in study.expand(change, seeds=[0]):
            assert (config.learning_rate_schedule, config.annealing.kind) == (rate, kind)


def test_variants_that_an_override_makes_alike_run_once() -> None:
    study = study_of("{num_steps: 1, variants: [{flow: diagonal}, {flow: iaf, num_flows: 2}]}")
    assert len(study.expand({"flow": "planar", "num_flows": 3})) == 1


def test_a_runs_config_is_a_study() -> None:
    config = replace(changed("annealing"), seed=3)
    assert study_of(config.to_yaml()).expand() == [config]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{num_steps: 1, variant: []}", "did you mean 'variants'?"),
        ("{num_steps: 1, variants: [{latent: 3}]}", "did you mean 'latent_dim'?"),
        ("{num_steps: 1, variants: {flow: iaf}}", "a list of mappings"),
        ("{num_steps: 1, variants: [iaf]}", "variants: expected a mapping of settings, got 'iaf'"),
        ("{num_steps: 1, quick: 3}", "quick: expected a mapping of settings, got 3"),
        ("{num_steps: 1, variants: []}", "at least one, got []"),
        ("{num_steps: 1, seeds: []}", "seeds: expected at least one value"),
        ("{num_steps: 1, seeds: [a]}", "seeds: expected int, got 'a'"),
        ("{num_steps: 1, quick: {num_steps: 0}}", "num_steps: expected at least 1"),
        ("{num_steps: 1, annealing: 3}", "annealing: expected"),
        ("- a", "study 'study' must be a mapping of keys to values"),
        ("{", "is not YAML"),
        ("", "must be a mapping of keys to values"),
    ],
)
def test_a_wrong_study_file_is_refused_with_what_is_allowed(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        study_of(text)


def test_files_of_version_0_1_are_read() -> None:
    old = {"model": "iaf", "num_flows": 5, "flow_options": {"hidden_dim": 8}, "num_steps": 1}
    config = ExperimentConfig.from_dict(old)
    assert config.flow == "iaf"
    assert config.flow_options == {"hidden_dim": 8, "stable": False}  # the layers had no gate
    with pytest.raises(ConfigError, match="unknown key 'model'"):
        ExperimentConfig.from_dict(old | {"flow": "iaf"})
    for part in (
        "variants: [{model: planar, num_flows: 2}]",
        "quick: {model: planar, num_flows: 2}",
        "crossed: [[[{model: planar}], [{num_flows: 2}]]]",
        "{model: planar, num_flows: 2}",
    ):
        text = part if part[0] == "{" else f"num_steps: 1\n{part}"
        text = text.replace(
            "{model: planar, num_flows: 2}", "{model: planar, num_flows: 2, num_steps: 1}"
        )
        (config,) = study_of(text).expand(quick="quick" in text)
        assert (config.flow, config.num_flows) == ("planar", 2)
