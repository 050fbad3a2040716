"""Programs in the shape of Pyro's examples and tutorials, small, each under the name of its file.

A builder returns model, guide and arguments. They are written anew, as their authors write them:
with `softmax(dim=1)`, `view`, plates without a size, `to_event` or not, modules or functions.
"""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as T
import torch
import torch.nn.functional as F
from pyro import poutine
from pyro.contrib.easyguide import EasyGuide
from pyro.distributions import constraints
from pyro.infer import config_enumerate
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGuideList,
    AutoIAFNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from pyro.infer.reparam import LocScaleReparam
from pyro.nn import PyroModule, PyroSample
from torch import nn

Made = tuple[Callable, Callable, tuple]
N, D = 30, 4
ENUMERATE = {"enumerate": "parallel"}


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(N, *shape, generator=torch.Generator().manual_seed(0))


def images() -> torch.Tensor:
    return numbers(16).sigmoid().round()


def labels() -> torch.Tensor:
    return F.one_hot(torch.arange(N) % 3, 3).float()


def net(*sizes: int) -> nn.Sequential:
    layers = [nn.Linear(*pair) for pair in zip(sizes[:-1], sizes[1:], strict=True)]
    return nn.Sequential(*[part for layer in layers for part in (layer, nn.Softplus())][:-1])


def normal(output: torch.Tensor) -> dist.TorchDistribution:
    loc, raw = output.chunk(2, -1)
    return dist.Normal(loc, F.softplus(raw) + 0.1).to_event(1)


def standard(x: torch.Tensor, dim: int = 2) -> dist.TorchDistribution:
    return dist.Normal(x.new_zeros(len(x), dim), x.new_ones(len(x), dim)).to_event(1)


class Networks(nn.Module):
    def __init__(self, decoder: nn.Module, encoder: nn.Module) -> None:
        super().__init__()
        self.decoder, self.encoder = decoder, encoder

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("latent", normal(self.encoder(x)))


def vae() -> Made:
    nets = Networks(net(2, 8, 16), net(16, 8, 4))

    def model(x):
        pyro.module("decoder", nets.decoder)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("latent", standard(x))
            loc = torch.sigmoid(nets.decoder(z))
            pyro.sample("obs", dist.Bernoulli(loc, validate_args=False).to_event(1), obs=x)
            return loc

    return model, nets.guide, (images(),)


def vae_flow_prior() -> Made:
    nets = Networks(net(2, 8, 16), net(16, 8, 4))
    flow = T.affine_autoregressive(2, hidden_dims=[8])

    def model(x):
        pyro.module("decoder", nets.decoder)
        pyro.module("prior", nn.ModuleList([flow]))
        with pyro.plate("data", x.shape[0]):
            base = dist.Normal(x.new_zeros(2), 1.0).to_event(1)
            z = pyro.sample("latent", dist.TransformedDistribution(base, [flow.inv]))
            pyro.sample("obs", dist.Bernoulli(logits=nets.decoder(z)).to_event(1), obs=x)

    return model, nets.guide, (images(),)


def convolutional_vae() -> Made:
    nets = Networks(nn.ModuleList([nn.Linear(2, 16), nn.ConvTranspose2d(4, 1, 2, 2)]), net(16, 4))

    def decode(z):
        return nets.decoder[1](nets.decoder[0](z).view(z.size(0), 4, 2, 2)).view(-1, 16)

    def model(x):
        pyro.module("decoder", nets.decoder)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("latent", standard(x))
            pyro.sample("obs", dist.Bernoulli(logits=decode(z)).to_event(1), obs=x)

    return model, nets.guide, (images(),)


def semi_supervised(observed: bool, enumerate_guide: bool) -> Made:
    y_net, z_net, decoder = net(16, 3), net(19, 8, 4), net(5, 8, 16)

    def model(x, y):
        pyro.module("decoder", decoder)
        with pyro.plate("data"):
            prior = dist.OneHotCategorical(torch.ones(len(x), 3) / 3.0)
            y = pyro.sample("y", prior, obs=y if observed else None)
            z = pyro.sample("z", standard(x))
            y = y.expand(*z.shape[:-1], 3)
            z = z.expand(*y.shape[:-1], 2)
            logits = decoder(torch.cat([z, y], -1))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(x, y):
        pyro.module("y_net", y_net)
        pyro.module("z_net", z_net)
        with pyro.plate("data"):
            if not observed:
                y = pyro.sample("y", dist.OneHotCategorical(logits=y_net(x)))
            else:  # the classifier learns from the labels
                score = dist.OneHotCategorical(logits=y_net(x)).log_prob(y)
                pyro.factor("classification", 0.1 * score, has_rsample=False)
            shape = torch.broadcast_shapes(x.shape[:-1], y.shape[:-1])
            both = torch.cat([x.expand(*shape, 16), y.expand(*shape, 3)], -1)
            pyro.sample("z", normal(z_net(both)))

    return model, config_enumerate(guide) if enumerate_guide else guide, (images(), labels())


def cvae() -> Made:
    prior, decoder, recognition = net(8, 4), net(10, 8), net(16, 4)

    def model(xs, ys):
        pyro.module("generation", nn.ModuleList([prior, decoder]))
        with pyro.plate("data"):
            z = pyro.sample("z", normal(prior(xs)))
            logits = decoder(torch.cat((xs, z), dim=1))
            pyro.sample("y", dist.Bernoulli(logits=logits).to_event(1), obs=ys)

    def guide(xs, ys):
        pyro.module("recognition", recognition)
        with pyro.plate("data"):
            pyro.sample("z", normal(recognition(torch.cat((xs, ys), dim=1))))

    return model, guide, images().chunk(2, -1)


def dmm() -> Made:
    start, step, emit, rnn = net(2, 4), net(2, 4), net(2, 4), nn.GRU(2, 4, batch_first=True)
    combine = net(6, 4)

    def model(x):
        pyro.module("dmm", nn.ModuleList([step, emit, start]))
        with pyro.plate("data", len(x)):
            z = x.new_zeros(len(x), 2)
            for t in range(3):
                z = pyro.sample(f"z_{t}", normal(step(z)))
                pyro.sample(f"obs_{t}", normal(emit(z)), obs=x[:, t, :])

    def guide(x):
        pyro.module("dmm_guide", nn.ModuleList([rnn, combine]))
        states = rnn(x.flip(1))[0].flip(1)
        with pyro.plate("data", len(x)):
            z = x.new_zeros(len(x), 2)
            for t in range(3):
                z = pyro.sample(f"z_{t}", normal(combine(torch.cat([z, states[:, t, :]], 1))))

    start.requires_grad_(False)
    return model, guide, (numbers(3, 2),)


def prodlda() -> Made:
    encoder = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6))
    decoder = nn.Sequential(nn.Linear(3, 8, bias=False), nn.BatchNorm1d(8, affine=False))

    def model(docs):
        pyro.module("decoder", decoder)
        with pyro.plate("data", docs.shape[0]):
            theta = F.softmax(pyro.sample("logtheta", standard(docs, 3)), -1)
            words = F.softmax(decoder(theta), dim=1)
            total = int(docs.sum(-1).max())
            pyro.sample("obs", dist.Multinomial(total, words), obs=docs)

    def guide(docs):
        pyro.module("encoder", encoder)
        with pyro.plate("data", docs.shape[0]):
            pyro.sample("logtheta", normal(encoder(docs)))

    return model, guide, (numbers(8).abs().mul(3.0).round(),)


def lda() -> Made:
    """Topics of documents; the guide's topics of a document are a Delta."""
    predictor = nn.Sequential(nn.Linear(8, 3), nn.Softmax(-1))

    def model(words):
        topics = pyro.sample("topics", dist.Dirichlet(torch.ones(3, 8)).to_event(1))
        with pyro.plate("data", len(words)):
            shares = pyro.sample("doc_topics", dist.Dirichlet(torch.ones(3)))
            pyro.sample("doc_words", dist.Multinomial(9, shares @ topics), obs=words)

    def guide(words):
        pyro.module("predictor", predictor)
        start = lambda: torch.ones(3, 8)  # noqa: E731
        concentration = pyro.param("topics_posterior", start, constraint=constraints.positive)
        pyro.sample("topics", dist.Dirichlet(concentration).to_event(1))
        with pyro.plate("data", len(words)):
            pyro.sample("doc_topics", dist.Delta(predictor(words), event_dim=1))

    return model, guide, (numbers(8).abs().round(),)


def scanvi() -> Made:
    """Cells with a batch, a class and two levels of latents."""
    y_net, z_net, low, decoder = net(2, 3), net(9, 4), net(5, 4), net(2, 6)

    def model(x, y):
        pyro.module("scanvi", nn.ModuleList([low, decoder]))
        with pyro.plate("data", len(x)), poutine.scale(scale=1.0):
            top = pyro.sample("z1", standard(x))
            y = pyro.sample("y", dist.OneHotCategorical(logits=x.new_zeros(3)), obs=y)
            z2 = pyro.sample("z2", normal(low(torch.cat([top, y.expand(len(top), 3)], 1))))
            rate = decoder(z2).exp()
            pyro.sample("x", dist.Poisson(rate, validate_args=False).to_event(1), obs=x)

    def guide(x, y):
        pyro.module("scanvi_guide", nn.ModuleList([y_net, z_net, encoder]))
        with pyro.plate("data", len(x)), poutine.scale(scale=1.0):
            z2 = pyro.sample("z2", normal(encoder(x)))
            logits = dist.OneHotCategorical(logits=y_net(z2))
            pyro.factor("classification_loss", 46.0 * logits.log_prob(y), has_rsample=False)
            pyro.sample("z1", normal(z_net(torch.cat([z2.repeat(1, 3), y], 1))))

    encoder = net(6, 4)
    return model, guide, (numbers(6).abs().round(), labels())


def air() -> Made:
    """Up to two objects, each there or not, drawn onto one canvas."""
    recur, decode = nn.LSTMCell(16, 4), net(2, 16)
    predict = nn.Linear(4, 5)

    def model(x):
        pyro.module("decode", decode)
        with pyro.plate("data", len(x)):
            canvas, there = x.new_zeros(len(x), 16), x.new_ones(len(x), 1)
            for t in range(2):
                there = pyro.sample(f"there_{t}", dist.Bernoulli(0.5 * there).to_event(1))
                z = pyro.sample(f"what_{t}", standard(x).mask(True))
                canvas = canvas + there * decode(z)
            pyro.sample("obs", dist.Normal(canvas, 0.5).to_event(1), obs=x)

    def guide(x):
        pyro.module("recognition", nn.ModuleList([recur, predict]))
        with pyro.plate("data", len(x)):
            state, there = None, x.new_ones(len(x), 1)
            for t in range(2):
                state = recur(x, state)
                out = predict(state[0])
                chance = out[:, :1].sigmoid() * there
                there = pyro.sample(f"there_{t}", dist.Bernoulli(chance).to_event(1))
                pyro.sample(f"what_{t}", normal(out[:, 1:]))

    return model, guide, (images(),)


def cevae() -> Made:
    """Causal effects: a treatment t, an outcome y, hidden confounders z."""
    x_net, t_net, y_net, z_net = net(2, D), net(2, 1), net(3, 1), net(D + 2, 4)
    of_x = net(D, 1)

    def model(x, t, y):
        pyro.module("cevae", nn.ModuleList([x_net, t_net, y_net]))
        with pyro.plate("data", x.size(0), subsample=x):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
            pyro.sample("x", dist.Normal(x_net(z), 1.0).to_event(1), obs=x)
            t = pyro.sample("t", dist.Bernoulli(logits=t_net(z).squeeze(-1)), obs=t)
            mean = y_net(torch.cat([z, t.unsqueeze(-1)], -1)).squeeze(-1)
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    def guide(x, t, y):
        pyro.module("cevae_guide", nn.ModuleList([z_net, of_x]))
        with pyro.plate("data", x.size(0), subsample=x):
            aside = {"is_auxiliary": True}
            t = pyro.sample("t", dist.Bernoulli(logits=of_x(x).squeeze(-1)), obs=t, infer=aside)
            y = pyro.sample("y", dist.Normal(0.0, 1.0), obs=y, infer=aside)
            columns = torch.cat([x, t.unsqueeze(-1), y.unsqueeze(-1)], -1)
            pyro.sample("z", normal(z_net(columns)))

    return model, guide, (numbers(D), (numbers() > 0.0).float(), numbers())


def gmm(auto: Callable = AutoDelta) -> Made:
    """A mixture whose weights and centres are latents that all rows share."""

    @config_enumerate
    def model(x):
        weights = pyro.sample("weights", dist.Dirichlet(0.5 * torch.ones(2)))
        with pyro.plate("components", 2):
            locs = pyro.sample("locs", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            k = pyro.sample("assignment", dist.Categorical(weights))
            pyro.sample("obs", dist.Normal(locs[k], 1.0), obs=x)

    hidden = poutine.block(model, expose=["weights", "locs"])
    return model, auto(hidden), (numbers(),)


def gm_vae() -> Made:
    """A class that the model alone enumerates, and a flow over z."""
    nets = Networks(net(2, 8, D), net(D, 8, 4))
    centres, flow = nn.Embedding(3, 2), T.affine_autoregressive(2, hidden_dims=[8])

    def model(x):
        pyro.module("decoder", nets.decoder)
        pyro.module("centres", centres)
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.ones(3) / 3.0), infer=ENUMERATE)
            z = pyro.sample("z", dist.Normal(centres(k), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(nets.decoder(z), 0.5).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", nets.encoder)
        pyro.module("flow", flow)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.TransformedDistribution(normal(nets.encoder(x)), [flow]))

    return model, guide, (numbers(D),)


def hmm(mask: bool = False) -> Made:
    """Chains of hidden states; transitions and emissions are shared and learned by MAP."""

    def model(x):
        moves = pyro.sample("moves", dist.Dirichlet(0.5 * torch.ones(2, 2) + 0.5).to_event(1))
        means = pyro.sample("means", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x), dim=-1):
            state = 0
            for t in pyro.markov(range(x.shape[1])):
                with poutine.mask(mask=x[:, t] > -1.0 if mask else True):
                    fn = dist.Categorical(moves[state])
                    state = pyro.sample(f"state_{t}", fn, infer=ENUMERATE)
                    pyro.sample(f"x_{t}", dist.Normal(means[state], 1.0), obs=x[:, t])

    return model, AutoDelta(poutine.block(model, expose=["moves", "means"])), (numbers(4),)


def capture_recapture() -> Made:
    """Animals that are alive or not, seen or not, year after year."""

    def model(seen):
        survive = pyro.sample("phi", dist.Uniform(0.0, 1.0))
        catch = pyro.sample("rho", dist.Uniform(0.0, 1.0))
        with pyro.plate("data", len(seen), dim=-1):
            alive = torch.ones(len(seen))
            for t in pyro.markov(range(seen.shape[1])):
                fn = dist.Bernoulli(survive * alive)
                alive = pyro.sample(f"alive_{t}", fn, infer=ENUMERATE)
                pyro.sample(f"seen_{t}", dist.Bernoulli(catch * alive), obs=seen[:, t])

    return (
        model,
        AutoDiagonalNormal(poutine.block(model, expose=["phi", "rho"])),
        ((numbers(3) > 0.0).float(),),
    )


def regression(auto: Callable = AutoNormal) -> Made:
    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(torch.zeros(D), 1.0).to_event(1))
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        sigma = pyro.sample("sigma", dist.Uniform(0.0, 10.0))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("obs", dist.Normal(x @ w + b, sigma), obs=y)

    return model, auto(model), (numbers(D), numbers())


class BayesianNetwork(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.linear = PyroModule[nn.Linear](D, 1)
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, D]).to_event(2))
        self.linear.bias = PyroSample(dist.Normal(0.0, 1.0).expand([1]).to_event(1))

    def forward(self, x, y=None):
        sigma = pyro.sample("sigma", dist.Uniform(0.0, 10.0))
        mean = self.linear(x).squeeze(-1)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("obs", dist.Normal(mean, sigma), obs=y)


def bayesian_network() -> Made:
    model = BayesianNetwork()
    return model, AutoDiagonalNormal(model), (numbers(D), numbers())


def logistic() -> Made:
    def model(x, y):
        w = pyro.sample("w", dist.Normal(torch.zeros(D), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=(x * w).sum(-1)), obs=y)

    return model, AutoMultivariateNormal(model), (numbers(D), (numbers() > 0.0).float())


def coin() -> Made:
    def model(x):
        fairness = pyro.sample("latent_fairness", dist.Beta(10.0, 10.0))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Bernoulli(fairness), obs=x)

    def guide(x):
        parameters = (
            pyro.param(f"alpha_{j}", torch.tensor(15.0), constraint=constraints.positive)
            for j in range(2)
        )
        pyro.sample("latent_fairness", dist.Beta(*parameters))

    return model, guide, ((numbers() > 0.0).float(),)


def normal_mean() -> Made:
    def model(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(mean, scale), obs=x)

    return model, AutoLowRankMultivariateNormal(model, rank=1), (numbers(),)


def eight_schools(amortised: bool) -> Made:
    """Schools are rows; their effects are latents of their own."""

    def model(y, sigma):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        tau = pyro.sample("tau", dist.HalfCauchy(torch.tensor(25.0)))
        with pyro.plate("data", len(y)):
            eta = pyro.sample("eta", dist.Normal(torch.zeros(len(y)), 1.0))
            pyro.sample("obs", dist.Normal(mu + tau * eta, sigma), obs=y)

    def own(y, sigma):
        gain = pyro.param("gain", torch.tensor(0.1))
        with pyro.plate("data", len(y)):
            pyro.sample("eta", dist.Normal(gain * y, 0.8))

    shared = AutoNormal(poutine.block(model, expose=["mu", "tau"]))

    def guide(y, sigma):
        shared(y, sigma)
        own(y, sigma)

    return model, guide if amortised else AutoNormal(model), (numbers(), numbers().exp())


def baseball() -> Made:
    """Partially pooled rates of players: one Beta over all, and a rate a player."""

    def model(hits, bats):
        m = pyro.sample("m", dist.Uniform(0.0, 1.0))
        kappa = pyro.sample("kappa", dist.Pareto(1.0, 1.5))
        with pyro.plate("data", len(hits)):
            rate = pyro.sample("phi", dist.Beta(m * kappa, (1.0 - m) * kappa))
            pyro.sample("obs", dist.Binomial(bats, probs=rate), obs=hits)

    shared = AutoNormal(poutine.block(model, expose=["m", "kappa"]))

    def guide(hits, bats):
        shared(hits, bats)
        extra = pyro.param("extra", torch.tensor(1.0), constraint=constraints.positive)
        with pyro.plate("data", len(hits)):
            pyro.sample("phi", dist.Beta(hits + extra, bats - hits + extra))

    return model, guide, (torch.arange(N) % 10.0, torch.full((N,), 12.0))


def sparse_gamma_def() -> Made:
    """A deep exponential family, whose guide has parameters for each row."""

    def model(x):
        w = pyro.sample("w", dist.Gamma(0.1, 0.3).expand([2, D]).to_event(2))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(0.1, 0.1).expand([2]).to_event(1))
            pyro.sample("obs", dist.Poisson(z @ w + 0.1).to_event(1), obs=x)

    return model, AutoNormal(model), (numbers(D).abs().round(),)


def dirichlet_process() -> Made:
    """Assignments with probabilities of their own for each row, at the plate's index."""

    def model(x):
        with pyro.plate("sticks", 2):
            beta = pyro.sample("beta", dist.Beta(1.0, 1.0))
        weights = F.pad(beta, (0, 1), value=1.0) * F.pad(
            (1.0 - beta).cumprod(-1), (1, 0), value=1.0
        )
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("obs", dist.Normal(torch.arange(3.0)[z], 1.0), obs=x)

    def guide(x):
        kappa = pyro.param("kappa", torch.ones(2), constraint=constraints.positive)
        phi = pyro.param("phi", torch.ones(N, 3) / 3.0, constraint=constraints.simplex)
        with pyro.plate("sticks", 2):
            pyro.sample("beta", dist.Beta(1.0, kappa))
        with pyro.plate("data", len(x)) as index:
            pyro.sample("z", dist.Categorical(phi[index]))

    return model, guide, (numbers(),)


def flow_density() -> Made:
    """A normalizing flow that is fitted to rows: no latent at all."""
    flow = T.spline_coupling(2, hidden_dims=[8])

    def model(x):
        pyro.module("flow", flow)
        base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.TransformedDistribution(base, [flow]), obs=x)

    return model, lambda x: None, (numbers(2),)


def easy_guide() -> Made:
    encoder = net(D, 4)

    def model(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            b = pyro.sample("b", dist.Normal(a, 1.0).to_event(1))
            pyro.sample("x", dist.Normal((a + b).expand(*a.shape[:-1], D), 0.5).to_event(1), obs=x)

    class Grouped(EasyGuide):
        def guide(self, x):
            pyro.module("encoder", encoder)
            group = self.group(match="a|b")
            with self.plate("data", len(x)):
                group.sample("ab", normal(encoder(x)))

    return model, Grouped(model), (numbers(D),)


def reparametrised() -> Made:
    """A funnel whose centred latent ``LocScaleReparam`` splits in two."""

    @poutine.reparam(config={"z": LocScaleReparam(0.0)})
    def model(x):
        with pyro.plate("data", len(x)):
            scale = pyro.sample("scale", dist.LogNormal(torch.zeros(len(x)), 1.0))
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), scale))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x):
        gain = pyro.param("gain", torch.tensor(0.1))
        with pyro.plate("data", len(x)):
            pyro.sample("scale", dist.LogNormal(gain * x.abs(), 0.5))
            pyro.sample("z_decentered", dist.Normal(gain * x, 0.5))

    return model, guide, (numbers(),)


def missing() -> Made:
    """Pyro's own statement for missing data."""

    def model(x, seen):
        loading = pyro.param("loading", torch.ones(D))
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0))
            with pyro.plate("columns", D, dim=-1):
                pyro.sample("x", dist.Normal(z * loading, 0.5), obs=x, obs_mask=seen)

    def guide(x, seen):
        gain = pyro.param("gain", torch.tensor(0.1))
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("z", dist.Normal(gain * (x * seen).sum(-1, keepdim=True), 0.8))

    return model, guide, (numbers(D), numbers(D) > 0.0)


def predictive_deterministic() -> Made:
    def model(x):
        scale = pyro.deterministic("scale", pyro.param("raw", torch.tensor(0.0)).exp())
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(D), 1.0).to_event(1))
            mean = pyro.deterministic("mean", 2.0 * z, event_dim=1)
            pyro.sample("x", dist.Normal(mean, scale).to_event(1), obs=x)

    def guide(x):
        gain = pyro.param("gain", torch.tensor(0.4))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(gain * x, 0.5).to_event(1))

    return model, guide, (numbers(D),)


def several_guides() -> Made:
    """`AutoGuideList`: an autoguide of shared latents beside an amortised function."""
    encoder = net(D, 4)

    def model(x):
        w = pyro.sample("w", dist.Normal(torch.zeros(2, D), 1.0).to_event(2))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", standard(x))
            pyro.sample("x", dist.Normal(z @ w, 0.5).to_event(1), obs=x)

    def own(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data"):  # the list has made one of this name
            pyro.sample("z", normal(encoder(x)))

    guide = AutoGuideList(model, create_plates=lambda x: pyro.plate("data", len(x), dim=-1))
    guide.append(AutoDiagonalNormal(poutine.block(model, expose=["w"])))
    guide.append(own)
    return model, guide, (numbers(D),)


def autoregressive() -> Made:
    """A series, each value from the one before and z."""

    def model(x):
        rate = pyro.param("rate", torch.tensor(0.1))
        with pyro.plate("data", len(x)):
            z, before = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0)), 0.0
            for t in range(D):
                pyro.sample(f"x_{t}", dist.Normal(z + rate * before, 1.0), obs=x[:, t])
                before = x[:, t]

    def guide(x):
        gain = pyro.param("gain", torch.tensor(0.1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(gain * x.sum(1), 0.5))

    return model, guide, (numbers(D),)


def toy_mixture() -> Made:
    """Topics of a Bayesian network of discrete latents, all enumerated in the guide."""

    def model(x):
        with pyro.plate("data", len(x)):
            season = pyro.sample("season", dist.Bernoulli(0.4))
            rain = pyro.sample("rain", dist.Bernoulli(0.2 + 0.6 * season))
            pyro.sample("x", dist.Bernoulli(0.1 + 0.4 * rain + 0.4 * season), obs=x)

    @config_enumerate
    def guide(x):
        logit = pyro.param("logit", torch.zeros(2))
        with pyro.plate("data", len(x)):
            pyro.sample("season", dist.Bernoulli(logits=logit[0] + x))
            pyro.sample("rain", dist.Bernoulli(logits=logit[1] + x))

    return model, guide, ((numbers() > 0.0).float(),)


def inclined_plane() -> Made:
    def model(times):
        mu = pyro.sample("mu", dist.Uniform(0.0, 1.0))
        with pyro.plate("data", len(times)):
            pyro.sample("obs", dist.Normal(2.0 / (1.0 + mu), 0.3), obs=times)

    return model, AutoNormal(model), (numbers() + 1.5,)


def lkj() -> Made:
    """Rows of a normal whose correlations have a prior."""

    def model(x):
        scale = pyro.sample("scale", dist.HalfCauchy(torch.ones(2)).to_event(1))
        corr = pyro.sample("corr", dist.LKJCholesky(2, torch.tensor(1.0)))
        with pyro.plate("data", len(x)):
            factor = scale.unsqueeze(-1) * corr
            pyro.sample("obs", dist.MultivariateNormal(torch.zeros(2), scale_tril=factor), obs=x)

    return model, AutoNormal(model), (numbers(2),)


def csis() -> Made:
    """A normal mean for each row, and a network that proposes it from its two observations."""
    proposal = net(2, 8, 2)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 5**0.5))
            for j in range(2):
                pyro.sample(f"x_{j}", dist.Normal(z, 2**0.5), obs=x[:, j])

    def guide(x):
        pyro.module("proposal", proposal)
        out = proposal(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(out[:, 0], out[:, 1].exp()))

    return model, guide, (numbers(2),)


def gaussian_process() -> Made:
    """A Gaussian process binds all observations in one normal: there are no rows."""

    def model(x):
        squares = (x[:, None] - x) ** 2
        covariance = torch.exp(-squares) + 0.1 * torch.eye(len(x))
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        made = dist.MultivariateNormal(mean.expand(len(x)), covariance)
        pyro.sample("obs", made, obs=x)

    return model, AutoNormal(model), (numbers(),)


def time_series() -> Made:
    """One series of a random walk: each value depends on the one before, so there are no rows."""

    def model(x):
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        for t in pyro.markov(range(1, 5)):
            pyro.sample(f"x_{t}", dist.Normal(x[t - 1], scale), obs=x[t])

    return model, AutoNormal(model), (numbers(),)


def in_a_loop() -> Made:
    """A plate of rows that is a Python loop."""

    def model(x):
        fairness = pyro.sample("latent_fairness", dist.Beta(10.0, 10.0))
        for i in pyro.plate("data", len(x)):
            pyro.sample(f"obs_{i}", dist.Bernoulli(fairness), obs=x[i])

    return model, AutoNormal(model), ((numbers() > 0.0).float(),)


def auto_flow() -> Made:
    return regression(lambda model: AutoIAFNormal(model, hidden_dim=[8]))


EXAMPLES: dict[str, Callable[[], Any]] = {
    "vae/vae.py": vae,
    "vae_flow_prior.ipynb": vae_flow_prior,
    "vae.ipynb, convolutional": convolutional_vae,
    "vae/ss_vae_M2.py, labelled": lambda: semi_supervised(True, False),
    "vae/ss_vae_M2.py, unlabelled": lambda: semi_supervised(False, False),
    "vae/ss_vae_M2.py, --enum-discrete": lambda: semi_supervised(False, True),
    "cvae/cvae.py": cvae,
    "dmm.py": dmm,
    "prodlda.ipynb": prodlda,
    "lda.py": lda,
    "scanvi/scanvi.py": scanvi,
    "air/main.py": air,
    "contrib/cevae/synthetic.py": cevae,
    "gmm.ipynb": gmm,
    "gmm.ipynb, AutoNormal": lambda: gmm(AutoNormal),
    "GM-VAE": gm_vae,
    "hmm.py, model_1": hmm,
    "hmm.py, lengths": lambda: hmm(mask=True),
    "capture_recapture/cjs.py": capture_recapture,
    "toy_mixture_model_discrete_enumeration.py": toy_mixture,
    "bayesian_regression.ipynb": regression,
    "intro_long.ipynb": lambda: regression(AutoMultivariateNormal),
    "mle_map.ipynb": lambda: regression(AutoDelta),
    "svi_flow_guide.ipynb": auto_flow,
    "modules.ipynb": bayesian_network,
    "bayesian_regression_ii.ipynb": lambda: regression(AutoLowRankMultivariateNormal),
    "logistic regression": logistic,
    "svi_part_i.ipynb": coin,
    "svi_part_ii.ipynb, a loop": in_a_loop,
    "lkj.py": lkj,
    "inclined_plane.py": inclined_plane,
    "mean and scale": normal_mean,
    "eight_schools/svi.py": lambda: eight_schools(False),
    "eight_schools/svi.py, amortised": lambda: eight_schools(True),
    "baseball.py": baseball,
    "sparse_gamma_def.py": sparse_gamma_def,
    "dirichlet_process_mixture.ipynb": dirichlet_process,
    "normalizing_flows_intro.ipynb": flow_density,
    "easyguide.ipynb": easy_guide,
    "neutra and reparam": reparametrised,
    "obs_mask": missing,
    "predictive_deterministic.ipynb": predictive_deterministic,
    "AutoGuideList": several_guides,
    "csis.ipynb": csis,
    "autoregressive series": autoregressive,
    "gp.ipynb": gaussian_process,
    "forecasting_i.ipynb": time_series,
}
WITHOUT_ROWS = {"gp.ipynb", "forecasting_i.ipynb"}
