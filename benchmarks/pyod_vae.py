"""PyOD's VAE, which users would take instead, with the paper's network and number of epochs."""

import warnings
from collections.abc import Iterator

from pyod.models.vae import VAE

from benchmarks.cases import NUM_FEATURES, cases, rows
from benchmarks.record import Line
from benchmarks.score import clock
from pyro_vaeflow import Guide, KhatWarning, Model, score, train


def measure(num_rows: int, num_epochs: int) -> Iterator[Line]:
    """Seconds to fit and to score the same rows: `train`, and `score` of 100 draws, beside PyOD's.

    PyOD's score is one decoding of the mean; ours is the evidence and the expectation of 100 draws.
    """
    x, now = rows(num_rows), clock()
    config = cases()["diagonal"]
    model, guide = Model(NUM_FEATURES), Guide(NUM_FEATURES)
    theirs = VAE(
        preprocessing=False,
        epoch_num=num_epochs,
        batch_size=config.batch_size,
        latent_dim=config.latent_dim,
        encoder_neuron_list=list(config.encoder_dims),
        decoder_neuron_list=list(config.decoder_dims),
        verbose=0,
    )
    num_steps = num_epochs * num_rows // config.batch_size
    start = now()
    train(model, guide, x, num_steps=num_steps, batch_size=config.batch_size, progress=False)
    trained = now()
    theirs.fit(x.numpy())
    fitted = now()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", KhatWarning)
        score(model, guide, x, num_samples=100)
    scored = now()
    theirs.decision_function(x.numpy())
    end = now()
    case = f"{num_rows:,} rows, {num_epochs} epochs"
    yield Line("pyod_fit", case, trained - start, fitted - trained, "s")
    yield Line("pyod_score", f"{case}, 100 draws beside 1", scored - fitted, end - scored, "s")
