"""Each family as the guide of two targets whose log Z is 0: Neal's funnel, and forty Gaussians.

There is nothing to amortise, all rows are alike: what is lost is the family's, and training's. Log
Z by the guide's draws and refined is beside it. Writes targets.csv, a line a fit, and targets.md; a
killed call goes on with what targets.csv lacks.
"""

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import log
from pathlib import Path
from typing import Any

import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from tqdm.auto import tqdm

from pyro_vaeflow import Guide, KhatWarning, cosine, score, train
from pyro_vaeflow.experiments.results import method_name
from pyro_vaeflow.inference.parameters import seeded
from pyro_vaeflow.inference.training import NonFiniteError
from results.posteriors.make import FAMILIES
from results.shared.pages import markdown, parse, parser, run_script, write_page

BUDGET = {"num_steps": 1500, "num_draws": 10_000, "seeds": 3}
QUICK = {"num_steps": 5, "num_draws": 50, "seeds": 1}
ROWS = 256  # alike, of a step
KEYS = ["target", "flow", "num_flows", "seed"]


def funnel(z: torch.Tensor) -> torch.Tensor:
    """log density of ten numbers: v with deviation 3, and nine with variance exp(v)."""
    v = z[..., :1]
    rest = dist.Normal(0.0, (0.5 * v).exp()).log_prob(z[..., 1:]).sum(-1)
    return dist.Normal(0.0, 3.0).log_prob(v).squeeze(-1) + rest


def forty(z: torch.Tensor) -> torch.Tensor:
    """log density of a mixture of forty normals of deviation 1.3 in a square of side 80."""
    draw = torch.Generator().manual_seed(0)
    centres = (80.0 * torch.rand(40, 2, generator=draw) - 40.0).to(z)
    parts = dist.Normal(centres, 1.3).to_event(1).log_prob(z.unsqueeze(-2))
    return parts.logsumexp(-1) - torch.tensor(40.0).log()


@dataclass(frozen=True)
class Target:
    """A density of `dim` numbers over `width` as a model: a factor mends a standard normal z."""

    log_density: Callable[[torch.Tensor], torch.Tensor]
    dim: int
    width: float

    def model(self, x: torch.Tensor) -> None:
        """The evidence of a row is the density's integral, 1."""
        base, log_volume = dist.Normal(torch.zeros(self.dim).to(x), 1.0), self.dim * log(self.width)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", base.to_event(1))
            log_prob = self.log_density(self.width * z) + log_volume
            pyro.factor("target", log_prob - base.log_prob(z).sum(-1))


TARGETS = {"funnel": Target(funnel, 10, 3.0), "forty Gaussians": Target(forty, 2, 25.0)}


def fitted(
    name: str, family: tuple[str, int], seed: int, budget: Mapping[str, int]
) -> dict[str, Any]:
    """One fit: bound, log Z by draws and refined, nats, with k-hats; None where it fails."""
    target, (flow, num_flows), x = TARGETS[name], family, torch.zeros(ROWS, 1)
    found: dict[str, Any] = dict(zip(KEYS, (name, flow, num_flows, seed), strict=True))
    sizes: dict[str, Any] = {"flow": flow, "num_flows": num_flows, "dropout": 0.0}
    with seeded(seed):
        guide = Guide(1, target.dim, (16,), flow_options=FAMILIES[family], **sizes)
    started, steps = time.process_time(), budget["num_steps"]
    rate = cosine(steps, 5e-3, 5e-5)
    options: dict[str, Any] = {"num_steps": steps, "learning_rate": rate, "clip_norm": 10.0}
    try:
        train(target.model, guide, x, batch_size=ROWS, seed=seed, progress=False, **options)
    except NonFiniteError:
        return found
    found["seconds"] = time.process_time() - started
    draws = {"num_samples": budget["num_draws"], "seed": seed}
    with warnings.catch_warnings(action="ignore", category=KhatWarning):
        plain = score(target.model, guide, x[:1], **draws)
        refined = score(target.model, guide, x[:1], refine="all", **draws)
    found["elbo"] = plain.elbo.item()
    for kind, scores in (("draws", plain), ("refined", refined)):
        for field in ("log_evidence", "stderr", "khat"):
            found[f"{field}_{kind}"] = getattr(scores, field).item()
    return found


def write_fits(folder: Path, budget: Mapping[str, int]) -> None:
    """Adds to targets.csv the fits that it lacks."""
    path = folder / "targets.csv"
    tables = [pd.read_csv(path)] if path.is_file() else []
    finished = {key for t in tables for key in t[KEYS].itertuples(index=False, name=None)}
    runs = list(product(range(budget["seeds"]), TARGETS, FAMILIES))
    for seed, name, family in tqdm(runs, desc="targets", unit="fit"):
        if (name, *family, seed) not in finished:
            tables = [pd.concat([*tables, pd.DataFrame([fitted(name, family, seed, budget)])])]
            tables[0].to_csv(path, index=False, float_format="%.6g")


def write_targets_page(folder: Path) -> None:
    """Writes targets.md from targets.csv."""
    lines = []
    table = pd.read_csv(folder / "targets.csv")
    for (target, flow, depth), group in table.groupby(KEYS[:3], sort=False):
        line = {"target": target, "family": method_name(flow, depth)}
        trained = group[group["elbo"].notna()]
        line["trained"] = f"{len(trained)} of {len(group)}"
        for title, column in (
            ("ELBO", "elbo"),
            ("log Z, draws", "log_evidence_draws"),
            ("k-hat, draws", "khat_draws"),
            ("log Z, refined", "log_evidence_refined"),
            ("k-hat, refined", "khat_refined"),
            ("seconds", "seconds"),
        ):
            line[title] = round(trained[column].median(), 2)
        lines.append(line)
    shown = pd.DataFrame(lines).sort_values(["target", "ELBO"], ascending=[True, False])
    write_page(
        folder / "targets.md",
        f"# {folder.resolve().name}: targets with log Z = 0",
        "Made by `python -m results.posteriors.targets` from targets.csv: medians over seeds, "
        "nats; -ELBO is KL(q || p).",
        markdown(shown),
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line, fits what is missing and writes the page."""
    values = parse(parser(__file__, __doc__), argv)
    write_fits(values.folder, QUICK if values.quick else BUDGET)
    write_targets_page(values.folder)


if __name__ == "__main__":
    run_script(main, "posteriors", "python -m results.posteriors.targets")
