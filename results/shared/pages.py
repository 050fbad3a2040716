"""Pages and folders of studies: Markdown, command lines, small budgets."""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import pandas as pd

from pyro_vaeflow.experiments.fanout import run_all
from pyro_vaeflow.experiments.study import load_study
from pyro_vaeflow.experiments.tables import as_text, write_tables
from pyro_vaeflow.validation import ConfigError


def parser(script: str, about: str | None) -> ArgumentParser:
    """The command line that all scripts share: ``[--quick] [FOLDER]``.

    Args:
        script: the ``__file__`` of the script, whose folder is the default of FOLDER.
        about: its docstring.
    """
    study = Path(script).parent
    command = ArgumentParser(f"python -m results.{study.name}.make", description=about)
    command.add_argument("folder", type=Path, nargs="?", help=f"{study} by default")
    command.add_argument("--quick", action="store_true", help="runs a small budget of it first")
    command.set_defaults(study=study)
    return command


def parse(command: ArgumentParser, argv: Sequence[str] | None) -> Namespace:
    """The values of a command line; a small budget never writes into a study's own folder."""
    values = command.parse_args(sys.argv[1:] if argv is None else argv)
    if values.folder is None:
        quick = values.study.with_name(f"{values.study.name}-quick")
        values.folder = quick if values.quick else values.study
    elif values.quick and values.folder.resolve() == values.study.resolve():
        command.error(f"--quick: {values.folder} holds the study's results; give another folder")
    values.folder.mkdir(parents=True, exist_ok=True)
    return values


def run_script(main: Callable[[], None], study: str, command: str | None = None) -> None:
    """Runs a script; where files of the study are missing, one line says what makes them.

    Args:
        main: the script's.
        study: its folder's name.
        command: what makes its runs, `make STUDY` by default.
    """
    try:
        main()
    except (ConfigError, FileNotFoundError) as error:
        sys.exit(
            f"{error}\nThe runs and tables of {study} are made by: {command or f'make {study}'}"
        )


def run_quick(preset: str, folder: Path, changes: Sequence[Mapping[str, Any]] = ({},)) -> None:
    """Runs one seed of a preset's small budget, once for each of the changes to its settings.

    Raises:
        ConfigError: a run failed.
    """
    study = load_study(preset)
    configs = [c for change in changes for c in study.expand(change, study.seeds[:1], quick=True)]
    outcome = run_all(configs, folder, command=f"vaeflow run {preset} --quick", progress=False)
    if outcome.failed:
        raise ConfigError(f"runs of {preset} failed: {outcome.failed}")
    write_tables(folder)


def markdown(frame: pd.DataFrame) -> str:
    """A frame as a Markdown table; what is missing is empty."""
    return as_text(frame, "md")


def write_page(path: Path, *blocks: str) -> Path:
    """Writes blocks of Markdown with an empty line between them, paragraphs wrapped."""
    path.write_text(wrapped("\n\n".join(blocks)))
    return path


def wrapped(text: str) -> str:
    """Paragraphs in lines of at most 100 characters; tables, headings and code as they are."""
    blocks = [
        block
        if block.startswith(("|", "#", "!", "`", "-"))
        else fill(" ".join(block.split()), 100, break_long_words=False, break_on_hyphens=False)
        for block in text.strip().split("\n\n")
    ]
    return "\n\n".join(blocks) + "\n"
