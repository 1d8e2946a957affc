"""Waiting for a condition that nothing announces."""

from collections.abc import Callable

import trio

POLL_SECONDS = 0.001


async def until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    """Return when the condition holds; `trio.TooSlowError` if it does not within `seconds`."""
    with trio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110 - there is no event: the condition is about another process
            await trio.sleep(POLL_SECONDS)
