"""Who may do what: named tokens with scopes, and how often.

Tokens come from a TOML file, or from the environment variable `DEPTHCACHE_TOKENS`:

    [tokens.ci]
    secret = "at least 16 characters"      # or sha256 = "<hex of the secret's sha256>"
    scopes = ["read", "write"]

    DEPTHCACHE_TOKENS="ci:read+write:<secret>;ops:admin:<secret>"

Only sha256 digests of secrets are kept in memory; they are compared in constant time, and every
known token is compared on every request, so the time taken does not tell which one came close.
"""

from __future__ import annotations

import hashlib
import hmac
import time
import tomllib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from depthcache.service.refusals import RequestRefusedError

MINIMUM_SECRET_LENGTH = 16
TOKENS_VARIABLE = "DEPTHCACHE_TOKENS"
_OPEN_PATHS = ("/", "/healthz", "/readyz", "/favicon.ico")
_MAX_TRACKED_CLIENTS = 10_000


class Scope(StrEnum):
    """What a token allows; `admin` includes `write`, and `write` includes `read`."""

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"


_IMPLIED = {
    Scope.READ: frozenset({Scope.READ}),
    Scope.WRITE: frozenset({Scope.READ, Scope.WRITE}),
    Scope.ADMIN: frozenset(Scope),
}


@dataclass(frozen=True, kw_only=True)
class Token:
    """A named token; the secret itself is not kept."""

    name: str
    secret_sha256: bytes
    scopes: frozenset[Scope]


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Who asks: the token's name (None for an anonymous client) and what they may do."""

    name: str | None
    scopes: frozenset[Scope]


def load_tokens(tokens_file: Path | None, environment: Mapping[str, str]) -> list[Token]:
    """Read the tokens of a file and of the environment.

    Raises:
        ValueError: the file or the variable is malformed, a secret is too short, or a name is
            used twice. The message never contains a secret.
    """
    tokens: list[Token] = []
    if tokens_file is not None:
        tokens += _tokens_of_file(tokens_file)
    tokens += _tokens_of_variable(environment.get(TOKENS_VARIABLE, ""))
    names = [token.name for token in tokens]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"token name {name!r} is used twice; give every token its own name")
    return tokens


def _tokens_of_file(path: Path) -> list[Token]:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ValueError(f"cannot read the tokens file {path}: {reason}") from error
    except tomllib.TOMLDecodeError:
        # The decoder's own message may quote the line, and with it a secret.
        raise ValueError(f"the tokens file {path} is not valid TOML") from None
    table = document.get("tokens")
    if not isinstance(table, dict) or set(document) != {"tokens"}:
        raise ValueError(f"the tokens file {path} must hold tables [tokens.NAME] and nothing else")
    tokens = []
    for name, entry in table.items():
        if not isinstance(entry, dict) or not set(entry) <= {"secret", "sha256", "scopes"}:
            raise ValueError(f"token {name!r} in {path}: expected secret or sha256, and scopes")
        scopes = entry.get("scopes")
        if not isinstance(scopes, list) or not all(isinstance(scope, str) for scope in scopes):
            raise ValueError(f"token {name!r} in {path}: scopes must be a list of words")
        if ("secret" in entry) == ("sha256" in entry):
            raise ValueError(f"token {name!r} in {path}: give either secret or sha256")
        if "sha256" in entry:
            try:
                digest = bytes.fromhex(entry["sha256"])
            except (TypeError, ValueError):
                digest = b""
            if len(digest) != hashlib.sha256().digest_size:
                raise ValueError(f"token {name!r} in {path}: sha256 must be 64 hex digits")
        else:
            digest = _digest_of_secret(name, entry["secret"])
        tokens.append(Token(name=name, secret_sha256=digest, scopes=_scopes(name, scopes)))
    return tokens


def _tokens_of_variable(text: str) -> list[Token]:
    tokens = []
    for entry in filter(None, (part.strip() for part in text.split(";"))):
        fields = entry.split(":", 2)
        if len(fields) != 3:
            raise ValueError(f"{TOKENS_VARIABLE}: each entry must be NAME:SCOPE+SCOPE:SECRET")
        name, scopes, secret = fields
        tokens.append(
            Token(
                name=name,
                secret_sha256=_digest_of_secret(name, secret),
                scopes=_scopes(name, scopes.split("+")),
            )
        )
    return tokens


def _digest_of_secret(name: str, secret: object) -> bytes:
    if not isinstance(secret, str) or len(secret) < MINIMUM_SECRET_LENGTH:
        raise ValueError(
            f"token {name!r}: the secret must have at least {MINIMUM_SECRET_LENGTH} characters"
        )
    return hashlib.sha256(secret.encode()).digest()


def _scopes(name: str, words: Sequence[str]) -> frozenset[Scope]:
    granted: set[Scope] = set()
    for word in words:
        try:
            granted |= _IMPLIED[Scope(word)]
        except ValueError:
            known = ", ".join(Scope)
            raise ValueError(f"token {name!r}: unknown scope {word!r}; known: {known}") from None
    if not granted:
        raise ValueError(f"token {name!r}: at least one scope is needed")
    return frozenset(granted)


class AccessPolicy:
    """Decides by credential; it knows nothing of routes.

    Args:
        tokens: the known tokens.
        anonymous_read: whether a request without a credential may read.
    """

    def __init__(self, tokens: Sequence[Token], *, anonymous_read: bool) -> None:
        self._tokens = tuple(tokens)
        self._anonymous = Identity(
            name=None, scopes=frozenset({Scope.READ}) if anonymous_read else frozenset()
        )

    def identify(self, authorization: bytes | None) -> Identity:
        """Find whose credential this is.

        Args:
            authorization: the `Authorization` header's value, None without one.

        Raises:
            RequestRefusedError: 401 for a credential that is malformed or unknown, also where
                anonymous clients could read: a mistyped token should not go unnoticed.
        """
        if authorization is None:
            return self._anonymous
        scheme, _, secret = authorization.partition(b" ")
        presented = hashlib.sha256(secret.strip()).digest()
        found: Token | None = None
        for token in self._tokens:
            if hmac.compare_digest(token.secret_sha256, presented):
                found = token
        if scheme.lower() != b"bearer" or found is None:
            raise RequestRefusedError(
                401,
                "unknown-token",
                "the Authorization header holds no known token; expected: Bearer <token>",
                {"WWW-Authenticate": 'Bearer error="invalid_token"'},
            )
        return Identity(name=found.name, scopes=found.scopes)

    def demand(self, identity: Identity, scope: Scope | None) -> None:
        """Refuse an identity that lacks a scope.

        Raises:
            RequestRefusedError: 401 for an anonymous client, 403 for a token without the scope.
        """
        if scope is None or scope in identity.scopes:
            return
        if identity.name is None:
            raise RequestRefusedError(
                401,
                "token-needed",
                f"this needs a token with the scope {scope.value!r}",
                {"WWW-Authenticate": "Bearer"},
            )
        raise RequestRefusedError(
            403,
            "scope-missing",
            f"the token {identity.name!r} lacks the scope {scope.value!r}",
        )


def required_scope(method: str, path: str) -> Scope | None:
    """The scope that a request needs; None for what everybody may see.

    Unknown routes and methods need `write`, so a route that is added without thinking of access
    is closed rather than open.
    """
    if method in ("GET", "HEAD"):
        if path in _OPEN_PATHS or path.startswith("/web/"):
            return None
        return Scope.READ
    if method == "POST" and path.startswith("/api/v1/caches/") and path.endswith("/lookup"):
        return Scope.READ
    if path.endswith("/pin") or path == "/api/v1/gc" or method == "DELETE":
        is_own_upload = method == "DELETE" and path.startswith("/api/v1/uploads/")
        return Scope.WRITE if is_own_upload else Scope.ADMIN
    return Scope.WRITE


class RateLimit:
    """A token bucket per client: `rate` requests a second on average, bursts of twice that.

    Args:
        rate: requests a second; 0 switches the limit off.
    """

    def __init__(self, rate: float) -> None:
        if rate < 0:
            raise ValueError(f"the request rate must not be negative, got {rate}")
        self._rate = rate
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def admit(self, client: str, now: float | None = None) -> None:
        """Count one request of a client.

        Args:
            client: whatever identifies it: the token's name, else the address.
            now: seconds on a monotonic clock; the current time when None.

        Raises:
            RequestRefusedError: 429, with the seconds to wait in `Retry-After`.
        """
        if not self._rate:
            return
        now = time.monotonic() if now is None else now
        burst = max(1.0, 2 * self._rate)
        level, then = self._buckets.pop(client, (burst, now))
        level = min(burst, level + (now - then) * self._rate)
        admitted = level >= 1
        self._buckets[client] = (level - 1 if admitted else level, now)
        while len(self._buckets) > _MAX_TRACKED_CLIENTS:
            self._buckets.popitem(last=False)
        if not admitted:
            wait_seconds = max(1, round((1 - level) / self._rate + 0.5))
            raise RequestRefusedError(
                429,
                "too-many-requests",
                f"more than {self._rate:g} requests a second; wait and repeat",
                {"Retry-After": str(wait_seconds)},
            )
