"""Where data files are looked for, and the errors that say what is wrong and what to do."""

import os
from pathlib import Path

VARIABLE = "VAEFLOW_DATA"


def data_folder(data_home: str | os.PathLike[str] | None) -> Path | None:
    """Returns the folder to look in: ``data_home``, else ``$VAEFLOW_DATA``, else None."""
    chosen = data_home if data_home is not None else os.environ.get(VARIABLE)
    return Path(chosen).expanduser() if chosen else None


def advice(filename: str, source: str) -> str:
    """Returns the sentence that says where to get a file and where to put it."""
    return (
        f"Get {filename} from {source} and put it in a folder named by data_home=... "
        f"or by the environment variable {VARIABLE}."
    )


def require_file(filename: str, data_home: str | os.PathLike[str] | None, source: str) -> Path:
    """Returns the path of an existing data file.

    Raises:
        FileNotFoundError: when no folder is named, or the file is not in it.
    """
    path = _expected(filename, data_home, source)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist. {advice(filename, source)}")
    return path


def require_folder(name: str, data_home: str | os.PathLike[str] | None, source: str) -> Path:
    """Returns the path of an existing folder of data files.

    Raises:
        FileNotFoundError: when no folder is named, or ``name`` is not a folder in it.
    """
    path = _expected(name, data_home, source)
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is not a folder. {advice(name, source)}")
    return path


def _expected(name: str, data_home: str | os.PathLike[str] | None, source: str) -> Path:
    folder = data_folder(data_home)
    if folder is None:
        raise FileNotFoundError(
            f"{name} was not looked for: neither data_home nor {VARIABLE} names a folder. "
            + advice(name, source)
        )
    return folder / name


def bad_file(path: Path, why: str, source: str) -> ValueError:
    """Returns the error for a file that exists and does not hold what its name says."""
    return ValueError(f"{path} {why}. Remove it. {advice(path.name, source)}")
