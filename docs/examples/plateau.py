"""A callback of one's own: training ends where the loss no longer falls."""

import pyro
import torch
from sklearn import datasets, preprocessing

from pyro_vaeflow import Callback, Guide, Model, score, train


class Plateau(Callback):
    """Stops once the mean loss of `window` steps is not `least` nats below that of those before."""

    def __init__(self, window=30, least=0.5):
        self.window, self.least = window, least

    def after_step(self, run):
        losses = [record["loss"] for record in run.records[-2 * self.window :]]
        fall = sum(losses[: self.window]) - sum(losses[self.window :])
        if len(losses) == 2 * self.window and fall < self.least * self.window:
            run.stop()


pyro.set_rng_seed(0)
x = torch.Tensor(preprocessing.scale(datasets.load_breast_cancer().data))
model = Model(30, likelihood="normal", latent_dim=4, dropout=0.0)
guide = Guide(30, latent_dim=4, dropout=0.0)
untrained = score(model, guide, x[400:])
history = train(model, guide, x[:400], num_steps=5000, learning_rate=1e-2, callbacks=[Plateau()])
scores = score(model, guide, x[400:])
print(len(history.frame), untrained.log_evidence.mean(), scores.log_evidence.mean())
