"""Which arguments a config's lazy calls take, told from the sources: an import takes seconds."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import segtrain


def may_be_parameter(target: Any, name: str) -> bool:
    """False if a lazy call's target is one of segtrain's that surely has no such argument.

    So most mistyped keys are told without importing the target, and torch with it.
    """
    names = _list_names(target) if isinstance(target, str) else None
    return names is None or name in names


def _list_names(target: str) -> set[str] | None:
    """Arguments that a class or function may take, and perhaps some more; None if unknown.

    What takes `**settings` hands them on: a class to its bases, a function to what its file imports
    from segtrain.
    """
    package, *folders, name = target.split(".")
    path = Path(segtrain.__path__[0]).joinpath(*folders).with_suffix(".py")
    if package != segtrain.__name__ or not path.is_file():
        return None
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = {
        alias.name: f"{node.module}.{alias.name}"
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    definitions = {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    if name not in definitions:
        return _list_names(imported[name]) if name in imported else None
    names, takers = _read_definition(definitions[name])
    here = target.removesuffix(f".{name}")
    for taker in imported if takers is None else takers:
        names |= _list_names(f"{here}.{taker}") or set()
    return names


def _read_definition(node: ast.FunctionDef | ast.ClassDef) -> tuple[set[str], list[str] | None]:
    """Own arguments, and who gets what else is given; None: whatever the file imports."""
    if isinstance(node, ast.FunctionDef):
        called, takers = node, None
    else:
        methods = {
            method.name: method for method in node.body if isinstance(method, ast.FunctionDef)
        }
        takers = [base.id for base in node.bases if isinstance(base, ast.Name)]
        if "__init__" not in methods:  # a dataclass
            fields = [item.target for item in node.body if isinstance(item, ast.AnnAssign)]
            return {field.id for field in fields if isinstance(field, ast.Name)}, takers
        called = methods["__init__"]
    own = called.args
    names = {argument.arg for argument in (*own.posonlyargs, *own.args, *own.kwonlyargs)}
    return names, takers if own.kwarg else []
