"""One run of the potentials' study: a potential, a posterior and a seed; its KL and histogram."""

import hashlib
import json
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from pyro_vaeflow.annealing import cosine
from pyro_vaeflow.draws import trace_chunks
from pyro_vaeflow.isolation import seeded
from pyro_vaeflow.potentials import POTENTIALS, FlowGuide, PotentialModel, log_normalizer
from pyro_vaeflow.traces import row_terms
from pyro_vaeflow.training import train

EDGES = np.linspace(-4.5, 4.5, 91)  # of the histogram that stands for a density
NUM_ROWS = 1000  # rows that draw num_samples times each, for the KL and the histogram
FALL = 100  # the learning rate ends at so small a part of its start


@dataclass(frozen=True)
class PotentialRun:
    """All settings of one run; `name` is its file's, so that changed settings are a new run.

    Example:
        >>> run = PotentialRun("U1", "iaf", 8, seed=3)
        >>> run.name[:13], run.name == PotentialRun("U1", "iaf", 8, 3, num_samples=9).name
        ('U1-iaf8-seed3', False)
    """

    potential: str
    model: str
    num_flows: int
    seed: int
    num_steps: int = 3000
    batch_size: int = 256
    learning_rate: float = 5e-3
    num_samples: int = 200

    @property
    def name(self) -> str:
        settings = json.dumps({**asdict(self), "rows": NUM_ROWS, "fall": FALL}, sort_keys=True)
        digest = hashlib.sha256(settings.encode()).hexdigest()[:8]
        return f"{self.potential}-{self.model}{self.num_flows}-seed{self.seed}-{digest}"


def fit_potential(run: PotentialRun) -> dict[str, Any]:
    """Fits one posterior: KL(q || p) with its standard error, nats, and a histogram of q.

    Example:
        >>> result = fit_potential(PotentialRun("U1", "planar", 2, seed=0, num_steps=20))
        >>> result["kl"] > 0
        True
    """
    energy = POTENTIALS[run.potential]
    with seeded(run.seed):
        model, guide = PotentialModel(energy), FlowGuide(run.model, run.num_flows)
    started = time.perf_counter()
    train(
        model,
        guide,
        torch.zeros(run.batch_size, 1),
        num_steps=run.num_steps,
        batch_size=run.batch_size,
        learning_rate=cosine(run.num_steps, run.learning_rate, run.learning_rate / FALL),
        seed=run.seed,
        progress=False,
    )
    seconds = time.perf_counter() - started
    elbo, counts = [], np.zeros((len(EDGES) - 1, len(EDGES) - 1))
    rows = torch.arange(float(NUM_ROWS)).unsqueeze(-1)  # their values only tell their noise apart
    for traces in trace_chunks(model, guide, rows, num_samples=run.num_samples, seed=run.seed):
        elbo.append(row_terms(*traces).log_weight.flatten().double())
        z = traces[1].nodes["z"]["value"].reshape(-1, 2).numpy()
        counts += np.histogram2d(z[:, 0], z[:, 1], bins=[EDGES, EDGES])[0]
    terms = torch.cat(elbo)
    per_area = len(terms) * (EDGES[1] - EDGES[0]) ** 2  # draws outside the edges count too
    return {
        **asdict(run),
        "kl": log_normalizer(energy) - terms.mean().item(),
        "stderr": terms.std().item() / len(terms) ** 0.5,
        "seconds": seconds,
        "density": (counts / per_area).round(5).tolist(),
    }
