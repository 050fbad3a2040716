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
# # Annealing
#
# The loss is -E_q[log p(x | z)] + beta KL(q(z | x) || p(z)). Early in training the decoder can
# make nothing of z yet, so the KL term is all cost and no gain: q falls onto the prior, z then
# says nothing of x, and the decoder never learns to listen. That is KL collapse. Here it happens,
# is measured, and is cured by a weight beta that starts at 0; then the KL is held at a target of
# our choice.

# %%
# %matplotlib inline
import os
import warnings

import pandas as pd
import pyro
import torch
from matplotlib.figure import Figure

from pyro_vaeflow import (
    CapacityELBO,
    Guide,
    KhatWarning,
    Model,
    active_units,
    constant,
    cyclical,
    linear,
    score,
    train,
)
from pyro_vaeflow.plots.charts import plot_schedules

# %% [markdown]
# The budget: `VAEFLOW_QUICK` makes every cell run in seconds, to test that it runs.

# %%
NUM_STEPS, NUM_ROWS = (20, 200) if os.environ.get("VAEFLOW_QUICK") else (2000, 6000)

# %% [markdown]
# ## Schedules
#
# A schedule is a function of the step and nothing else, so drawing it is its documentation.

# %%
schedules = {
    "constant": constant(1.0),
    "linear": linear(NUM_STEPS // 2),
    "cyclical": cyclical(NUM_STEPS, num_cycles=4, ratio=0.5),
}
plot_schedules(schedules, NUM_STEPS)

# %% [markdown]
# ## A table on which the KL collapses
#
# Four times of day, each as the cosine and the sine of its angle, measured with noise: eight
# columns, no two of them correlated. A linear look at the table sees nothing but noise, and that
# is where a decoder starts. All that there is to learn is curved: each pair of columns lies on a
# circle.

# %%
NUM_ANGLES, NOISE = 4, 0.1
generator = torch.Generator().manual_seed(0)
angles = 2 * torch.pi * torch.rand(NUM_ROWS, NUM_ANGLES, generator=generator)
circles = torch.cat([angles.cos(), angles.sin()], dim=1)
x = circles + NOISE * torch.randn(circles.shape, generator=generator)
x = (x - x.mean(0)) / x.std(0)
x_train, x_test = x[: NUM_ROWS // 2], x[NUM_ROWS // 2 :]
correlation = torch.corrcoef(x.T).fill_diagonal_(0.0)
print(f"largest correlation of two columns: {correlation.abs().max():.3f}")


# %%
def run(seed=0, num_steps=NUM_STEPS, **annealing):
    """A VAE with a diagonal posterior and eight latents, annealed in the way that is asked for."""
    pyro.set_rng_seed(seed)
    model = Model(8, latent_dim=8, hidden_dims=(32, 32), likelihood="normal", dropout=0.0)
    guide = Guide(8, latent_dim=8, hidden_dims=(32, 32), dropout=0.0)
    settings = {"num_steps": num_steps, "batch_size": 128, "learning_rate": 2e-3}
    history = train(model, guide, x_train, seed=seed, progress=False, **settings, **annealing)
    return model, guide, history


warnings.simplefilter("ignore", KhatWarning)  # it is about the evidence, not used in what follows


def measure(model, guide):
    """On rows not trained on: the true bound, its two parts, and how many latents say anything."""
    scores = score(model, guide, x_test)
    parts = {"ELBO": scores.elbo, "E[log p(x | z)]": scores.expected_log_likelihood}
    parts["KL"] = scores.expected_log_likelihood - scores.elbo
    nats = {name: float(value.mean()) for name, value in parts.items()}
    return nats | {"active units": active_units(model, guide, x_test).count}


# %%
runs = {name: run(schedule=schedule) for name, schedule in schedules.items()}
pd.DataFrame({name: measure(*pair) for name, (*pair, _) in runs.items()}).T.round(2)

# %% [markdown]
# Nats a row. With beta = 1 from the start no latent is active: the decoder has learned the mean
# and the spread of each column, and the bound is that of eight independent normals. The same
# programs, from the same start, with beta raised slowly, use their latents and end with a higher
# bound. What is compared is the true bound, in which beta is 1 for all.
#
# The KL while training, and the true bound:


# %%
def draw(runs, columns) -> Figure:
    """Running means of a history's columns, one panel each; lines differ in style and grey."""
    figure = Figure(figsize=(8.2, 3.0), layout="constrained")
    styles = [("-", "black"), ("--", "0.25"), (":", "0.45"), ("-.", "0.6")]
    for panel, (name, label) in zip(figure.subplots(1, 2), columns.items(), strict=True):
        for (title, (*_, history)), (style, grey) in zip(runs.items(), styles, strict=False):
            mean = history.frame[name].rolling(25, min_periods=1).mean()
            panel.plot(history.frame["step"], mean, style, color=grey, label=title)
        middle = pd.concat([history.frame[name] for *_, history in runs.values()])
        low, high = middle.quantile([0.02, 0.999])
        margin = 0.04 * (high - low)
        panel.set(xlabel="step", ylabel=label, ylim=(low - margin, high + margin))
    lines, titles = figure.axes[0].get_legend_handles_labels()
    figure.legend(lines, titles, loc="outside upper center", ncols=len(titles))
    return figure


draw(runs, {"kl": "KL (nats a row)", "elbo": "ELBO, beta = 1 (nats a row)"})

# %% [markdown]
# Is it only slow? Three times the steps, other seeds:

# %%
warm_up = schedules["linear"]
patient = {
    f"seed {seed}, {name}, {factor} x steps": measure(
        *run(seed, factor * NUM_STEPS, schedule=schedule)[:2]
    )
    for seed in (1, 2)
    for name, schedule, factor in [("constant", constant(1.0), 3), ("linear", warm_up, 1)]
}
pd.DataFrame(patient).T.round(2)

# %% [markdown]
# ## Capacity: a KL of one's choice
#
# `CapacityELBO` minimises -E_q[log p(x | z)] + gamma |KL - C|, and the schedule gives the
# capacity C, in nats a row. Raised from 0 to a target and held there, the KL follows it.

# %%
TARGETS = (2.0, 5.0, 8.0)
capacities = {f"C = {c:g}": linear(NUM_STEPS // 2, stop=c) for c in TARGETS}
plot_schedules(capacities, NUM_STEPS, label="capacity (nats a row)")

# %%
held = {
    name: run(loss=CapacityELBO(gamma=20.0), schedule=schedule)
    for name, schedule in capacities.items()
}
pd.DataFrame(
    {
        name: {"target": c} | measure(*pair)
        for c, (name, (*pair, _)) in zip(TARGETS, held.items(), strict=True)
    }
).T.round(2)

# %%
draw(held, {"kl": "KL (nats a row)", "log_likelihood": "E[log p(x | z)] (nats a row)"})

# %% [markdown]
# The KL of new rows is what was asked for. That is all that a capacity promises: by the true
# bound these runs are behind, because a stiff gamma lets the KL in no faster than the schedule
# does, and the likelihood is still being learned at the end. C says how much of a row the latents
# may tell; which model is best the ELBO of held-out rows decides.
