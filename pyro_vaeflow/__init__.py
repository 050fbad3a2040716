"""Amortised variational inference with flow posteriors, in Pyro, for finding anomalies in tables.

Names are imported when first used, so that ``vaeflow --help`` need not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyro_vaeflow.datasets.kddcup99 import load_kddcup99 as load_kddcup99
    from pyro_vaeflow.datasets.ring import make_ring as make_ring
    from pyro_vaeflow.detector.estimator import VAEFlowDetector as VAEFlowDetector
    from pyro_vaeflow.experiments.fanout import run_all as run_all
    from pyro_vaeflow.experiments.results import read_summary as read_summary
    from pyro_vaeflow.experiments.study import Study as Study
    from pyro_vaeflow.experiments.study import load_study as load_study
    from pyro_vaeflow.inference.active_units import active_units as active_units
    from pyro_vaeflow.inference.annealing import CapacityELBO as CapacityELBO
    from pyro_vaeflow.inference.annealing import anneal as anneal
    from pyro_vaeflow.inference.annealing import constant as constant
    from pyro_vaeflow.inference.annealing import cosine as cosine
    from pyro_vaeflow.inference.annealing import cyclical as cyclical
    from pyro_vaeflow.inference.annealing import linear as linear
    from pyro_vaeflow.inference.annealing import warmup as warmup
    from pyro_vaeflow.inference.calibration import (
        simulation_based_calibration as simulation_based_calibration,
    )
    from pyro_vaeflow.inference.callbacks import BestOnHeldOut as BestOnHeldOut
    from pyro_vaeflow.inference.callbacks import Callback as Callback
    from pyro_vaeflow.inference.callbacks import InterruptedWarning as InterruptedWarning
    from pyro_vaeflow.inference.checkpoint import Checkpoint as Checkpoint
    from pyro_vaeflow.inference.contributions import contributions as contributions
    from pyro_vaeflow.inference.cooldown import Cooldown as Cooldown
    from pyro_vaeflow.inference.data_tree import to_arviz as to_arviz
    from pyro_vaeflow.inference.draws import log_weights as log_weights
    from pyro_vaeflow.inference.evidence_bounds import evidence_bounds as evidence_bounds
    from pyro_vaeflow.inference.inference_gap import inference_gap as inference_gap
    from pyro_vaeflow.inference.parameters import param_scope as param_scope
    from pyro_vaeflow.inference.posteriors import plot_posteriors as plot_posteriors
    from pyro_vaeflow.inference.saved_folder import CheckpointError as CheckpointError
    from pyro_vaeflow.inference.scoring import KhatWarning as KhatWarning
    from pyro_vaeflow.inference.scoring import NoScoreWarning as NoScoreWarning
    from pyro_vaeflow.inference.scoring import Scores as Scores
    from pyro_vaeflow.inference.scoring import score as score
    from pyro_vaeflow.inference.training import History as History
    from pyro_vaeflow.inference.training import NonFiniteError as NonFiniteError
    from pyro_vaeflow.inference.training import train as train
    from pyro_vaeflow.programs.flows import FLOWS as FLOWS
    from pyro_vaeflow.programs.likelihoods import LIKELIHOODS as LIKELIHOODS
    from pyro_vaeflow.programs.priors import ExemplarPrior as ExemplarPrior
    from pyro_vaeflow.programs.vae import Guide as Guide
    from pyro_vaeflow.programs.vae import Model as Model
    from pyro_vaeflow.tables.columns import Column as Column
    from pyro_vaeflow.tables.mixed_encoder import MixedEncoder as MixedEncoder

__version__ = "0.2.0"

_HOME = {
    name: module
    for module, names in {
        "inference.annealing": "CapacityELBO anneal constant cosine cyclical linear warmup",
        "inference.callbacks": "BestOnHeldOut Callback InterruptedWarning",
        "inference.contributions": "contributions",
        "inference.calibration": "simulation_based_calibration",
        "tables.columns": "Column",
        "datasets.kddcup99": "load_kddcup99",
        "datasets.ring": "make_ring",
        "detector.estimator": "VAEFlowDetector",
        "experiments.fanout": "run_all",
        "experiments.results": "read_summary",
        "experiments.study": "Study load_study",
        "inference.inference_gap": "inference_gap",
        "inference.cooldown": "Cooldown",
        "inference.data_tree": "to_arviz",
        "inference.draws": "log_weights",
        "inference.evidence_bounds": "evidence_bounds",
        "programs.flows": "FLOWS",
        "inference.parameters": "param_scope",
        "inference.posteriors": "plot_posteriors",
        "inference.active_units": "active_units",
        "programs.likelihoods": "LIKELIHOODS",
        "tables.mixed_encoder": "MixedEncoder",
        "programs.priors": "ExemplarPrior",
        "programs.vae": "Guide Model",
        "inference.checkpoint": "Checkpoint",
        "inference.scoring": "KhatWarning NoScoreWarning Scores score",
        "inference.saved_folder": "CheckpointError",
        "inference.training": "History NonFiniteError train",
    }.items()
    for name in names.split()
}

__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
