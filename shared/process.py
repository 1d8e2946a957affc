"""Beginning and end of a process: exit status, one clear sentence for what an operator can mend, signals."""

import gc
import logging
import os
import resource
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final

import trio

from shared.redis.failures import RedisError

_log = logging.getLogger(__name__)

HURRY_SECONDS: Final = 1.2
"""How long error events may take to be said and read."""


def run(main: Callable[[], Awaitable[None]]) -> int:
    """Run to the end; the exit status. An unreachable Redis or a port that is taken is a sentence, not a traceback."""
    _limit()
    # What was imported stays: let no collection walk through it again.
    gc.collect()
    gc.freeze()
    try:
        trio.run(main)
    except* (RedisError, OSError) as group:
        reasons = list(_leaves(group))
    else:
        return 0
    for reason in reasons:
        told = reason.strerror if isinstance(reason, OSError) and reason.filename is None else None
        print(f"{'Redis' if isinstance(reason, RedisError) else 'Cannot start'}: {told or reason}", file=sys.stderr)
    return 1


async def stop_on_signal(stop: trio.Event, hurry: trio.Event, scope: trio.CancelScope) -> None:
    """The first SIGTERM or SIGINT asks to drain; the second to tell everybody who waits and to end within `HURRY_SECONDS`; the
    third ends the process at once."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        await anext(signals)
        stop.set()
        await anext(signals)
        hurry.set()
        scope.deadline = trio.current_time() + HURRY_SECONDS
        await anext(signals)
        scope.cancel()


async def tell_on_signal(statistics: Callable[[], Mapping[str, object]]) -> None:
    """SIGUSR1 asks what the process holds just now: one line in the log, whatever the level. `statistics`: its own numbers."""
    with trio.open_signal_receiver(signal.SIGUSR1) as signals:
        async for _ in signals:
            _log.log(max(logging.INFO, _log.getEffectiveLevel()), "state", extra=dict(held()) | dict(statistics()))


def held() -> dict[str, int]:
    """What this process holds of the system: trio tasks, open files, resident bytes (0 where the system does not tell)."""
    files = Path("/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd")
    pages = Path("/proc/self/statm")
    return {
        "tasks": trio.lowlevel.current_statistics().tasks_living,
        "open_files": len(os.listdir(files)) - 1,  # without the one that lists them
        "resident_bytes": int(pages.read_text().split()[1]) * resource.getpagesize() if pages.exists() else 0,
    }


def _limit() -> None:
    """No core dumps, which would hold keys and prompts; as many files as the system lets us have."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found
