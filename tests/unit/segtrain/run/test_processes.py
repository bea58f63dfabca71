"""What processes tell is heard in order, and what the listener raises is raised."""

from __future__ import annotations

import pytest

from segtrain.run.processes import told_by_processes


def test_what_is_told_is_heard_in_order() -> None:
    heard: list[tuple[int, str]] = []
    with told_by_processes(lambda *item: heard.append(item)) as tell:
        assert tell is not None
        for number in range(100):
            tell(number, "of 100")
    assert heard == [(number, "of 100") for number in range(100)]
    with told_by_processes(None) as tell:
        assert tell is None


def test_what_the_listener_raises_reaches_the_caller() -> None:
    def refuse(number: int) -> None:
        raise LookupError(number)

    def run() -> None:
        with told_by_processes(refuse) as tell:
            assert tell is not None
            tell(7)

    with pytest.raises(LookupError, match="7"):
        run()
