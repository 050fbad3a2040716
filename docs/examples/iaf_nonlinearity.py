"""Another nonlinearity inside the networks of the IAF's layers."""

import pyro
import torch
from sklearn import datasets, preprocessing

from pyro_vaeflow import Guide, Model, score, train


class Sine(torch.nn.Module):
    """Any module from a tensor to one of the same shape will do."""

    def forward(self, h):
        return torch.sin(h)


pyro.set_rng_seed(0)
x = torch.Tensor(preprocessing.scale(datasets.load_wine().data))[torch.randperm(178)]
model = Model(13, likelihood="normal", latent_dim=2, dropout=0.0)
guide = Guide(13, flow="iaf", num_flows=4, latent_dim=2, dropout=0.0)
for layer in guide.flow:
    layer.nn.f = Sine()
untrained = score(model, guide, x[140:])
train(model, guide, x[:140], num_steps=100, learning_rate=5e-3)
scores = score(model, guide, x[140:])
print(untrained.log_evidence.mean(), scores.log_evidence.mean(), scores.khat.quantile(0.9))
