"""The ``vaeflow`` command: run studies, rebuild their tables and pages, list presets, score files.

Modules that need torch are imported where they are used, so that ``--help`` answers at once.
"""

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from pyro_vaeflow.escaping import say, visible
from pyro_vaeflow.experiments.config import ExperimentConfig
from pyro_vaeflow.experiments.study import load_study, preset_names
from pyro_vaeflow.files.commands import DEVICE, FILE_COMMANDS, add_file_commands
from pyro_vaeflow.validation import ConfigError

ON_TERMINAL = "F1, top 20%|F1, true ratio|AUROC|AP|log evidence|train s".split("|")


class _Parser(ArgumentParser):
    """Refuses with one line that names what is allowed, exit code 2; takes no abbreviation."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if "unrecognized arguments" in message:
            options = dict.fromkeys(re.findall(r"--[\w.]+", self.format_usage()))
            message += f"; allowed: {' '.join(['--help', *options])}"
        self.exit(2, f"vaeflow: {visible(' '.join(message.split()))}\n")
        raise AssertionError  # exit does not return


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; 0 if all went well, 1 if a run failed, 2 if refused, 3 if rows were."""
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = _parser(with_detector=argv[:1] == ["fit"])
    # Only what was given: a study's own settings are the defaults.
    given = parser.parse_args(argv, defaults=False).as_dict()
    values = given.get(given["subcommand"]) or {}
    try:
        if given["subcommand"] == "run":
            return _run(values, command=shlex.join(["vaeflow", *argv]))
        if given["subcommand"] == "report":
            return _report(Path(values["dir"]), values.get("out"))
        if given["subcommand"] == "table":
            return _table(Path(values["dir"]), values.get("format", "md"))
        if given["subcommand"] in FILE_COMMANDS:
            return FILE_COMMANDS[given["subcommand"]](values)
        return _presets()
    except (ConfigError, ImportError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        said = "stopped; what is finished is kept, and the same command resumes what was stopped"
        say(f"\n{said}", error=True)
        return 130
    except BrokenPipeError:  # `vaeflow table DIR | head`
        sys.stderr.close()
        return 1
    except OSError as error:  # a full disk, say, once runs are done
        say(f"vaeflow: {error}; what is finished is kept, the same command resumes", error=True)
        return 1


def _parser(with_detector: bool) -> _Parser:
    parser = _Parser(prog="vaeflow", description="VAEs with flow posteriors for anomaly detection.")
    commands = parser.add_subcommands(metavar="{run,table,report,presets,fit,score}")
    run = _Parser(description="Runs studies; finished runs are skipped.")
    known = ", ".join(preset_names())
    run.add_argument("presets", nargs="+", help=f"a file.yaml, or one of: {known}")
    run.add_argument("--seeds", nargs="+", type=int, help="in place of the study's seeds")
    run.add_argument("--jobs", type=int, default=1, help="worker processes")
    run.add_argument(
        "--dask", help="a Dask cluster in place of --jobs: its scheduler's address, or its file"
    )
    run.add_argument("--device", default="cpu", help=DEVICE)
    run.add_argument("--out", help="results folder; results/STUDY by default")
    run.add_argument("--quick", action="store_true", help="the study's small budget, in seconds")
    run.add_argument(
        "--tensorboard", action="store_true", help="event files of each run in OUT/tensorboard"
    )
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
    report = _Parser(description="Writes one HTML page of a saved detector.")
    report.add_argument("dir", help="the folder of a saved detector")
    report.add_argument("--out", help="the file; DIR/report.html by default")
    commands.add_subcommand("report", report, help="write a page of a saved detector")
    listing = _Parser(description="Lists the studies that ship.")
    commands.add_subcommand("presets", listing, help="list the studies that ship")
    add_file_commands(commands, _Parser, with_detector)
    return parser


def _run(values: dict[str, Any], command: str) -> int:
    names, seeds = values.pop("presets"), values.pop("seeds", None)
    out, quick = values.pop("out", None), values.pop("quick", False)
    known = ("jobs", "dask", "tensorboard", "device")
    options: dict[str, Any] = {name: values.pop(name) for name in known if name in values}
    if (jobs := options.get("jobs", 1)) < 1:
        raise ConfigError(f"--jobs: expected at least 1, got {jobs}")
    if "dask" in options and jobs > 1:
        raise ConfigError(f"--jobs {jobs}: the workers are those of --dask; leave one of them out")
    studies = [load_study(name) for name in names]
    groups = [(study, study.expand(values, seeds, quick)) for study in studies]
    num_failed = 0
    for study, configs in groups:
        if out is None:
            folder = Path("results") / (configs[0].study + ("-quick" if quick else ""))
        else:
            folder = Path(out) if len(groups) == 1 else Path(out) / study.name
        num_failed += _run_study(configs, folder, command=command, **options)
    return 1 if num_failed else 0


def _run_study(configs: list[ExperimentConfig], out: Path, **options: Any) -> int:
    """Runs, writes tables and figures, prints what came out; the number of runs that failed."""
    from pyro_vaeflow.experiments.fanout import run_all
    from pyro_vaeflow.experiments.figures import draw_figures
    from pyro_vaeflow.experiments.tables import HEADINGS, aggregate, as_text, write_tables
    from pyro_vaeflow.locks import hold_lock

    outcome = run_all(configs, out, **options)
    with hold_lock(out / ".tables.lock", patience=-1):  # another call may be writing them
        table = write_tables(out)
        figures = draw_figures(out)
    if table is not None:
        shown = aggregate(table)
        names = [n for n in shown if n not in HEADINGS.values() or n in ON_TERMINAL]
        say(as_text(shown[names], "md"))
    counts = f"{len(outcome.finished)} run, {len(outcome.skipped)} already finished"
    say(f"{counts}, {len(outcome.failed)} failed")
    for name, message in outcome.failed.items():
        say(f"failed: {name}: {message} (see {out / 'failed' / name})", error=True)
    drawn = f", {len(figures)} figures" if figures else ""
    say(f"results: {out} (summary.csv, table.md{drawn})")
    return len(outcome.failed)


def _table(out: Path, style: str) -> int:
    from pyro_vaeflow.experiments.results import read_summary
    from pyro_vaeflow.experiments.tables import aggregate, as_text

    table = read_summary(out)
    say(as_text(table if style == "csv" else aggregate(table), style))
    return 0


def _report(folder: Path, out: str | None) -> int:
    from pyro_vaeflow.plots.report import write_report

    say(write_report(folder, None if out is None else Path(out)))
    return 0


def _presets() -> int:
    for name in preset_names():
        study = load_study(name)
        size = f"{len(study.variants)} variants x {len(study.seeds)} seeds"
        size += f" x {len(study.datasets)} data sets" if study.datasets else ""
        say(f"{name}: {size}. {study.description}")
    return 0
