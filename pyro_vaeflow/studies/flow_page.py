"""The words of the study's page; `pyro_vaeflow.studies.flow_study` computes what is in braces."""

PAGE = """# Do flow posteriors help, and what?

{answer}

{seeds}.

## What has run

{progress}

The preset [flow-study.yaml](../../pyro_vaeflow/presets/flow-study.yaml) is a design, not the full
grid: a factorial of posterior (base, planar 5 and 20, IAF 5 and 20) and latent size (2, 8, 32) on
six tables, and around its centre (8 latents, columns as the mixed likelihood reads them, no
schedule) one factor at a time: depth 50, a spline, the paper's Bernoulli likelihood, the sizes 4
and 16, cyclical beta and capacity. All posteriors of a data set and seed share rows, networks,
steps and learning rate; 15% of the training rows choose the step whose parameters are kept, by
their ELBO. Nothing was tuned for a posterior or a data set, and no test label chose anything. The
ring alone has a warm-up: in a trial without, its latents collapsed.

Gaps are of up to 100 distinct test rows that are inliers (20 for the spline), each with its own q
from 50 steps.

## How large

Each flow less the diagonal posterior with the same rows, latent size, likelihood and seed
({pairs} pairs of the factorial): the mean over data sets, and its 95% interval, by a bootstrap
that draws data sets and their seeds.

{effects}

![what each posterior changes](figures/effects.png)

Means (dots) and intervals of the table; light marks are single data sets.

## Why detection hardly moves

{why}

{margins}

![what lies between the classes, and what a flow adds](figures/margins.png)

Nats, medians over test rows, means over runs of flows beside their base: the margin is what lies
between the classes, the slack is the base's log evidence less its ELBO, the gain is the flow's
evidence less the base's; the rank correlation is of the two models' evidence of the same rows.

What other choices do to AUROC, in points, all else alike (the size is the mean over data sets of
the effect's magnitude):

{moves}

## Which gap is the limit

Nats a row, means over data sets; the log evidence is ELBO + approximation gap + amortization gap.

{gaps}

![approximation gap over latent size](figures/approximation.png)

The approximation gap, what no member of the family reaches, over the latent size.

![amortization gap over latent size](figures/amortization.png)

The amortization gap, what one encoder for all rows loses, over the latent size.

![log evidence over latent size](figures/evidence.png)

The log evidence of test inliers: where it moves more between sizes than between posteriors, the
model is the limit.

![change of AUROC over change of the evidence](figures/detection.png)

Each flow's change of AUROC over its change of the log evidence: would evidence buy detection,
marks would rise to the right.

## The paper's two hypotheses

**"Planar flows are limited by the dimension."** {planar_verdict}

{planar}

**"There are sizes at which IAF helps."** {iaf_verdict}

{iaf}

## Depth 50, spline, likelihood and schedule

Flows less the base of the same likelihood and schedule, all with 8 latents.

{others}

## What to choose

By the evidence of inliers {best} gains most over the base, {best_gain} nats a row, for
{best_detection} points of AUROC. The importance score instead of the reconstruction score
{scores}, all posteriors together. Medians of the cost:

{costs}

{advice} The share of rows whose k-hat is above 0.7, whose evidence is not to be trusted, is
{khat_base} under the base and {khat_flows} under flows.

## Threats to validity

- Few seeds and data sets: percentile intervals of so few are too narrow rather than too wide.
- Each interval is of one comparison, and the page has dozens: one in twenty leaves out the truth by
  chance.
- One learning rate and number of steps for all: a posterior that learns more slowly is at a
  disadvantage.
- At most 10,000 rows of each part: KDD's figures are not those of the paper's protocol.
- The approximation gap is an upper bound that falls with steps of the local ascent, and the more
  parameters a family has the further it may be from its end; where k-hat is above 0.7, evidence
  and gap are too low.
- One normal prior: with the exemplar prior of the presets kdd and adbench the base does better,
  and so might the flows.
- Nats of different likelihoods do not compare; differences of posteriors within one do.
- Seconds were taken on a machine with other work: their ratios are rough.

## Made by

```
vaeflow run flow-study --out results/flow-study             # goes on with what is missing
python -m pyro_vaeflow.studies.flow_study results/flow-study        # this page and its figures
vaeflow report results/flow-study                           # all runs as one HTML page
```

[The notebook](../../notebooks/05_flow_study.ipynb) draws the figures from `summary.csv`, a row a
run; `table.md` has settings and versions, `effects.csv` the table above.
"""
