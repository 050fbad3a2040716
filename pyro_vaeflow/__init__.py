"""Amortised variational inference with flow posteriors, in Pyro, for finding anomalies in tables.

Names are imported when first used, so that ``vaeflow --help`` need not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyro_vaeflow.annealing import CapacityELBO as CapacityELBO
    from pyro_vaeflow.annealing import anneal as anneal
    from pyro_vaeflow.annealing import constant as constant
    from pyro_vaeflow.annealing import cosine as cosine
    from pyro_vaeflow.annealing import cyclical as cyclical
    from pyro_vaeflow.annealing import linear as linear
    from pyro_vaeflow.annealing import warmup as warmup
    from pyro_vaeflow.attribution import contributions as contributions
    from pyro_vaeflow.calibration import (
        simulation_based_calibration as simulation_based_calibration,
    )
    from pyro_vaeflow.columns import Column as Column
    from pyro_vaeflow.datasets import load_kddcup99 as load_kddcup99
    from pyro_vaeflow.datasets import make_ring as make_ring
    from pyro_vaeflow.detector import VAEFlowDetector as VAEFlowDetector
    from pyro_vaeflow.diagnostics import inference_gap as inference_gap
    from pyro_vaeflow.draws import log_weights as log_weights
    from pyro_vaeflow.flows import FLOWS as FLOWS
    from pyro_vaeflow.group import GroupError as GroupError
    from pyro_vaeflow.group import join_group as join_group
    from pyro_vaeflow.interrupt import InterruptedWarning as InterruptedWarning
    from pyro_vaeflow.isolation import param_scope as param_scope
    from pyro_vaeflow.latents import active_units as active_units
    from pyro_vaeflow.likelihoods import LIKELIHOODS as LIKELIHOODS
    from pyro_vaeflow.mixed_table import MixedEncoder as MixedEncoder
    from pyro_vaeflow.priors import ExemplarPrior as ExemplarPrior
    from pyro_vaeflow.programs import Guide as Guide
    from pyro_vaeflow.programs import Model as Model
    from pyro_vaeflow.resume import Checkpoint as Checkpoint
    from pyro_vaeflow.row_scores import Scores as Scores
    from pyro_vaeflow.scoring import KhatWarning as KhatWarning
    from pyro_vaeflow.scoring import NoScoreWarning as NoScoreWarning
    from pyro_vaeflow.scoring import score as score
    from pyro_vaeflow.state import CheckpointError as CheckpointError
    from pyro_vaeflow.tracking import TensorBoard as TensorBoard
    from pyro_vaeflow.training import History as History
    from pyro_vaeflow.training import NonFiniteError as NonFiniteError
    from pyro_vaeflow.training import train as train
    from pyro_vaeflow.watchers import watching as watching

__version__ = "0.1.0"

_HOME = {
    name: module
    for module, names in {
        "annealing": "CapacityELBO anneal constant cosine cyclical linear warmup",
        "attribution": "contributions",
        "calibration": "simulation_based_calibration",
        "columns": "Column",
        "datasets": "load_kddcup99 make_ring",
        "detector": "VAEFlowDetector",
        "diagnostics": "inference_gap",
        "draws": "log_weights",
        "flows": "FLOWS",
        "group": "GroupError join_group",
        "interrupt": "InterruptedWarning",
        "isolation": "param_scope",
        "latents": "active_units",
        "likelihoods": "LIKELIHOODS",
        "mixed_table": "MixedEncoder",
        "priors": "ExemplarPrior",
        "programs": "Guide Model",
        "resume": "Checkpoint",
        "row_scores": "Scores",
        "scoring": "KhatWarning NoScoreWarning score",
        "state": "CheckpointError",
        "tracking": "TensorBoard",
        "training": "History NonFiniteError train",
        "watchers": "watching",
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
