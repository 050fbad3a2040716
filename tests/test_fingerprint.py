"""A checkpoint belongs to one training: what makes programs and arguments others is noticed."""

import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_vaeflow import CheckpointError, Guide, Model, cosine, train
from pyro_vaeflow.inference.fingerprint import Description, structure

NOISE = 0.1
ROWS = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))


def make(scale: float = 1.0):
    """Functions that name a global, close over a number and call another function."""

    def decoded(z: torch.Tensor) -> torch.Tensor:
        return z @ pyro.param("w", torch.eye(2, 3))

    def model(x: torch.Tensor, *_) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoded(z), NOISE * scale).to_event(1), obs=x)

    def guide(x: torch.Tensor, *_) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ pyro.param("v", torch.eye(3, 2)), 0.5).to_event(1))

    return model, guide


def fit(folder: Path, x=ROWS, scale: float = 1.0, **options):
    return train(
        *make(scale), x, num_steps=3, batch_size=8, progress=False, checkpoint=folder, **options
    )


def test_another_constant_closure_or_argument_is_another_training(tmp_path, monkeypatch) -> None:
    x = (ROWS, np.ones(3), {"rate": np.float32(0.5)})
    fit(tmp_path, x)
    assert fit(tmp_path, x).resumed_at == 3
    rate = cosine(3, 1e-3, 1e-4)
    for named, change in {
        "model": {"scale": 300.0},
        "learning_rate": {"learning_rate": rate},
        "schedule": {"schedule": lambda step: 1.0 - step / 9},
        "x": {"x": (ROWS, np.zeros(3), x[2])},
        "optimizer": {"optimizer": torch.optim.SGD},
    }.items():
        with pytest.raises(CheckpointError, match=rf"not the same {named}\."):
            fit(tmp_path, **{"x": x, **change})
    with pytest.raises(CheckpointError, match=r"not the same x\."):
        fit(tmp_path, (*x[:2], {"rate": np.float32(0.25)}))
    monkeypatch.setattr(sys.modules[__name__], "NOISE", 30.0)
    with pytest.raises(CheckpointError, match=r"not the same model\."):
        fit(tmp_path, x)


def test_what_has_no_fingerprint_is_said(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="hold Generator, which a checkpoint does not compare"):
        fit(tmp_path, (ROWS, np.random.default_rng(0)))


class Noisy(nn.Module):
    """Settings of several kinds."""

    kinds = ("a", "b")

    def __init__(self, noise: object) -> None:
        super().__init__()
        self.noise, self.layer, self.other = noise, nn.Linear(2, 2), self.kinds

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.layer(z) * NOISE


class Slotted:
    """An object without a dictionary, whose repr shows nothing of it."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value


class Buffered(nn.Module):
    """Tensors that no training changes, and a private setting."""

    def __init__(self, buffer: float = 0.1, frozen: float = 0.1, private: float = 0.1) -> None:
        super().__init__()
        self.register_buffer("buffer", torch.tensor(buffer))
        self.frozen = nn.Parameter(torch.tensor(frozen), requires_grad=False)
        self.attribute, self._private, self._cache = torch.tensor(buffer), private, torch.zeros(1)


def with_attribute(rate: float):
    def rated() -> float:
        return rated.rate

    rated.rate = rate
    return rated


LONG = np.zeros(5000), np.eye(1, 5000, 2500)[0]  # which repr shows with dots


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Slotted(0.1), Slotted(30.0)),
        *((SimpleNamespace(a=one), SimpleNamespace(a=other)) for one, other in [(1, 2), LONG]),
        ([0.1, 0.2].__getitem__, [0.1, 0.3].__getitem__),
        ({"a": 0.1}.get, {"a": 30.0}.get),
        (torch.zeros(2).add, torch.ones(2).add),
        (with_attribute(0.1), with_attribute(30.0)),
        (pd.DataFrame({"a": [1.0]}), pd.DataFrame({"b": [1.0]})),
        (np.ma.array([1.0], mask=[0]), np.ma.array([1.0], mask=[1])),
        (lambda x, *rest: rest, lambda x, rest: rest),
        (type("T", (), {"_rate": 0.1}), type("T", (), {"_rate": 30.0})),
        (type("T", (), {"_f": staticmethod(min)}), type("T", (), {"_f": staticmethod(max)})),
        (re.compile(300 * "a" + "b"), re.compile(300 * "a" + "c")),
        (torch.eye(2).to_sparse(), torch.ones(2, 2).to_sparse()),
        *((Buffered(), Buffered(**{name: 30.0})) for name in ("buffer", "frozen", "private")),
    ],
)
def test_what_a_copy_would_keep_counts(one: object, other: object) -> None:
    descriptions = Description(), Description()
    assert descriptions[0].digest(one) != descriptions[1].digest(other)
    assert not descriptions[0].unknown


def test_private_tensors_and_the_order_of_sets_do_not_count() -> None:
    changed = Buffered()
    changed._cache += 1.0
    assert structure(changed) == structure(Buffered())
    kinds = [type(name, (), {"one": 1}) for name in "abcdefgh"]
    assert structure(set(kinds)) == structure(set(reversed(kinds)))


def test_settings_of_modules_count_and_their_parameters_do_not() -> None:
    values = (
        0.1,
        np.arange(3),
        np.array(["a", None]),
        {"a": [1]},
        {1, 2},
        dist.Normal(0.0, 2.0),
        partial(max, 3),
        torch.relu,
        Noisy,
        nn.Dropout(0.2),
        b"x",
    )
    others = [0.2, np.arange(4), np.array(["a", 1]), {"a": [2]}, {1}, dist.Normal(0.0, 3.0)]
    others += [partial(max, 4), torch.tanh, Model, nn.Dropout(0.3), b"y"]
    for value, other in zip(values, others, strict=True):
        description = Description()
        assert description.digest(Noisy(value)) == structure(Noisy(value)) and value is not other
        assert structure(Noisy(value)) != structure(Noisy(other)), value
        assert not description.unknown


def test_the_same_programs_have_one_fingerprint_in_each_process() -> None:
    names = ["Guide(3, flow='iaf', num_flows=2)", "Model(3)", "make()", "Noisy({'a', 'b', 'c'})"]
    code = f"from tests.test_fingerprint import *\nprint(*map(structure, ({', '.join(names)})))"
    env = os.environ | {"PYTHONHASHSEED": "7"}
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    here = Guide(3, flow="iaf", num_flows=2), Model(3), make(), Noisy({"a", "b", "c"})
    assert said.stdout.split() == [*map(structure, here)], said.stderr[-500:]
