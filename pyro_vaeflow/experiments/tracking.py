"""TensorBoard event files of trainings and runs; needs the extra ``tensorboard``."""

import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from pyro_vaeflow.experiments.config import ExperimentConfig
from pyro_vaeflow.experiments.results import flat_settings
from pyro_vaeflow.inference.watchers import watching

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


class TensorBoard:
    """Writes what `train` sees inside the block to event files: ``tensorboard --logdir FOLDER``.

    A training that goes on from a checkpoint replaces what was written from that step on.

    Args:
        folder: of one training; TensorBoard takes each subfolder of its ``--logdir`` for a run.
        every: steps from one record to the next; steps that evaluate held-out rows all count.

    Raises:
        ImportError: TensorBoard is not installed; names the extra.

    Example:
        >>> import tempfile, torch
        >>> from pyro_vaeflow import Guide, Model, train
        >>> folder = tempfile.mkdtemp()
        >>> with TensorBoard(folder):
        ...     history = train(Model(3), Guide(3), torch.rand(9, 3), num_steps=4, progress=False)
        >>> [path.name[:16] for path in Path(folder).iterdir()]
        ['events.out.tfeve']
    """

    def __init__(self, folder: str | Path, every: int = 10) -> None:
        check_installed()
        self.folder, self.every = Path(folder), every
        self._writer: Any = None

    def __enter__(self) -> "TensorBoard":
        self._watching = watching(self)
        self._watching.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._watching.__exit__(kind, error, trace)
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __call__(self, record: Mapping[str, float]) -> None:
        """Writes one step's record."""
        step = int(record["step"])
        writer = self.writer(step)
        if step % self.every == 0 or math.isfinite(record["held_out_elbo"]):
            for name, tag in TAGS.items():
                if math.isfinite(record[name]):
                    writer.add_scalar(tag, record[name], step)

    def writer(self, step: int = 0) -> Any:
        """The ``SummaryWriter`` of this block, opened at `step`."""
        if self._writer is None:
            from torch.utils.tensorboard.writer import SummaryWriter

            self._writer = SummaryWriter(str(self.folder), purge_step=step)
        return self._writer

    def add_run(self, config: ExperimentConfig, metrics: Mapping[str, Any]) -> None:
        """Writes a run's settings and what it measured, for the table and plots of HPARAMS."""
        from torch.utils.tensorboard.summary import hparams

        settings = {name: _plain(value) for name, value in flat_settings(config).items()}
        found = {f"result/{name}": metrics[name] for name in RESULTS if name in metrics}
        for score, values in metrics["scores"].items():
            found |= {f"result/{name}, {score}": value for name, value in values.items()}
        writer = self.writer()
        for summary in hparams(settings, found):
            writer.file_writer.add_summary(summary)
        for name, value in found.items():
            writer.add_scalar(name, value)
        writer.add_text("config.yaml", "```yaml\n" + config.to_yaml() + "```")


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
