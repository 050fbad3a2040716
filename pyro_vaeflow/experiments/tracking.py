"""TensorBoard event files of trainings and runs; needs the extra ``tensorboard``."""

from typing import Any

from pyro_vaeflow.inference.callbacks import TensorBoard as TensorBoard

# Column of a history -> its tag; nats a row but for the last three.
TAGS = {
    "loss": "nats/annealed loss",
    "elbo": "nats/ELBO",
    "log_likelihood": "nats/log likelihood",
    "kl": "nats/KL",
    "held_out_elbo": "nats/ELBO, held out",
    "anneal": "settings/beta or capacity",
    "learning_rate": "settings/learning rate",
    "grad_norm": "gradient norm",
}
RESULTS = ("elbo", "log_evidence", "kl", "train_seconds", "score_seconds")


def check_installed() -> None:
    """Refuses where TensorBoard is missing, before anything is run.

    Raises:
        ImportError: with the command that installs it.
    """
    try:
        import tensorboard  # noqa: F401
    except ImportError as error:
        raise ImportError(
            'TensorBoard is not installed; run pip install "pyro_vaeflow[tensorboard]"'
        ) from error


def _plain(value: Any) -> bool | int | float | str:
    return value if isinstance(value, (bool, int, float, str)) else str(value)
