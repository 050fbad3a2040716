"""The programs that are measured: the five posteriors of the preset ``kdd-paper``."""

import torch

from pyro_vaeflow.experiments.config import ExperimentConfig
from pyro_vaeflow.experiments.results import method_name
from pyro_vaeflow.experiments.study import load_study
from pyro_vaeflow.programs.fitting import build
from pyro_vaeflow.programs.vae import Guide, Model

NUM_FEATURES = 115  # of KDD Cup 99, one-hot


def cases() -> dict[str, ExperimentConfig]:
    """Name -> configuration at seed 0: base, planar 5, planar 50, IAF 5, IAF 50."""
    configs = load_study("kdd-paper").expand(seeds=[0])
    return {method_name(config.flow, config.num_flows): config for config in configs}


def programs(config: ExperimentConfig) -> tuple[Model, Guide]:
    return build(config, NUM_FEATURES)


def rows(num_data: int, seed: int = 0) -> torch.Tensor:
    """Rows in [0, 1], none like another: what is timed does not depend on the values."""
    return torch.rand(num_data, NUM_FEATURES, generator=torch.Generator().manual_seed(seed))
