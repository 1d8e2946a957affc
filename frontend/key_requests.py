"""What `/admin/keys` takes and shows: a checked request becomes changes of a record, a record becomes JSON."""

import math
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import msgspec
from msgspec import UNSET, Meta, UnsetType

from frontend.requests import parse
from shared.errors import GatewayError, fail
from shared.schema.caller import CallerKey, Priority

MOST_PATTERNS: Final = 256
MOST_STARS: Final = 4
LONGEST_NAME: Final = 128
LONGEST_CACHE_SECONDS: Final = 30 * 24 * 3600.0
LONGEST_GRACE_SECONDS: Final = 30 * 24 * 3600.0
LAST_SECOND: Final = 253_402_300_799
"""The end of the year 9999, as far as dates can be written."""

Limit = Annotated[int, Meta(ge=1, le=10**12)]
Patterns = Annotated[list[Annotated[str, Meta(min_length=1, max_length=256)]], Meta(max_length=MOST_PATTERNS)]


class KeyRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Permissions and limits of a caller's key, as in `CallerKey`. What is not named stays as it is, null lifts a limit.

    `expires_at`: Unix seconds, or ISO 8601 (UTC if it names no zone).
    """

    name: Annotated[str, Meta(max_length=LONGEST_NAME)] | UnsetType = UNSET
    requests_per_minute: Limit | UnsetType | None = UNSET
    tokens_per_minute: Limit | UnsetType | None = UNSET
    concurrent_requests: Limit | UnsetType | None = UNSET
    daily_tokens: Limit | UnsetType | None = UNSET
    monthly_tokens: Limit | UnsetType | None = UNSET
    models: Patterns | UnsetType | None = UNSET
    providers: Patterns | UnsetType | None = UNSET
    expires_at: int | float | str | UnsetType | None = UNSET
    priority: Priority | UnsetType = UNSET
    cache_seconds: Annotated[float, Meta(ge=0, le=LONGEST_CACHE_SECONDS)] | UnsetType = UNSET


class RotateRequest(msgspec.Struct, forbid_unknown_fields=True):
    """`grace_seconds`: how long the key before still serves."""

    grace_seconds: Annotated[float, Meta(ge=0, le=LONGEST_GRACE_SECONDS)] = 0.0


_key_request = msgspec.json.Decoder(KeyRequest)
_rotate_request = msgspec.json.Decoder(RotateRequest)


def read_changes(body: bytes, now: float) -> dict[str, Any]:
    """The fields of `CallerKey` that a request names, with their new values. `now`: Unix seconds.

    Raises `GatewayError` `invalid_request`, with `param`.
    """
    asked = parse(_key_request, body)
    changes = {name: value for name in KeyRequest.__struct_fields__ if (value := getattr(asked, name)) is not UNSET}
    if "name" in changes:
        changes["name"] = _name(changes["name"])
    for field in ("models", "providers"):
        if field in changes:
            changes[field] = _patterns(field, changes[field] or [])
    if changes.get("expires_at") is not None:
        changes["expires_at"] = _future(changes["expires_at"], now)
    return changes


def read_grace(body: bytes) -> float:
    """Seconds; a request without a body asks for none. Raises `GatewayError` `invalid_request`."""
    return parse(_rotate_request, body).grace_seconds if body else 0.0


def shown(key: CallerKey, now: float) -> dict[str, Any]:
    """A record as callers of the API see it: times in whole Unix seconds, null for no limit."""
    status = "revoked" if key.revoked_at is not None else "expired" if key.has_expired(now) else "active"
    record: dict[str, Any] = {"object": "caller_key", **msgspec.structs.asdict(key), "status": status}
    for field in ("created_at", "expires_at", "revoked_at"):
        if record[field] is not None:
            record[field] = math.floor(record[field])
    return record


def _name(name: str) -> str:
    name = name.strip()
    if not name.isprintable():
        raise _refused("name", "expected printable characters only")
    return name


def _patterns(field: str, patterns: list[str]) -> tuple[str, ...]:
    for place, pattern in enumerate(patterns):
        if not pattern.isprintable() or pattern != pattern.strip() or pattern.count("*") > MOST_STARS:
            raise _refused(f"{field}[{place}]", f"expected a name, or a pattern with at most {MOST_STARS} `*`")
    return tuple(dict.fromkeys(patterns))


def _future(value: float | str, now: float) -> float:
    expected = "expected a time in the future, in Unix seconds or as ISO 8601 such as 2030-01-31T12:00:00Z"
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
            seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            raise _refused("expires_at", expected) from None
    else:
        seconds = float(value)
    if not now < seconds <= LAST_SECOND:
        raise _refused("expires_at", expected)
    return seconds


def _refused(param: str, reason: str) -> GatewayError:
    return fail("invalid_request", f"Invalid value for '{param}': {reason}.", param=param, code="invalid_value")
