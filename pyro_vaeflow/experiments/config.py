"""The configuration of one run: frozen, typed, checked by name. It imports no torch.

Names that a registry owns (data sets, likelihoods, posteriors, activations) are checked against the
registry when the run is prepared, so that registering one function is all that a new one needs.
"""

import hashlib
import json
import math
import reprlib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from pyro_vaeflow.validation import Checked, ConfigError, check_used, setting

# Choice -> its value -> settings that would then do nothing: they are refused.
IGNORED: dict[str, dict[str, tuple[str, ...]]] = {
    "kind": {
        "constant": ("start", "num_cycles", "ratio", "gamma"),
        "linear": ("num_cycles", "gamma"),
        "cyclical": ("gamma",),
        "capacity": ("num_cycles",),
    },
    "learning_rate_schedule": {"constant": ("learning_rate_stop",)},
}
MAX_BYTES = 2**20  # of a configuration file
MAX_VALUES = 100_000  # in it, with its aliases written out
VAEFLOW = "vaeflow"  # the detector that this package is about; every other is a peer
# All that a peer reads: the others are at their defaults and not in its file.
OF_PEERS = (
    "study",
    "dataset",
    "split_seed",
    "max_rows",
    "preprocessing",
    "detector",
    "detector_options",
    "seed",
)


@dataclass(frozen=True)
class AnnealingConfig(Checked):
    """How the Kullback-Leibler term is weighted, step by step.

    Args:
        kind: constant, linear or cyclical beta; or capacity, the loss gamma |KL - C|.
        start: beta (or the capacity, nats a row) at the start.
        stop: beta (or the capacity, nats a row) at the end; the only value of constant.
        num_cycles: cycles of cyclical.
        ratio: the part of a cycle (cyclical) or of the run (linear, capacity) that rises.
        gamma: stiffness of capacity.
    """

    kind: str = setting("constant", choices=("constant", "linear", "cyclical", "capacity"))
    start: float = setting(0.0, low=0.0)
    stop: float = setting(1.0, low=0.0)
    num_cycles: int = setting(4, low=1)
    ratio: float = setting(0.5, above=0.0, high=1.0)
    gamma: float = setting(1000.0, low=0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_used(self, "kind", IGNORED["kind"])


@dataclass(frozen=True)
class GapSettings(Checked):
    """How gaps are measured: rows, and the arguments of `pyro_vaeflow.inference_gap`.

    Args:
        rows: distinct test inliers; a run measures no gaps with 0.
        num_steps: of each row's local optimisation.
        draws_per_step: behind each step's gradient.
        num_samples: draws behind each row's evidence and bounds.
    """

    rows: int = setting(0, low=0)
    num_steps: int = setting(200, low=0)
    draws_per_step: int = setting(32, low=2)
    num_samples: int = setting(1000, low=2)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rows == 1:
            raise ConfigError("rows: expected 0, or at least 2 to tell active units by, got 1")
        if self.rows == 0:
            others = tuple(entry.name for entry in fields(self) if entry.name != "rows")
            check_used(self, "rows", {0: others})


@dataclass(frozen=True)
class ExperimentConfig(Checked):
    """Everything that decides the numbers of one run.

    Args:
        study: the name under which its results are kept.
        dataset: kddcup99, ring, breast_cancer or another name of `pyro_vaeflow.datasets.registry`.
        split_seed: draws the training and the test rows, and the rows of generated data; null
            draws them with the seed, so that each seed has a split of its own.
        max_rows: at most so many rows of each part, drawn with split_seed; all by default.
        preprocessing: how columns become numbers, learned on the training inliers.
        detector: vaeflow, or a peer, a name in `pyro_vaeflow.experiments.peers.PEERS`; a peer reads
            `OF_PEERS` alone and leaves out all else that a study shares.
        detector_options: options of the peer, such as epoch_num of pyod_vae.
        likelihood: a name in `pyro_vaeflow.programs.likelihoods.LIKELIHOODS`.
        likelihood_options: options of the likelihood head, such as min_scale of normal.
        flow: the posterior, a name in `pyro_vaeflow.programs.flows.FLOWS`.
        num_flows: transforms in the posterior; 0 for diagonal.
        conditioned: whether the flow reads the encoder's context.
        flow_options: options of the posterior's builder, such as hidden_dim and stable of iaf.
        latent_dim: dimensions of z; null for one a feature, up to 64.
        prior: of z, normal or exemplar: `pyro_vaeflow.programs.priors.ExemplarPrior` of the
            training rows.
        encoder_dims: widths of the encoder's hidden layers.
        decoder_dims: widths of the decoder's hidden layers.
        activation: of both networks' hidden layers, in `pyro_vaeflow.programs.vae.ACTIVATIONS`.
        dropout: probability, in both networks, in training only.
        input_dropout: of mixed tables, the share of entries hidden from the encoder in training.
        start_scale: of the posterior's base in an untrained guide.
        num_steps: mini-batches of training; or give num_epochs.
        num_epochs: passes over the training rows; or give num_steps.
        batch_size: rows a mini-batch.
        count_power: mini-batches are drawn from the distinct training rows in proportion to the
            number of their copies to this power: 1 is as they are, 0 each distinct row alike.
        learning_rate: of Adam, at the start.
        learning_rate_warmup: the share of the steps in which it first rises from 0.
        learning_rate_schedule: constant, linear or cosine.
        learning_rate_stop: the last learning rate, of linear and cosine.
        annealing: the weight of the Kullback-Leibler term.
        clip_norm: the largest gradient norm; none by default.
        validation_share: of the training rows, at most 500, whose ELBO chooses the step whose
            parameters are kept.
        held_out_rows: training inliers kept from training and scored after it, so that settings can
            be chosen without labels; distinct ones, with all their copies, if count_power is not 1.
        num_samples: draws of z for each row's scores.
        map_size: points a side of the square grid on which A(x) of two-column data is kept.
        gaps: whether and how the run measures what keeps its posterior from the exact one.
        seed: of initial parameters, mini-batches, training and scoring noise; 0 is a seed.
    """

    study: str = "study"
    dataset: str = "ring"
    split_seed: int | None = setting(42, low=0)
    max_rows: int | None = setting(None, low=2)
    preprocessing: str = "minmax"
    detector: str = VAEFLOW
    detector_options: dict[str, Any] = setting(factory=dict)
    likelihood: str = "bernoulli"
    likelihood_options: dict[str, Any] = setting(factory=dict)
    flow: str = "diagonal"
    num_flows: int = setting(0, low=0, high=100)
    conditioned: bool = True
    flow_options: dict[str, Any] = setting(factory=dict)
    latent_dim: int | None = setting(12, low=1)
    prior: str = setting("normal", choices=("normal", "exemplar"))
    encoder_dims: tuple[int, ...] = setting((128, 64), low=1)
    decoder_dims: tuple[int, ...] = setting((64, 128), low=1)
    activation: str = "leaky_relu"
    dropout: float = setting(0.2, low=0.0, below=1.0)
    input_dropout: float = setting(0.0, low=0.0, below=1.0)
    start_scale: float = setting(math.log(2.0), above=0.0)
    num_steps: int | None = setting(None, low=1)
    num_epochs: float | None = setting(None, above=0.0)
    batch_size: int = setting(256, low=1)
    count_power: float = setting(1.0, low=0.0, high=1.0)
    learning_rate: float = setting(1e-3, above=0.0)
    learning_rate_warmup: float = setting(0.0, low=0.0, below=1.0)
    learning_rate_schedule: str = setting("constant", choices=("constant", "linear", "cosine"))
    learning_rate_stop: float = setting(0.0, low=0.0)
    annealing: AnnealingConfig = setting(factory=AnnealingConfig)
    clip_norm: float | None = setting(None, above=0.0)
    validation_share: float = setting(0.0, low=0.0, below=1.0)
    held_out_rows: int = setting(0, low=0)
    num_samples: int = setting(100, low=2)
    map_size: int = setting(0, low=0)
    gaps: GapSettings = setting(factory=GapSettings)
    seed: int = setting(0, low=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.study in ("", ".", "..") or set(self.study) & set("/\\\0"):
            raise ConfigError(f"study: expected the name of a folder, got {self.study!r}")
        if self.is_peer:
            self._reset_unread()
            return
        if self.detector_options:
            raise ConfigError(f"detector_options: detector={VAEFLOW} has none; leave them out")
        if (self.num_steps is None) == (self.num_epochs is None):
            got = f"num_steps={self.num_steps!r} and num_epochs={self.num_epochs!r}"
            raise ConfigError(f"give one of num_steps and num_epochs, got {got}")
        check_used(self, "learning_rate_schedule", IGNORED["learning_rate_schedule"])

    @property
    def is_peer(self) -> bool:
        """Whether another detector than ours runs."""
        return self.detector != VAEFLOW

    @property
    def rows_seed(self) -> int:
        """What draws the training and the test rows: split_seed, or the seed where that is null."""
        return self.seed if self.split_seed is None else self.split_seed

    def to_dict(self) -> dict[str, Any]:
        """Plain values, lists for tuples, of all that the run reads; inverse of `from_dict`."""
        values = super().to_dict()
        if not self.gaps.rows:  # the names of runs that measure none are older than this setting
            del values["gaps"]
        return {name: values[name] for name in OF_PEERS} if self.is_peer else values

    def _reset_unread(self) -> None:
        for entry in fields(self):
            if entry.name not in OF_PEERS:
                factory = entry.default_factory
                value = entry.default if factory is MISSING else factory()
                object.__setattr__(self, entry.name, value)

    def to_yaml(self) -> str:
        """A YAML document, the inverse of `from_yaml`; also a file for ``vaeflow run``."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ExperimentConfig":
        """Makes a configuration from plain values, as YAML gives them, `current_keys` or older.

        Raises:
            ConfigError: an unknown key, a wrong type or a value out of range, with those allowed.
        """
        return super().from_dict(current_keys(values))

    @classmethod
    def from_yaml(cls, text: str) -> "ExperimentConfig":
        """Reads what `to_yaml` wrote.

        Example:
            >>> config = ExperimentConfig(num_steps=10, seed=0)
            >>> ExperimentConfig.from_yaml(config.to_yaml()) == config
            True
        """
        return cls.from_dict(read_mapping(text, "the configuration"))

    @classmethod
    def from_file(cls, path: Path) -> "ExperimentConfig":
        """Reads a file that holds what `to_yaml` wrote.

        Raises:
            ConfigError: names the file and what is wrong with it.
        """
        try:
            return cls.from_yaml(read_text(path))
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error

    @property
    def digest(self) -> str:
        """Eight hexadecimal digits of all that the run reads but the seed and the study's name."""
        settings = {k: v for k, v in self.to_dict().items() if k not in ("seed", "study")}
        if not self.is_peer:  # in the words of version 0.1, so that its finished runs keep theirs
            settings["model"] = settings.pop("flow")
            if self.flow == "iaf":  # its layers had no gate unless asked for
                settings["flow_options"] = {"stable": True, **self.flow_options}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]

    @property
    def run_name(self) -> str:
        """The name of the run's folder.

        Example:
            >>> ExperimentConfig(num_steps=10, flow="iaf", num_flows=5, seed=3).run_name[:15]
            'ring-iaf5-seed3'
        """
        dataset = self.dataset.replace(":", "_").replace("/", "_")
        method = self.detector if self.is_peer else f"{self.flow}{self.num_flows}"
        return f"{dataset}-{method}-seed{self.seed}-{self.digest}"


def current_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings under the keys of today, from a file that may be of version 0.1.

    There the posterior was `model`, and the layers of its `iaf` had no gate unless asked for.

    Example:
        >>> current_keys({"model": "planar", "num_flows": 5})
        {'flow': 'planar', 'num_flows': 5}
    """
    if "model" not in values or "flow" in values:
        return dict(values)
    renamed = {"flow" if name == "model" else name: value for name, value in values.items()}
    options = values.get("flow_options")
    if renamed["flow"] == "iaf" and isinstance(options, Mapping):
        renamed["flow_options"] = {"stable": False, **options}
    return renamed


def read_text(path: Path) -> str:
    """The text of a configuration file.

    Raises:
        ConfigError: it is no file that can be read, or no text in UTF-8, or too long.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ConfigError(f"{path} is longer than {MAX_BYTES} bytes: no configuration is")
        return data.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no text file that can be read: {error}") from error


def read_mapping(text: str, what: str) -> dict[str, Any]:
    """The mapping in a YAML document.

    Raises:
        ConfigError: it is no YAML, or YAML of another kind, or few aliases make much of it.
    """
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        size = _written_out(node, {}) if node is not None else 0
        values = loader.construct_document(node) if 0 < size <= MAX_VALUES else None
    except RecursionError as error:
        raise ConfigError(f"{what} is not YAML: it is nested too deeply") from error
    except (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, ValueError) as error:
        raise ConfigError(f"{what} is not YAML: {error}") from error  # 2001-99-99 is no date
    if size > MAX_VALUES:
        raise ConfigError(f"{what} has more than {MAX_VALUES} values, its aliases written out")
    if not isinstance(values, dict):
        raise ConfigError(f"{what} must be a mapping of keys to values, got {reprlib.repr(values)}")
    return values


def _written_out(node: yaml.Node, sizes: dict[int, float]) -> float:
    """The values below a node if each alias were a copy; infinite if it holds itself."""
    if id(node) not in sizes:
        sizes[id(node)] = math.inf
        parts = node.value if isinstance(node, yaml.CollectionNode) else ()
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in parts for part in pair]
        sizes[id(node)] = 1 + sum(_written_out(part, sizes) for part in parts)
    return sizes[id(node)]
