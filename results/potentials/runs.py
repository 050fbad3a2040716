"""Runs of the potentials' study: a potential, a posterior, a seed; its KL and histogram."""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from pyro.infer import Trace_ELBO
from pyro.poutine.trace_struct import Trace

from pyro_vaeflow.inference.annealing import cosine, linear, warmup
from pyro_vaeflow.inference.draws import trace_chunks
from pyro_vaeflow.inference.parameters import seeded
from pyro_vaeflow.inference.traces import row_terms
from pyro_vaeflow.inference.training import train
from results.potentials.energies import POTENTIALS, Energy, log_normalizer
from results.potentials.many_fits import AdamByFit, FlowGuide, FlowGuides, Potentials

EDGES = np.linspace(-4.5, 4.5, 91)  # of the histogram that stands for a density
WARMUP = 20  # one in so many steps, the first ones, has a rising learning rate
FALL = 100  # the learning rate ends at so small a part of its highest
CLIP_NORM = 10.0  # of a fit's gradient
TRAINING = {"warmup": WARMUP, "fall": FALL, "clip_norm": CLIP_NORM}  # of every run


@dataclass(frozen=True)
class PotentialRun:
    """All settings of one run; `name` is its file's, so that changed settings are a new run.

    The entropy of q has the weight `temperature` at the start, which falls on a line to 1 at half
    of the steps: a density that is wide at first loses no mode.

    Example:
        >>> run = PotentialRun("U1", "iaf", 8, seed=3)
        >>> run.name[:13], run.name == PotentialRun("U1", "iaf", 8, 3, num_samples=9).name
        ('U1-iaf8-seed3', False)
    """

    potential: str
    flow: str
    num_flows: int
    seed: int
    num_steps: int = 3000
    batch_size: int = 256
    learning_rate: float = 1e-2
    temperature: float = 5.0
    num_samples: int = 200_000
    flow_options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Potential, posterior and seed, with a digest of all settings."""
        settings = json.dumps(asdict(self) | TRAINING, sort_keys=True)
        digest = hashlib.sha256(settings.encode()).hexdigest()[:8]
        return f"{self.potential}-{self.flow}{self.num_flows}-seed{self.seed}-{digest}"


def fit_potentials(runs: Sequence[PotentialRun]) -> list[dict[str, Any]]:
    """Fits runs that differ in potential and seed alone, all at once; a dictionary a run.

    Each has ``kl``, KL(q || p) in nats, its ``stderr``, and a histogram of q, ``density``; also
    the ``seconds`` of training, its share of the whole.

    Raises:
        KeyboardInterrupt: at Ctrl-C, after the step at hand.
    """
    run, energies = runs[0], [POTENTIALS[run.potential] for run in runs]
    guides = []
    for seed in (run.seed for run in runs):
        with seeded(seed):
            guides.append(FlowGuide(run.flow, run.num_flows, **run.flow_options))
    pair = Potentials(energies), FlowGuides(guides)
    fits = torch.arange(float(len(runs))).unsqueeze(-1)
    rising = run.num_steps // WARMUP
    falling = cosine(run.num_steps - rising, run.learning_rate, run.learning_rate / FALL)
    started = time.perf_counter()
    history = train(
        *pair,
        fits,
        num_steps=run.num_steps,
        batch_size=len(runs),
        learning_rate=warmup(rising, falling),
        schedule=linear(max(1, run.num_steps // 2), run.temperature, 1.0),
        loss=Trace_ELBO(run.batch_size, max_plate_nesting=1, vectorize_particles=True),
        optimizer=partial(AdamByFit, clip_norm=CLIP_NORM),
        seed=run.seed,
        progress=False,
    )
    if history.interrupted:
        raise KeyboardInterrupt
    seconds = (time.perf_counter() - started) / len(runs)
    chunks = trace_chunks(*pair, fits, num_samples=run.num_samples, seed=run.seed, chunk_size=1)
    return [
        {**asdict(fitted), "seconds": seconds, **_measures(energy, traces)}
        for fitted, energy, traces in zip(runs, energies, chunks, strict=True)
    ]


def _measures(energy: Energy, traces: tuple[Trace, Trace]) -> dict[str, Any]:
    """KL, its standard error and the histogram, from the draws of one fit."""
    terms = row_terms(*traces).log_weight.flatten().double()
    z = traces[1].nodes["z"]["value"].reshape(-1, 2).numpy()
    counts = np.histogram2d(z[:, 0], z[:, 1], bins=[EDGES, EDGES])[0]
    per_area = len(terms) * (EDGES[1] - EDGES[0]) ** 2  # draws outside the edges count too
    return {
        "kl": log_normalizer(energy) - terms.mean().item(),
        "stderr": terms.std().item() / len(terms) ** 0.5,
        "density": (counts / per_area).round(5).tolist(),
    }
