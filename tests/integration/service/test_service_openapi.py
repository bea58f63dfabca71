"""Requests made up from the OpenAPI document never make the server fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error


@pytest.fixture(scope="module")
def service(
    start_service: Callable[..., Any],
    make_cache: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Any:
    root = tmp_path_factory.mktemp("root")
    make_cache(root)
    return start_service(root)


def test_made_up_requests_never_make_the_server_fail(service: Any, secrets: dict[str, str]) -> None:
    schema = schemathesis.openapi.from_url(f"{service.url}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) >= 15
    for operation in operations:

        @hypothesis.given(case=operation.as_strategy())
        @hypothesis.settings(max_examples=8, suppress_health_check=list(hypothesis.HealthCheck))
        def is_answered(case: Any) -> None:
            response = case.call(headers={"Authorization": f"Bearer {secrets['admin']}"})
            case.validate_response(response, checks=[not_a_server_error])

        is_answered()
