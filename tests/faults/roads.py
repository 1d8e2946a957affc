"""A house whose processes reach Redis through chaos proxies: one for the frontends, one for the workers."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import trio

from tests.faults.chaos_proxy import ChaosProxy
from tests.faults.house import House
from tests.faults.streams import Told, assert_exact, stream
from tests.waiting import until

BEGIN_SECONDS = 20.0
"""For all streams to have begun, on a machine that others use as well."""


@dataclass
class Roads:
    """`front` and `back`: the ways of the frontends and of the workers to Redis."""

    house: House
    front: ChaosProxy
    back: ChaosProxy

    def of(self, side: str) -> list[ChaosProxy]:
        """`front`, `back` or `both`."""
        return [proxy for name, proxy in (("front", self.front), ("back", self.back)) if side in (name, "both")]


async def build_roads(house: House, *, workers: int = 2, **environment: str) -> Roads:
    """Open the house, one frontend and some workers, with a proxy on either road."""
    roads = Roads(house, *(ChaosProxy(("127.0.0.1", house.redis.port)) for _ in range(2)))
    for proxy in (roads.front, roads.back):
        await house.nursery.start(proxy.run)
    await house.open(frontends=0, workers=0, warm_up=False, **environment)
    house.add_frontend(REDIS_URL=f"redis://127.0.0.1:{roads.front.port}/0")
    for _ in range(workers):
        house.add_worker(REDIS_URL=f"redis://127.0.0.1:{roads.back.port}/0")
    await house.ready()
    await house.warm_up()
    return roads


@dataclass
class Streams:
    """Streams under way. `told`: what each caller has been told so far."""

    house: House
    told: list[Told] = field(default_factory=list)

    def assert_complete(self) -> None:
        """Every text is exactly what the upstream sent in the one call that was made for it."""
        for number, told in enumerate(self.told):
            assert told.ended == "complete", f"stream {number}: {told.outcome} after {len(told.pieces)} pieces"
            assert_exact(told, self.house.ledger, f"ask{number}")
        assert self.house.ledger.calls_seen == len(self.told)

    def assert_exact(self) -> dict[str, int]:
        """Every text is exact, or an exact beginning that ends with an error; how many ended how."""
        for number, told in enumerate(self.told):
            assert_exact(told, self.house.ledger, f"ask{number}")
        outcomes = [told.outcome for told in self.told]
        return {one: outcomes.count(one) for one in dict.fromkeys(outcomes)}


async def under_streams(
    house: House, fault: Callable[[], Awaitable[object]], *, count: int = 5, chunks: int = 100, gap: float = 0.02
) -> Streams:
    """Begin streams, wait until each caller has seen three pieces, inject the fault, and read on to the end."""
    streams = Streams(house, [Told() for _ in range(count)])
    async with trio.open_nursery() as nursery:
        for number, told in enumerate(streams.told):
            words = f"ask{number} sim:chunks={chunks} sim:gap={gap}"
            nursery.start_soon(lambda words=words, told=told: stream(house, words, told=told))
        await until(lambda: all(len(told.pieces) >= 3 for told in streams.told), BEGIN_SECONDS)
        await fault()
    return streams
