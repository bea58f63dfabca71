"""`doctor`: look at the installation, the machine and the network; name a remedy for each fault."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.model_hub import HUB_REMEDY, find_hub_problem, hub_address
from pipeline.output import format_bytes
from pipeline.process_settings import (
    MALLOC_SETTINGS,
    THREAD_CHOICES,
    THREAD_SETTINGS,
    missing_settings,
)

_MIN_FREE_BYTES = 5 * 1024**3
_PACKAGES_BY_EXTRA = {
    "": ("numpy", "pillow", "zarr", "numcodecs", "httpx", "typer", "rich"),
    "depth": ("torch", "torchvision", "transformers", "safetensors", "dask", "distributed", "h5py"),
    "train": ("omegaconf", "pycocotools", "scipy", "fvcore", "timm", "tensorboard"),
    "serve": ("fastapi", "uvicorn", "prometheus-client"),
    "s3": ("obstore", "s3fs"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the report.

    Attributes:
        name: what was looked at.
        status: `ok`, `warning` (something is lost) or `error` (something will not work).
        value: what was found.
        remedy: what to do; empty when ok.
    """

    name: str
    status: str
    value: str
    remedy: str = ""


def diagnose(folder: Path, *, asks_hub: bool = True) -> list[Finding]:
    """Look at everything that a run needs.

    Args:
        folder: where output will go; its disk is looked at.
        asks_hub: try to reach the model hub (up to 3 seconds).
    """
    checks: list[Callable[[], Iterable[Finding]]] = [
        _check_python,
        _check_packages,
        _check_torch,
        _check_detectron2,
        _check_resources,
        _check_malloc,
        _check_threads,
        lambda: _check_disk(folder),
    ]
    if asks_hub:
        checks.append(_check_hub)
    findings: list[Finding] = []
    for check in checks:
        findings.extend(check())
    return findings


def _check_python() -> Iterable[Finding]:
    value = f"{platform.python_version()} ({sys.executable})"
    is_recent = sys.version_info >= (3, 11)
    remedy = "" if is_recent else "install Python 3.11 or newer and run `make setup` with PYTHON=…"
    yield Finding(name="python", status="ok" if is_recent else "error", value=value, remedy=remedy)


def _check_packages() -> Iterable[Finding]:
    for extra, packages in _PACKAGES_BY_EXTRA.items():
        versions, absent = [], []
        for name in packages:
            try:
                versions.append(f"{name} {metadata.version(name)}")
            except metadata.PackageNotFoundError:
                absent.append(name)
        title = f"packages [{extra}]" if extra else "packages"
        if absent:
            wanted = f"boxdepth[{extra}]" if extra else "boxdepth"
            yield Finding(
                name=title,
                status="warning" if extra else "error",
                value=f"missing: {', '.join(absent)}",
                remedy=f"pip install '{wanted}', or `make setup` in a checkout",
            )
        else:
            yield Finding(name=title, status="ok", value=", ".join(versions))


def _check_torch() -> Iterable[Finding]:
    try:
        import torch
    except ImportError as error:
        yield Finding(
            name="torch",
            status="warning",
            value=str(error),
            remedy="pip install 'boxdepth[depth,train]'; reading a cache works without",
        )
        return
    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())}
        value = f"{torch.cuda.device_count()} CUDA device(s): {', '.join(sorted(names))}"
        yield Finding(name="device", status="ok", value=value)
    else:
        yield Finding(
            name="device",
            status="warning",
            value=f"CPU only, {os.cpu_count()} cores, torch {torch.__version__}",
            remedy="training at full size wants a GPU: check `nvidia-smi` and that torch is a "
            "CUDA build; the demo needs none",
        )
    try:
        ops = importlib.import_module("torchvision.ops")
        ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except (ImportError, RuntimeError, AttributeError) as error:
        yield Finding(
            name="torchvision",
            status="error",
            value=str(error).splitlines()[0],
            remedy="torch and torchvision do not match: install the versions in constraints.txt",
        )
    else:
        yield Finding(
            name="torchvision",
            status="ok",
            value=f"{metadata.version('torchvision')}, operators load",
        )


def _check_detectron2() -> Iterable[Finding]:
    spec = importlib.util.find_spec("detectron2")
    if spec is None or spec.origin is None:
        yield Finding(
            name="detectron2",
            status="warning",
            value="not installed",
            remedy="`make setup`, or pip install as requirements-detectron2.txt says; "
            "the depth cache works without",
        )
        return
    origin = "installed from elsewhere"
    for distribution in ("detectron2", "sal-detectron2"):
        try:
            origin = f"{distribution} {metadata.version(distribution)}"
            break
        except metadata.PackageNotFoundError:
            continue
    try:
        importlib.import_module("detectron2.config")
        importlib.import_module("detectron2.structures")
    except ImportError as error:
        yield Finding(
            name="detectron2",
            status="error",
            value=f"{origin} does not import: {error}",
            remedy="delete .venv and run `make setup`",
        )
        return
    yield Finding(name="detectron2", status="ok", value=f"{origin} at {Path(spec.origin).parent}")


def _check_resources() -> Iterable[Finding]:
    from pipeline.resources import bundled_configs, demo_dpt_path

    try:
        yield Finding(name="demo depth model", status="ok", value=str(demo_dpt_path()))
    except PipelineError as error:
        remedy = "install the package again"
        yield Finding(name="demo depth model", status="error", value=str(error), remedy=remedy)
    configs = bundled_configs()
    yield Finding(
        name="configs",
        status="ok" if configs else "error",
        value=f"{len(configs)} bundled",
        remedy="" if configs else "install the package again",
    )


def _check_malloc() -> Iterable[Finding]:
    if platform.libc_ver()[0] != "glibc":
        yield Finding(name="malloc", status="ok", value="not glibc; nothing to set")
        return
    if os.environ.get("LD_PRELOAD"):
        value = f"another allocator may be preloaded: {os.environ['LD_PRELOAD']}"
        yield Finding(name="malloc", status="ok", value=value)
        return
    differing = {
        name: os.environ[name]
        for name, wanted in MALLOC_SETTINGS.items()
        if os.environ.get(name, wanted) != wanted
    }
    wanted = " ".join(f"{name}={value}" for name, value in MALLOC_SETTINGS.items())
    if differing:
        yield Finding(
            name="malloc",
            status="warning",
            value=f"set otherwise in the environment: {differing}",
            remedy=f"unset them, or set {wanted}; CPU training steps take up to twice as long",
        )
    elif os.environ.get("PIPELINE_NO_REEXEC", "0") not in ("", "0") and not all(
        name in os.environ for name in MALLOC_SETTINGS
    ):
        yield Finding(
            name="malloc",
            status="warning",
            value="PIPELINE_NO_REEXEC is set, so the allocator stays at its defaults",
            remedy=f"unset it, or set {wanted}",
        )
    else:
        yield Finding(name="malloc", status="ok", value="set by the commands that train or predict")


def _check_threads() -> Iterable[Finding]:
    set_by_command = missing_settings(["train"], os.environ, libc="")
    chosen = {name: os.environ[name] for name in THREAD_CHOICES if name in os.environ}
    wanted = " ".join(f"{name}={value}" for name, value in THREAD_SETTINGS.items())
    slow = "beside other work on the machine a step takes many times as long"
    if chosen.get("OMP_WAIT_POLICY", "").upper() == "ACTIVE":
        yield Finding(
            name="threads",
            status="warning",
            value="OMP_WAIT_POLICY=ACTIVE is set in the environment",
            remedy=f"unset it: threads spin while they wait, so that {slow}",
        )
    elif chosen:
        yield Finding(name="threads", status="ok", value=f"wait as the environment says: {chosen}")
    elif not set_by_command:
        yield Finding(
            name="threads",
            status="warning",
            value="PIPELINE_NO_REEXEC is set, so threads spin long while they wait",
            remedy=f"unset it, or set {wanted}: {slow}",
        )
    else:
        value = "soon sleep while they wait, where commands train or predict"
        yield Finding(name="threads", status="ok", value=value)


def _check_disk(folder: Path) -> Iterable[Finding]:
    existing = folder.resolve()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    is_enough = free >= _MIN_FREE_BYTES
    is_writable = os.access(existing, os.W_OK)
    remedy = ""
    if not is_writable:
        remedy = "choose a folder you may write to"
    elif not is_enough:
        remedy = "free some space: COCO's depth takes about 22 GB, a run's checkpoints about 1 GB"
    status = "error" if not is_writable else "ok" if is_enough else "warning"
    value = f"{format_bytes(free)} free at {existing}" + ("" if is_writable else ", read-only")
    yield Finding(name="disk", status=status, value=value, remedy=remedy)


def _check_hub() -> Iterable[Finding]:
    problem = find_hub_problem()
    if problem is None:
        yield Finding(name="model hub", status="ok", value=f"{hub_address()} answers")
    else:
        yield Finding(name="model hub", status="warning", value=problem, remedy=HUB_REMEDY)
