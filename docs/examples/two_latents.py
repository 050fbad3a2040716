"""A hierarchy of two latents: `top`, one number, says where `z`, two numbers, may be."""

import pyro
import torch
from pyro.distributions import Normal
from pyro.nn import DenseNN
from sklearn import datasets, preprocessing

from pyro_vaeflow import linear, score, train

pyro.set_rng_seed(0)
bend, decoder = DenseNN(1, [16], [2]), torch.nn.Linear(2, 13)
encoder, bend_back = DenseNN(13, [32], [2, 2]), DenseNN(2, [16], [1, 1])
networks = torch.nn.ModuleList([bend, decoder, encoder, bend_back])


def model(x):
    pyro.module("networks", networks)
    with pyro.plate("data", len(x)):
        top = pyro.sample("top", Normal(torch.zeros(1), 1.0).to_event(1))
        z = pyro.sample("z", Normal(bend(top), 0.5).to_event(1))
        pyro.sample("x", Normal(decoder(z), 0.7).to_event(1), obs=x)


def guide(x):
    pyro.module("networks", networks)
    loc, log_scale = encoder(x)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", Normal(loc, log_scale.exp()).to_event(1))
        loc, log_scale = bend_back(z)
        pyro.sample("top", Normal(loc, log_scale.exp()).to_event(1))


x = torch.Tensor(preprocessing.scale(datasets.load_wine().data))[torch.randperm(178)]
untrained = score(model, guide, x[140:])
train(model, guide, x[:140], num_steps=200, learning_rate=1e-2, schedule=linear(50))
scores = score(model, guide, x[140:])
print(untrained.log_evidence.mean(), scores.log_evidence.mean(), scores.khat.quantile(0.9))
