"""A likelihood of one's own: counts, here of ink in the 64 fields of a handwritten digit."""

import pyro
import torch
from pyro.distributions import Poisson
from sklearn.datasets import load_digits
from torch import nn

from pyro_vaeflow import LIKELIHOODS, Guide, Model, score, train


class PoissonHead(nn.Module):
    """From the decoder's last hidden layer to counts that are independent given z."""

    def __init__(self, hidden_dim, num_features):
        super().__init__()
        self.rate = nn.Sequential(nn.Linear(hidden_dim, num_features), nn.Softplus())

    def forward(self, h):
        return Poisson(self.rate(h)).to_event(1)


LIKELIHOODS["poisson"] = PoissonHead
pyro.set_rng_seed(0)
x = torch.Tensor(load_digits().data)
model = Model(64, likelihood="poisson", latent_dim=4, dropout=0.0)
guide = Guide(64, flow="planar", num_flows=4, latent_dim=4, dropout=0.0)
untrained = score(model, guide, x[1400:])
train(model, guide, x[:1400], num_steps=100, learning_rate=1e-2)
scores = score(model, guide, x[1400:])
print(untrained.log_evidence.mean(), scores.log_evidence.mean(), scores.khat.quantile(0.9))
