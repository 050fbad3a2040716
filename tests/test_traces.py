"""The contract: what keeps it, what breaks it, and the sums of log probabilities to rows."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_vaeflow import anneal, score
from pyro_vaeflow.inference.contract import check_contract
from pyro_vaeflow.inference.traces import as_args, paired_traces, row_terms, take_rows
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


def model_from_the_left(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", standard())
        pyro.sample("x", dist.Normal(z[:, :1] * torch.ones(3), 1.0).to_event(1), obs=x)


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
    "no plate": (model, guide_without_plate, "guide has no site inside a plate named 'data'"),
    "another name": (model, guide_of("latent"), r"no site for the model's latent \['z'\]"),
    "one too many": (model, guide_of("z", "extra"), r"samples \['extra'\]"),
    "fixed size": (model, guide_of("z", size=30), THIRTY),
    "subsamples": (model, guide_of("z", size=30, subsample_size=0), THIRTY),
    "a loop": (model, guide_in_a_loop, "plate 'data' of the guide is a loop"),
    "swapped": (guide, model, "the model observes nothing"),
    "seen outside": (model_that_observes_outside, guide, "'x' of the model is outside plate"),
    "of a row": (
        model,
        guide_of_each_row,
        r"'own' has shape \(2, 2\) for 2 rows and \(1, 2\) for 1",
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


def test_a_program_that_does_not_broadcast_is_told_how() -> None:
    with pytest.raises(ValueError, match="(?s)do not broadcast over 3 draws.*x.*from the right"):
        score(model_from_the_left, guide, rows())


def test_a_shared_latent_can_be_trained_but_is_named_when_rows_are_scored() -> None:
    pair = ZOO["shared_latent"]()
    pair.fit(num_steps=2)
    message = "'offset' of the guide is outside plate 'data'.*per-row"
    with pytest.raises(ValueError, match=message):
        pair.score()
    with pytest.raises(ValueError, match=message):
        pair.fit(held_out=pair.x)


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
    assert check_contract(*row_pair.programs, row_pair.args) == row_pair.depth
    traces = paired_traces(*row_pair.programs, row_pair.args, num_samples=5, max_plate_nesting=2)
    terms = row_terms(*traces)
    assert terms.log_weight.shape[-2:] in {(5, 30), (1, 30)}
    expected = traces[0].log_prob_sum() - traces[1].log_prob_sum()
    torch.testing.assert_close(terms.log_weight.sum(), expected, rtol=1e-4, atol=1e-2)


def test_masks_hold_and_scales_do_not() -> None:
    pair = ZOO["masked"]()
    x, seen = pair.x
    with anneal(0.3), poutine.scale(scale=7.0):
        traces = paired_traces(*pair.programs, pair.args, num_samples=4, max_plate_nesting=1)
    terms = row_terms(*traces)
    z = traces[0].nodes["z"]["value"]
    normal = torch.distributions.Normal(z.unsqueeze(-1), 0.5).log_prob(x).sum(-1)
    torch.testing.assert_close(terms.log_likelihood, normal * seen)
    torch.testing.assert_close(terms.log_prior, torch.distributions.Normal(0.0, 1.0).log_prob(z))
    assert (terms.log_likelihood[:, ~seen] == 0).all()


def test_rows_are_taken_of_every_argument_that_has_them() -> None:
    x, flags, table = torch.arange(6.0).reshape(3, 2), torch.arange(3), torch.arange(4)
    cut = take_rows((x, flags, table, "option"), torch.tensor([2, 0]))
    assert cut[0].tolist() == [[4.0, 5.0], [0.0, 1.0]] and cut[1].tolist() == [2, 0]
    assert cut[2] is table and cut[3] == "option"


@pytest.mark.parametrize("x", [[[1.0, 2.0]], (), torch.tensor(1.0), rows().numpy()])
@pytest.mark.parametrize("run", [as_args, ZOO["diagonal"]().score])
def test_rows_that_are_no_tensor_are_refused(x, run) -> None:
    with pytest.raises(TypeError, match="x must be a tensor"):
        run(x)
