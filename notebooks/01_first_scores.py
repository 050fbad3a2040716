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
# # First scores on a real table
#
# Which rows of a table are anomalies, how sure is the score, and which columns are to blame? Ten
# minutes with scikit-learn's breast-cancer table: 569 tissue samples, 30 measurements of cell
# nuclei each. Benign samples are the normal rows, and the only ones that train; malignant ones
# should come out as anomalies. Nothing is downloaded.

# %%
# %matplotlib inline
import os
import warnings

import numpy as np
import pandas as pd
import pyro
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve

from pyro_vaeflow import Guide, KhatWarning, Model, contributions, cosine, linear, score, train
from pyro_vaeflow.datasets.registry import load_breast_cancer_table
from pyro_vaeflow.datasets.splits import one_class_split
from pyro_vaeflow.metrics import detection_metrics
from pyro_vaeflow.plots.charts import plot_history
from pyro_vaeflow.tables.table_encoder import TableEncoder

# %% [markdown]
# The budget: `VAEFLOW_QUICK` makes every cell run in seconds, to test that it runs.

# %%
NUM_STEPS, NUM_SAMPLES = (20, 20) if os.environ.get("VAEFLOW_QUICK") else (3000, 500)

# %% [markdown]
# ## Load, split, encode
#
# Four fifths of the benign rows train; the others and all malignant rows are the test. Labels
# serve for the evaluation at the end and nothing else. The encoder learns means and spreads from
# the training rows alone. A quarter of these are held out: they choose when to stop, and the
# threshold.

# %%
table = load_breast_cancer_table()
split = one_class_split(table, train_fraction=0.8, seed=0)
encoder = TableEncoder(scaling="standard").fit(split.X_train)
x_train, held_out = encoder.transform(split.X_train).tensor_split([3 * len(split.X_train) // 4])
x_test = encoder.transform(split.X_test)
print(f"{len(x_train)} rows train, {len(held_out)} are held out, {len(x_test)} test")

# %% [markdown]
# ## Train
#
# Two Pyro programs: a decoder with a normal likelihood and one learned scale a column, and an
# encoder with an inverse autoregressive flow. `train` keeps the parameters of the best held-out
# ELBO, and the KL term is weighted up slowly.

# %%
pyro.set_rng_seed(0)
num_features = x_train.shape[1]
model = Model(num_features, latent_dim=6, hidden_dims=(32,), likelihood="normal", dropout=0.1)
guide = Guide(num_features, latent_dim=6, hidden_dims=(32,), dropout=0.1, flow="iaf", num_flows=4)
history = train(
    model,
    guide,
    x_train,
    num_steps=NUM_STEPS,
    batch_size=64,
    learning_rate=cosine(NUM_STEPS, 3e-3, 1e-4),
    schedule=linear(NUM_STEPS // 4),
    held_out=held_out,
    progress=False,
)
print(f"best step: {history.best_step}")
plot_history(history.frame)

# %% [markdown]
# ## Score
#
# Two scores, both in nats and both high for anomalies: `importance` is an estimate of -log p(x),
# `reconstruction` is -E_q[log p(x | z)]. The others say how far the first can be believed.

# %%
warnings.simplefilter("ignore", KhatWarning)  # such rows are counted below
scores = score(model, guide, x_test, num_samples=NUM_SAMPLES)
frame = scores.to_frame().assign(label=split.labels_test)
frame.groupby("label")[["log_evidence", "stderr", "ess", "khat"]].median().round(2)

# %% [markdown]
# - `stderr`: the standard error of the log evidence, nats. Small beside the differences between
#   rows, it does not change their order.
# - `ess`: how many independent draws the weighted ones are worth, of those that were taken.
# - `khat`: the tail of the weights. Below 0.7 the estimate can be used; above it, a few draws
#   carry all the weight and the evidence is probably too low. That raises the score of an
#   anomaly further, so for finding it little is lost, but its number is not to be quoted.

# %%
pd.crosstab(
    frame["label"], np.where(frame["khat"] > 0.7, "k-hat above 0.7", "k-hat fine"), colnames=[""]
)

# %% [markdown]
# Draws can be spent where they are needed: `tol` draws on for rows whose standard error is above
# it.

# %%
spent = score(model, guide, x_test, num_samples=NUM_SAMPLES, tol=0.1, max_samples=16 * NUM_SAMPLES)
frame["stderr, tol=0.1"], frame["draws"] = spent.stderr.numpy(), spent.num_samples.numpy()
frame.groupby("draws")[["stderr", "stderr, tol=0.1", "khat"]].agg("median").join(
    frame["draws"].value_counts().rename("rows")
).round(2)

# %% [markdown]
# ## The row with the highest score, column by column
#
# `contributions` splits a row's expected negative log-likelihood: what each column adds, in nats.

# %%
top = int(scores.importance.argmax())
nats = contributions(model, guide, x_test[top : top + 1], num_samples=NUM_SAMPLES)[0]
why = pd.DataFrame(
    {"nats": nats.numpy(), "value": split.X_test.iloc[top].to_numpy()}, index=encoder.feature_names_
)
why["median of training rows"] = split.X_train.median()
why["standard deviations away"] = x_test[top].numpy()
print(f"row {split.X_test.index[top]}, {split.labels_test[top]}")
why.nlargest(6, "nats").round(3)

# %% [markdown]
# ## A threshold
#
# Without labels a threshold is a choice of how many normal rows may be flagged: here 5% of the
# held-out ones.

# %%
held_out_score = score(model, guide, held_out, num_samples=NUM_SAMPLES).importance.numpy()
test_score = scores.importance.numpy()
threshold = np.quantile(held_out_score, 0.95)
flagged = np.where(test_score > threshold, "flagged", "passed")
pd.crosstab(frame["label"], flagged, colnames=[""])

# %% [markdown]
# ## With the labels: ROC
#
# The only place where labels are used.

# %%
rankings = {
    "importance": test_score,
    "reconstruction": scores.reconstruction.numpy(),
    "norm of x": x_test.norm(dim=1).numpy(),
}
metrics = {name: detection_metrics(split.y_test, values) for name, values in rankings.items()}
pd.DataFrame(metrics).T[["auroc", "average_precision", "f1_true_ratio"]].round(3)


# %%
def draw() -> Figure:
    figure = Figure(figsize=(8.2, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    low, high = np.arcsinh([test_score.min() / 20, test_score.max() / 20])
    edges = 20 * np.sinh(np.linspace(low, high, 40))
    for label, grey, style in [("benign", "0.75", "stepfilled"), ("malignant", "black", "step")]:
        values = test_score[split.labels_test == label]
        left.hist(values, edges, histtype=style, color=grey, label=label)
    left.axvline(threshold, color="black", linestyle=":", label="threshold")
    left.set_xscale("asinh", linear_width=20)
    left.set_xticks([0, 100, 1000, 10_000], ["0", "100", "1,000", "10,000"])
    left.set_xlim(left=min(0.0, test_score.min()))
    left.set(xlabel="importance score, -log p(x) (nats)", ylabel="test rows")
    left.legend()
    for (name, values), style in zip(rankings.items(), ("-", "--", ":"), strict=True):
        false, true, _ = roc_curve(split.y_test, values)
        right.plot(false, true, style, color="black", label=name)
    right.set(xlabel="share of benign rows flagged", ylabel="share of malignant rows flagged")
    right.legend()
    return figure


draw()

# %% [markdown]
# The third curve is a control that learns nothing, the distance from the mean of the training
# rows in standard deviations: a score is worth what it adds to that. Here it adds little:
# malignant samples lie far out, and any distance finds them. What the control does not give is a
# probability, with its error, and the columns to blame. A table whose anomalies lie inside the
# range of every column is in the next notebook.
