"""Executes the notebooks: each NN_name.py beside this file becomes NN_name.ipynb with outputs.

``python notebooks/execute.py`` does all of them, ``... 03_looking_at_posteriors.py`` that one. Cell
ids and metadata do not change from run to run, so that a diff shows changed outputs only. Figures
are kept in 256 colours, at a third of the size.
"""

import base64
import io
import os
import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from PIL import Image

HERE = Path(__file__).parent


def execute(path: Path) -> Path:
    """Runs one script's cells in a fresh kernel and writes the notebook beside it."""
    notebook = jupytext.read(path)
    NotebookClient(
        notebook, record_timing=False, resources={"metadata": {"path": str(HERE)}}
    ).execute()
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02}"
        cell.metadata = {}
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = in_256_colours(output.data["image/png"])
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"]}
    target = path.with_suffix(".ipynb")
    nbformat.write(notebook, target)
    return target


def in_256_colours(png: str) -> str:
    """The same picture, base64 as in a notebook."""
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    smaller = io.BytesIO()
    picture.quantize(256, dither=Image.Dither.NONE).save(smaller, "png", optimize=True)
    return base64.b64encode(smaller.getvalue()).decode()


if __name__ == "__main__":
    # What tqdm says in a notebook without widgets, though no bar is shown.
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"
    named = [HERE / Path(name).name for name in sys.argv[1:]]
    for script in named or sorted(HERE.glob("[0-9][0-9]_*.py")):
        print(execute(script), flush=True)
