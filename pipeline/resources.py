"""Where the configs and the demo model lie: in the checkout, or inside the installed wheel."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import UsageError

_PACKAGE = Path(__file__).resolve().parent
_INSTALLED = _PACKAGE / "_resources"
_CHECKOUT = _PACKAGE.parent


def resource_roots() -> list[Path]:
    """Folders that may hold `configs/` and the models of `data/`, the checkout before the wheel."""
    roots = []
    if (_CHECKOUT / "pyproject.toml").is_file():
        roots.append(_CHECKOUT)
    if _INSTALLED.is_dir():
        roots.append(_INSTALLED)
    return roots


def demo_dpt_path() -> Path:
    """Folder of the bundled demo depth model, in HuggingFace format.

    Raises:
        UsageError: the model is neither in the checkout nor in the installed package.
    """
    for root in resource_roots():
        for relative in ("data/demo-dpt", "demo-dpt"):
            if (root / relative / "config.json").is_file():
                return root / relative
    raise UsageError(
        "the demo depth model is missing: looked for data/demo-dpt/config.json under "
        f"{[str(root) for root in resource_roots()]}; install the package again, "
        "or train the model with data/demo-dpt/train_demo_dpt.py"
    )


def labeller_path() -> Path:
    """The labeller's starting weights.

    Raises:
        UsageError: they are neither in the checkout nor in the installed package.
    """
    for root in resource_roots():
        for relative in ("data/labeller", "labeller"):
            if (root / relative / "model.safetensors").is_file():
                return root / relative / "model.safetensors"
    raise UsageError(
        "the labeller's weights are missing: looked for data/labeller/model.safetensors under "
        f"{[str(root) for root in resource_roots()]}; install the package again, or train them "
        "with data/labeller/train_labeller.py"
    )


def resolve_config(name: str | Path) -> Path:
    """Find a config file, in the working folder first, then among the bundled ones.

    Args:
        name: a path, or a bundled name such as `configs/demo/full.py` or `demo/full`.

    Returns:
        Absolute path of an existing file.

    Raises:
        UsageError: no such file; the message names bundled configs with nearly that name.
    """
    candidate = Path(name).expanduser()
    if candidate.is_file():
        return candidate.resolve()
    if not candidate.is_absolute():
        for root in resource_roots():
            for relative in (candidate, Path("configs") / candidate):
                for path in (root / relative, (root / relative).with_suffix(".py")):
                    if path.is_file():
                        return path
    import difflib

    experiments = [path for path in bundled_configs() if not path.startswith("configs/common/")]
    stems = {Path(path).stem for path in experiments}
    near = difflib.get_close_matches(candidate.stem, sorted(stems), n=3, cutoff=0.7)
    similar = [path for stem in near for path in experiments if Path(path).stem == stem]
    hint = (
        f"did you mean {', '.join(similar[:3])}?" if similar else "`pipeline configs` lists those"
    )
    raise UsageError(f"no config file {str(name)!r} here or among the bundled configs; {hint}")


def describe_configs() -> dict[str, str]:
    """Name of each bundled experiment → the first line of its docstring.

    What configs/common holds is shared by experiments and is none.
    """
    import ast

    described = {}
    for name in bundled_configs():
        if not name.startswith("configs/common/"):
            text = ast.get_docstring(ast.parse(resolve_config(name).read_text(encoding="utf-8")))
            described[name] = (text or "").split("\n\n")[0].replace("\n", " ")
    return described


def bundled_configs() -> list[str]:
    """Names of the bundled configs, for example `configs/demo/full.py`."""
    for root in resource_roots():
        names = sorted(
            path.relative_to(root).as_posix()
            for path in (root / "configs").rglob("*.py")
            if not path.name.startswith("_")
        )
        if names:
            return names
    return []
