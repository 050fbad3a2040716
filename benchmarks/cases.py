"""The programs that are measured: the five posteriors of the preset ``kdd-paper``."""

from typing import Any

import torch

from pyro_vaeflow import cyclical
from pyro_vaeflow.experiments.config import ExperimentConfig
from pyro_vaeflow.experiments.study import load_study
from pyro_vaeflow.programs.fitting import build
from pyro_vaeflow.programs.vae import Guide, Model

NUM_FEATURES = 115  # of KDD Cup 99, one-hot
# Not from 0, as in the preset: Pyro's `poutine.scale` refuses it.
BETA = cyclical(100, num_cycles=6, ratio=0.8, start=0.01, stop=1.15)


def cases() -> dict[str, ExperimentConfig]:
    """Name -> configuration at seed 0: diagonal, planar 5, planar 50, iaf 5, iaf 50."""
    configs = load_study("kdd-paper").expand(seeds=[0])
    return {f"{c.flow} {c.num_flows or ''}".strip(): c for c in configs}


def programs(config: ExperimentConfig) -> tuple[Model, Guide]:
    """The package's pair."""
    return build(config, NUM_FEATURES)


def sizes(config: ExperimentConfig) -> dict[str, Any]:
    """What the references are made from."""
    return {
        "num_features": NUM_FEATURES,
        "latent_dim": config.latent_dim,
        "encoder_dims": config.encoder_dims,
        "decoder_dims": config.decoder_dims,
        "dropout": config.dropout,
        "flow": config.flow,
        "num_flows": config.num_flows,
        "made_dim": config.flow_options.get("hidden_dim", 24),
    }


def rows(num_data: int, seed: int = 0) -> torch.Tensor:
    """Rows in [0, 1], none like another: what is timed does not depend on the values."""
    return torch.rand(num_data, NUM_FEATURES, generator=torch.Generator().manual_seed(seed))
