"""What the prior costs: what the evidence gains with the aggregate posterior as the prior."""

from typing import Any

import numpy as np
import torch

from pyro_vaeflow.inference import importance
from pyro_vaeflow.inference.draws import trace_chunks
from pyro_vaeflow.inference.pairs import Draws

EDGES = np.linspace(-6.0, 6.0, 241)  # of the histogram that stands for the aggregate posterior


def prior_gap(
    model: Any, guide: Any, x_train: torch.Tensor, x: torch.Tensor, *, num_samples: int, seed: int
) -> torch.Tensor:
    r"""What log p(x) gains with the prior :math:`r(z) = E_{x}[q(z|x)]`, nats, ``(num_data,)``.

    The mean over training rows is the best prior for these q, so what it adds to the evidence is
    what the prior p(z) takes away; the rest of what a model lacks is the decoder's. Both evidences
    come from the same draws. For one latent of two dimensions: r is a histogram of draws, 200 for
    each training row.

    References:
        M. Hoffman, M. Johnson, ELBO surgery: yet another way to carve up the variational evidence
        lower bound, 2016, NIPS workshop on Advances in Approximate Bayesian Inference.
        J. Tomczak, M. Welling, VAE with a VampPrior, 2018, arXiv:1705.07120, section 2.

    Args:
        x_train: rows of the mean, ``(num_train, num_features)``.
        x: rows to score, ``(num_data, num_features)``.
        num_samples: draws for each of these.

    Raises:
        ValueError: there is not one latent of two dimensions.
    """
    counts = np.zeros((len(EDGES) - 1,) * 2)
    # Other noise than that of the rows to score, which may be among the training rows.
    for chunk in trace_chunks(model, guide, x_train, num_samples=200, seed=seed + 1):
        drawn = _latent(chunk).reshape(-1, 2).cpu().numpy()
        counts += np.histogram2d(drawn[:, 0], drawn[:, 1], bins=[EDGES, EDGES])[0]
    cell = (EDGES[1] - EDGES[0]) ** 2
    log_density = torch.as_tensor(counts / counts.sum() / cell, device=x.device).log()
    edges = torch.as_tensor(EDGES, device=x.device)
    parts = []
    for chunk in trace_chunks(model, guide, x, num_samples=num_samples, seed=seed):
        terms, z = chunk.terms, _latent(chunk)
        place = torch.bucketize(z.double().contiguous(), edges) - 1
        inside = ((place >= 0) & (place < len(EDGES) - 1)).all(-1)
        place = place.clamp(0, len(EDGES) - 2)
        log_r = log_density[place[..., 0], place[..., 1]].where(inside, -torch.inf)
        with_r = importance.log_evidence(terms.log_weight - terms.log_prior + log_r)
        parts.append(with_r - importance.log_evidence(terms.log_weight))
    return torch.cat(parts)


def _latent(chunk: Draws) -> torch.Tensor:
    """The draws ``(num_samples, rows, 2)``."""
    latents = chunk.latents
    shapes = {name: tuple(value.shape[2:]) for name, value in latents.items()}
    if list(shapes.values()) != [(2,)]:
        raise ValueError(f"expected one latent of two dimensions, got {shapes}")
    return next(iter(latents.values())).transpose(0, 1)
