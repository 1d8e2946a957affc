"""Calling other people's functions from the middle of a connection."""

import logging
from collections.abc import Callable

from shared.redis.counts import Counts

_log = logging.getLogger(__name__)


def call_safely(counts: Counts, callback: Callable[..., object], *arguments: object) -> None:
    """Call back. An exception is logged and goes no further: one listener's mistake must not cost the others."""
    try:
        callback(*arguments)
    except Exception:  # noqa: BLE001 - the connection belongs to many, the mistake to one
        counts.callback_errors += 1
        _log.exception("%s, called back by a Redis connection, failed", getattr(callback, "__qualname__", callback))
