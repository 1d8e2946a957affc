"""Overviews once a second for everybody who watches: one reading for all of them, and none while nobody does."""

import logging
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
import trio

from frontend.overview import Overview
from shared.redis.failures import RedisError

_log = logging.getLogger(__name__)

PERIOD_SECONDS: Final = 1.0


class Live:
    """`read` makes an overview. A watcher that is slow misses some and always gets the latest."""

    def __init__(self, read: Callable[[], Awaitable[Overview]]) -> None:
        self._read = read
        self._watchers = 0
        self._watched = trio.Event()
        self._news = trio.Event()
        self._latest = b""
        self._count = 0
        self._over = False
        self.readings = 0

    async def run(self, stop: trio.Event) -> None:
        """Read while somebody watches, until `stop`; then every watcher's stream ends."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run)
            await stop.wait()
            nursery.cancel_scope.cancel()
        self._over = True
        self._news.set()

    async def _run(self) -> None:
        while True:
            await self._watched.wait()
            self.readings += 1
            try:
                event = _event(b"overview", await self._read())
            except RedisError as failure:
                _log.info("no overview: %s", failure)
                event = _event(b"problem", {"message": "Redis does not answer this frontend."})
            self._latest = event
            self._count += 1
            self._news.set()
            self._news = trio.Event()
            await trio.sleep(PERIOD_SECONDS)

    def watch(self) -> "Watcher":
        """Somebody watches from now on, until they call `leave`."""
        self._watchers += 1
        self._watched.set()
        return Watcher(self)

    def leave(self) -> None:
        self._watchers -= 1
        if not self._watchers:
            self._watched = trio.Event()

    async def after(self, seen: int) -> tuple[int, bytes]:
        """The latest event and its number, once that is greater than `seen`; no bytes when there will be no more."""
        while self._count == seen and not self._over:
            await self._news.wait()
        return self._count, b"" if self._over else self._latest


class Watcher:
    """The body of one watcher's stream of server-sent events, `overview` or `problem`, with JSON."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._seen = live._count

    def __aiter__(self) -> "Watcher":
        return self

    async def __anext__(self) -> bytes:
        self._seen, event = await self._live.after(self._seen)
        if not event:
            raise StopAsyncIteration
        return event


def _event(name: bytes, value: object) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name, msgspec.json.encode(value))
