"""The folder of data files, and errors that say what is wrong with one and what to do."""

import os
from collections.abc import Callable
from pathlib import Path

VARIABLE = "VAEFLOW_DATA"
Folder = str | os.PathLike[str] | None


def data_folder(data_home: Folder) -> Path | None:
    """Returns the folder to look in: ``data_home``, else ``$VAEFLOW_DATA``, else None."""
    chosen = data_home if data_home is not None else os.environ.get(VARIABLE)
    return Path(chosen).expanduser() if chosen else None


def require(
    name: str, data_home: Folder, source: str, is_there: Callable[[Path], bool] = Path.is_file
) -> Path:
    """Returns the path of an existing data file, or folder of such where `is_there` is ``is_dir``.

    Raises:
        FileNotFoundError: when no folder is named, or ``name`` is not in it.
    """
    folder = data_folder(data_home)
    if folder is None:
        why = f"{name} was not looked for: neither data_home nor {VARIABLE} names a folder"
    elif is_there(folder / name):
        return folder / name
    else:
        why = f"{folder / name} does not exist"
    raise FileNotFoundError(f"{why}. {advice(name, source)}")


def bad_file(path: Path, why: str, source: str) -> ValueError:
    """Returns the error for a file that exists and does not hold what its name says."""
    return ValueError(f"{path} {why}. Remove it. {advice(path.name, source)}")


def advice(filename: str, source: str) -> str:
    """Returns the sentence that says where to get a file and where to put it."""
    return (
        f"Get {filename} from {source} and put it in a folder named by data_home=... "
        f"or by the environment variable {VARIABLE}."
    )
