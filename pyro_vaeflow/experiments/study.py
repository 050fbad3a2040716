"""Study files: settings that runs share, the variants that differ, seeds, and a small budget.

A file's top level holds the keys of `ExperimentConfig`, and ``description``, ``seeds``,
``variants`` (a list of mappings over the shared settings), ``crossed`` (blocks of a design: each a
list of axes, each axis a list of such mappings, and every combination of a block is a variant),
``datasets`` (each variant runs on each), ``seeds_first`` (all variants of a seed before the next)
and ``quick`` (a mapping over each variant, for ``--quick``). Paths in it, as of ``programs`` and
``dataset``, begin at its folder. A finished run's config.yaml is such a file too.
"""

import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any

from pyro_vaeflow.experiments.config import (
    ExperimentConfig,
    current_keys,
    read_mapping,
    read_text,
)
from pyro_vaeflow.experiments.own_files import FILES, locate
from pyro_vaeflow.programs.settings import IGNORED
from pyro_vaeflow.validation import ConfigError, check_names, convert

CONFIG_KEYS = [entry.name for entry in fields(ExperimentConfig)]
STUDY_KEYS = "description seeds seeds_first variants crossed datasets quick".split()
OPTIONS_OF = {"flow": ("flow_options",), "likelihood": ("likelihood_options",)}
PRESETS = files("pyro_vaeflow") / "presets"
QUICK = {"num_steps": 20, "max_rows": 200, "num_samples": 30}  # of a study that has no quick block


@dataclass(frozen=True)
class Study:
    """A study, as `load_study` and `from_dict` read it; `expand` makes the configurations of runs.

    Example:
        >>> variants = [{"flow": "diagonal"}, {"flow": "iaf"}]
        >>> study = Study.from_dict({"num_steps": 9, "seeds": [0, 1], "variants": variants})
        >>> [(config.flow, config.num_flows, config.seed) for config in study.expand()]
        [('diagonal', 0, 0), ('diagonal', 0, 1), ('iaf', 5, 0), ('iaf', 5, 1)]
    """

    name: str
    description: str
    settings: Mapping[str, Any]
    variants: tuple[Mapping[str, Any], ...]
    quick: Mapping[str, Any]
    seeds: tuple[int, ...]
    datasets: tuple[str, ...] = ()
    seeds_first: bool = False

    @classmethod
    def from_dict(
        cls, values: Mapping[str, Any], name: str = "study", folder: Path | None = None
    ) -> "Study":
        """What a study file holds, as a mapping; each variant is checked, with its quick block.

        Args:
            name: of the study, unless it says so itself.
            folder: where paths in it begin; the present one by default.
        """
        values = dict(values)
        folder = Path.cwd() if folder is None else folder
        crossed = combinations(values.pop("crossed", []))
        variants = values.pop("variants", [] if crossed else [{}])
        quick = values.pop("quick", QUICK)
        if not isinstance(variants, list) or not (variants or crossed):
            raise ConfigError(
                f"variants: expected a list of mappings, at least one, got {reprlib.repr(variants)}"
            )
        values = _settings(values, folder)
        check_names(values, [*STUDY_KEYS, *CONFIG_KEYS], "key")
        quick = _settings(quick, folder, "quick")
        variants = [_settings(part, folder, "variants") for part in [*variants, *crossed]]
        seeds = convert(values.pop("seeds", [values.get("seed", 0)]), tuple[int, ...], "seeds")
        seeds_first = convert(values.pop("seeds_first", False), bool, "seeds_first")
        datasets: tuple[str, ...] = ()
        if "datasets" in values:
            datasets = convert(values.pop("datasets"), tuple[str, ...], "datasets")
            datasets = tuple(locate(name, folder, "dataset") for name in datasets)
            if any("dataset" in part for part in (values, *variants)):
                raise ConfigError("dataset: datasets names them already; leave out one of the two")
        study = cls(
            name=values.pop("study", name),
            description=values.pop("description", ""),
            settings=values,
            variants=tuple(variants),
            quick=quick,
            seeds=seeds,
            datasets=datasets,
            seeds_first=seeds_first,
        )
        one = replace(study, datasets=datasets[:1])  # of many: their names are checked later
        for with_quick in (False, True):
            one.expand(seeds=[min(seeds)], quick=with_quick)  # refuses what a run would refuse
        return study

    def expand(
        self,
        overrides: Mapping[str, Any] | None = None,
        seeds: Iterable[int] | None = None,
        quick: bool = False,
    ) -> list[ExperimentConfig]:
        """One configuration a data set, variant and seed, each once, in the file's order.

        With ``seeds_first`` seed by seed: a study that is stopped is then still a balanced one.
        Later ones win: shared settings, the data set, the variant, the quick block, `overrides`.

        Raises:
            ConfigError: an unknown key, a wrong type or a value out of range, with those allowed.
        """
        seeds = self.seeds if seeds is None else tuple(seeds)
        configs = []
        shared = {"study": self.name, **self.settings}
        groups = [{**shared, "dataset": name} for name in self.datasets] or [shared]
        for common, variant in product(groups, self.variants):
            values = merge(common, variant)
            values = merge(merge(values, self.quick if quick else {}), overrides or {})
            configs += [ExperimentConfig.from_dict({**values, "seed": seed}) for seed in seeds]
        if self.seeds_first:
            configs.sort(key=lambda config: seeds.index(config.seed))
        return list({config.run_name: config for config in configs}.values())


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` on top of `base`, mappings key by key.

    A new posterior or likelihood starts from its own options, a new kind of schedule drops what it
    would ignore, and one kind of budget replaces the other.

    Example:
        >>> merge({"annealing": {"kind": "linear", "stop": 1.0}}, {"annealing": {"stop": 2.0}})
        {'annealing': {'kind': 'linear', 'stop': 2.0}}
    """
    merged = dict(base)
    for choice, value in over.items():
        if base.get(choice, value) != value:
            ignored = IGNORED.get(choice, {}).get(str(value), ())
            for name in (*OPTIONS_OF.get(choice, ()), *ignored):
                merged.pop(name, None)
    for given, other in (("num_steps", "num_epochs"), ("num_epochs", "num_steps")):
        if over.get(given) is not None:
            merged.pop(other, None)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def preset_names() -> list[str]:
    """The studies that ship, in alphabetical order.

    Example:
        >>> "kdd-paper" in preset_names()
        True
    """
    return sorted(p.name[:-5] for p in PRESETS.iterdir() if p.name.endswith(".yaml"))


def load_study(name: str) -> Study:
    """Reads a preset by name, or a file by its path; a ConfigError says what is wrong with it."""
    if name in preset_names():
        source = Path(str(PRESETS / f"{name}.yaml"))
    elif name.endswith((".yaml", ".yml")):
        source = Path(name)
    else:
        check_names([name], preset_names(), "preset (or path ending in .yaml)")
    try:
        values = read_mapping(read_text(source), f"study {Path(name).stem!r}")
        return Study.from_dict(values, Path(name).stem, source.parent)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error


def _settings(part: Any, folder: Path, name: str = "") -> dict[str, Any]:
    """Settings of one part of a study, under the keys of today, with the paths that it names."""
    if not isinstance(part, Mapping):
        raise ConfigError(f"{name}: expected a mapping of settings, got {reprlib.repr(part)}")
    part = current_keys(part)
    if name:
        check_names(part, CONFIG_KEYS, f"key in {name}")
    return part | {
        key: locate(part[key], folder, key) for key in FILES if isinstance(part.get(key), str)
    }


def combinations(blocks: Any) -> list[dict[str, Any]]:
    """Every combination of each block's axes, as variants; a later axis wins.

    Example:
        >>> combinations([[[{"flow": "iaf"}], [{"latent_dim": 2}, {"latent_dim": 4}]]])
        [{'flow': 'iaf', 'latent_dim': 2}, {'flow': 'iaf', 'latent_dim': 4}]
    """
    variants: list[dict[str, Any]] = []
    for block in blocks if isinstance(blocks, list) else [blocks]:
        axes = block if isinstance(block, list) else [block]
        for axis in axes:
            if not (axis and isinstance(axis, list) and all(isinstance(p, Mapping) for p in axis)):
                raise ConfigError(
                    "crossed: expected blocks of axes, an axis a list of mappings, at least one, "
                    f"got {axis!r:.60}"
                )
        for parts in product(*axes):
            variant: dict[str, Any] = {}
            for part in parts:
                variant = merge(variant, current_keys(part))
            variants.append(variant)
    return variants
