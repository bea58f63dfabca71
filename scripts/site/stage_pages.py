"""Lays out the pages of the documentation site from what a code host shows as it is.

A page links to a file of the repository relative to itself, as a code host wants it. Staging copies
`docs/`, makes pages of the README (the home page), of notebooks and of every file outside `docs/`
that some page links to, and points the links there. A link whose text is a name in backticks leads
to the line of that definition:

    [`CondInst`](../segtrain/modeling/condinst.py)

A file or a name that does not exist ends the build, so links cannot rot.
"""

from __future__ import annotations

import ast
import functools
import html
import json
import os
import posixpath
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_for_filename
from pygments.lexers.special import TextLexer
from pygments.util import ClassNotFound

_FENCE = re.compile(r"^([ ]*)(`{3,}|~{3,}).*?^\1\2[ ]*$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\[\]]*)\]\((?P<target>[^()\s]+)\)")
_HTML_LINK = re.compile(r'(?P<attribute>\b(?:src|href|srcset))="(?P<target>[^"\s]+)"')
_NAME = re.compile(r"`(?P<name>[A-Za-z_][\w.]*)(?:\(\))?`")

_CARD = re.compile(r"\A---\n.*?^---\n", re.DOTALL | re.MULTILINE)
_FOLDER_CONTENTS = "\n```{toctree}\n:hidden:\n:glob:\n\n*\n```\n"


class BrokenLinksError(Exception):
    """Links that lead nowhere; the message names them all."""


class SiteStage:
    """The pages of one site.

    Attributes:
        repository: root of the checkout.
        folder: gets the pages.
        broken: what is wrong with the links met so far.
    """

    def __init__(self, repository: Path, folder: Path) -> None:
        self.repository = repository
        self.folder = folder
        self.broken: list[str] = []
        self._waiting: list[str] = []
        self._pages: dict[str, str] = {}  # path in the repository → path in the stage

    def write(self, contents: str) -> None:
        """Write all pages.

        Args:
            contents: what follows the README on the home page, the site's table of contents.

        Raises:
            BrokenLinksError: links to files or definitions that do not exist.
        """
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.repository / "docs", self.folder)
        self._add("README.md")
        for path in sorted(self.folder.rglob("*")):
            if path.suffix in {".md", ".ipynb"}:
                self._add("docs/" + path.relative_to(self.folder).as_posix())
        while self._waiting:
            origin = self._waiting.pop()
            text = self._render(origin) + (contents if origin == "README.md" else "")
            target = self.folder / self._pages[origin]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
        if self.broken:
            raise BrokenLinksError("\n".join(sorted(self.broken)))

    def _add(self, path: str) -> str:
        """Plan the page of a file of the repository and return its place in the stage."""
        if path not in self._pages:
            self._pages[path] = page_of(path)
            self._waiting.append(path)
        return self._pages[path]

    def _render(self, origin: str) -> str:
        path = self.repository / origin
        if path.suffix == ".ipynb":
            return self._rewrite(render_notebook(path), origin)
        if path.suffix == ".md":
            text = self._rewrite(path.read_text(), origin)
            if re.fullmatch(r"docs/.+/README\.md", origin):
                return text + _FOLDER_CONTENTS
            is_listed = origin.startswith("docs/") or origin == "README.md"
            return text if is_listed else "---\norphan: true\n---\n" + _CARD.sub("", text)
        return render_source(path, origin)

    def _rewrite(self, markdown: str, origin: str) -> str:
        """Point the links of a page that do not lead to pages of `docs/` to the staged pages."""

        def link(found: re.Match[str]) -> str:
            address, path, fragment = self._resolve(found["target"], origin)
            if address is None:
                return found[0]
            if not address.startswith("source/"):
                url = address_from(address, page_of(origin)) + (f"#{fragment}" if fragment else "")
                return f"{found['image']}[{found['text']}]({url})"
            anchor = self._line_of(found["text"], path, origin) or fragment
            url = address_from(address.removesuffix(".md") + ".html", page_of(origin))
            label = re.sub(
                r"`([^`]*)`", r"<code>\1</code>", html.escape(found["text"], quote=False)
            )
            return f'<a href="{url}{"#" + anchor if anchor else ""}">{label}</a>'

        def attribute(found: re.Match[str]) -> str:
            address, _, fragment = self._resolve(found["target"], origin)
            if address is None:
                return found[0]
            url = address_from(address.removesuffix(".md") + ".html", page_of(origin))
            if not address.endswith(".md"):  # a picture; conf.py has them copied to the site's root
                url = address_from(posixpath.basename(address), page_of(origin))
            return f'{found["attribute"]}="{url}{"#" + fragment if fragment else ""}"'

        return outside_code(markdown, lambda text: _LINK.sub(link, _HTML_LINK.sub(attribute, text)))

    def _resolve(self, target: str, origin: str) -> tuple[str | None, str, str]:
        """Place in the stage (None: leave the link as it is), path in the repository, fragment."""
        target, _, fragment = target.partition("#")
        if not target or ":" in target:
            return None, "", fragment
        path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))
        if (self.repository / path).is_dir():
            path = posixpath.join(path, "README.md")
        if path.startswith("..") or not (self.repository / path).is_file():
            self.broken.append(f"{origin}: {target} does not exist")
            return None, path, fragment
        is_copied = path.startswith("docs/") and not path.endswith((".md", ".ipynb"))
        return path.removeprefix("docs/") if is_copied else self._add(path), path, fragment

    def _line_of(self, text: str, path: str, origin: str) -> str:
        named = _NAME.fullmatch(" ".join(text.split()))
        if not named or not path.endswith(".py") or named["name"].endswith(".py"):
            return ""
        line = definition_lines(self.repository / path).get(named["name"])
        if line is None:
            self.broken.append(f"{origin}: {path} does not define {named['name']}")
        return f"L{line}"


def page_of(path: str) -> str:
    """Place in the stage of the page that shows a file of the repository."""
    if path == "README.md":
        return "index.md"
    if path.startswith("docs/"):
        return path.removeprefix("docs/").removesuffix(".ipynb") + (
            "" if path.endswith(".md") else ".md"
        )
    return f"repository/{path}" if path.endswith(".md") else f"source/{path}.md"


def address_from(address: str, page: str) -> str:
    """Relative address of one place in the stage as seen from a page."""
    return posixpath.relpath(address, posixpath.dirname(page) or ".")


def outside_code(markdown: str, rewrite: Callable[[str], str]) -> str:
    """Apply a function to the parts of a page that are not fenced code."""
    parts, end = [], 0
    for fence in _FENCE.finditer(markdown):
        parts += [rewrite(markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, rewrite(markdown[end:])])


@functools.cache
def definition_lines(path: Path) -> dict[str, int]:
    """Line of every class, function and constant of a Python file, by dotted name."""
    lines: dict[str, int] = {}

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                lines.setdefault(prefix + node.name, node.lineno)
                visit(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, (ast.Assign, ast.AnnAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                for target in targets:
                    if isinstance(target, ast.Name):
                        lines.setdefault(prefix + target.id, node.lineno)

    visit(ast.parse(path.read_text()).body, "")
    return lines


def render_source(path: Path, origin: str) -> str:
    """A page that shows a file with an anchor `L12` for each line."""
    try:
        lexer = get_lexer_for_filename(path.name)
    except ClassNotFound:
        lexer = TextLexer()
    formatter = HtmlFormatter(linespans="L", cssclass="highlight source")
    code = highlight(path.read_text(), lexer, formatter).replace('id="L-', 'id="L')
    front_matter = "---\norphan: true\nnosearch: true\nhide-toc: true\n---\n"
    return f"{front_matter}\n# `{origin}`\n\n```{{raw}} html\n{code}\n```\n"


def render_notebook(path: Path) -> str:
    """Markdown of a notebook: its text, its code, and the outputs that it is stored with."""
    cells = json.loads(path.read_text())["cells"]
    return "\n\n".join(part for cell in cells for part in _render_cell(cell)) + "\n"


def _render_cell(cell: dict[str, Any]) -> Iterator[str]:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield source
        return
    yield f"```python\n{source}\n```"
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        if "image/png" in data:
            picture = "".join(data["image/png"]).replace("\n", "")
            yield f'<img alt="Output of the cell above" src="data:image/png;base64,{picture}">'
        elif text := "".join(output.get("text", data.get("text/plain", ""))).rstrip():
            yield f"```text\n{text}\n```"


def stage(folder: Path) -> None:
    """Lay out the pages of this checkout."""
    repository = Path(__file__).resolve().parents[2]
    contents = Path(__file__).with_name("contents.md").read_text()
    SiteStage(repository, folder).write("\n" + contents)


if __name__ == "__main__":
    import sys

    stage(Path(os.fspath(sys.argv[1])))
