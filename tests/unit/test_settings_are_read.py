"""A setting that nothing reads is a promise that nothing keeps: every field has a reader."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from pathlib import Path

import pytest

PACKAGES = ("depthcache", "segtrain", "pipeline")
# Whoever holds an experiment or the network reads its settings without naming their classes.
HOLDERS = {"Experiment", "read_experiment", "CondInstNetwork"}


@dataclass
class Module:
    """What the test needs of a file: names, and attributes read: in whose checks, of what."""

    names: set[str] = field(default_factory=set)
    reads: set[tuple[str | None, str, str]] = field(default_factory=set)


def read_module(tree: ast.Module) -> Module:
    module = Module()

    def visit(node: ast.AST, inside: str | None) -> None:
        if isinstance(node, ast.ClassDef):
            module.names.add(node.name)
            for item in node.body:
                is_check = isinstance(item, ast.FunctionDef) and item.name == "__post_init__"
                visit(item, node.name if is_check else inside)
            return
        elif isinstance(node, ast.Name):
            module.names.add(node.id)
        elif isinstance(node, ast.alias):
            module.names.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            owner = getattr(node.value, "attr", None) or getattr(node.value, "id", "")
            module.reads.add((inside, owner.replace("_", ""), node.attr))
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(tree, None)
    return module


def find_settings(tree: ast.Module) -> dict[str, list[str]]:
    return {
        node.name: [
            item.target.id
            for item in node.body
            if isinstance(item, ast.AnnAssign)
            and isinstance(item.target, ast.Name)
            and not ast.unparse(item.annotation).startswith("ClassVar")
        ]
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and node.name.endswith("Settings")
    }


def find_unread(trees: list[ast.Module]) -> set[str]:
    """`Class.field` of each setting that no code reads but the class's own checks."""
    modules = [read_module(tree) for tree in trees]
    unread = set()
    for tree in trees:
        for cls, names in find_settings(tree).items():
            reads = {
                attribute
                for module in modules
                for inside, owner, attribute in module.reads
                # `model.fcos_settings.x` is of FCOSSettings, whoever reads it.
                if inside != cls and (module.names & (HOLDERS | {cls}) or owner == cls.lower())
            }
            unread |= {f"{cls}.{name}" for name in names if name not in reads}
    return unread


def test_every_field_of_every_settings_class_is_read(repository: Path) -> None:
    files = [path for package in PACKAGES for path in sorted((repository / package).rglob("*.py"))]
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in files]
    assert sum(len(find_settings(tree)) for tree in trees) >= 10
    assert find_unread(trees) == set()


@pytest.mark.parametrize(
    ("reader", "unread"),
    [
        ("def f(s: ASettings): return s.used", {"ASettings.idle"}),
        ("def f(s: ASettings): s.idle = s.used", {"ASettings.idle"}),
        ("def f(s): return s.used + s.idle", {"ASettings.used", "ASettings.idle"}),
        ("def f(s: ASettings): return s.used + s.idle", set()),
        ("def f(m): return m.a_settings.used", {"ASettings.idle"}),
    ],
)
def test_an_idle_setting_is_found(reader: str, unread: set[str]) -> None:
    settings = (
        "class ASettings:\n    used: int\n    idle: int\n"
        "    def __post_init__(self):\n        assert self.idle > 0\n"
    )
    assert find_unread([ast.parse(settings), ast.parse(reader)]) == unread
