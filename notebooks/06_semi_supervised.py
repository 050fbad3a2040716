# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A semi-supervised model
#
# Three kinds of machines, of which one row in twenty is labelled; two latents say how a machine of
# its kind runs. This is the model M2 of Kingma et al. (2014, arXiv:1406.5298), written as its
# authors would: a discrete class that is observed in some rows, and a planar posterior over z given
# the class. Nothing in it is there for this package.

# %%
# %matplotlib inline
import os
import warnings

import pandas as pd
import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as T
import torch
from matplotlib.figure import Figure
from pyro import poutine
from pyro.nn import DenseNN

from pyro_vaeflow import (
    KhatWarning,
    cosine,
    inference_gap,
    linear,
    score,
    simulation_based_calibration,
    train,
)

# %% [markdown]
# The budget: `VAEFLOW_QUICK` makes every cell run in seconds, to test that it runs.

# %%
NUM_STEPS, NUM_ROWS = (10, 200) if os.environ.get("VAEFLOW_QUICK") else (2000, 3000)

# %% [markdown]
# ## Rows and labels
#
# The kinds lie about three arcs of a plane, seen through six noisy columns.

# %%
generator = torch.Generator().manual_seed(0)
kind = torch.randint(3, (NUM_ROWS,), generator=generator)
angle, width = torch.randn(2, NUM_ROWS, generator=generator)
turn = 2.1 * kind + 0.6 * angle
plane = torch.stack([turn.cos(), turn.sin()], -1) * (2.0 + 0.2 * width.unsqueeze(-1))
plane = plane + 0.7 * torch.stack([kind == 0, kind == 1], -1)
mixing = torch.randn(2, 6, generator=generator)
x = plane @ mixing + 0.2 * torch.randn(NUM_ROWS, 6, generator=generator)
seen = torch.rand(NUM_ROWS, generator=generator) < 0.05
half = NUM_ROWS // 2
training = x[:half], kind[:half], seen[:half]
test = x[half:], kind[half:], torch.zeros(NUM_ROWS - half, dtype=torch.bool)
print(f"{seen[:half].sum()} of {half} training rows have a label")

# %% [markdown]
# ## The programs
#
# `obs_mask` is Pyro's own statement for values that are observed in part. The guide sums over the
# class where it is unknown (`enumerate`), and the classifier learns from the labels, too.

# %%
pyro.set_rng_seed(0)
decoder = DenseNN(5, [32], [6], nonlinearity=torch.nn.Tanh())
classifier = DenseNN(6, [32], [3], nonlinearity=torch.nn.Tanh())
encoder = DenseNN(9, [32], [2, 2], nonlinearity=torch.nn.Tanh())
flow = torch.nn.ModuleList([T.planar(2) for _ in range(4)])


def beside(value, kind):
    """One tensor of both, whatever dimensions the values of the class are enumerated along."""
    one_hot = torch.nn.functional.one_hot(kind, 3).to(value.dtype)
    shape = torch.broadcast_shapes(value.shape[:-1], one_hot.shape[:-1])
    return torch.cat([value.expand(*shape, -1), one_hot.expand(*shape, 3)], -1)


def model(x, kind, seen):
    pyro.module("decoder", decoder)
    noise = pyro.param("noise", torch.ones(6), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        prior = dist.Categorical(logits=x.new_zeros(3))
        kind = pyro.sample("kind", prior, obs=kind, obs_mask=seen)
        z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(decoder(beside(z, kind)), noise).to_event(1), obs=x)


def guide(x, kind, seen):
    pyro.module("classifier", classifier)
    pyro.module("encoder", encoder)
    pyro.module("flow", flow)
    with pyro.plate("data", len(x)):
        of_kind = dist.Categorical(logits=classifier(x))
        with poutine.mask(mask=~seen):
            unknown = pyro.sample("kind_unobserved", of_kind, infer={"enumerate": "parallel"})
        known = torch.where(seen, of_kind.log_prob(kind), 0.0)
        pyro.factor("classification", -10.0 * known, has_rsample=False)
        loc, log_scale = encoder(beside(x, torch.where(seen, kind, unknown)))
        base = dist.Normal(loc, log_scale.exp()).to_event(1)
        pyro.sample("z", dist.TransformedDistribution(base, list(flow)))


# %% [markdown]
# ## Train, annealed
#
# The class is summed out, so `train` takes Pyro's `TraceEnum_ELBO`; `elbo` is the true bound.

# %%
history = train(
    model,
    guide,
    training,
    num_steps=NUM_STEPS,
    learning_rate=cosine(NUM_STEPS, 1e-2, 1e-4),
    schedule=linear(max(1, NUM_STEPS // 4)),
    progress=False,
)
history.frame[["loss", "elbo", "log_likelihood", "kl"]].tail(1).round(2)

# %% [markdown]
# ## Classes and scores
#
# The evidence of a row sums over its class and averages over z. What the labels alone can teach is
# shown by a linear classifier of the labelled rows.

# %%
warnings.simplefilter("ignore", KhatWarning)
warnings.filterwarnings("ignore", "site .* draws from torch's stream")  # classes are
scores = score(model, guide, test)
labelled = seen[:half]
centres = torch.stack([x[:half][labelled & (kind[:half] == k)].mean(0) for k in range(3)])
guesses = {
    "this model": classifier(test[0]).argmax(-1),
    "nearest mean of labelled rows": torch.cdist(test[0], centres).argmin(-1),
}
accuracy = {name: (guess == test[1]).double().mean().item() for name, guess in guesses.items()}
print(pd.Series(accuracy, name="accuracy").round(3).to_string())
scores.to_frame()[["log_evidence", "stderr", "khat"]].agg(["mean", "min", "max"]).round(2)

# %% [markdown]
# ## Gaps and calibration
#
# What is lost between the evidence and the bound is the family's or the networks'; and whether the
# posterior of z is as wide as it says is a question that simulated rows answer.

# %%
few = tuple(column[:10] for column in test)
gaps = inference_gap(model, guide, few, num_steps=min(50, NUM_STEPS), num_samples=200)
gaps.summary().round(3)

# %%
check = simulation_based_calibration(model, guide, test, num_simulations=min(1000, NUM_ROWS))


def plot_ranks(ranks, p_values):
    figure = Figure(figsize=(7, 2.5), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for i, axis in enumerate(axes):
        axis.hist(ranks[:, i].numpy(), bins=20, color="0.6")
        axis.set_xlabel(f"rank of z[{i}] among draws, p = {p_values[i]:.2g}")
    axes[0].set_ylabel("simulated rows")
    return figure


plot_ranks(check.ranks["z"], check.p_values["z"])

# %% [markdown]
# Flat is right; heaps at both ends are a posterior that is too narrow.
