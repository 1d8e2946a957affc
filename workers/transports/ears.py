"""Waits for many sockets at the price of one: an epoll of our own inside trio's.

trio arms its epoll anew for every wait of every task, which costs a system call and more Python than the read that follows.
Here a socket is registered once for its whole life, edge-triggered; one task waits in trio for the inner epoll to have
anything at all, and then wakes the readers whose sockets have news.

Edge-triggered means that news is told once. So news that comes while nobody waits is remembered, a reader that may have left
something says so (`more`), and once the peer has hung up there is always news: what remains to be read, and then the end.
Linux only, like epoll; elsewhere `open_ears` gives None, and connections wait in trio.
"""

import select
from collections.abc import Iterator
from contextlib import contextmanager

import trio

MOST_EVENTS = 128
_HUNG_UP = getattr(select, "EPOLLRDHUP", 0) | getattr(select, "EPOLLHUP", 0) | getattr(select, "EPOLLERR", 0)
_EVENTS = getattr(select, "EPOLLIN", 0) | getattr(select, "EPOLLET", 0) | _HUNG_UP


class Ear:
    """One socket's place among the ears."""

    __slots__ = ("_ears", "_fd", "_hung_up", "_news", "_reader")

    def __init__(self, ears: "Ears", fd: int) -> None:
        self._ears = ears
        self._fd = fd
        self._news = False
        self._hung_up = False
        self._reader: trio.lowlevel.Task | None = None

    async def wait(self) -> None:
        """Return when there may be something to read; one task at a time. A checkpoint in any case."""
        if self._news:
            self._news = self._hung_up
            await trio.lowlevel.checkpoint()
            return
        if self._reader is not None:
            raise trio.BusyResourceError("another task is reading this connection")
        self._reader = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._stop_waiting)

    def more(self) -> None:
        """The reader has not emptied the socket."""
        self._news = True

    def tell(self, events: int) -> None:
        """News for whoever reads, or for whoever will."""
        if events & _HUNG_UP:
            self._news = self._hung_up = True
        if self._reader is not None:
            reader, self._reader = self._reader, None
            trio.lowlevel.reschedule(reader)
        else:
            self._news = True

    def close(self) -> None:
        """Leave the ears, before the socket is closed; a reader wakes and finds it so."""
        self._ears.forget(self._fd)
        self.tell(_HUNG_UP)

    def _stop_waiting(self, _: object) -> trio.lowlevel.Abort:
        self._reader = None
        return trio.lowlevel.Abort.SUCCEEDED


class Ears:
    """All sockets of one process that are read by exchanges."""

    def __init__(self, epoll: "select.epoll") -> None:
        self._epoll = epoll
        self._ears: dict[int, Ear] = {}

    def listen(self, fd: int) -> Ear:
        """Register a socket; what it has at this moment counts as news."""
        ear = self._ears[fd] = Ear(self, fd)
        self._epoll.register(fd, _EVENTS)
        return ear

    def forget(self, fd: int) -> None:
        if self._ears.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    async def run(self) -> None:
        """Tell news until cancelled."""
        while True:
            await trio.lowlevel.wait_readable(self._epoll)
            for fd, events in self._epoll.poll(0, MOST_EVENTS):
                if (ear := self._ears.get(fd)) is not None:
                    ear.tell(events)


@contextmanager
def open_ears() -> Iterator[Ears | None]:
    """Ears for as long as the block runs, or None; somebody must `run` them."""
    if not hasattr(select, "epoll"):
        yield None
        return
    with select.epoll() as epoll:
        yield Ears(epoll)
