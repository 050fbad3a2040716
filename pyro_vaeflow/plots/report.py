"""``vaeflow report MODEL``: a saved detector as one HTML file that needs nothing else.

A `Page` has headings, text, tables and figures; all text is escaped.
"""

import base64
import io
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from matplotlib import rc_context
from matplotlib.figure import Figure

from pyro_vaeflow.inference.saved_folder import CheckpointError, read
from pyro_vaeflow.plain_files import write_whole
from pyro_vaeflow.plots.charts import plot_history, plot_scores
from pyro_vaeflow.validation import ConfigError

MAX_ROWS = 400  # of a table
# No script, and no address from which a browser would fetch anything.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
body { font: 15px/1.5 Georgia, 'Times New Roman', serif; color: #111; background: #fff;
       max-width: 66em; margin: 2em auto; padding: 0 1.5em; }
h1 { font-size: 1.7em; margin: 0 0 .2em; } h2 { font-size: 1.25em; margin: 2em 0 .4em;
     border-bottom: 1px solid #999; } p { max-width: 48em; margin: .5em 0; }
nav a { margin-right: 1.2em; color: #111; }
figure { margin: 1em 0; break-inside: avoid; } figure img { max-width: 100%; height: auto; }
figcaption { max-width: 48em; color: #333; }
.table { overflow-x: auto; max-height: 36em; overflow-y: auto; margin: .8em 0; }
table { border-collapse: collapse; font: 13px/1.35 'DejaVu Sans', Arial, sans-serif; }
th, td { padding: .25em .7em; white-space: nowrap; text-align: right; }
th { position: sticky; top: 0; background: #fff; border-bottom: 1.5px solid #111;
     vertical-align: bottom; }
tr :is(td, th):first-child { text-align: left; }
tbody tr:nth-child(even) { background: #f1f1f1; }
tbody tr:last-child td { border-bottom: 1px solid #111; }
pre { font-size: 12.5px; background: #f5f5f5; padding: .7em; overflow-x: auto; }
summary { cursor: pointer; }
@media print { body { margin: 0; max-width: none; } .table { max-height: none; overflow: visible; }
  nav { display: none; } tbody tr:nth-child(even) { background: none; } }
"""


class Page:
    """A page in the making; each method adds a part, and `html` is the whole.

    Example:
        >>> page = Page("Costs & gains")
        >>> page.heading("Seeds < 3")
        >>> "<h1>Costs &amp; gains</h1>" in page.html(), "Seeds &lt; 3</h2>" in page.html()
        (True, True)
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self.headings: list[str] = []
        self.parts: list[str] = []

    def heading(self, text: str) -> None:
        """Starts a section, which the links at the top of the page name."""
        self.headings.append(text)
        self.parts.append(f'<h2 id="s{len(self.headings)}">{escape(text)}</h2>')

    def text(self, text: str) -> None:
        """A paragraph."""
        self.parts.append(f"<p>{escape(text)}</p>")

    def code(self, text: str, summary: str) -> None:
        """Lines as they are, folded under a summary."""
        inside = f"<pre>{escape(text)}</pre>"
        self.parts.append(f"<details><summary>{escape(summary)}</summary>{inside}</details>")

    def table(self, frame: pd.DataFrame, folded: str = "") -> None:
        """The first `MAX_ROWS` rows of a frame, without its index, or folded under a name."""
        shown = frame.head(MAX_ROWS)
        html = shown.to_html(index=False, border=0, na_rep="", float_format="{:.5g}".format)
        if len(frame) > MAX_ROWS:
            html += f"<p>The first {MAX_ROWS} of {len(frame)} rows.</p>"
        html = f'<div class="table">{html}</div>'
        if folded:
            html = f"<details><summary>{escape(folded)}</summary>{html}</details>"
        self.parts.append(html)

    def figure(self, figure: Figure, caption: str) -> None:
        """A matplotlib figure as a drawing inside the page, with its one explanation."""
        drawn = io.BytesIO()
        with rc_context({"svg.hashsalt": "page"}):  # the same figure is the same text
            figure.savefig(drawn, format="svg", metadata={"Date": None})
        self._image("svg+xml", drawn.getvalue(), caption)

    def picture(self, path: Path, caption: str) -> None:
        """A PNG file, copied into the page."""
        self._image("png", path.read_bytes(), caption)

    def _image(self, kind: str, data: bytes, caption: str) -> None:
        source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
        said = escape(caption)
        self.parts.append(
            f'<figure><img src="{source}" alt="{said}"><figcaption>{said}</figcaption></figure>'
        )

    def html(self) -> str:
        """The document."""
        links = [f'<a href="#s{i}">{escape(text)}</a>' for i, text in enumerate(self.headings, 1)]
        head = (
            f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
            '<meta name="viewport" content="width=device-width">'
            f"<title>{escape(self.title)}</title><style>{STYLE}</style>"
        )
        body = [f"<h1>{escape(self.title)}</h1>", f"<nav>{''.join(links)}</nav>", *self.parts]
        start = f'<!doctype html>\n<html lang="en"><head>{head}</head><body>'
        return "\n".join([start, *body, "</body></html>"]) + "\n"


def write_report(folder: Path, path: Path | None = None) -> Path:
    """Writes the page of a saved detector; returns its path.

    Args:
        folder: as `VAEFlowDetector.save` left it.
        path: of the page, ``folder/report.html`` by default.

    Raises:
        ConfigError: the folder holds no detector, or a damaged one.
    """
    if not folder.is_dir():
        raise ConfigError(f"DIR: no folder {str(folder)!r}")
    if not (folder / "detector.json").is_file():
        raise ConfigError(
            f"DIR: {folder} holds no saved detector; for the page of a study run "
            f"`python -m results.report {folder}` in the project's repository"
        )
    try:
        content, tensors = read(folder)
        page = detector_page(folder.resolve().name, content, tensors)
    except (CheckpointError, FileNotFoundError) as error:
        raise ConfigError(f"no detector to report on: {error}") from error
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise ConfigError(f"{folder} does not hold a detector: {error!r:.300}") from error
    path = folder / "report.html" if path is None else path
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, page.html().encode())
    return path


def detector_page(name: str, content: Any, tensors: dict[str, Any]) -> Page:
    """A saved detector's scores of rows kept from training, its training, columns and settings."""
    page = Page(f"Detector {name}")
    columns = pd.DataFrame(content["columns"])
    calibration = tensors["calibration_scores"].numpy()
    count = "1 column" if len(columns) == 1 else f"{len(columns):,} columns"
    offset = content["offset"]
    page.text(f"{count}; a row is flagged where its log evidence is below {offset:.5g} nats.")
    if len(calibration):
        page.heading("Scores")
        page.figure(
            plot_scores(-calibration, -offset),
            f"Anomaly scores, -log p(x), of the {len(calibration)} rows kept from training; dark "
            "and beyond the dashed line: flagged.",
        )
    history = pd.DataFrame(tensors["history"].numpy(), columns=content["history"])
    if len(history):
        page.heading("Training")
        page.figure(plot_history(history), "Each step in grey, running means in black.")
    page.heading("Columns")
    page.table(columns[["name", "kind", "loc", "scale"]])
    page.heading("Settings")
    page.code(yaml.safe_dump(content["settings"], sort_keys=False), "constructor arguments")
    return page
