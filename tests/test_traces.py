"""The contract: what keeps it, what breaks it, and the sums of log probabilities to rows."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_vaeflow import anneal, score
from pyro_vaeflow.inference.contract import check_contract
from pyro_vaeflow.inference.pairs import Way, paired_traces
from pyro_vaeflow.inference.traces import as_args, take_rows
from tests.programs import ZOO, Pair, rows


def standard() -> dist.TorchDistribution:
    return dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1)


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", standard())
        pyro.sample("x", dist.Normal(z @ torch.ones(2, 3), 1.0).to_event(1), obs=x)


def model_that_observes_outside(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", standard())
    pyro.sample("x", dist.Normal(z @ torch.ones(2, 3), 1.0).to_event(2), obs=x)


def guide(x):
    gain = pyro.param("gain", torch.zeros(3, 2))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x @ gain, 1.0).to_event(1))


def guide_of(*sites: str, size: int | None = None, **options: int):
    """A guide of standard normals, of so many rows, as many as x has by default."""

    def guide(x):
        subsample = {name: len(x) for name in options}
        with pyro.plate("data", size or len(x), **subsample):
            for site in sites:
                pyro.sample(site, standard())

    return guide


def guide_without_plate(x):
    pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(2))


def guide_in_a_loop(x):
    for i in pyro.plate("data", len(x)):
        pyro.sample(f"z_{i}", standard())


def guide_of_each_row(x):
    own = pyro.param("own", lambda: torch.zeros(len(x), 2))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(own, 1.0).to_event(1))


THIRTY = "plate 'data' of the guide has 30 rows"
BREACHES = {
    "no plate": (model, guide_without_plate, "'z' of the guide is outside plate 'data', and"),
    "another name": (model, guide_of("latent"), r"no site for the model's latent \['z'\]"),
    "one too many": (model, guide_of("z", "extra"), r"samples \['extra'\]"),
    "fixed size": (model, guide_of("z", size=30), THIRTY),
    "a loop": (model, guide_in_a_loop, "plate 'data' of the guide is a loop"),
    "swapped": (guide, model, "the model observes nothing"),
    "seen outside": (model_that_observes_outside, guide, "'x' of the model is outside plate"),
    "of a row": (
        model,
        guide_of_each_row,
        r"'own' has shape \(7, 2\) for 7 rows, an entry for each",
    ),
}


@pytest.mark.parametrize("breach", BREACHES)
@pytest.mark.parametrize("run", [Pair.score, Pair.fit])
def test_a_breach_is_an_error_that_names_it(breach: str, run) -> None:
    *programs, message = BREACHES[breach]
    with pytest.raises(ValueError, match=message):
        run(Pair(*programs, rows()))


def test_a_start_value_is_taken_from_a_batch_not_from_the_probe() -> None:
    def guide(x):
        start = pyro.param("start", lambda: x.mean(0)[:2])
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(start, 1.0).to_event(1))

    pair = Pair(model, guide, rows())
    pair.fit(num_steps=1, learning_rate=0.0)
    torch.testing.assert_close(pair.param("start"), rows().mean(0)[:2])


def test_a_plate_may_subsample_as_many_rows_as_there_are() -> None:
    expected = score(model, guide_of("z"), rows()).log_evidence
    subsampling = guide_of("z", size=30, subsample_size=0)
    torch.testing.assert_close(score(model, subsampling, rows()).log_evidence, expected)


def test_the_plate_may_have_another_name() -> None:
    def in_rows(program):
        def renamed(x):
            with pyro.plate("rows", len(x)):
                return program(x)

        return renamed

    def prior(x):
        z = pyro.sample("z", standard())
        pyro.sample("x", dist.Normal(z @ torch.ones(2, 3), 1.0).to_event(1), obs=x)

    def posterior(x):
        pyro.sample("z", dist.Normal(x[..., :2], 1.0).to_event(1))

    pair = in_rows(prior), in_rows(posterior)
    assert score(*pair, rows(), plate="rows").elbo.shape == (30,)
    with pytest.raises(ValueError, match=r"plates: \['rows'\]"):
        score(*pair, rows())


def test_every_pair_keeps_the_contract_and_its_rows_add_up_to_pyros_own_sums(
    row_pair: Pair,
) -> None:
    way = check_contract(*row_pair.programs, row_pair.args)
    assert (way.depth, way.guide, way.model, way.why) == (row_pair.depth, "left", "left", "")
    draws = paired_traces(*row_pair.programs, row_pair.args, num_samples=5, way=way)
    (traces,), terms = draws.traces, draws.terms
    assert terms.log_weight.shape == (5, 30)
    expected = traces[0].log_prob_sum() - traces[1].log_prob_sum()
    torch.testing.assert_close(terms.log_weight.sum(), expected, rtol=1e-4, atol=1e-2)


def test_masks_hold_and_scales_do_not() -> None:
    pair = ZOO["masked"]()
    x, seen = pair.x
    with anneal(0.3), poutine.scale(scale=7.0):
        draws = paired_traces(*pair.programs, pair.args, num_samples=4, way=Way(depth=1))
    terms = draws.terms
    z = draws.traces[0][0].nodes["z"]["value"]
    normal = torch.distributions.Normal(z.unsqueeze(-1), 0.5).log_prob(x).sum(-1)
    torch.testing.assert_close(terms.log_likelihood, normal * seen)
    torch.testing.assert_close(terms.log_prior, torch.distributions.Normal(0.0, 1.0).log_prob(z))
    assert (terms.log_likelihood[:, ~seen] == 0).all()


def test_rows_are_taken_of_every_argument_that_has_them() -> None:
    x, flags, table = torch.arange(6.0).reshape(3, 2), torch.arange(3), torch.arange(4)
    cut = take_rows((x, flags, table, "option"), torch.tensor([2, 0]))
    assert cut[0].tolist() == [[4.0, 5.0], [0.0, 1.0]] and cut[1].tolist() == [2, 0]
    assert cut[2] is table and cut[3] == "option"


def test_rows_in_another_form_are_told_which_to_pass() -> None:
    table = torch.utils.data.TensorDataset(rows())
    with pytest.raises(TypeError, match="loader.dataset.tensors"):
        as_args(torch.utils.data.DataLoader(table))
    with pytest.raises(TypeError, match="in the order of the programs' arguments"):
        as_args({"x": rows()})
    with pytest.raises(ValueError, match=r"parameters are torch.float32: try x.to\(that\)"):
        ZOO["diagonal"]().score(rows().double())


@pytest.mark.parametrize("x", [[[1.0, 2.0]], (), torch.tensor(1.0), rows().numpy()])
@pytest.mark.parametrize("run", [as_args, ZOO["diagonal"]().score])
def test_rows_that_are_no_tensor_are_refused(x, run) -> None:
    with pytest.raises(TypeError, match="x must be a tensor"):
        run(x)
