"""The page of a saved detector: one file, all text escaped, nothing fetched; or one clear line."""

import base64
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pyro_vaeflow import VAEFlowDetector
from pyro_vaeflow.cli import main
from pyro_vaeflow.plots.report import MAX_ROWS, Page
from tests.test_checkpoint import edit, edit_tensors

HOSTILE = (
    """</pre></td></style><script src=//evil.example/x.js>a("b")</script><img onerror='c' & é"""
)
NAMES = [HOSTILE, '"><a href="https://evil.example">', "a name of a column" + 5 * " that is long"]
# What a page is made of; none of them runs code, and `img` alone has an address.
TAGS = set(
    "html head meta title style body h1 h2 nav a p div table thead tbody tr th td figure img "
    "figcaption details summary pre".split()
)
VOID = {"meta", "img"}


class Parsed(HTMLParser):
    """A page as a browser reads it: each tag closed in turn, its attributes, texts by tag."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(html)
        self.close()
        assert self.open == [], "not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    def said(self, tag: str) -> list[str]:
        return [text for within, text in self.texts if within == tag]

    def values(self, name: str) -> list[str]:
        return [value for _, known, value in self.attributes if known == name]


def assert_fetches_nothing(html: str) -> Parsed:
    page = Parsed(html)
    assert page.tags <= TAGS
    allowed = {"id", "class", "href", "src", "alt", "content", "charset", "name", "http-equiv"}
    assert {name for _, name, _ in page.attributes} <= allowed | {"lang", "border", "style"}
    assert all(re.fullmatch(r"[\w :;-]+", value) for value in page.values("style"))
    assert all(re.fullmatch(r"#s\d+", value) for value in page.values("href"))
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert policy in page.values("content")
    assert not any(re.search(r"url\(|@import|//", text) for text in page.said("style"))
    for address in page.values("src"):
        kind, data = re.fullmatch(r"data:image/(png|svg\+xml);base64,([\w+/=]+)", address).groups()
        image = base64.b64decode(data)
        if kind == "svg+xml":
            drawn = image.decode()
            assert not re.search(r"<script|<image|<foreignObject|\son\w+=", drawn)
            assert all(link[0] == "#" for link in re.findall(r'href="([^"]*)"', drawn))
            assert all(link[0] == "#" for link in re.findall(r"url\(([^)]*)\)", drawn))
    return page


@pytest.fixture(scope="module")
def detector() -> VAEFlowDetector:
    draw = np.random.default_rng(0)
    values: dict[str, Any] = {name: draw.normal(size=120) for name in NAMES}
    frame = pd.DataFrame(values | {"kind": np.tile([HOSTILE, "b & c"], 60)})
    return VAEFlowDetector(num_steps=4, hidden_dims=(8,), random_state=0).fit(frame)


@pytest.fixture
def saved(detector: VAEFlowDetector, tmp_path: Path) -> Path:
    folder = tmp_path / 'my <i>"detector"& co'
    detector.save(folder)
    return folder


def test_a_saved_detectors_page_says_all_and_fetches_nothing(saved: Path, capsys) -> None:
    assert main(["report", str(saved)]) == 0
    assert capsys.readouterr().out.strip() == str(saved / "report.html")
    html, elsewhere = (saved / "report.html").read_text(), saved / "new" / "page.html"
    assert main(["report", str(saved), "--out", str(elsewhere)]) == 0
    assert elsewhere.read_text() == html  # each time the same
    page = assert_fetches_nothing(html)
    assert page.said("title") == page.said("h1") == [f"Detector {saved.name}"]
    assert [text for text in page.said("h2")] == ["Scores", "Training", "Columns", "Settings"]
    assert (
        page.values("href") == ["#s1", "#s2", "#s3", "#s4"] == [f"#{i}" for i in page.values("id")]
    )
    assert len(page.values("src")) == 2 and all(page.values("alt"))
    cells = page.said("td")
    assert all(name in cells for name in (*NAMES, "kind")), "names are whole"
    settings = "".join(page.said("pre"))
    assert "num_steps: 4" in settings and "random_state: 0" in settings
    assert "4 columns" in page.said("p")[0]


def test_every_part_of_a_page_is_escaped() -> None:
    page = Page(HOSTILE)
    page.heading(HOSTILE)
    page.text(HOSTILE)
    page.code(HOSTILE, summary=HOSTILE)
    frame = pd.DataFrame({HOSTILE: [HOSTILE, None], "b": [1.0, 2.0]})
    page.table(frame, folded=HOSTILE)
    page.table(pd.concat([frame] * MAX_ROWS))
    parsed = assert_fetches_nothing(page.html())
    for tag in ("title", "h1", "a", "h2", "p", "pre", "summary", "th", "td"):
        assert HOSTILE in parsed.said(tag), tag
    assert f"The first {MAX_ROWS} of {2 * MAX_ROWS} rows." in parsed.said("p")
    assert "nan" not in parsed.said("td") and "None" not in parsed.said("td")


# Refusals


def sealed(key: str, value: Any) -> Callable[[Path], None]:
    """Another value of the content, under the right hash."""
    return lambda folder: edit(folder, lambda document: document["content"].update({key: value}))


def tensor(name: str, change: Callable) -> Callable[[Path], None]:
    return lambda folder: edit_tensors(
        folder, lambda tensors: tensors.update({name: change(tensors[name])})
    )


def cut(pattern: str) -> Callable[[Path], None]:
    def shorten(folder: Path) -> None:
        (path,) = folder.glob(pattern)
        path.write_bytes(path.read_bytes()[:-9])

    return shorten


def rewrite(change: Callable[[str], str]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "detector.json"
        path.write_text(change(path.read_text()))

    return apply


NOT_A_DETECTOR = "does not hold a detector: "
DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no detector": (lambda folder: (folder / "detector.json").unlink(), "holds no saved detector"),
    "cut json": (cut("detector.json"), "detector.json is not JSON"),
    "cut tensors": (cut("*.safetensors"), "no detector to report on: "),
    "no tensors": (
        lambda folder: [path.unlink() for path in folder.glob("*.safetensors")],
        "no detector to report on: ",
    ),
    "edited": (rewrite(lambda text: text.replace('"num_steps": 4', '"num_steps": 5')), "sha256"),
    "list": (rewrite(lambda text: "[]"), "reads format 1, got []"),
    "columns": (sealed("columns", 5), NOT_A_DETECTOR),
    "columns of other keys": (sealed("columns", [{"a": 1}]), NOT_A_DETECTOR),
    "offset": (sealed("offset", "x"), NOT_A_DETECTOR),
    "huge offset": (sealed("offset", 10**400), NOT_A_DETECTOR),
    "history": (sealed("history", ["loss"]), NOT_A_DETECTOR),
    "scores": (tensor("calibration_scores", lambda scores: scores * float("nan")), NOT_A_DETECTOR),
    "steps": (tensor("history", lambda history: history[0]), NOT_A_DETECTOR),
    "no scores": (
        lambda folder: edit_tensors(folder, lambda tensors: tensors.pop("calibration_scores")),
        NOT_A_DETECTOR,
    ),
}


def refusal(capsys: pytest.CaptureFixture, *argv: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(["report", *argv])
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and said.startswith("vaeflow: ") and said.count("\n") == 1
    return said


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_refused_in_one_line(damage: str, saved: Path, capsys) -> None:
    act, message = DAMAGES[damage]
    act(saved)
    said = refusal(capsys, str(saved))
    assert message in said and len(said) < 700
    assert not (saved / "report.html").exists()


def test_what_is_no_folder_of_a_detector_is_refused(tmp_path: Path, capsys) -> None:
    assert "DIR: no folder" in refusal(capsys, str(tmp_path / "none"))
    (tmp_path / "file").write_text("")
    assert "DIR: no folder" in refusal(capsys, str(tmp_path / "file"))
    assert "`python -m results.report" in refusal(capsys, str(tmp_path))  # a study's, perhaps
    assert json.dumps(str(tmp_path))[1:-1] in refusal(capsys, str(tmp_path))
