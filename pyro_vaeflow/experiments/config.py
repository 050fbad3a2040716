"""The configuration of one run: frozen, typed, checked by name. It imports no torch."""

import hashlib
import json
import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from pyro_vaeflow.experiments.own_files import DEFAULT, FILES, content_name, locate, short_name
from pyro_vaeflow.programs.settings import AnnealingConfig, Settings
from pyro_vaeflow.validation import Checked, ConfigError, check_used, setting

MAX_BYTES = 2**18  # of a configuration file
MAX_VALUES = 100_000  # in it, with its aliases written out
MAX_DIGITS = 400  # of a number; 1e308 written out has 309
# What auto stands for, by the other one of the two; else standard and normal.
PREPROCESSING = {"mixed": "mixed", "bernoulli": "minmax"}
LIKELIHOOD = {"mixed": "mixed", "minmax": "bernoulli"}


@dataclass(frozen=True)
class DataSettings(Checked):
    """Which rows a run trains on and is tested on, and whose programs it trains.

    Args:
        study: the name under which its results are kept.
        programs: vae, another name of `pyro_vaeflow.programs.fitting.PROGRAMS`, or a file of one's
            own and a function in it that makes the pair: my_pair.py:make.
        dataset: a csv, Parquet or npz file of one's own, or kddcup99, ring, breast_cancer or
            another name of `pyro_vaeflow.experiments.tasks.TASKS`.
        label: the column of the file that is 1 where the row is an anomaly and 0 elsewhere.
        split_seed: draws the training and the test rows, and the rows of generated data; null
            draws them with the seed, so that each seed has a split of its own.
        max_rows: at most so many rows of each part, drawn with split_seed; all by default.
        preprocessing: how columns become numbers, learned on the training inliers; auto is what
            suits the likelihood: mixed, each column by its kind, if that is auto too, or standard
            for programs of one's own.
    """

    study: str = "study"
    programs: str = DEFAULT
    dataset: str = "ring"
    label: str | None = None
    split_seed: int | None = setting(42, low=0)
    max_rows: int | None = setting(None, low=2)
    preprocessing: str = "auto"


@dataclass(frozen=True)
class GapSettings(Checked):
    """How gaps are measured: rows, and the arguments of `pyro_vaeflow.inference_gap`.

    Args:
        rows: distinct test inliers; a run measures no gaps with 0.
        num_steps: of each row's local optimisation.
        draws_per_step: samples behind each step's gradient.
        num_samples: samples behind each row's evidence and bounds.
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
class ExperimentConfig(Settings, DataSettings):
    """Everything that decides the numbers of one run: data, pair, training, what is measured.

    Args:
        held_out_rows: training inliers kept from training and scored after it, so that settings can
            be chosen without labels; distinct ones, with all their copies, if count_power is not 1.
        map_size: points per side of the square grid on which A(x) of two-column data is kept.
        gaps: whether and how the run measures what keeps its posterior from the exact one.
        likelihood: auto is the one that suits the preprocessing.
    """

    likelihood: str = "auto"
    dropout: float = setting(0.0, low=0.0, below=1.0)
    activation: str = "tanh"
    learning_rate: float = setting(5e-3, above=0.0)
    learning_rate_schedule: str = setting("cosine", choices=("constant", "linear", "cosine"))
    annealing: AnnealingConfig = setting(factory=lambda: AnnealingConfig("linear", ratio=0.25))
    held_out_rows: int = setting(0, low=0)
    map_size: int = setting(0, low=0)
    gaps: GapSettings = setting(factory=GapSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.study in ("", ".", "..") or set(self.study) & set("/\\\0"):
            raise ConfigError(f"study: expected the name of a folder, got {self.study!r}")
        for key in FILES:
            if "@" not in (name := getattr(self, key)):
                object.__setattr__(self, key, locate(name, Path.cwd(), key))
        if self.preprocessing == "auto":
            auto = "mixed" if self.programs == DEFAULT else "standard"
            chosen = {"auto": auto, **PREPROCESSING}.get(self.likelihood, "standard")
            object.__setattr__(self, "preprocessing", chosen)
        if self.likelihood == "auto":
            object.__setattr__(self, "likelihood", LIKELIHOOD.get(self.preprocessing, "normal"))

    @property
    def rows_seed(self) -> int:
        """What draws the training and the test rows: split_seed, or the seed where that is null."""
        return self.seed if self.split_seed is None else self.split_seed

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ExperimentConfig":
        """As `Checked.from_dict`, of a file of today or of version 0.1."""
        return super().from_dict(current_keys(values))

    def to_dict(self) -> dict[str, Any]:
        """Plain values; the inverse of `from_dict`."""
        values = super().to_dict()
        # The names of runs that leave them at their defaults are older than these settings.
        if not self.gaps.rows:
            del values["gaps"]
        for name, default in (("programs", DEFAULT), ("label", None)):
            if values[name] == default:
                del values[name]
        return values

    def to_yaml(self) -> str:
        """A YAML document, the inverse of `from_yaml`; also a file for ``vaeflow run``."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

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
        """Reads a file that holds what `to_yaml` wrote; a ConfigError names it."""
        try:
            return cls.from_yaml(read_text(path))
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error

    @property
    def digest(self) -> str:
        """Eight hexadecimal digits of all that the run reads but the seed and the study's name.

        Of a file with programs its content counts, wherever it lies.
        """
        settings = {k: v for k, v in self.to_dict().items() if k not in ("seed", "study")}
        # In the words of version 0.1, so that its finished runs keep their names.
        settings |= {"detector": "vaeflow", "detector_options": {}, "model": settings.pop("flow")}
        if self.flow == "iaf":  # its layers had no gate unless asked for
            settings["flow_options"] = {"stable": True, **self.flow_options}
        for key in FILES.keys() & settings.keys():
            settings[key] = content_name(settings[key], key)
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]

    @property
    def run_name(self) -> str:
        """The name of the run's folder.

        Example:
            >>> ExperimentConfig(num_steps=10, flow="iaf", num_flows=5, seed=3).run_name[:15]
            'ring-iaf5-seed3'
        """
        dataset = short_name(self.dataset, "dataset").replace(":", "_").replace("/", "_")
        pair = "" if self.programs == DEFAULT else f"{short_name(self.programs)}-"
        return f"{dataset}-{pair}{self.flow}{self.num_flows}-seed{self.seed}-{self.digest}"


def current_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings under the keys of today, from a file that may be of version 0.1.

    There the posterior was `model`, the layers of its `iaf` had no gate unless asked for, and
    `detector` chose between ours and others.

    Example:
        >>> current_keys({"model": "planar", "num_flows": 5})
        {'flow': 'planar', 'num_flows': 5}
    """
    values = dict(values)
    if values.get("detector", "vaeflow") != "vaeflow":
        raise ConfigError(
            f"detector: a run is one of a flow, got {values['detector']!r}; fit baselines by "
            "scikit-learn or PyOD on the rows of pyro_vaeflow.experiments.tasks.load_task"
        )
    if values.pop("detector", None) and values.get("detector_options") == {}:
        del values["detector_options"]
    if "model" not in values or "flow" in values:
        return values
    options = values.get("flow_options")
    if values["model"] == "iaf" and isinstance(options, Mapping):
        values["flow_options"] = {"stable": False, **options}
    return {"flow" if name == "model" else name: value for name, value in values.items()}


def read_text(path: Path) -> str:
    """The text of a configuration file; a ConfigError if it is none, or too long."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ConfigError(f"{path} is longer than {MAX_BYTES} bytes: no configuration is")
        return data.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no text file that can be read: {error}") from error


def read_mapping(text: str, what: str) -> dict[str, Any]:
    """The mapping in a YAML document, of which few aliases must not make much."""
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
        is_number = node.tag.rpartition(":")[2] in ("int", "float")
        if is_number and len(node.value) > MAX_DIGITS:
            raise ValueError(f"a number of {len(node.value)} characters")  # of base 60, say
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in parts for part in pair]
        sizes[id(node)] = 1 + sum(_written_out(part, sizes) for part in parts)
    return sizes[id(node)]
