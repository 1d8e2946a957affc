"""What a request says about waiting for a worker: how long at most, and behind whom."""

import math
from collections.abc import Callable
from typing import Final

from shared.errors import GatewayError, fail
from shared.schema.caller import Priority

MAX_WAIT: Final = "x-sluice-max-wait"
PRIORITY: Final = "x-sluice-priority"
CLIENT_TIMEOUTS: Final = ("x-stainless-read-timeout", "x-stainless-timeout")
"""OpenAI's clients tell their own timeout in seconds; whoever hangs up by then need not be kept in a queue for longer."""


Header = Callable[[str], str | None]
"""A header of the request by its name."""


def patience(header: Header, most_seconds: float) -> float:
    """Seconds that this caller waits in a queue.

    Raises `GatewayError` `invalid_request` if `x-sluice-max-wait` is no number of seconds. What a client says of its own
    timeout is advice: nobody wrote it for us, so what makes no sense is passed over.
    """
    asked = header(MAX_WAIT)
    limits = [most_seconds]
    if asked is not None:
        seconds = _seconds(asked)
        if seconds is None:
            raise _invalid(MAX_WAIT, f"expected a number of seconds, 0 or more, but got '{asked[:40]}'")
        limits.append(seconds)
    for name in CLIENT_TIMEOUTS:
        hint = _seconds(header(name) or "")
        if hint:
            limits.append(hint)
    return min(limits)


def priority(header: Header, of_key: Priority) -> Priority:
    """The class in which this request waits: the key's, unless the caller asks for the lower one.

    Raises `GatewayError` `invalid_request` for anything else.
    """
    asked = header(PRIORITY)
    if asked is None or asked == "normal":
        return of_key
    if asked != "low":
        raise _invalid(PRIORITY, f"expected 'low' or 'normal', but got '{asked[:40]}'")
    return "low"


def _seconds(text: str) -> float | None:
    try:
        seconds = float(text)
    except ValueError:
        return None
    return seconds if seconds >= 0 and math.isfinite(seconds) else None


def _invalid(name: str, complaint: str) -> GatewayError:
    return fail("invalid_request", f"Invalid header '{name}': {complaint}.", param=name, code="invalid_header")
