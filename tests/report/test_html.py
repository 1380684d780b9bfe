"""The page as a reader's browser and screen reader would take it."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from saga.report.content import KeyFigure, Table
from saga.report.drawing import Picture
from saga.report.html import Section, render

HOSTILE = "<script>alert('x')</script> & \"q\""
VOID = {"meta", "img", "source", "br"}


class Page(HTMLParser):
    """Collects elements and text; fails on a tag that closes what is not open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page(*, simulated: bool = True, text: str = "plain") -> str:
    table = Table(
        title=f"table {text}", header=("preset", text), rows=((text, "1.25"),), note=f"note {text}"
    )
    picture = Picture(name="x.png", alt=text, caption=text, light=b"bright", dark=b"dark")
    return render(
        title=text,
        subject=text,
        headline=text,
        caveat=text,
        key_figures=[KeyFigure(name=text, preset=text, value=text, reference=text)],
        sections=[
            Section(title=text, pictures=[picture], tables=[table]),
            Section(title="nothing to show"),
        ],
        parameters={text: text},
        simulated=simulated,
    )


@pytest.mark.parametrize("text", ["plain", HOSTILE])
def test_text_is_shown_as_it_is_and_never_run(text: str) -> None:
    parsed = Page(page(text=text))
    assert parsed.all("script") == []
    assert f"note {text}" in parsed.text
    assert parsed.all("img")[0]["alt"] == text


def test_it_needs_nothing_from_anywhere() -> None:
    parsed = Page(page())
    assert not {"link", "script", "iframe", "object"} & {tag for tag, _ in parsed.elements}
    sources = [attributes.get("src") or attributes.get("srcset") for attributes in
               parsed.all("img") + parsed.all("source")]  # fmt: skip
    assert len(sources) == 2
    assert all(source and source.startswith("data:image/png;base64,") for source in sources)
    assert "http" not in page().replace("http-equiv", "")


def test_tables_can_be_read_aloud() -> None:
    parsed = Page(page())
    assert len(parsed.all("caption")) == 1
    assert all(attributes.get("scope") in {"row", "col"} for attributes in parsed.all("th"))
    assert parsed.all("html")[0]["lang"] == "en"


def test_empty_sections_are_left_out() -> None:
    assert "nothing to show" not in page()


def test_only_a_simulation_says_that_it_is_one() -> None:
    assert "This is a simulation" in page()
    assert "This is a simulation" not in page(simulated=False)
    assert "live system" in page(simulated=False)
