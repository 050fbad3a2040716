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
# # Pictures of posteriors
#
# What does a guide believe of one row, and how far is that from the posterior? Small guides of
# several families, depths and sizes learn the ring; then you choose one and a row. With
# `ipywidgets` installed the choice is made by a menu and sliders; without, panels show some.

# %%
# %matplotlib inline
import os
from importlib.util import find_spec

import pandas as pd
import pyro
import torch
from IPython.display import display
from matplotlib.figure import Figure
from pyro.infer import MCMC, NUTS
from scipy.stats import gaussian_kde

from pyro_vaeflow import (
    Guide,
    Model,
    cosine,
    inference_gap,
    linear,
    make_ring,
    plot_posteriors,
    simulation_based_calibration,
    train,
)

# %% [markdown]
# The budget: `VAEFLOW_QUICK` makes every cell run in seconds, to test that it runs.

# %%
QUICK = os.environ.get("VAEFLOW_QUICK")
NUM_STEPS, NUM_SIMULATIONS, NUM_DRAWS = (5, 20, 20) if QUICK else (1200, 1000, 1000)

# %% [markdown]
# ## Ten pairs
#
# Each pair has a decoder of its own, learned together with the guide. Depth is the number of the
# flow's layers; the diagonal posterior has none.

# %%
x = make_ring(2000)
pairs, elbo = {}, {}
for flow, depth in (("diagonal", 0), ("planar", 2), ("planar", 10), ("iaf", 1), ("iaf", 5)):
    for latent_dim in (2, 4):
        options = {"latent_dim": latent_dim, "hidden_dims": (64, 64), "dropout": 0.0}
        model = Model(2, likelihood="normal", activation="silu", **options)
        guide = Guide(2, flow=flow, num_flows=depth, activation="silu", **options)
        history = train(
            model,
            guide,
            x,
            num_steps=NUM_STEPS,
            learning_rate=cosine(NUM_STEPS, 1e-2, 1e-4),
            schedule=linear(max(1, NUM_STEPS // 4)),
            progress=False,
        )
        pairs[flow, depth, latent_dim] = model, guide
        elbo[f"{flow} {depth}", latent_dim] = history.frame["elbo"].tail(50).mean()
pd.Series(elbo, name="ELBO, nats per row").unstack().rename_axis(columns="latents").round(2)

# %% [markdown]
# ## One row, one guide
#
# Grey is the posterior p(z | x): draws of a proposal that is adapted to this row, chosen by their
# weights. Dots are the guide's. The title has what the guide loses, log p(x) - ELBO in nats, and
# the k-hat of its weights. With four latents, the three that vary most are shown, each with each.


# %%
def show(flow="iaf", deep=True, latent_dim=2, row=0) -> Figure:
    depth = {"diagonal": 0, "planar": 10 if deep else 2, "iaf": 5 if deep else 1}[flow]
    model, guide = pairs[flow, depth, latent_dim]
    named = {f"{flow} {depth}, row {row}": guide}
    return plot_posteriors(model, named, x[row : row + 1], num_samples=500)


if find_spec("ipywidgets"):
    from ipywidgets import interact

    interact(show, flow=["diagonal", "planar", "iaf"], latent_dim=(2, 4, 2), row=(0, 19))
else:
    for flow, deep in (("diagonal", False), ("planar", True), ("iaf", False), ("iaf", True)):
        display(show(flow, deep))

# %%
show("planar", True, 4, 3)

# %% [markdown]
# ## A chain as the reference
#
# Pyro's NUTS runs on the model as it is, for the z of one row, and knows nothing of proposals and
# weights. With a kernel density of its draws in place of p(z | x), the KL divergence of the guide
# from the posterior can be averaged directly. `inference_gap` should be near it, not equal: kernels
# widen a narrow posterior, and a chain of 1,000 draws knows little of its ends.

# %%
chains = {}
for flow, depth in (("diagonal", 0), ("iaf", 5)):
    model, guide = pairs[flow, depth, 2]
    model.eval().requires_grad_(False)
    guide.eval()
    pyro.set_rng_seed(0)
    chain = MCMC(NUTS(model), NUM_DRAWS, warmup_steps=NUM_DRAWS // 4, disable_progbar=True)
    chain.run(x[:1])
    posterior = gaussian_kde(chain.get_samples()["z"].reshape(-1, 2).T.numpy())
    with torch.no_grad():
        q = guide.posterior(x[:1])
        drawn = q.sample((2000,))
        log_ratio = q.log_prob(drawn)[:, 0].numpy() - posterior.logpdf(drawn[:, 0].T.numpy())
    gap = inference_gap(model, guide, x[:1], num_samples=2000, num_steps=0).inference_gap
    chains[f"{flow} {depth}"] = {
        "KL from the chain": log_ratio.mean().item(),
        "inference_gap": gap.item(),
    }
pd.DataFrame(chains).T.round(2)

# %% [markdown]
# ## Layer by layer
#
# A flow is a list of Pyro's transforms, so its work can be watched: the base's draws for one row,
# then what each of the layers makes of them.

# %%
model, guide = pairs["iaf", 5, 2]
with torch.no_grad():
    context = guide.encoder(x[:1])
    loc, raw_scale = guide.base(context).chunk(2, dim=-1)
    z = loc + torch.nn.functional.softplus(raw_scale) * torch.randn(400, 2)
    steps = [z]
    for layer in guide.flow:
        steps.append(layer.condition(context)(steps[-1]))
figure = Figure(figsize=(11, 2.2), layout="constrained")
panels = figure.subplots(1, len(steps), sharex=True, sharey=True)
for number, (panel, z) in enumerate(zip(panels, steps, strict=True)):
    panel.plot(*z.T, ".", color="black", markersize=1)
    panel.set_title(f"after layer {number}" if number else "base")
display(figure)

# %% [markdown]
# ## What the latents mean
#
# The decoder's mean along a grid of latents, and rows that the model makes up beside those of the
# table: a posterior can be no better than the model that it is of.

# %%
with torch.no_grad():
    grid = torch.linspace(-2.5, 2.5, 200)
    zeros = torch.zeros(200)
    along = {
        "z_1 moves": torch.stack([grid, zeros], 1),
        "z_2 moves": torch.stack([zeros, grid], 1),
    }
    curves = {name: model.decode(z).mean for name, z in along.items()}
    made_up = model.decode(torch.randn(800, 2)).sample()
figure = Figure(figsize=(8, 3.4), layout="constrained")
left, right = figure.subplots(1, 2, sharex=True, sharey=True)
left.plot(*x[:800].T, ".", color="0.8", markersize=1)
for name, curve in curves.items():
    left.plot(*curve.T, label=name)
left.legend(loc="center")
left.set_title("the decoder's mean")
right.plot(*x[:800].T, ".", color="0.8", markersize=1, label="rows")
right.plot(*made_up.T, ".", color="black", markersize=1, label="made up")
right.legend(loc="center", markerscale=8)
right.set_title("rows of the model")
display(figure)

# %% [markdown]
# ## Is the guide calibrated?
#
# Latents are drawn, rows made of them, and the guide asked where the latents stand among its own
# draws. If it is right, each rank is as likely as any other; dashed lines hold 99% of the bars.
# Heaps at both ends are a guide that is narrower than the posterior.

# %%
simulation_based_calibration(model, guide, x, num_simulations=NUM_SIMULATIONS).plot()
