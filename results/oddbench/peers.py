"""Detectors beside ours on OddBench that no other study needs."""

from typing import Any, Self

import numpy as np
import pyro.distributions as dist
import pyro.distributions.transforms as T
import torch
from pyod.models.knn import KNN
from torch import nn

from results.shared.detectors import Baseline

DTE = (
    "DTE-NP, non-parametric diffusion-time estimation: its score rises with the mean distance to "
    "the five nearest training rows alone, so PyOD's KNN with method='mean' it is."
)
REAL_NVP = (
    "The exact density of a flow over the rows: four affine couplings of Pyro and a diagonal "
    "normal, 500 steps of maximum likelihood. NICE is the same with scales of 1."
)


class RealNVP:
    """The exact log density of a flow of affine couplings over the rows themselves.

    References:
        L. Dinh, J. Sohl-Dickstein, S. Bengio, Density estimation using Real NVP, 2017,
        arXiv:1605.08803.
    """

    def fit(self, x: np.ndarray) -> Self:
        """Trains the flow on the rows."""
        rows = torch.as_tensor(x, dtype=torch.float32)
        dim = max(rows.shape[1], 2)  # one column has noise beside it to be coupled with
        layers: list[Any] = []
        for _ in range(4):
            layers += [T.affine_coupling(dim, hidden_dims=[64, 64]), T.permute(dim)]
        log_scale = torch.zeros(dim, requires_grad=True)
        networks = nn.ModuleList(layer for layer in layers if isinstance(layer, nn.Module))
        adam = torch.optim.Adam([*networks.parameters(), log_scale], lr=1e-3)
        for _ in range(500):
            batch = rows[torch.randint(len(rows), (128,))]
            self.flow_ = dist.TransformedDistribution(
                dist.Normal(torch.zeros(dim), log_scale.exp()).to_event(1), layers
            )
            loss = -self.flow_.log_prob(_beside(batch, dim)).mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
        return self

    @torch.no_grad()
    def score_samples(self, x: np.ndarray) -> np.ndarray:
        """Log densities, nats, shape ``(num_data,)``."""
        rows = torch.as_tensor(x, dtype=torch.float32)
        return self.flow_.log_prob(_beside(rows, self.flow_.event_shape[0])).numpy()


def _beside(rows: torch.Tensor, dim: int) -> torch.Tensor:
    return torch.cat([rows, torch.randn(len(rows), dim - rows.shape[1])], -1)


PEERS = {
    "dte_np": Baseline("standard", DTE, lambda seed: KNN(n_neighbors=5, method="mean")),
    "real_nvp": Baseline("standard", REAL_NVP, lambda seed: RealNVP()),
}
