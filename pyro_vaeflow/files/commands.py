"""Commands ``vaeflow fit`` and ``vaeflow score``: their arguments, and what they print."""

import os
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from jsonargparse.typing import NonNegativeInt, PositiveInt

from pyro_vaeflow.escaping import say
from pyro_vaeflow.validation import ConfigError

SOME_REJECTED = 3  # exit status: all was done, and some rows could not be scored
SOME_STRANGE = 4  # all was done, and most entries of a column are new to the model, or missing
DRIFTED = 5  # all was done, and the rows are unlike those of training
DATA = "a csv or Parquet file, a folder of them, or a glob in quotes"
DEVICE = "where torch computes: cuda, cuda:1, ...; cpu by default"
# Settings of the detector that files lack, or that have an option of another kind.
NO_OPTIONS = {"model", "guide", "progress", "random_state", "warm_start", "device"}


def add_file_commands(commands: Any, parser: type[ArgumentParser], with_detector: bool) -> None:
    """Adds both commands; ``fit`` with the detector's own settings, which take time to load."""
    fit = parser(description="Fits a detector to the rows of csv or Parquet files and saves it.")
    fit.add_argument("data", help=DATA)
    fit.add_argument("--out", required=True, help="folder of the model")
    fit.add_argument("--overwrite", action="store_true", help="replace a model that is there")
    fit.add_argument("--id", help="the column that names rows: no feature")
    fit.add_argument("--drop", nargs="+", default=[], help="further columns that are no features")
    rows_help = "train on so many rows, drawn from all with the seed; memory grows with it"
    fit.add_argument("--rows", type=PositiveInt, default=100_000, help=rows_help)
    fit.add_argument("--first", action="store_true", help="train on the first rows instead")
    seed_help = "of the draw, training and scores"
    fit.add_argument("--seed", type=NonNegativeInt, default=0, help=seed_help)
    fit.add_argument("--device", default="cpu", help=DEVICE)
    if with_detector:
        from pyro_vaeflow.detector.estimator import VAEFlowDetector

        fit.add_class_arguments(VAEFlowDetector, None, skip=NO_OPTIONS)
    commands.add_subcommand("fit", fit, help="fit a detector to files")

    score = parser(
        description="Scores the rows of files; the same command resumes after a stop. Exit status: "
        f"0 if all rows have a score, {SOME_REJECTED} if some were rejected, {SOME_STRANGE} if "
        f"most entries of a column are new to the model or missing, {DRIFTED} if the rows are "
        "unlike those of training, 1 if files or processes failed, 2 if the call was refused."
    )
    score.add_argument("model", help="a folder that fit wrote")
    score.add_argument("input", help=DATA)
    score.add_argument("output", help="folder of the scores: one Parquet data set")
    score.add_argument("--id", help="a column to pass through")
    explain_help = "rows whose three most contributing columns are named"
    choices = ["all", "flagged", "none"]
    score.add_argument("--explain", choices=choices, default="all", help=explain_help)
    rows_help = "rows a part; memory grows with it"
    score.add_argument("--chunk_rows", type=PositiveInt, default=65_536, help=rows_help)
    score.add_argument("--jobs", type=PositiveInt, default=1, help="worker processes")
    score.add_argument("--dask", help="a Dask cluster in place of --jobs: its address, or its file")
    score.add_argument("--device", default="cpu", help=DEVICE)
    commands.add_subcommand("score", score, help="score files with a fitted detector")


def run_fit(values: dict[str, Any]) -> int:
    """Runs ``vaeflow fit`` with what was given."""
    from pyro_vaeflow.files.fit import read_rows, train_and_save

    row_id, seed = values.pop("id", None), values.pop("seed", 0)
    data, out = values.pop("data"), Path(values.pop("out"))
    _check_writable(out, values.pop("overwrite", False))  # not only once it is trained
    rows = read_rows(
        data,
        drop=[*values.pop("drop", []), *([] if row_id is None else [row_id])],
        max_rows=values.pop("rows", 100_000),
        first=values.pop("first", False),
        kinds=values.get("kinds"),
        seed=seed,
        progress=True,
    )
    detector = train_and_save(rows, out, values | {"random_state": seed}, progress=True)
    for reason, count in rows.rejected.most_common():
        say(f"left out {count} rows: {reason}", error=True)
    names = f" ({', '.join(rows.texts)})" if rows.texts else ""
    say(
        f"trained on {len(rows.frame):,} of {rows.num_seen:,} rows: "
        f"{rows.frame.shape[1] - len(rows.texts)} columns of numbers, "
        f"{len(rows.texts)} of texts{names}"
    )
    best = detector.history_["held_out_elbo"].max()
    say(f"model: {out} (held-out ELBO {best:.3f} nats; flags above {-detector.offset_:.3f} nats)")
    say(detector.columns_.to_string())
    return 0


def run_score(values: dict[str, Any]) -> int:
    """Runs ``vaeflow score`` with what was given."""
    from pyro_vaeflow.files.score import score_files

    if "dask" in values and "jobs" in values:
        raise ConfigError("give one of --jobs and --dask")
    model, data, out = (values.pop(name) for name in ("model", "input", "output"))
    row_id = values.pop("id", None)
    done = score_files(model, data, out, row_id=row_id, progress=True, **values)
    say(
        f"{done.num_scored:,} rows scored, {done.num_flagged:,} flagged, "
        f"{done.num_rejected:,} rejected"
    )
    say(f"scores: {out} ({done.num_parts} parts, {done.num_resumed} of them were there)")
    for share in done.strange:
        say(f"Warning: {share.strange}", error=True)
    if done.drift is not None:
        say(f"drift: {done.drift}", error=not done.drift.is_like)
    if done.num_rejected:
        say(f"rejects: {out}/_rejects.csv", error=True)
        return SOME_REJECTED
    if any(not share.is_time for share in done.strange):
        return SOME_STRANGE
    return 0 if done.drift is None or done.drift.is_like else DRIFTED


def _check_writable(out: Path, overwrite: bool) -> None:
    if (out / "detector.json").exists() and not overwrite:
        raise ConfigError(f"--out: {out} holds a model; choose another folder, or say --overwrite")
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise ConfigError(f"--out: {there} is no folder that can be written to; choose another")


FILE_COMMANDS = {"fit": run_fit, "score": run_score}
