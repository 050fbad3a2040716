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
# # Looking at posteriors
#
# With two latents a posterior is a picture. Here are samples of q(z | x) from four guides beside
# the true posterior p(z | x), which quadrature on a grid gives, and in each panel the nats that
# the guide loses. All guides face the same fixed model, so that the pictures compare like with
# like. At the end you choose a flow, its depth and its size in one cell, and see what it believes
# of an inlier and of an anomaly, and what each of its layers does.

# %%
# %matplotlib inline
import math
import os
import sys
import time
import warnings

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from IPython.display import display
from matplotlib.figure import Figure

from pyro_vaeflow import (
    Guide,
    KhatWarning,
    Model,
    cosine,
    inference_gap,
    linear,
    make_ring,
    plot_posteriors,
    score,
    train,
)

sys.path.append("..")  # the scripts of results/ are no part of the package
from results.potentials.densities import plot_densities

# %% [markdown]
# The budget: `VAEFLOW_QUICK` makes every cell run in seconds, to test that it runs.

# %%
QUICK = bool(os.environ.get("VAEFLOW_QUICK"))
NUM_STEPS, NUM_DRAWS, NUM_LOCAL_STEPS = (10, 100, 3) if QUICK else (2500, 40_000, 300)

# %% [markdown]
# ## A model with hard posteriors
#
# A transmitter stands somewhere in the plane, z ~ N(0, I) km, and two receivers, 1 km apart,
# measure its distance with a standard deviation of 0.15 km. Two distances leave two positions,
# mirror images of each other; far from the receivers the errors make an arc of each.

# %%
RECEIVERS = torch.tensor([[-0.5, 0.0], [0.5, 0.0]])
NOISE = 0.15


def distances(z):
    return (z.unsqueeze(-2) - RECEIVERS).norm(dim=-1)


def receivers(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(distances(z), NOISE).to_event(1), obs=x)


generator = torch.Generator().manual_seed(0)
positions = torch.randn(8000, 2, generator=generator)
x = distances(positions) + NOISE * torch.randn(8000, 2, generator=generator)
shown = {
    "far off, above": (0.0, 1.1),
    "to the right": (1.2, 0.3),
    "between them": (0.0, 0.2),
    "far off, left": (-1.2, -1.2),
}
rows = distances(torch.tensor([*shown.values()]))

# %% [markdown]
# ## The true posterior, by quadrature
#
# On a grid of z, p(x, z) sums to p(x). Any model serves that gives log p(x, z).

# %%
CELLS = 150


def cells(limit):
    """Edges along an axis, the centres of all cells (CELLS, CELLS, 2), and log of a cell's area."""
    edges = np.linspace(-limit, limit, CELLS + 1)
    centres = torch.tensor((edges[1:] + edges[:-1]) / 2, dtype=torch.float32)
    grid = torch.stack(torch.meshgrid(centres, centres, indexing="ij"), -1)
    return edges, grid, 2 * math.log(edges[1] - edges[0])


def true_posterior(model, row, grid, log_area):
    """Density p(z | x) of one row on the grid, per unit of area, and log p(x) in nats."""
    z = grid.reshape(-1, 2)
    trace = pyro.poutine.trace(pyro.condition(model, {"z": z})).get_trace(row.expand(len(z), -1))
    trace.compute_log_prob()
    log_joint = (trace.nodes["z"]["log_prob"] + trace.nodes["x"]["log_prob"]).detach()
    log_evidence = log_joint.logsumexp(0) + log_area
    return (log_joint - log_evidence).exp().reshape(CELLS, CELLS).numpy(), float(log_evidence)


# %% [markdown]
# ## Four guides for one model
#
# Each is trained on the same rows for as many steps. `inference_gap` then splits what it loses on
# a row: the *approximation* gap is what the best q of its family loses on that row alone, the
# *amortization* gap is what one network for all rows loses on top. Here log p(x) is known from
# quadrature, so both are exact but for the noise of the draws.

# %%
POSTERIORS = {
    "diagonal": {"flow": "diagonal"},
    "planar 16": {"flow": "planar", "num_flows": 16},
    "IAF 8": {"flow": "iaf", "num_flows": 8, "flow_options": {"hidden_dim": 32}},
    "spline 2": {"flow": "spline", "num_flows": 2, "flow_options": {"hidden_dim": 32}},
}


SECONDS = {}  # of the processor, for the training of each guide


def fit_guides(model, x, posteriors=POSTERIORS, hidden_dims=(64, 64)):
    guides = {}
    for name, options in posteriors.items():
        pyro.set_rng_seed(0)
        guide = Guide(2, 2, hidden_dims, dropout=0.0, activation="silu", **options)
        rate = cosine(NUM_STEPS, 5e-3, 1e-5)
        beta = linear(NUM_STEPS // 2)
        settings = {"num_steps": NUM_STEPS, "learning_rate": rate, "clip_norm": 10.0}
        start = time.process_time()
        train(model, guide, x, schedule=beta, progress=False, **settings)
        SECONDS[name] = time.process_time() - start
        guides[name] = guide
    return guides


def compare(model, guides, rows, names, limit):
    """Densities for plot_densities, edges of their cells, and a table of nats."""
    edges, grid, log_area = cells(limit)
    truth = [true_posterior(model, row, grid, log_area) for row in rows]
    densities = {name: {"true": density} for name, (density, _) in zip(names, truth, strict=True)}
    records = []
    for posterior, guide in guides.items():
        gaps = inference_gap(
            model, guide, rows, num_samples=2000, num_steps=NUM_LOCAL_STEPS, learning_rate=0.1
        )
        for j, name in enumerate(names):
            with torch.no_grad():
                z = guide(rows[j].expand(NUM_DRAWS, -1)).numpy()
            counts = np.histogram2d(*z.T, bins=[edges, edges])[0]
            densities[name][posterior] = counts / NUM_DRAWS / math.exp(log_area)
            record = {"row": name, "posterior": posterior, "log p(x), quadrature": truth[j][1]}
            record["log p(x), estimate"] = float(gaps.log_evidence[j])
            record["k-hat"] = float(gaps.khat[j])
            record["approximation"] = truth[j][1] - float(gaps.local_elbo[j])
            record["amortization"] = float(gaps.amortization_gap[j])
            record["gap"] = record["approximation"] + record["amortization"]
            records.append(record)
    return densities, edges, pd.DataFrame(records).set_index(["row", "posterior"])


def draw(densities, edges, table, unit="", density_unit="per unit of area") -> Figure:
    """One colour scale; white: the region that holds 90% of the true posterior."""
    figure = plot_densities(densities, edges)
    figure.axes[-1].set_ylabel(f"density ({density_unit})")
    figure.set_size_inches(8.6, 0.4 + 1.3 * len(densities))
    centres = (edges[1:] + edges[:-1]) / 2
    panels = iter(figure.axes)
    for name, row in densities.items():
        heights = np.sort(row["true"].ravel())[::-1]
        level = heights[np.searchsorted(heights.cumsum() / heights.sum(), 0.9)]
        for posterior in row:
            panel = next(panels)
            panel.set_xlabel(panel.get_xlabel() and f"$z_1${unit}")
            panel.set_ylabel(panel.get_ylabel() and f"{name}\n$z_2${unit}")
            if posterior == "true":
                continue
            panel.contour(
                centres, centres, row["true"].T, levels=[level], colors="white", linewidths=0.6
            )
            nats = table.loc[(name, posterior)]
            text = f"{nats['gap']:.2f} = {nats['approximation']:.2f} + {nats['amortization']:.2f}"
            panel.text(0.03, 0.03, text, transform=panel.transAxes, color="white", fontsize=7)
    return figure


# %%
guides = fit_guides(receivers, x)
densities, edges, table = compare(receivers, guides, rows, [*shown], limit=2.2)
draw(densities, edges, table, unit=" (km)", density_unit="per square kilometre")

# %% [markdown]
# In each panel: gap = approximation + amortization, in nats. The colours share one scale, set by
# the true posteriors; the white line holds 90% of the true posterior.
#
# - A normal with a diagonal covariance cannot bend: on the arcs it loses most, and settles on a
#   part of them. The flows bend, though the IAF ends on one half of the longest arc.
# - A posterior in two pieces is another matter. KL(q || p) punishes a q that is where p is not,
#   and not one that leaves a piece out: that costs log 2 = 0.69 nats, once, and is a local
#   optimum.
# - **No diagnostic made of q's own draws sees a piece that q never visits**: their k-hat looks
#   well on the first row, where every guide has one of two pieces. `inference_gap` looks around
#   such rows from far off, and so its estimate of log p(x) is that of quadrature.

# %%
pd.set_option("display.width", 120)
table.reindex(list(shown), level="row").round(2)

# %% [markdown]
# ## A decoder that was learned
#
# The same for a variational autoencoder. A decoder is trained once, on points about a ring,
# jointly with an IAF guide. Then it is frozen, and each guide is fitted to it anew.

# %%
points = make_ring(12_000, noise=0.1)
train_points, held_out = points[:5000], points[5000:]
pyro.set_rng_seed(0)
vae = Model(2, 2, (32, 32), likelihood="normal", dropout=0.0, activation="silu")
joint = Guide(2, 2, (64, 64), dropout=0.0, activation="silu", **POSTERIORS["IAF 8"])
rate, beta = cosine(NUM_STEPS, 1e-2, 1e-4), linear(NUM_STEPS // 2)
settings = {"num_steps": NUM_STEPS, "learning_rate": rate, "clip_norm": 10.0}
history = train(vae, joint, train_points, schedule=beta, progress=False, **settings)
vae.requires_grad_(False)
warnings.filterwarnings("ignore", ".* requires_grad=False")  # Pyro says so of each parameter

# %%
guides = fit_guides(vae, train_points)
names = ["row 0", "row 1", "row 2"]
densities, edges, table = compare(vae, guides, held_out[:3], names, limit=2.5)
draw(densities, edges, table)

# %% [markdown]
# A learned decoder chooses its posteriors. Here they are wedges: the direction of z tells the
# place along the ring, its length hardly matters. A normal with independent coordinates cannot
# lie along them unless they lie along an axis; all of the flows can.
#
# Over all held-out rows, in nats a row (the gap with log p(x) from 100 draws):

# %%
warnings.simplefilter("ignore", KhatWarning)  # the table counts those rows
scores = {name: score(vae, guide, held_out) for name, guide in guides.items()}
pd.DataFrame(
    {
        name: {
            "ELBO": float(s.elbo.mean()),
            "log evidence": float(s.log_evidence.mean()),
            "gap": float((s.log_evidence - s.elbo).mean()),
            "rows with k-hat above 0.7": float((s.khat > 0.7).float().mean()),
        }
        for name, s in scores.items()
    }
).T.round(3)

# %% [markdown]
# ## What a family buys per second
#
# All guides again, with two controls: a normal of any covariance, and affine coupling layers. What
# each gains over the diagonal posterior, in nats a row of the bound, of inliers and anomalies, and
# what its training takes in seconds of the processor; the best buy first.

# %%
CONTROLS = {"full 1": {"flow": "full"}, "coupling 4": {"flow": "coupling", "num_flows": 4}}
guides |= fit_guides(vae, train_points, CONTROLS)
anomalies = torch.empty(500, 2).uniform_(-1.5, 1.5, generator=generator)
bounds, evidence = (
    {name: score(vae, guide, rows) for name, guide in guides.items()}
    for rows in (held_out[:2000], anomalies)
)
base = "diagonal"
buys = pd.DataFrame(
    {
        name: {
            "ELBO gained, inliers": float((bounds[name].elbo - bounds[base].elbo).mean()),
            "ELBO gained, anomalies": float((evidence[name].elbo - evidence[base].elbo).median()),
            "k-hat above 0.7, anomalies": float((evidence[name].khat > 0.7).float().mean()),
            "seconds": SECONDS[name],
        }
        for name in guides
    }
).T
extra = (buys["seconds"] - SECONDS[base]).clip(lower=0.1)
buys["nats per further second"] = buys["ELBO gained, inliers"] / extra
buys.sort_values("nats per further second", ascending=False).round(3)

# %% [markdown]
# ## Explore
#
# Choose here, and run this cell and those below again: the flow (a name in `FLOWS`), the number of
# its layers, the width of the encoder's two hidden layers, and the two rows to look at.

# %%
FLOW, DEPTH, WIDTH = "iaf", 5, 64
INLIER, ANOMALY = held_out[:1], torch.tensor([[0.25, 0.1]])  # on the ring, and in its middle

options = {"flow": FLOW, "num_flows": DEPTH}
chosen = fit_guides(vae, train_points, {f"{FLOW} {DEPTH}": options}, (WIDTH, WIDTH))
(label, guide), *_ = chosen.items()
looked_at = {"inlier": INLIER, "anomaly": ANOMALY}

# %% [markdown]
# q's draws (blue) on the refined posterior (grey), which `refine` finds for any number of latents.

# %%
for kind, row in looked_at.items():
    display(plot_posteriors(vae, {f"{label}, {kind}": guide}, row, num_samples=500))

# %% [markdown]
# The gaps, nats; log p(x) is refined where it is in doubt.

# %%
both = torch.cat([*looked_at.values()])
gaps = inference_gap(vae, guide, both, num_samples=2000, num_steps=NUM_LOCAL_STEPS)
pd.DataFrame(
    {
        "log p(x)": gaps.log_evidence,
        "inference gap": gaps.inference_gap,
        "approximation gap": gaps.approximation_gap,
        "amortization gap": gaps.amortization_gap,
        "k-hat": score(vae, guide, both, num_samples=2000).khat,
    },
    index=[*looked_at],
).round(2)

# %% [markdown]
# ## Layer by layer
#
# Each layer's image of a grid of the base, three standard deviations to each side: where lines
# crowd, the density rises. The red line encloses 90% of q; grey holds 90% of the true posterior.


# %%
def images(guide, row):
    """Lines of the base's grid, and its circle of 90%, before the first and after each layer."""
    side, angle = torch.linspace(-3.0, 3.0, 13), torch.linspace(0.0, 2.0 * math.pi, 200)
    fine = torch.linspace(-3.0, 3.0, 200)
    lines = [torch.stack([fine, torch.full_like(fine, float(at))], 1) for at in side]
    lines += [line.flip(1) for line in lines]
    lines.append(math.sqrt(2.0 * math.log(10.0)) * torch.stack([angle.cos(), angle.sin()], 1))
    with torch.no_grad():
        context = guide.encoder(row)
        loc, raw_scale = guide.base(context).chunk(2, dim=-1)
        z = loc + torch.nn.functional.softplus(raw_scale) * torch.cat(lines)
        steps = [z]
        for layer in guide.flow:
            steps.append(layer.condition(context)(steps[-1]))
    return [step.reshape(len(lines), -1, 2) for step in steps]


def draw_layers(guide, most=7) -> Figure:
    """Small multiples: a line of panels a row, a panel a layer, at most so many of them."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    shown = np.unique(np.linspace(0, len(guide.flow), most).round().astype(int))
    panels = figure.subplots(2, len(shown), sharex="row", sharey="row", squeeze=False)
    _, grid, log_area = cells(2.5)
    for line, (kind, row) in zip(panels, looked_at.items(), strict=True):
        steps = images(guide, row)
        density, _ = true_posterior(vae, row[0], grid, log_area)
        level = np.sort(density.ravel())[::-1]
        level = level[np.searchsorted(level.cumsum() / level.sum(), 0.9)]
        drawn = np.concatenate([*(step.reshape(-1, 2) for step in steps), grid[density > level]])
        (left, low), (right, high) = drawn.min(0) - 0.05, drawn.max(0) + 0.05
        for panel, number in zip(line, shown, strict=True):
            panel.contourf(*grid.numpy().T, density.T, levels=[level, np.inf], colors="0.75")
            *mesh, circle = steps[number]
            for one in mesh:
                panel.plot(*one.T, color="tab:blue", linewidth=0.4, alpha=0.7)
            panel.plot(*circle.T, color="tab:red", linewidth=1.2)
            panel.set(xlim=(left, right), ylim=(low, high))
            panel.set_title(f"{kind}, layer {number}" if number else f"{kind}, base", fontsize=9)
    return figure


draw_layers(guide)
