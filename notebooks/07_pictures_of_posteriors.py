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
# several families and sizes learn the ring; then you choose one and a row. With `ipywidgets`
# installed the choice is made by menus and a slider; without, the panels below show some choices.

# %%
# %matplotlib inline
import os
from importlib.util import find_spec

import torch
from IPython.display import display
from matplotlib.figure import Figure

from pyro_vaeflow import (
    Guide,
    Model,
    cosine,
    linear,
    make_ring,
    plot_posteriors,
    simulation_based_calibration,
    train,
)

# %% [markdown]
# The budget: `VAEFLOW_QUICK` makes every cell run in seconds, to test that it runs.

# %%
NUM_STEPS, NUM_SIMULATIONS = (5, 20) if os.environ.get("VAEFLOW_QUICK") else (1200, 1000)

# %% [markdown]
# ## Six pairs
#
# Each pair has a decoder of its own, learned together with the guide.

# %%
x = make_ring(2000)
pairs = {}
for flow in ("diagonal", "planar", "iaf"):
    for latent_dim in (2, 4):
        options = {"latent_dim": latent_dim, "hidden_dims": (64, 64), "dropout": 0.0}
        model = Model(2, likelihood="normal", activation="silu", **options)
        guide = Guide(2, flow=flow, activation="silu", **options)
        history = train(
            model,
            guide,
            x,
            num_steps=NUM_STEPS,
            learning_rate=cosine(NUM_STEPS, 1e-2, 1e-4),
            schedule=linear(max(1, NUM_STEPS // 4)),
            progress=False,
        )
        pairs[flow, latent_dim] = model, guide
        print(f"{flow}, {latent_dim} latents: {history}")

# %% [markdown]
# ## One row, one guide
#
# Grey is the posterior p(z | x): draws of a proposal that is adapted to this row, chosen by their
# weights. Dots are the guide's. The title has what the guide loses, log p(x) - ELBO in nats, and
# the k-hat of its weights. With four latents, the three that vary most are shown, each with each.


# %%
def show(flow: str = "diagonal", latent_dim: int = 2, row: int = 0) -> Figure:
    model, guide = pairs[flow, latent_dim]
    named = {f"{flow}, row {row}": guide}
    return plot_posteriors(model, named, x[row : row + 1], num_samples=500)


if find_spec("ipywidgets"):
    from ipywidgets import interact

    interact(show, flow=["diagonal", "planar", "iaf"], latent_dim=[2, 4], row=(0, 19))
else:
    for flow in ("diagonal", "iaf"):
        display(show(flow, 2, 0))

# %%
show("planar", 4, 3)

# %% [markdown]
# ## Layer by layer
#
# A flow is a list of Pyro's transforms, so its work can be watched: the base's draws for one row,
# then what each of the layers makes of them.

# %%
model, guide = pairs["iaf", 2]
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

# %%
simulation_based_calibration(model, guide, x, num_simulations=NUM_SIMULATIONS).plot()
