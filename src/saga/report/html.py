"""A report as one HTML page that needs nothing else: no network, no scripts, images inside."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import saga
from saga.report.content import KeyFigure, Table
from saga.report.drawing import Picture
from saga.report.extras import sim_extra

with sim_extra():
    from jinja2 import Environment, PackageLoader, StrictUndefined


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of the page: its pictures, then its tables."""

    title: str
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()


def render(
    *,
    title: str,
    subject: str,
    headline: str,
    caveat: str,
    key_figures: Sequence[KeyFigure],
    sections: Sequence[Section],
    parameters: Mapping[str, str],
    simulated: bool,
) -> str:
    """The page; every text is escaped, whatever a preset or a parameter is called."""
    environment = Environment(
        loader=PackageLoader("saga.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_uri"] = _data_uri
    return environment.get_template("report.html.j2").render(
        title=title,
        subject=subject,
        headline=headline,
        caveat=caveat,
        key_figures=key_figures,
        sections=[section for section in sections if section.pictures or section.tables],
        parameters=parameters,
        simulated=simulated,
        version=saga.__version__,
    )


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{b64encode(png).decode('ascii')}"
