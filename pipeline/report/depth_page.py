"""`report.html` of `pipeline depth`: what each call did, and which images have no depth."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources

import jinja2
from markupsafe import Markup

from pipeline.runs.depth_report import DepthCall


def render_depth_page(title: str, calls: Sequence[DepthCall]) -> str:
    """The page as one HTML text that fetches nothing.

    Args:
        title: of the page.
        calls: at least one, in the order in which they are shown.
    """
    files = resources.files("pipeline.report")
    template = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string((files / "depth_page.html.j2").read_text(encoding="utf-8"))
    return template.render(
        title=title,
        style=Markup((files / "page.css").read_text(encoding="utf-8")),  # noqa: S704 - our own file
        calls=calls,
        packages=calls[0].environment.get("packages", {}),
    )
