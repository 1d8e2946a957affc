"""How long an upstream asks us to wait: from its headers or, where it says so only in prose, from its message."""

import math
import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Final

LONGEST_SECONDS: Final = 24 * 3600.0
"""What is longer is taken for this long; what claims to be a date of a past or far age is not a wait."""

_UNITS: Final = {"milli": 0.001, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(milli|ms|s|m|h|d)", re.IGNORECASE | re.ASCII)
_PROSE = re.compile(
    r"\b(?:again|retry|wait)\b[^.;,\d]{0,20}"
    r"((?:\d+(?:\.\d+)?\s*(?:milliseconds?|ms|seconds?|secs?|minutes?|mins?|hours?|hrs?|days?|[smhd])\s*)+)",
    re.IGNORECASE | re.ASCII,
)
_REMAINING, _RESET = "x-ratelimit-remaining", "x-ratelimit-reset"


def waiting_seconds(headers: Mapping[str, str], message: str = "") -> float | None:
    """The wait in seconds, or None if nothing can be learned. `headers` by lower-case name.

    In this order: `retry-after-ms`; `retry-after` in seconds or as a date; the `x-ratelimit-reset-*` of a limit of which
    nothing remains; the message ("try again in 6m0s"); the soonest `x-ratelimit-reset-*`. A date is compared with the
    reply's own `date`, so no clock is needed and a wrong one does no harm.
    """
    milliseconds = _number(headers.get("retry-after-ms", ""))
    exhausted, resets = _resets(headers)
    for found in (
        None if milliseconds is None else milliseconds / 1000,
        _number(headers.get("retry-after", "")),
        _until(headers.get("retry-after", ""), headers.get("date", "")),
        max(exhausted, default=None),
        _told(message),
        min(resets, default=None),
    ):
        if found is not None:
            return min(found, LONGEST_SECONDS)
    return None


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _duration(text: str) -> float | None:
    """`12ms`, `1s`, `6m0s`, `1h2m3.5s`, `10 minutes`: seconds; None for anything else."""
    parts = _PART.findall(text)
    return sum(float(number) * _UNITS[unit.lower()] for number, unit in parts) if parts else None


def _until(date: str, now: str) -> float | None:
    try:
        wait = (parsedate_to_datetime(date) - parsedate_to_datetime(now)).total_seconds()
    except (ValueError, TypeError):  # no dates, or one with and one without a time zone
        return None
    return max(0.0, wait)


def _resets(headers: Mapping[str, str]) -> tuple[list[float], list[float]]:
    """The waits of the limits of which nothing remains, and of all limits."""
    exhausted, resets = [], []
    for name, value in headers.items():
        if not name.startswith(_RESET):
            continue
        seconds = _number(value)
        seconds = _duration(value) if seconds is None else seconds
        if seconds is None or seconds > LONGEST_SECONDS * 366:  # a point in time, not a wait
            continue
        resets.append(seconds)
        if _number(headers.get(_REMAINING + name.removeprefix(_RESET), "")) == 0:
            exhausted.append(seconds)
    return exhausted, resets


def _told(message: str) -> float | None:
    match = _PROSE.search(message)
    return _duration(match[1]) if match else None
