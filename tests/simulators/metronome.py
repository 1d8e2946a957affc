"""One timer for all streams of a simulator: `trio.sleep_until` for each of hundreds of slow streams costs twice as much.

Sleepers that are due within a millisecond of each other wake together, so that they share one pass of trio's scheduler.
Nobody wakes early; lateness is at most `GRAIN_SECONDS` beyond what the machine adds.
"""

from __future__ import annotations

import heapq
import math
from itertools import count

import trio

GRAIN_SECONDS = 0.001


class Metronome:
    """`run` has to be running in a nursery while anybody sleeps."""

    def __init__(self) -> None:
        self._sleepers: list[tuple[float, int, list[trio.lowlevel.Task]]] = []
        self._order = count()
        self._next = math.inf
        self._sooner = trio.Event()

    async def sleep_until(self, when: float) -> None:
        """Sleep until the trio clock shows `when`; a checkpoint in any case."""
        if when <= trio.current_time():
            await trio.lowlevel.checkpoint()
            return
        cell = [trio.lowlevel.current_task()]
        heapq.heappush(self._sleepers, (when, next(self._order), cell))
        if when < self._next:
            self._sooner.set()

        def abort(_: object) -> trio.lowlevel.Abort:
            cell.clear()  # the entry stays in the heap until it is due
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    async def run(self) -> None:
        """Wake the sleepers when they are due, for ever."""
        while True:
            now = trio.current_time()
            while self._sleepers and self._sleepers[0][0] <= now:
                _, _, cell = heapq.heappop(self._sleepers)
                if cell:
                    trio.lowlevel.reschedule(cell[0])
            self._next = self._sleepers[0][0] if self._sleepers else math.inf
            self._sooner = trio.Event()
            with trio.move_on_at(self._next + GRAIN_SECONDS):
                await self._sooner.wait()
