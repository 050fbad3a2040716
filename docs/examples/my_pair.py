"""A pair of one's own for numbers: a linear decoder, and a guide with or without a Pyro flow."""

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.transforms import conditional_spline_autoregressive


def make(settings, num_features, x):
    decoder, encoder = torch.nn.Linear(2, num_features), torch.nn.Linear(num_features, 16)
    base = torch.nn.Linear(16, 4)
    flow = conditional_spline_autoregressive(2, 16) if settings.flow == "spline" else None

    def model(x):
        pyro.module("decoder", decoder)
        noise = pyro.param("noise", torch.ones(num_features), dist.constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), noise).to_event(1), obs=x)

    def guide(x):
        modules = [encoder, base] + ([flow] if flow else [])
        pyro.module("guide", torch.nn.ModuleList(modules))
        context = encoder(x).tanh()
        loc, log_scale = base(context).chunk(2, dim=-1)
        q = dist.Normal(loc, log_scale.exp()).to_event(1)
        if flow:
            q = dist.ConditionalTransformedDistribution(q, [flow]).condition(context)
        with pyro.plate("data", len(x)):
            pyro.sample("z", q)

    return model, guide
