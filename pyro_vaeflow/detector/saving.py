"""A fitted detector as JSON and tensors, and back. What a file says is doubted until it fits."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from pyro_vaeflow.detector.gaps import GapScale
from pyro_vaeflow.detector.rarity import Rarity
from pyro_vaeflow.inference.parameters import Program
from pyro_vaeflow.inference.saved_folder import (
    CheckpointError,
    check_fits,
    check_keys,
    make_parameters,
    read,
    restore,
    state_of,
    write,
)
from pyro_vaeflow.programs.fitting import build, check_build
from pyro_vaeflow.programs.settings import Settings
from pyro_vaeflow.tables.columns import Column
from pyro_vaeflow.tables.mixed_encoder import MixedEncoder
from pyro_vaeflow.validation import convert

# Programs are code; the folder and the device are this machine's.
NOT_SAVED = ("model", "guide", "checkpoint_dir", "device")
FITTED = {
    **dict.fromkeys(("names", "columns", "gaps", "groups", "history"), list),
    **dict.fromkeys(("settings", "offsets"), dict),
    **{"has_feature_names": bool, "own": bool, "seed": int, "offset": float},
}
PLAIN = (bool, int, float, str, type(None))
ROWS = "model.prior.rows"
RARITY = ("rarity.rows", "rarity.evidence", "rarity.hashes")


def save_detector(detector: Any, folder: str | Path) -> None:
    """Writes a fitted detector; see `VAEFlowDetector.save`."""
    settings = {k: v for k, v in detector.get_params(False).items() if k not in NOT_SAVED}
    settings["hidden_dims"] = list(settings["hidden_dims"])
    if not isinstance(settings["random_state"], PLAIN):  # a RandomState has given its seed
        settings["random_state"] = detector.seed_
    if settings["kinds"] is not None:  # JSON would make texts of keys that are numbers
        settings["kinds"] = [[name, kind] for name, kind in settings["kinds"].items()]
    history = detector.history_
    content = {
        "settings": settings,
        "names": list(detector.encoder_.names_),
        "has_feature_names": hasattr(detector, "feature_names_in_"),
        "columns": [column.to_dict() for column in detector.encoder_.readings_],
        "seed": detector.seed_,
        "offset": detector.offset_,
        "offsets": detector.offsets_,
        "groups": detector.calibration_groups_.tolist() if detector.offsets_ else [],
        "gaps": detector.gaps_.coefficients.tolist(),
        "history": list(history),
        "own": detector.model is not None,
    }
    tensors = {f"state.{k}": v for k, v in state_of(detector.model_, detector.guide_).items()}
    tensors["calibration_scores"] = torch.as_tensor(detector.calibration_scores_)
    tensors["reference"] = torch.as_tensor(detector.reference_)
    if (rarity := detector.rarity_) is not None:
        values = (rarity.rows, torch.as_tensor(rarity.evidence), rarity.hashes)
        tensors |= dict(zip(RARITY, values, strict=True))
    tensors["history"] = torch.as_tensor(history.to_numpy(dtype=np.float64, copy=True))
    write(folder, _plain(content, "detector"), tensors)


def load_detector(detector: Any, folder: str | Path) -> Any:
    """Fills a new detector, which has the programs of one's own if any, from `folder`."""
    content, tensors = read(folder)
    try:
        return _filled(detector, content, tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    except ValueError as error:  # ConfigError among them
        raise CheckpointError(f"{folder} does not hold a detector: {error}") from error
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError) as error:
        raise CheckpointError(f"{folder} does not hold a detector: {error!r:.300}") from error


def _filled(detector: Any, content: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(content, dict):
        content = {"gaps": [], "offsets": {}, "groups": []} | content  # of 0.1
    check_keys(content, tuple(FITTED), "content")
    content = {name: convert(content[name], kind, name) for name, kind in FITTED.items()}
    state = {k.removeprefix("state."): v for k, v in tensors.items() if k.startswith("state.")}
    extra = {k: v for k, v in tensors.items() if not k.startswith("state.")}
    rarity = [extra.pop(name) for name in RARITY if name in extra]
    extra.setdefault("reference", torch.empty(0, 0))  # of 0.1
    check_keys(extra, ("calibration_scores", "history", "reference"), "the tensor file")
    if content["own"] != (detector.model is not None):
        raise CheckpointError(
            "pass model= and guide= to load a detector of programs of one's own, and only then; "
            f"the file says own={content['own']!r}"
        )
    _take_settings(detector, content)
    _take_tables(detector, content, extra)
    settings = detector._for_fitting(detector.seed_)
    detector.model_, detector.guide_ = _programs(detector, settings, state)
    detector._convert(torch.float64)  # as `fit` leaves a `Model` and a `Guide`
    detector._built = detector._settings_built()
    check_fits(state_of(detector.model_, detector.guide_), state)
    detector.rarity_, detector._fitted_for = _rarity(detector, rarity), detector.criterion
    if detector.model is None:
        _check_constants(detector, state)
    restore(detector.model_, detector.guide_, state)
    return detector


def _take_settings(detector: Any, content: dict[str, Any]) -> None:
    own = detector.get_params(False)
    settings = {"groups": None} | content["settings"]  # of 0.1
    check_keys(settings, tuple(k for k in own if k not in NOT_SAVED), "settings")
    settings["hidden_dims"] = tuple(settings["hidden_dims"])
    if settings["kinds"] is not None:
        settings["kinds"] = dict(settings["kinds"])
    detector.set_params(**settings)
    detector._check()
    detector.seed_, detector.offset_ = content["seed"], content["offset"]
    if not 0 <= detector.seed_ < 2**32:
        raise CheckpointError(f"seed must be from 0 to 2**32 - 1, got {detector.seed_!r}")
    if not math.isfinite(detector.offset_):
        raise CheckpointError(f"offset must be finite, got {detector.offset_!r}")


def _take_tables(detector: Any, content: dict[str, Any], extra: dict[str, torch.Tensor]) -> None:
    names, offsets, groups = content["names"], content["offsets"], content["groups"]
    readings = [Column.from_dict(values) for values in content["columns"]]
    of_names = dict.fromkeys(column.name for column in readings)  # in order, a date's parts once
    if not readings or [str(name) for name in names] != list(of_names):
        raise CheckpointError(
            f"names and columns must be of the same columns, got {len(names)} and {len(of_names)}"
        )
    detector.encoder_ = MixedEncoder(detector.kinds)
    detector.encoder_.readings_ = readings
    detector.encoder_.names_ = pd.Index(names)
    detector.n_features_in_ = len(names)
    gaps = np.array(content["gaps"], dtype=float)
    if len(gaps) not in (0, len(detector.encoder_.columns_) + 2) or not np.isfinite(gaps).all():
        raise CheckpointError(f"gaps must be finite numbers, one a column and two, got {gaps}")
    detector.gaps_ = GapScale(gaps)
    num_kept = extra["calibration_scores"].numel()
    if len(groups) not in (0, num_kept) or not np.isfinite([*map(float, offsets.values())]).all():
        raise CheckpointError("groups must be one a calibration row, and offsets finite numbers")
    detector.offsets_, detector.calibration_groups_ = offsets, np.array(groups, dtype=object)
    if content["has_feature_names"]:
        detector.feature_names_in_ = np.array([str(name) for name in names], dtype=object)
    titles = content["history"]
    width = len(detector.encoder_.columns_) if extra["reference"].numel() else 0
    double: Any = {"dtype": torch.float64, "device": "meta"}
    expected = {
        "reference": torch.empty(len(extra["reference"]), width),
        "history": torch.empty(len(extra["history"]), len(titles), **double),
        "calibration_scores": torch.empty(num_kept, **double),
    }
    check_fits(expected, extra)
    if not extra["calibration_scores"].isfinite().all():
        raise CheckpointError("tensor 'calibration_scores' must be finite")
    arrays = {name: tensor.numpy() for name, tensor in extra.items()}
    detector.history_ = pd.DataFrame(arrays["history"], columns=titles).astype({"step": int})
    detector.calibration_scores_ = arrays["calibration_scores"]
    detector.reference_ = arrays["reference"]


def _rarity(detector: Any, tensors: list[torch.Tensor]) -> Rarity | None:
    if len(tensors) != (len(RARITY) if detector.criterion == "combined" else 0):
        raise CheckpointError(f"tensors {RARITY} are there if criterion is 'combined', only then")
    if not tensors:
        return None
    rows, evidence, hashes = tensors
    fits = rows.shape[1:] == (len(detector.encoder_.columns_),) and evidence.dim() == 1
    if not fits or not rows.numel() or not evidence.numel() or evidence.isnan().any():
        raise CheckpointError(f"tensors {RARITY} must hold rows of these columns, and evidence")
    if hashes.dim() != 1 or hashes.dtype != torch.int64:
        raise CheckpointError(f"tensor {RARITY[2]!r} must hold 64-bit integers")
    return Rarity(detector.encoder_.columns_, rows, evidence.numpy(), hashes)


def _programs(
    detector: Any, settings: Settings, state: dict[str, torch.Tensor]
) -> tuple[Program, Program]:
    """Programs to restore; their size is compared with the file's before memory is taken."""
    columns = detector.encoder_.columns_
    if detector.model is not None:
        model, guide = detector._programs(settings, torch.empty(0))
        if any(name.startswith("param.") for name in state):
            make_parameters(model, guide, torch.zeros(2, len(columns)))
        return model, guide
    rows = state.get(ROWS)
    if settings.prior == "exemplar" and (rows is None or rows.dim() != 2 or not len(rows)):
        raise CheckpointError(f"tensor {ROWS!r} must hold the exemplars of the prior")
    check_build(settings, columns, rows, state, torch.float64)
    model, guide = build(settings, columns, rows)
    return model.double(), guide.double()  # type: ignore[attr-defined]


def _check_constants(detector: Any, state: dict[str, torch.Tensor]) -> None:
    """Refuses numbers that say where to read, and would read elsewhere."""
    roles = {"model": detector.model_, "guide": detector.guide_}
    learned = {f"{role}.{name}" for role, of in roles.items() for name, _ in of.named_parameters()}
    # Sorted, as files keep no order: which is named must not vary.
    for name, value in sorted(state_of(*roles.values()).items()):
        if name not in {*learned, ROWS} and not value.equal(state[name]):
            raise CheckpointError(f"tensor {name!r} is not that of these columns and settings")
    if (rows := state.get(ROWS)) is not None:
        levels = torch.tensor([c.num_levels or math.inf for c in detector.encoder_.columns_])
        codes = rows.nan_to_num(posinf=math.inf)[:, levels.isfinite()]
        inside = (codes >= 0) & (codes < levels[levels.isfinite()]) & (codes == codes.floor())
        if not inside.all() or rows.isinf().any():
            raise CheckpointError(f"tensor {ROWS!r} holds rows that are not of these columns")


def _plain(value: Any, name: str) -> Any:
    """Values of NumPy as those of Python; what JSON cannot hold is refused, tuples of names too."""
    if isinstance(value, dict):
        return {key: _plain(item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, f"{name}[{place}]") for place, item in enumerate(value)]
    if isinstance(value, np.generic):
        value = value.item()
    if not isinstance(value, PLAIN):
        raise ValueError(f"{name} has no JSON: give plain numbers and texts, got {value!r:.60}")
    return value
