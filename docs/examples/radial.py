"""A posterior of one's own: Pyro's radial layers, under a name that `Guide` then knows."""

import pyro
import torch
from pyro.distributions import transforms
from sklearn import datasets, preprocessing

from pyro_vaeflow import FLOWS, Guide, Model, score, train


def radial(latent_dim, num_flows, context_dim):
    """Each layer moves z towards a point or away from it."""
    if context_dim is None:  # one flow for all rows
        return [transforms.radial(latent_dim) for _ in range(num_flows)]
    return [transforms.conditional_radial(latent_dim, context_dim) for _ in range(num_flows)]


FLOWS["radial"] = radial
pyro.set_rng_seed(0)
x = torch.Tensor(preprocessing.scale(datasets.load_wine().data))[torch.randperm(178)]
model = Model(13, likelihood="normal", latent_dim=2, dropout=0.0)
guide = Guide(13, flow="radial", num_flows=4, latent_dim=2, dropout=0.0)
untrained = score(model, guide, x[140:])
train(model, guide, x[:140], num_steps=100, learning_rate=5e-3)
scores = score(model, guide, x[140:])
print(untrained.log_evidence.mean(), scores.log_evidence.mean(), scores.khat.quantile(0.9))
