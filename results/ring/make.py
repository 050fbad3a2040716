"""The ring's figures, each posterior's scores beside the truth, and what it lacks of the truth."""

from collections.abc import Sequence
from functools import partial

import pandas as pd
import torch

from pyro_vaeflow.datasets.ring import ring_log_density
from pyro_vaeflow.experiments.config import GapSettings
from pyro_vaeflow.experiments.figures import draw_figures
from pyro_vaeflow.experiments.results import finished_runs
from pyro_vaeflow.experiments.tasks import Task
from pyro_vaeflow.inference.inference_gap import Gaps
from pyro_vaeflow.inference.parameters import Program
from results.ring import maps
from results.ring.prior_gap import prior_gap
from results.shared.gaps import QUICK, write_gaps, write_gaps_page
from results.shared.pages import parse, parser, run_quick, run_script

SETTINGS = GapSettings(rows=250, num_steps=100)


def beside_truth(
    model: Program,
    guide: Program,
    task: Task,
    x: torch.Tensor,
    gaps: Gaps,
    seed: int,
    num_samples: int,
) -> dict[str, float]:
    """What the evidence of rows lacks of their true density: the prior's part and the decoder's."""
    true = float(ring_log_density(x).mean())
    gain = prior_gap(model, guide, task.x_train, x, num_samples=num_samples, seed=seed)
    return {
        "true_log_density": true,
        "decoder_gap": true - (gaps.log_evidence + gain).double().mean().item(),
        "prior_gap": gain.double().mean().item(),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line and makes the folder's figures and tables."""
    values = parse(parser(__file__, __doc__), argv)
    folder, settings = values.folder, QUICK if values.quick else SETTINGS
    if values.quick:
        run_quick("ring", folder)
    draw_figures(folder)
    if {run.config.dataset for run in finished_runs(folder)} == {"ring"}:
        maps.write_maps(folder, **(maps.QUICK if values.quick else maps.BUDGET))
        write_gaps(folder, settings, partial(beside_truth, num_samples=settings.num_samples))
    elif (folder / "gaps.csv").is_file():
        write_gaps_page(folder, pd.read_csv(folder / "gaps.csv"), settings)
    if (folder / "maps.csv").is_file():
        maps.draw_maps(folder)


if __name__ == "__main__":
    run_script(main, "ring")
