"""The one exception that the service turns into a JSON answer.

Everything that a client can cause is a `RequestRefusedError` with its HTTP status; an exception of
any other type is a bug of the service.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class RequestRefusedError(Exception):
    """A request that is answered with an error status.

    Args:
        status: HTTP status code, 400 to 599.
        code: a short stable word that clients may switch on, for example `not-found`.
        detail: what was wrong, what was expected, and the remedy.
        headers: extra response headers, for example `Retry-After`.
    """

    def __init__(
        self, status: int, code: str, detail: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.headers = dict(headers or {})

    def document(self) -> dict[str, str]:
        """The JSON body of the answer."""
        return {"error": self.code, "detail": self.detail}


def storage_unreachable(error: Exception) -> RequestRefusedError:
    """The answer while the bucket behind the service does not answer."""
    return RequestRefusedError(
        503, "storage-unreachable", f"the bucket does not answer: {error}", {"Retry-After": "5"}
    )


def storage_refusal(error: OSError) -> RequestRefusedError | None:
    """The 507 that a full disk (or quota, or file size limit) deserves; None for other errors."""
    if error.errno not in _FULL:
        return None
    return RequestRefusedError(
        507,
        "disk-full",
        f"the service's disk cannot take it ({os.strerror(error.errno or 0)}); the upload was "
        "removed, nothing of it is published",
    )
