"""The ``vaeflow`` command: run studies, rebuild their tables and pages, list presets, score files.

Modules that need torch are imported where they are used, so that ``--help`` answers at once.
"""

import os
import re
import shlex
import shutil
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ArgumentParser
from jsonargparse.typing import PositiveInt

from pyro_vaeflow import __version__
from pyro_vaeflow.escaping import say, visible, warn_in_lines
from pyro_vaeflow.experiments.config import ExperimentConfig
from pyro_vaeflow.experiments.study import Study, load_study, preset_names
from pyro_vaeflow.files.commands import DEVICE, FILE_COMMANDS, add_file_commands
from pyro_vaeflow.validation import ConfigError, check_names

COLLAPSED = 0.05  # nats: a KL below it says that no latent tells rows apart

QUICKSTART = """
What this was: autoencoders learned the inliers of two tables, with three
posteriors q(z | x) each, and scored test rows. Scores are nats, high =
anomalous: reconstruction is the paper's A(x), importance an estimate of
-log p(x). AUROC and AP are near 1 where anomalies come first.
The ring has a density that is known: figures/ shows the training rows, then
for each posterior its two scores beside the true -log p(x), on one colour
scale. Posteriors there are bent, which flows follow: see the log evidence.
For breast_cancer a normal one is as good, and log evidences differ by noise.
Off the ring importance scores are too high, as q is far from the posterior
there: such rows have a k-hat above 0.7, and score(..., refine=True) in Python
finds their -log p(x).
Next: vaeflow run quickstart --only dataset=ring --seeds 0 1 2 --out
results/seeds, a study of your own csv file, or VAEFlowDetector in Python: see
README.md."""


class _Parser(ArgumentParser):
    """Refuses with one line that names what is allowed, exit code 2; takes no abbreviation."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        message = message.replace("Unrecognized", "unrecognized")  # of an older jsonargparse
        if "unrecognized arguments" in message:
            options = ["--help", *dict.fromkeys(re.findall(r"--[\w.]+", self.format_usage()))]
            mistyped = next(word for word in message.split() if word.startswith("-"))
            near = get_close_matches(mistyped.partition("=")[0], options, n=1)
            message += f"; did you mean {near[0]}?" if near else ";"
            message += f" allowed: {' '.join(options)}"
        self.exit(2, f"vaeflow: {visible(' '.join(message.split()))}\n")
        raise AssertionError  # exit does not return


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; 0 if all went well, 1 if a run failed, 2 if refused, 3 if rows were.

    130 after Ctrl-C, 143 after SIGTERM.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    if not sys.stderr.isatty():  # a bar in a file is a few lines, not one a step
        os.environ.setdefault("TQDM_MININTERVAL", "20")
    with warnings.catch_warnings(), _sigterm_as_ctrl_c() as signals:
        warnings.simplefilter("always", UserWarning)
        warn_in_lines()
        try:
            parser = _parser(with_detector=argv[:1] == ["fit"])
            # Only what was given: a study's own settings are the defaults.
            given = parser.parse_args(argv, defaults=False).as_dict()
            values = given.get(given["subcommand"]) or {}
            return _done(given["subcommand"], values, shlex.join(["vaeflow", *argv]))
        except (ConfigError, ImportError) as error:
            _Parser().error(str(error))
        except KeyboardInterrupt as stop:
            said = (
                "stopped; what is finished is kept, and the same command resumes what was stopped"
            )
            say(f"\n{str(stop) or said}", error=True)
            return 128 + (signals or [signal.SIGINT])[0]
        except BrokenPipeError:  # `vaeflow table DIR | head`
            sys.stderr.close()
            return 1
        except OSError as error:  # a full disk, say
            say(f"vaeflow: {error}; what is finished is kept, the same command resumes", error=True)
            return 1


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[list[int]]:
    """SIGTERM stops as Ctrl-C does: workers end and what was learned is kept; it is then listed."""
    signals: list[int] = []

    def stop(number: int, frame: Any) -> None:
        signals.append(number)
        on_ctrl_c = signal.getsignal(signal.SIGINT)  # training's own, or ignored in the background
        (on_ctrl_c if callable(on_ctrl_c) else signal.default_int_handler)(signal.SIGINT, frame)

    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield signals
    finally:
        signal.signal(signal.SIGTERM, before)


def _done(name: str, values: dict[str, Any], command: str) -> int:
    """Runs one of the commands; its exit status."""
    if name == "quickstart":
        from pyro_vaeflow import KhatWarning

        warnings.simplefilter("ignore", KhatWarning)  # what is printed at the end says it
        status = _run({"presets": ["quickstart"], **values}, command)
        say(QUICKSTART)
        return status
    if name == "run":
        return _run(values, command)
    if name == "table":
        return _table(Path(values["dir"]), values.get("format", "md"))
    if name in FILE_COMMANDS:
        return FILE_COMMANDS[name](values)
    return _presets()


def _parser(with_detector: bool) -> _Parser:
    about = "VAEs with flow posteriors for anomaly detection."
    parser = _Parser(prog="vaeflow", description=about, version=__version__)
    commands = parser.add_subcommands(metavar="{quickstart,run,table,presets,fit,score}")
    quickstart = _Parser(description="Three posteriors on two small tables, and what they show.")
    quickstart.add_argument("--out", help="results folder; results/quickstart by default")
    commands.add_subcommand("quickstart", quickstart, help="three posteriors on two tables")
    run = _Parser(description="Runs studies; finished runs are skipped.")
    known = ", ".join(preset_names())
    run.add_argument("presets", nargs="+", help=f"a file.yaml, or one of: {known}")
    run.add_argument("--seeds", nargs="+", type=int, help="in place of the study's seeds")
    run.add_argument("--jobs", type=PositiveInt, default=1, help="worker processes")
    run.add_argument(
        "--dask", help="a Dask cluster in place of --jobs: its scheduler's address, or its file"
    )
    run.add_argument("--device", default="cpu", help=DEVICE)
    run.add_argument("--out", help="results folder; results/STUDY by default")
    run.add_argument("--quick", action="store_true", help="the study's small budget, in seconds")
    run.add_argument("--only", nargs="+", help="variants with these settings, as flow=iaf")
    run.add_class_arguments(ExperimentConfig, None, skip={"seed"})
    commands.add_subcommand("run", run, help="run presets or study files")
    table = _Parser(description="Prints the table of a results folder from its finished runs.")
    table.add_argument("dir", help="a results folder")
    table.add_argument(
        "--format",
        choices=["md", "csv", "latex"],
        default="md",
        help="md and latex: mean and standard deviation over seeds; csv: one row a run and score",
    )
    commands.add_subcommand("table", table, help="print a table of results")
    listing = _Parser(description="Lists the studies that ship.")
    commands.add_subcommand("presets", listing, help="list the studies that ship")
    add_file_commands(commands, _Parser, with_detector)
    return parser


def _run(values: dict[str, Any], command: str) -> int:
    names, seeds = values.pop("presets"), values.pop("seeds", None)
    out, quick, only = values.pop("out", None), values.pop("quick", False), values.pop("only", [])
    known = ("jobs", "dask", "device")
    options: dict[str, Any] = {name: values.pop(name) for name in known if name in values}
    if "dask" in options and "jobs" in options:
        raise ConfigError("give one of --jobs and --dask")
    studies = [load_study(name) for name in names]
    groups = [(study, _only(study, study.expand(values, seeds, quick), only)) for study in studies]
    num_failed = 0
    for study, configs in groups:
        if out is None:
            folder = Path("results") / (configs[0].study + ("-quick" if quick else ""))
        else:
            folder = Path(out) if len(groups) == 1 else Path(out) / study.name
        num_failed += _run_study(configs, folder, command=command, **options)
    return 1 if num_failed else 0


def _only(
    study: Study, configs: list[ExperimentConfig], only: Sequence[str]
) -> list[ExperimentConfig]:
    """The configurations whose settings are those of ``--only``, as flow=iaf."""
    for name, _, value in (chosen.partition("=") for chosen in only):
        settings = [config.to_dict() for config in configs]
        if configs and name not in settings[0]:
            check_names([name], settings[0], "setting of --only")
        known = sorted({str(setting[name]) for setting in settings})
        check_names([value], known, f"{name} of --only in {study.name}")
        configs = [c for c, s in zip(configs, settings, strict=True) if str(s[name]) == value]
    return configs


def _run_study(configs: list[ExperimentConfig], out: Path, **options: Any) -> int:
    """Runs, writes tables and figures, prints what came out; the number of runs that failed."""
    from pyro_vaeflow.experiments.fanout import run_all
    from pyro_vaeflow.experiments.figures import draw_figures
    from pyro_vaeflow.experiments.results import finished_runs
    from pyro_vaeflow.experiments.tables import aggregate, on_terminal, write_tables
    from pyro_vaeflow.locks import hold_lock

    outcome = run_all(configs, out, **options)
    with hold_lock(out / ".tables.lock", patience=-1):  # another call may be writing them
        table = write_tables(out)
        figures = draw_figures(out)
    if table is not None:
        say(on_terminal(aggregate(table), shutil.get_terminal_size().columns))
    collapsed = [r.folder.name for r in finished_runs(out) if r.metrics["kl"] < COLLAPSED]
    if collapsed:
        some = ", ".join(collapsed[:3]) + ", ..." * (len(collapsed) > 3)
        say(
            f"collapsed: {len(collapsed)} runs have a KL below {COLLAPSED} nats a row and no "
            f"active unit: their scores do not depend on the latents ({some}); let beta rise, as "
            "by annealing: {kind: linear, ratio: 0.3}, train longer, or raise the learning rate",
            error=True,
        )
    counts = f"{len(outcome.finished)} run, {len(outcome.skipped)} already finished"
    say(f"{counts}, {len(outcome.failed)} failed")
    for name, message in outcome.failed.items():
        say(f"failed: {name}: {message} (see {out / 'failed' / name})", error=True)
    drawn = f", {len(figures)} figures" if figures else ""
    say(f"results: {out} (summary.csv, table.md with all columns{drawn})")
    return len(outcome.failed)


def _table(out: Path, style: str) -> int:
    from pyro_vaeflow.experiments.results import read_summary
    from pyro_vaeflow.experiments.tables import aggregate, as_text

    table = read_summary(out)
    say(as_text(table if style == "csv" else aggregate(table), style))
    return 0


def _presets() -> int:
    for name in preset_names():
        study = load_study(name)
        size = f"{len(study.variants)} variants x {len(study.seeds)} seeds"
        size += f" x {len(study.datasets)} data sets" if study.datasets else ""
        say(f"{name}: {size}. {study.description}")
    return 0
