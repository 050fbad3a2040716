"""Pictures of posteriors: a guide's draws for one row beside draws of the row's posterior."""

from collections.abc import Mapping
from typing import Any

import torch
from matplotlib.figure import Figure

from pyro_vaeflow.inference import importance
from pyro_vaeflow.inference.contract import check_contract
from pyro_vaeflow.inference.draws import log_weights
from pyro_vaeflow.inference.latent_vectors import Latents
from pyro_vaeflow.inference.noise import RowStream
from pyro_vaeflow.inference.parameters import Program, evaluating
from pyro_vaeflow.inference.refine import weighted_draws
from pyro_vaeflow.inference.student_mixtures import chosen, taken
from pyro_vaeflow.inference.traces import as_args
from pyro_vaeflow.plots.pairs import plot_pairs
from pyro_vaeflow.validation import check_size


def plot_posteriors(
    model: Program,
    guides: Program | Mapping[str, Program],
    row: Any,
    *,
    num_samples: int = 2000,
    max_dims: int = 3,
    seed: int = 0,
    plate: str = "data",
) -> Figure:
    r"""Draws each guide's samples for one row beside the posterior, for any number of latents.

    The posterior's samples are chosen, by their weights, from draws of the proposal that `refine`
    adapts to the row; their log p(x) is the truth to which a title gives the gap
    :math:`\log p(x) - \mathrm{ELBO}`, nats. Latents are real numbers here, by the transforms of
    their supports, and those shown are the ones of the largest variance.

    Args:
        model, guides: one model, and guides for it by name, or one guide.
        row: tensor ``(1, ...)``, or a tuple of arguments that starts with it.
        num_samples: of each guide and of the posterior, at least 25.
        max_dims: dimensions shown, each with each.

    Raises:
        ValueError: the contract is broken, there is not one row, or a latent is discrete.

    Example:
        >>> from pyro_vaeflow import Guide, Model
        >>> options = {"latent_dim": 2, "dropout": 0.0}
        >>> guides = {"diagonal": Guide(3, **options), "iaf": Guide(3, flow="iaf", **options)}
        >>> figure = plot_posteriors(Model(3, **options), guides, torch.rand(1, 3), num_samples=100)
        >>> [axes.get_title().partition(":")[0] for axes in figure.axes]
        ['diagonal', 'iaf']
    """
    args = as_args(row)
    named = guides if isinstance(guides, Mapping) else {"q(z | x)": guides}
    check_size("rows of row", len(args[0]), 1, 1)
    check_size("num_samples", num_samples, 25)
    if not named:
        raise ValueError("guides must be a guide, or guides by name; got none")
    draws, titles = {}, {}
    for name, guide in named.items():
        way = check_contract(model, guide, args, plate=plate)
        with evaluating(model, guide, seed):
            latents = Latents(model, guide, args, way, plate)
            draws[name] = latents.first_draws(num_samples, seed)[1][0]
            if name == next(iter(named)):
                u, log_weight = weighted_draws(latents, RowStream(args[0], seed), seed)
        options: dict[str, Any] = {"num_samples": num_samples, "seed": seed, "plate": plate}
        found = log_weights(model, guide, args, **options)
        gap = importance.log_evidence(log_weight.T) - found.mean(0)
        khat = importance.estimate(found)["khat"].item()
        titles[name] = f"{name}: {gap.item():.2f} nats lost, k-hat {khat:.2f}"
    places = (torch.arange(num_samples, dtype=u.dtype) + 0.5) / num_samples
    posterior = taken(u, chosen(log_weight.softmax(-1), places.unsqueeze(0)))[0]
    drawn = {titles[name]: some.cpu().numpy() for name, some in draws.items()}
    return plot_pairs(posterior.cpu().numpy(), drawn, max_dims=max_dims)
