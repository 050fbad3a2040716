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
# # The study of flow posteriors
#
# Does a more flexible posterior improve the bound, the evidence, detection; at which latent size
# and depth; and if not, which gap is the limit? `vaeflow run flow-study` trained the models; here
# its figures are drawn from the table that it left, `results/flow-study/summary.csv`.
# The answer in words is in `results/flow-study/README.md`.

# %%
# %matplotlib inline
import os
import sys
from importlib import import_module

import matplotlib
import pandas as pd

sys.path.append("..")  # the scripts of results/ are no part of the package
from results.shared.effects import by_run, effects, paired

design = import_module("results.flow-study.design")
figures_of = import_module("results.flow-study.figures")

matplotlib.rcParams["figure.dpi"] = 100

# %% [markdown]
# `VAEFLOW_QUICK` leaves out the bootstrap's table; nothing is trained here.

# %%
MEASURES = (
    ["elbo"] if os.environ.get("VAEFLOW_QUICK") else ["elbo", "log_evidence", "auroc_importance"]
)

# %%
table = by_run(pd.read_csv("../results/flow-study/summary.csv"))
table.groupby(["dataset", "seed"]).size().unstack()

# %% [markdown]
# ## Effects
#
# Each flow less the diagonal posterior in its cell: same rows, latent size, likelihood and seed. A
# mean is over data sets; an interval is from a bootstrap that draws data sets, and seeds in them.
# Without enough of them there is none.

# %%
differences = design.complete(paired(design.central(table)))
effects(differences, ["flow", "num_flows"], MEASURES).set_index(["flow", "num_flows"]).T.round(3)

# %%
figures = figures_of.study_figures(table, pd.read_csv("../results/flow-study/margins.csv"))
figures["effects"]

# %% [markdown]
# Black: means and intervals; light marks: single data sets. AUROC is in points of 0.01.
#
# ## What a flow adds, beside what lies between the classes
#
# `margins.csv` has a line a flow's run beside the diagonal posterior's: what lies between the
# median inlier and the median outlier, how far the diagonal's bound is from its evidence, and what
# the flow adds to both classes. On the left log evidence is by the 32 draws of the study's scores,
# on the right the same rows' is refined, and by quadrature with 2 latents: draws that miss a
# posterior make an outlier's too low.

# %%
figures["margins"]

# %% [markdown]
# ## Gaps over the latent size
#
# The log evidence is ELBO + approximation gap + amortization gap.

# %%
figures["approximation"]

# %%
figures["amortization"]

# %% [markdown]
# The evidence itself, to see what the size of z does beside what the posterior does:

# %%
figures["evidence"]

# %% [markdown]
# ## Does evidence buy detection?
#
# One mark is one flow's run beside the diagonal's: what it adds to the log evidence of inliers, and
# to the AUROC of the importance score.

# %%
figures["detection"]
