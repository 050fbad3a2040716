"""One training on several processes: the parts, their noise, their sum, and the death of one."""

import os
import subprocess
import sys
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from safetensors.torch import load_file

from pyro_vaeflow import train
from pyro_vaeflow.inference.contract import row_terms, run_once, take_rows
from pyro_vaeflow.inference.group import Group, GroupError, join_group, joined, sharing
from pyro_vaeflow.inference.group_noise import part_of_noise
from pyro_vaeflow.inference.parameters import module_mode, param_scope, seeded
from tests.group_cases import EVERY, OPTIONS, fitted, long_training, steps_until, trained
from tests.programs import ZOO, Pair

SIZE = 4  # parts of 30 rows have 8, 8, 7 and 7


@pytest.mark.parametrize("count", [0, 1, 5, 12, 13])
def test_parts_are_the_whole_once_and_differ_by_a_row(count: int) -> None:
    parts = [list(range(count))[Group(rank, 5).span(count)] for rank in range(5)]
    assert sum(parts, []) == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("name", sorted(ZOO.keys() - {"batch_norm"}))
def test_the_parts_draw_what_the_whole_batch_draws(name: str, float64) -> None:
    """Latents, dropout of both networks and hidden entries, in one law: the weight of each row."""
    pair = ZOO[name]()

    def log_weights(rank: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        group = Group(rank, size)
        args = take_rows(pair.args, group.span(len(pair.args[0])))
        with seeded(7), part_of_noise(group, len(pair.args[0]), torch.device("cpu")):
            traces = run_once(pair.model, pair.guide, args)
            for trace in traces:
                trace.compute_log_prob()
            return row_terms(*traces).log_weight.detach(), torch.get_rng_state()

    with param_scope(pair.model, pair.guide), module_mode(pair.model, pair.guide, training=True):
        run_once(pair.model, pair.guide, pair.args)  # makes parameters
        whole, state = log_weights(0, 1)
        parts = [log_weights(rank, SIZE) for rank in range(SIZE)]
    torch.testing.assert_close(torch.cat([part for part, _ in parts]), whole)
    assert all(torch.equal(after, state) for _, after in parts)


def test_numbers_that_cannot_be_shared_out_are_each_processes_own() -> None:
    def guide(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Gamma(torch.full((len(x),), 2.0), 1.0))
            pyro.sample("y", dist.Normal(torch.zeros(len(x)), 1.0))

    found, states = [], []
    for rank in range(2):
        with seeded(0), part_of_noise(Group(rank, 2), 10, torch.device("cpu")):
            with pytest.warns(UserWarning, match="site 'z' draws numbers that cannot be shared"):
                trace = pyro.poutine.trace(guide).get_trace(torch.zeros(5, 1))
            found.append([trace.nodes[name]["value"] for name in "zy"])
            states.append(torch.get_rng_state())
    assert torch.equal(*states)
    assert all((one != other).all() for one, other in zip(*found, strict=True))


def test_what_a_group_cannot_train_is_refused() -> None:
    def refused(pair: Pair, **options) -> str:
        with pytest.raises(ValueError) as error, sharing(Group(0, 3)):
            train(pair.model, pair.guide, pair.x, num_steps=1, **options)
        return str(error.value)

    assert "leaves none of its rows to some of the 3" in refused(ZOO["iaf"](), batch_size=2)
    assert "BatchNorm1d" in refused(ZOO["batch_norm"]())


def test_a_process_that_was_given_other_rows_is_refused(monkeypatch) -> None:
    def from_first(group: Group, content: dict, tensors: dict) -> tuple[dict, dict]:
        return content | {"x": "other", "seed": 1}, tensors

    monkeypatch.setattr(Group, "from_first", from_first)
    pair = ZOO["iaf"]()
    with pytest.raises(ValueError, match="process 1 of 2 was not given the same x, seed as"):
        with sharing(Group(1, 2)):
            train(pair.model, pair.guide, pair.x, num_steps=1)


def test_one_process_is_a_group_of_its_own() -> None:
    with join_group() as group:
        assert (group.rank, group.size, group.first) == (0, 1, True)
        assert joined() is group and group.total([1.0, 2.0]) == [1.0, 2.0]


def test_others_that_are_lost_are_named(monkeypatch) -> None:
    def fails(*args) -> None:
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr(torch.distributed, "all_reduce", fails)
    with pytest.raises(GroupError, match="process 1 of 2 lost the others"):
        Group(1, 2).total([0.0])


def test_random_states_that_part_are_noticed(monkeypatch) -> None:
    """A second process whose check is another one: the sum is not twice one's own."""
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda sums: sums.mul_(2.0)[-1].add_(1.0))
    with pytest.raises(ValueError, match="no longer draw the same random numbers"):
        Group(0, 2).add_gradients([torch.zeros(2, requires_grad=True)], b"state")


@pytest.fixture(scope="module")
def launched(tmp_path_factory) -> tuple[Path, str]:
    """Two processes of torchrun, one of which dies, whereupon torchrun starts both again, once."""
    out = tmp_path_factory.mktemp("group")
    root = Path(__file__).parents[1]
    command = "-m torch.distributed.run --standalone --nproc-per-node 2 --max-restarts 1"
    command += f" -m tests.group_cases {out}"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    # Else the second start may read addresses of the first: pytorch/pytorch#135712.
    environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    call = [sys.executable, *command.split()]
    done = subprocess.run(call, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_two_processes_end_as_one(name: str, launched, float64) -> None:
    found, expected = load_file(launched[0] / f"{name}.safetensors"), trained(name)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-9, equal_nan=True)


@pytest.mark.slow
def test_the_command_line_fits_in_a_group(launched, tmp_path) -> None:
    """The detector trains in single precision: rounding grows over its 60 steps."""
    out = launched[0]
    assert not (out / "model" / "checkpoint").exists()
    found, expected = load_file(out / "fit.safetensors")["scores"], fitted(tmp_path)["scores"]
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pyro_vaeflow.inference.interrupt.InterruptedWarning")
@pytest.mark.parametrize("stop", ["nan", "ctrl_c"])
def test_what_stops_one_process_stops_all_after_the_same_step(stop, launched, float64) -> None:
    steps = load_file(launched[0] / f"{stop}.safetensors")["steps"]
    assert 0 < steps == steps_until(stop)["steps"] < 20


@pytest.mark.slow
def test_the_death_of_a_process_ends_all_and_the_next_start_goes_on(launched, float64) -> None:
    out, said = launched
    assert "process 0 of 2" in said
    assert f"they go on from the checkpoint in {out / 'checkpoint'}" in said
    found, expected = load_file(out / "long.safetensors"), long_training()
    assert found.pop("resumed_at") == 3 * EVERY and expected.pop("resumed_at") == 0
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-9)
