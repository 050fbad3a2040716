"""Runs of the study of posteriors: a task, a family, a seed; what a guide's draws are worth."""

import hashlib
import json
import time
import warnings
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from pyro.distributions import TorchDistribution
from sklearn.model_selection import KFold, cross_val_score
from sklearn.neural_network import MLPClassifier

from pyro_vaeflow import Guide, score, simulation_based_calibration, train
from pyro_vaeflow.inference.annealing import cosine
from pyro_vaeflow.inference.parameters import seeded
from pyro_vaeflow.inference.scoring import KhatWarning
from results.posteriors.tasks import OBSERVATIONS, TASKS

HELD_OUT = 10**6  # from the seed of training rows to that of rows for calibration


@dataclass(frozen=True)
class PosteriorRun:
    """All settings of one run; `name` is its file's, so that changed settings are a new run.

    The KL term has the weight `temperature` at first, which falls to 1 in equal ratios over half of
    the steps: a guide that is wide at first finds more of the modes.

    Example:
        >>> PosteriorRun("slcp", "iaf", 5, seed=3).name[:15]
        'slcp-iaf5-seed3'
    """

    task: str
    flow: str
    num_flows: int
    seed: int
    flow_options: dict[str, Any] = field(default_factory=dict)
    num_rows: int = 20_000
    num_steps: int = 1000
    batch_size: int = 256
    learning_rate: float = 3e-3
    temperature: float = 100.0
    num_draws: int = 1000
    num_simulations: int = 400
    refined: bool = False

    @property
    def name(self) -> str:
        """Task, family and seed, with a digest of all settings."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:8]
        return f"{self.task}-{self.flow}{self.num_flows}-seed{self.seed}-{digest}"


class RowsGuide(Guide):
    """q(z | x) for rows x of any scale: they are standardised first."""

    def __init__(self, rows: torch.Tensor, *args: Any, **options: Any) -> None:
        super().__init__(rows.shape[1], *args, **options)
        self.register_buffer("loc", rows.mean(0))
        self.register_buffer("scale", rows.std(0))

    def posterior(self, x: torch.Tensor) -> TorchDistribution:
        """q(z | x), batch shape ``(num_data,)``."""
        return super().posterior((x - self.loc) / self.scale)


def fitted(run: PosteriorRun) -> RowsGuide:
    """The guide, trained on rows that the task simulates."""
    task = TASKS[run.task]
    rows = task.simulate(run.num_rows, run.seed)
    shape = task.prior.event_shape[0], (64, 64), run.flow, run.num_flows
    with seeded(run.seed):
        guide = RowsGuide(
            rows, *shape, dropout=0.0, activation="silu", flow_options=run.flow_options
        )
    train(
        task.model,
        guide,
        rows,
        num_steps=run.num_steps,
        batch_size=run.batch_size,
        learning_rate=cosine(run.num_steps, run.learning_rate, 0.01 * run.learning_rate),
        schedule=lambda step: run.temperature ** max(0.0, 1.0 - 2.0 * step / run.num_steps),
        clip_norm=10.0,
        seed=run.seed,
        progress=False,
    )
    return guide


def fit_posterior(run: PosteriorRun) -> dict[str, Any]:
    """Fits one run; its settings, what ten observations say of it, and its calibration."""
    task, started = TASKS[run.task], time.process_time()
    guide = fitted(run)
    seconds = time.process_time() - started
    x = torch.cat([task.observation(number) for number in OBSERVATIONS])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", KhatWarning)
        scores = score(task.model, guide, x, num_samples=run.num_draws)
        numbers = {name: getattr(scores, name).tolist() for name in ("elbo", "khat")}
        if run.refined:
            refined = score(task.model, guide, x, refine="all")
            numbers |= {"log_evidence": refined.log_evidence.tolist()}
            numbers |= {"khat_refined": refined.khat.tolist()}
    with torch.no_grad(), seeded(run.seed):
        draws = task.parameters(guide.posterior(x).sample((run.num_draws,))).movedim(1, 0)
    numbers["c2st"] = [
        c2st(task.reference(number).numpy(), theta.numpy(), run.seed)
        for number, theta in zip(OBSERVATIONS, draws, strict=True)
    ]
    checked = task.simulate(run.num_simulations, run.seed + HELD_OUT)
    calibration = simulation_based_calibration(
        task.model, guide, checked, num_simulations=len(checked), seed=run.seed
    )
    numbers["sbc"] = calibration.p_values["z"].tolist()
    numbers["vsbc"] = calibration.bias_p_values["z"].tolist()
    return asdict(run) | numbers | {"seconds": seconds}


def c2st(reference: np.ndarray, draws: np.ndarray, seed: int) -> float:
    """How often a classifier tells draws from as many of the reference; 0.5: never but by chance.

    The benchmark's network, of two hidden layers with 10 units for each dimension, in five folds.
    It takes larger steps and stops early, on a tenth of a fold, where the benchmark's goes on until
    its loss does not fall.

    References:
        D. Lopez-Paz, M. Oquab, Revisiting Classifier Two-Sample Tests, 2017, arXiv:1610.06545.

    Args:
        reference, draws: ``(num_draws, dim)``; as many of the former are taken as there are of the
            latter.

    Example:
        >>> draws = np.random.default_rng(0).normal(size=(2, 100, 1))
        >>> c2st(*draws, seed=0) < 0.7 < c2st(draws[0], draws[1] + 5.0, seed=0)
        True
    """
    reference = np.random.default_rng(seed).permutation(reference)[: len(draws)]
    loc, scale = reference.mean(0), reference.std(0)
    both = (np.concatenate([reference, draws]) - loc) / scale
    kind = np.repeat([0, 1], len(draws))
    sizes = (10 * both.shape[1],) * 2
    options = {"batch_size": min(500, len(draws)), "learning_rate_init": 5e-3}
    classifier = MLPClassifier(sizes, early_stopping=True, random_state=seed, **options)
    folds = KFold(5, shuffle=True, random_state=seed)
    return float(cross_val_score(classifier, both, kind, cv=folds).mean())
