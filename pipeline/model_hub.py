"""The hub of depth models: whether a model is on this machine, or can be fetched."""

from __future__ import annotations

import json
import os
from pathlib import Path

from pipeline.errors import ServiceUnreachableError, UsageError

HUB_REMEDY = (
    "give --model a local folder in HuggingFace format, or set HTTPS_PROXY or HF_ENDPOINT; "
    "the demo model needs no hub"
)
_TIMEOUT_SECONDS = 3.0


def require_model(model: str, revision: str | None = None) -> None:
    """Refuse a depth model that cannot be loaded here, within seconds.

    Args:
        model: hub id or local folder.
        revision: of a hub model.

    Raises:
        UsageError: it looks like a folder and there is none, or it holds no model.
        ServiceUnreachableError: it is a hub id, not on this machine, and the hub does not answer.
    """
    if Path(model).is_dir():
        _require_model_folder(Path(model))
        return
    if model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise UsageError(f"depth model {model!r} is no folder, and a hub id is OWNER/NAME")
    from huggingface_hub import try_to_load_from_cache

    if isinstance(try_to_load_from_cache(model, "config.json", revision=revision), str):
        return
    if problem := find_hub_problem():
        raise ServiceUnreachableError(
            f"depth model {model} is not on this machine, and {problem}; {HUB_REMEDY}"
        )


def _require_model_folder(folder: Path) -> None:
    try:
        kind = json.loads((folder / "config.json").read_bytes()).get("model_type")
    except (OSError, ValueError, AttributeError):
        kind = None
    if not kind:
        raise UsageError(
            f"{folder} is no model in HuggingFace format: there is no config.json with a model_type"
        )


def hub_address() -> str:
    """Where models come from."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co")


def find_hub_problem() -> str | None:
    """Why nothing can be fetched from the hub; None when it answers within 3 seconds."""
    import httpx

    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        return "HF_HUB_OFFLINE is set"
    try:
        response = httpx.head(hub_address(), timeout=_TIMEOUT_SECONDS, follow_redirects=True)
        response.raise_for_status()
    except httpx.HTTPError as error:
        return f"{hub_address()} does not answer: {str(error) or type(error).__name__}"
    return None
