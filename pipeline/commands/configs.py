"""`pipeline configs`."""

from __future__ import annotations

from pipeline.commands.options import JsonOption
from pipeline.output import write_result


def list_configs(as_json: JsonOption = False) -> None:
    """List the bundled configs with one line each; every command takes these names."""
    from pipeline.resources import describe_configs

    described = describe_configs()
    width = max((len(name) for name in described), default=0)
    text = "\n".join(f"{name:<{width}}  {line}" for name, line in described.items())
    write_result("configs", {"configs": described}, text, as_json=as_json)
