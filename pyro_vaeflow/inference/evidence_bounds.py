"""Bounds from both sides of the log evidence of rows that the model makes."""

from dataclasses import dataclass
from typing import Any

import torch

from pyro_vaeflow.inference import importance
from pyro_vaeflow.inference.contract import check_contract
from pyro_vaeflow.inference.latent_vectors import Latents
from pyro_vaeflow.inference.noise import RowStream
from pyro_vaeflow.inference.parameters import Program, evaluating
from pyro_vaeflow.inference.refine import EFFORTS, NUMBERS, weighted_draws
from pyro_vaeflow.inference.simulation import Assemble, simulated_rows
from pyro_vaeflow.inference.traces import as_args, take_rows
from pyro_vaeflow.validation import check_size


@dataclass(frozen=True)
class EvidenceBounds:
    """What `evidence_bounds` found for each simulated row, ``(num_rows,)``, nats."""

    lower: torch.Tensor
    """At most log p(x) in expectation: the refined evidence."""
    upper: torch.Tensor
    """At least log p(x) in expectation."""

    def __repr__(self) -> str:
        gap = self.upper - self.lower
        error = gap.std() / len(gap) ** 0.5
        return (
            f"Log evidence of {len(gap)} simulated rows: from {self.lower.mean():.3f} to "
            f"{self.upper.mean():.3f} nats a row, {gap.mean():.3f} +- {error:.3f} apart"
        )


@torch.inference_mode(False)  # gradients, whatever the caller has switched off
def evidence_bounds(
    model: Program,
    guide: Program,
    x: Any,
    *,
    num_rows: int = 20,
    assemble: Assemble | None = None,
    seed: int = 0,
    plate: str = "data",
) -> EvidenceBounds:
    r"""Bounds the log evidence of rows that the model makes from below and above.

    The latents that made a row are one exact draw of its posterior. The log mean weight of K draws
    of the refined proposal is at most log p(x) in expectation; with the exact draw in place of one
    of them it is at least that. A part of the posterior that the proposal misses has huge weights
    when the exact draw is there: where the bounds are near each other, refined evidence is right
    for rows such as the model makes, which no diagnostic of the proposal's own draws can say.

    References:
        R. Grosse, Z. Ghahramani, R. Adams, Sandwiching the marginal likelihood using bidirectional
        Monte Carlo, 2015, arXiv:1511.02543.
        R. Brekelmans and others, Improving Mutual Information Estimation with Annealed and
        Energy-Based Bounds, 2022, arXiv:2303.06992, section 2.3: the upper bound of many draws.

    Args:
        model, guide, x, assemble: as in `simulation_based_calibration`; latents are continuous.
        num_rows: simulated; each takes seconds.

    Raises:
        ValueError: the contract is broken, a latent is discrete, or rows cannot be simulated.

    Example:
        >>> from pyro_vaeflow import Guide, Model, evidence_bounds
        >>> bounds = evidence_bounds(Model(3, 2), Guide(3, 2), torch.rand(2, 3), num_rows=2)
        >>> bool(bounds.upper.mean() > bounds.lower.mean() - 0.1)
        True
    """
    args = as_args(x)
    check_size("num_rows", num_rows)
    check_size("rows of x", len(args[0]), 1)
    way = check_contract(model, guide, args, plate=plate)
    parts = []
    with evaluating(model, guide, seed):
        index = torch.arange(num_rows, device=args[0].device) % len(args[0])
        truths, data = simulated_rows(model, args, index, assemble)
        exact = Latents(model, guide, data, way, plate).vectors(truths, 1)
        at_once = max(1, NUMBERS // (EFFORTS[-1].draws * exact.shape[-1]))
        for rows in torch.arange(num_rows, device=exact.device).split(at_once):
            latents = Latents(model, guide, take_rows(data, rows), way, plate)
            stream = RowStream(latents.columns, seed)
            parts.append(weighted_draws(latents, stream, seed, exact[rows])[1])
    log_weight = torch.cat(parts).T  # of the last draw the exact one's
    return EvidenceBounds(*map(importance.log_evidence, (log_weight[:-1], log_weight[1:])))
