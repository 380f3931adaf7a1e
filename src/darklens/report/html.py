"""A self-contained HTML page: figures are inlined, nothing is fetched."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Template


@dataclass(frozen=True)
class Picture:
    """A PNG with its alternative text, and a caption that states its numbers."""

    png: bytes
    alt: str
    caption: str = ""

    @property
    def source(self) -> str:
        """The picture as a data URI."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


@dataclass(frozen=True)
class Table:
    """Rows of text under a header; `links` are the sections to which the first cells of the rows lead."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    links: Sequence[str] = ()


@dataclass(frozen=True)
class Section:
    """A heading, one or two sentences, tables and pictures; `anchor` is the name to which tables link."""

    title: str
    text: str = ""
    tables: Sequence[Table] = field(default_factory=list)
    pictures: Sequence[Picture] = field(default_factory=list)
    anchor: str = ""


def page(title: str, *, lead: str, sections: Sequence[Section], warnings: Sequence[str] = ()) -> str:
    """Return the page. All text is escaped."""
    return _template().render(title=title, lead=lead, sections=sections, warnings=warnings)


@cache
def _template() -> "Template":
    from jinja2 import Environment, StrictUndefined

    text = (resources.files("darklens.report") / "page.html.j2").read_text(encoding="utf-8")
    return Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(
        text
    )
