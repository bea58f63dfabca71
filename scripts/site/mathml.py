"""Sphinx extension: equations as MathML, which browsers draw without a script or a network."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the renderer under the name that `html_math_renderer` takes."""
    app.add_html_math_renderer(
        "mathml", inline_renderers=(_write_inline, None), block_renderers=(_write_block, None)
    )
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _write_inline(translator: Any, node: nodes.Element) -> None:
    translator.body.append(_to_mathml(node, "inline"))
    raise nodes.SkipNode


def _write_block(translator: Any, node: nodes.Element) -> None:
    translator.body.append(f'<div class="equation">{_to_mathml(node, "block")}</div>')
    raise nodes.SkipNode


def _to_mathml(node: nodes.Element, display: str) -> str:
    try:
        return convert(node.astext(), display=display)
    except Exception as error:  # the translator's errors have no common class
        raise ExtensionError(f"no MathML for {node.astext()!r}: {error!r}") from error
