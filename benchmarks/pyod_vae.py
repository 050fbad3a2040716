"""PyOD's VAE: what users would pick instead, with the paper's network and number of epochs."""

from collections.abc import Iterator

from benchmarks.cases import NUM_FEATURES, cases, rows
from benchmarks.record import Line
from benchmarks.score import clock
from pyro_vaeflow import score, train
from pyro_vaeflow.experiments.peers import PEERS
from pyro_vaeflow.programs.vae import Guide, Model


def measure(num_rows: int, num_epochs: int) -> Iterator[Line]:
    """Seconds to fit and to score the same rows: `train` and `score` with 100 draws beside PyOD's.

    PyOD's score is one decoding of the mean; ours is the evidence and the expectation of 100 draws.
    """
    x, now = rows(num_rows), clock()
    config = cases()["diagonal"]
    model, guide = Model(NUM_FEATURES), Guide(NUM_FEATURES)
    batch_size = config.batch_size
    peer = PEERS["pyod_vae"](
        0,
        preprocessing=False,
        epoch_num=num_epochs,
        batch_size=batch_size,
        latent_dim=config.latent_dim,
        encoder_neuron_list=list(config.encoder_dims),
        decoder_neuron_list=list(config.decoder_dims),
    )
    times = [now()]
    num_steps = num_epochs * num_rows // batch_size
    train(model, guide, x, num_steps=num_steps, batch_size=batch_size, progress=False)
    times.append(now())
    peer.fit(x.numpy())
    times.append(now())
    score(model, guide, x, num_samples=100)
    times.append(now())
    peer.anomaly_score(x.numpy())
    times.append(now())
    fit, peer_fit, own, peer_score = (b - a for a, b in zip(times[:-1], times[1:], strict=True))
    case = f"PyOD's VAE, {num_rows:,} rows, {num_epochs} epochs"
    yield Line("peer_fit", case, fit, peer_fit, "s")
    yield Line("peer_score", case + ", 100 draws beside 1", own, peer_score, "s")
