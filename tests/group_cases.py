"""Trainings that the processes of a group and one process must end alike; torchrun's script."""

import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pyro
import torch
from pyro.infer import Trace_ELBO
from safetensors.torch import save_file

from pyro_vaeflow import (
    CapacityELBO,
    ExemplarPrior,
    Guide,
    Model,
    NonFiniteError,
    VAEFlowDetector,
    train,
)
from pyro_vaeflow.cli import main
from pyro_vaeflow.inference.group import join_group, joined
from pyro_vaeflow.inference.resume import Checkpoint
from pyro_vaeflow.inference.state import state_of
from tests.programs import ZOO, Pair, ours, rows

EVERY, DIES_AT = 10, 35  # steps
OPTIONS: dict[str, dict[str, Any]] = {
    "iaf": {},
    "mixed": {},
    "exemplar": {},
    "shared_latent": {},
    "discrete_latent": {},
    "capacity": {"loss": CapacityELBO(gamma=10.0), "schedule": lambda step: 1.0 + 0.1 * step},
    "particles": {"loss": Trace_ELBO(num_particles=3, vectorize_particles=True)},
    "held_out": {"held_out": rows(9), "eval_every": 3, "clip_norm": 0.5},
    "weights": {"weights": torch.arange(30)},
}


def exemplar() -> Pair:
    sizes = {"latent_dim": 2, "hidden_dims": (8,)}
    guide = Guide(3, flow="iaf", num_flows=2, **sizes)
    prior = ExemplarPrior(rows().double(), guide.locate, latent_dim=2, per_step=20)
    return Pair(Model(3, likelihood="normal", prior=prior, **sizes), guide, rows())


PAIRS: dict[str, Callable[[], Pair]] = {
    "exemplar": exemplar,
    "capacity": partial(ours, "diagonal", True),
    "particles": partial(ours, "planar", True),
    "held_out": partial(ours, "spline", True),
    "weights": ZOO["param_functions"],
}


def trained(name: str) -> dict[str, torch.Tensor]:
    """State and history after 12 steps of 13 rows, in double precision."""
    torch.set_default_dtype(torch.float64)
    pyro.set_rng_seed(0)
    pair = PAIRS.get(name, ZOO.get(name))()
    options = {"num_steps": 12, "batch_size": 13, "learning_rate": 0.02} | OPTIONS[name]
    options = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    x = tuple(arg.double() if isinstance(arg, torch.Tensor) else arg for arg in pair.args)
    history = train(pair.model, pair.guide, x, **options, seed=3, progress=False)
    frame = history.frame.drop(columns=["seconds"]).to_numpy()
    return {**state_of(pair.model, pair.guide), "history": torch.from_numpy(frame.copy())}


def long_training(folder: Path | None = None) -> dict[str, torch.Tensor]:
    """50 steps; in a folder, the last process kills itself in the middle, once."""
    torch.set_default_dtype(torch.float64)
    pyro.set_rng_seed(0)
    pair, calls, group = ZOO["iaf"](), [], joined()
    dies = folder is not None and not folder.exists() and group.rank == group.size - 1

    def guide(x: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        if dies and len(calls) == DIES_AT:
            os.kill(os.getpid(), signal.SIGKILL)
        return pair.guide(x)

    pyro.module("guide", pair.guide)
    group.total([0.0])  # each has seen whether there is a folder
    checkpoint = None if folder is None else Checkpoint(folder, every=EVERY)
    options = {"num_steps": 50, "batch_size": 13, "checkpoint": checkpoint, "progress": False}
    history = train(pair.model, guide, pair.x.double(), **options)
    return state_of(pair.model, pair.guide) | {"resumed_at": torch.tensor(history.resumed_at)}


def steps_until(stop: str) -> dict[str, torch.Tensor]:
    """How many steps are made until a row that is NaN, or until Ctrl-C reaches the last process."""
    pair, calls, group = ZOO["iaf"](), [], joined()
    x = pair.x.double()
    if stop == "nan":
        x[7] = torch.nan

    def guide(x: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        if stop == "ctrl_c" and len(calls) == 8 and group.rank == group.size - 1:
            signal.raise_signal(signal.SIGINT)
        return pair.guide(x)

    try:
        options = {"num_steps": 20, "batch_size": 3, "progress": False}
        frame = train(pair.model, guide, x, **options).frame
    except NonFiniteError as error:
        frame = error.history.frame
    return {"steps": torch.tensor(len(frame))}


def fitted(folder: Path) -> dict[str, torch.Tensor]:
    """The scores of rows under the detector that ``vaeflow fit`` makes of them."""
    torch.set_default_dtype(torch.float32)
    data, group = folder / "rows.csv", joined()
    if group.first:
        pd.DataFrame(rows(300).numpy(), columns=list("abc")).to_csv(data, index=False)
    group.total([0.0])  # the rows are there
    arguments = f"fit {data} --out {folder / 'model'} --num_steps 60 --hidden_dims [8] --seed 1"
    code = main(arguments.split())
    assert group.total([code]) == [0]  # and so is the model
    detector = VAEFlowDetector.load(folder / "model")
    return {"scores": torch.as_tensor(detector.score_samples(pd.read_csv(data)))}


if __name__ == "__main__":
    with join_group(timeout=60.0) as together:
        out = Path(sys.argv[1])
        found = {"long": long_training(out / "checkpoint")}
        found |= {case: trained(case) for case in OPTIONS}
        found |= {stop: steps_until(stop) for stop in ("nan", "ctrl_c")}
        found["fit"] = fitted(out)
        if together.first:
            for case, tensors in found.items():
                save_file(tensors, out / f"{case}.safetensors")
