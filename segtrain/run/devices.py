"""Whether this machine has what `train.device` names, told without torch, which takes seconds."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

from segtrain.errors import TrainingConfigError

# Asked in a process of its own: a driver that is initialised is of no use after a fork.
_ASK_DRIVER = """
import ctypes
try:
    driver = ctypes.CDLL("libcuda.so.1")
except OSError:
    print("none")
else:
    count = ctypes.c_int(0)
    failed = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    print("none" if failed or not count.value else "some")
"""
_MAX_SECONDS = 20.0


def require_device(name: str) -> None:
    """Refuse a GPU that is surely not there; where that is unsure, torch tells later.

    Args:
        name: `auto`, `cpu` or `cuda`.

    Raises:
        TrainingConfigError: `cuda` without a GPU.
    """
    if name == "cuda" and surely_lacks_cuda():
        raise no_cuda_device()


def no_cuda_device() -> TrainingConfigError:
    """The refusal of `train.device=cuda`."""
    return TrainingConfigError("train.device=cuda, but there is no CUDA device; set it to cpu")


def surely_lacks_cuda() -> bool:
    """Whether torch is built for the CPU only, or is built for CUDA and its driver has no device.

    False where neither is known: for AMD's GPUs, elsewhere than on Linux, without torch.
    """
    built_for = _read_torch_build()
    if built_for is None or built_for["hip"] != "None":
        return False
    if built_for["cuda"] == "None":
        return True
    if not sys.platform.startswith("linux"):
        return False
    try:
        answer = subprocess.run(  # noqa: S603 - nothing in it is from outside
            [sys.executable, "-I", "-S", "-c", _ASK_DRIVER],
            capture_output=True,
            text=True,
            check=False,
            timeout=_MAX_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return answer.stdout.strip() == "none"


def _read_torch_build() -> dict[str, str] | None:
    """Versions of `cuda` and `hip` as torch's version.py writes them; None where it says less."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    found = dict(re.findall(r"^(cuda|hip)\b[^=\n]*= *(\S+)", text, flags=re.MULTILINE))
    return found if found.keys() == {"cuda", "hip"} else None
