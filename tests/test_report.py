"""The page of a study: one file, all text escaped, nothing fetched."""

import base64
import re
from html.parser import HTMLParser

import pandas as pd

from pyro_vaeflow.plots.charts import plot_contributions
from results.shared.page import MAX_ROWS, Page

HOSTILE = (
    """</pre></td></style><script src=//evil.example/x.js>a("b")</script><img onerror='c' & é"""
)
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


def test_every_part_of_a_page_is_escaped() -> None:
    page = Page(HOSTILE)
    page.heading(HOSTILE)
    page.text(HOSTILE)
    page.code(HOSTILE, summary=HOSTILE)
    frame = pd.DataFrame({HOSTILE: [HOSTILE, None], "b": [1.0, 2.0]})
    page.table(frame, folded=HOSTILE)
    page.table(pd.concat([frame] * MAX_ROWS))
    page.figure(plot_contributions(pd.Series({"a": 1.0})), HOSTILE)
    parsed = assert_fetches_nothing(page.html())
    assert parsed.values("href") == [f"#{i}" for i in parsed.values("id")] == ["#s1"]
    assert len(parsed.values("src")) == 1 and parsed.values("alt") == [HOSTILE]
    for tag in ("title", "h1", "a", "h2", "p", "pre", "summary", "th", "td"):
        assert HOSTILE in parsed.said(tag), tag
    assert f"The first {MAX_ROWS} of {2 * MAX_ROWS} rows." in parsed.said("p")
    assert "nan" not in parsed.said("td") and "None" not in parsed.said("td")
