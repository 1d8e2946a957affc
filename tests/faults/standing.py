"""A house that stands for a whole module: its processes are started once, and every test visits them and is audited.

For faults that leave the processes as they were. Each visit has an upstream of its own at the same port, so its ledger knows
exactly what that test caused. What earlier visits taught the gateway about the upstream (credentials that rest, a circuit
that is open) is forgotten before the next.
"""

import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace

import trio

from tests.end_to_end.gateway import Gateway, Process, free_port, gateway
from tests.faults.audit import audit
from tests.faults.house import Held, House
from tests.faults.scripted_upstream import ScriptedUpstream
from tests.redis_server import RedisServer

KEY = "sk-upstream-0123456789abcdef"
MODEL = "gpt-4o-mini"
LESSONS = (b"sluice:credentials:*", b"sluice:circuit:*")


@dataclass
class Standing:
    """`before`: what the processes held when the first visit had warmed them up."""

    gateway: Gateway
    port: int
    frontends: list[Process] = field(default_factory=list)
    workers: list[Process] = field(default_factory=list)
    before: dict[str, Held] = field(default_factory=dict)

    @contextlib.asynccontextmanager
    async def visited(self, *, patience_seconds: float = 13.0) -> AsyncIterator[House]:
        """A house for one test, audited when the block has ended well."""
        upstream = ScriptedUpstream(keys=[KEY])
        async with trio.open_nursery() as nursery:
            house = House(self.gateway, nursery, upstream, frontends=self.frontends, workers=self.workers)
            await nursery.start(upstream.serve, self.port)
            await house.ready()
            if not self.before:
                await house.warm_up()
                self.before = house.before
            self._forget()
            house.before = {
                name: Held(held.jobs, held.tasks, held.files, (await house.held(process)).resident)
                for process in house.processes
                for name, held in self.before.items()
                if process.name == name
            }
            yield house
            await audit(house, patience_seconds=patience_seconds)
            nursery.cancel_scope.cancel()

    def _forget(self) -> None:
        redis = self.gateway.redis.client
        for pattern in LESSONS:
            for key in redis.scan_iter(pattern):
                redis.delete(key)


@contextlib.contextmanager
def standing_house(*, frontends: int = 1, workers: int = 1, **environment: str) -> Iterator[Standing]:
    """Start the processes of a module. `environment` is common to all of them."""
    port = free_port()
    with contextlib.closing(RedisServer()) as redis, gateway(redis) as running:
        running.environment |= {
            "OPENAI_API_KEY": KEY,
            "OPENAI_BASE_URL": f"http://127.0.0.1:{port}/v1",
            "OPENAI_MODELS": MODEL,
        } | environment
        house = Standing(running, port)
        house.frontends += [running.frontend() for _ in range(frontends)]
        house.workers += [running.worker("openai") for _ in range(workers)]
        for frontend_port in running.ports:
            running.wait_ready(MODEL, port=frontend_port)
        yield house


async def bounded(house: House, most_bytes: int) -> None:
    """Memory that was needed once may stay with its process, up to `most_bytes`; the audit looks for what comes on top."""
    for process in house.processes:
        before, now = house.before[process.name], await house.held(process)
        assert now.resident - before.resident < most_bytes, process.name
        house.before[process.name] = replace(before, resident=now.resident)
