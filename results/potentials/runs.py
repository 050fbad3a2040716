"""Runs of the potentials' study: a potential, a posterior, a seed; its KL and histogram."""

import hashlib
import json
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from pyro_vaeflow.inference.annealing import cosine, linear, warmup
from pyro_vaeflow.inference.draws import trace_chunks
from pyro_vaeflow.inference.parameters import seeded
from pyro_vaeflow.inference.training import train
from results.potentials.energies import POTENTIALS, log_normalizer
from results.potentials.programs import FlowGuide, PotentialModel

EDGES = np.linspace(-4.5, 4.5, 91)  # of the histogram that stands for a density
WARMUP = 20  # one in so many steps, the first ones, has a rising learning rate
FALL = 100  # the learning rate ends at so small a part of its highest
CLIP_NORM = 10.0  # of the gradient
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


def fit_potential(run: PotentialRun) -> dict[str, Any]:
    """Fits one run; its settings, and what was measured.

    ``kl`` is KL(q || p) in nats, with its ``stderr``; ``density`` a histogram of q per unit of
    area, ``(90, 90)``; ``seconds`` are of training.

    Raises:
        KeyboardInterrupt: at Ctrl-C, after the step at hand.
    """
    energy = POTENTIALS[run.potential]
    with seeded(run.seed):
        pair = PotentialModel(energy), FlowGuide(run.flow, run.num_flows, **run.flow_options)
    rising = run.num_steps // WARMUP
    falling = cosine(run.num_steps - rising, run.learning_rate, run.learning_rate / FALL)
    started = time.perf_counter()
    history = train(
        *pair,
        torch.zeros(run.batch_size, 1),
        num_steps=run.num_steps,
        batch_size=run.batch_size,
        learning_rate=warmup(rising, falling),
        schedule=linear(max(1, run.num_steps // 2), run.temperature, 1.0),
        clip_norm=CLIP_NORM,
        seed=run.seed,
        progress=False,
    )
    if history.interrupted:
        raise KeyboardInterrupt
    seconds = time.perf_counter() - started
    # One row, all draws: rows that are alike would have the same draws.
    (chunk,) = trace_chunks(
        *pair, torch.zeros(1, 1), num_samples=run.num_samples, seed=run.seed, chunk_size=1
    )
    log_weight = chunk.terms.log_weight.flatten().double()
    z = chunk.latents["z"].reshape(-1, 2).numpy()
    counts = np.histogram2d(z[:, 0], z[:, 1], bins=[EDGES, EDGES])[0]
    per_area = len(z) * (EDGES[1] - EDGES[0]) ** 2  # draws outside the edges count too
    return {
        **asdict(run),
        "kl": log_normalizer(energy) - log_weight.mean().item(),
        "stderr": log_weight.std().item() / len(z) ** 0.5,
        "seconds": seconds,
        "density": (counts / per_area).round(5).tolist(),
    }
