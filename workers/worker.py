"""One worker process put together: it claims, attempts, publishes, obeys orders, advertises and drains.

1. Orders from owners arrive on the worker's channel and are carried out synchronously, the moment they are read.
2. One watch looks at all attempts four times a second: deadlines, and a Redis that has been away for too long.
3. Draining: no more claims; jobs whose upstream was not asked yet go back to their owners at once; what runs may finish within
   `drain_seconds`; the rest fails in a way that its owner may retry.
"""

import logging
import time
from dataclasses import dataclass
from typing import Final

import msgspec
import trio

from shared.errors import Failure
from shared.neighbours import Neighbours
from shared.redis import keys
from shared.redis.blocking import BlockingLink
from shared.redis.credentials.pool import Pool
from shared.redis.link import Link
from shared.redis.presence import advertise
from shared.redis.subscription import Subscription
from shared.schema.advertisement import WorkerAdvertisement
from shared.schema.job import Job, OrderKind, Orders
from shared.sealing import Seal, SealBroken
from workers.attempt import Attempt, Limits, Means, Transports
from workers.circuits import Circuits
from workers.credentials import Credentials
from workers.intake import Intake
from workers.keeper import Keeper
from workers.observe import Observer
from workers.outbox import Outbox
from workers.provider import Provider

_log = logging.getLogger(__name__)
_orders = msgspec.msgpack.Decoder(Orders)

WATCH_SECONDS: Final = 0.25
REDIS_AWAY_SECONDS: Final = 10.0
LAST_WORDS_SECONDS: Final = 2.0
"""How long a leaving worker waits for its owners to say that they have every last frame."""


@dataclass(frozen=True)
class Roads:
    """The worker's connections to Redis: commands, blocking reads, its channel. Past Redis: its name and its neighbours."""

    link: Link
    blocking: BlockingLink
    subscription: Subscription
    neighbours: Neighbours


class Worker:
    """A worker of one provider. `id` is its name among its neighbours, and random: another start is another worker."""

    def __init__(
        self, provider: Provider, roads: Roads, seal: Seal, transports: Transports, limits: Limits,
        *, observer: Observer, concurrency: int, version: str,
    ) -> None:  # fmt: skip
        self.id = worker_id = roads.neighbours.id
        self._provider = provider
        self._news_channel = keys.pool_news(provider.name)
        self._roads = roads
        self._seal = seal
        self._version = version
        self._started = time.time()
        self._limits = limits
        self._attempts: set[Attempt] = set()
        self._nursery: trio.Nursery | None = None
        self.outbox = Outbox(roads.link, seal, worker_id, roads.neighbours.ask)
        self.intake = Intake(
            provider.name, roads.link, roads.blocking, seal, concurrency, accept=self._accept, refuse=self.outbox.refuse
        )
        pool = Pool(roads.link, seal, provider.name)
        self.keeper = Keeper(provider, pool, transports.http, worker_id)
        self.credentials = Credentials(
            provider, pool, worker_id, calls=limits.calls_per_credential,
            wanted=self.keeper.look_again, starving=self.intake.pause,
        )  # fmt: skip
        self.circuits = Circuits(roads.link, provider.name, watched=limits.circuit)
        self._means = Means(
            provider, self.credentials, transports, self.outbox, limits, roads.link, observer, self.circuits
        )

    async def run(self, stop: trio.Event, hurry: trio.Event, drain_seconds: float) -> None:
        """Work until `stop` is set and what ran then has finished, or `drain_seconds` have passed, or `hurry` is set."""
        async with trio.open_nursery() as upkeep:
            upkeep.start_soon(advertise, self._roads.link, "worker", self.id, self._advertisement)
            upkeep.start_soon(self._roads.neighbours.run)
            upkeep.start_soon(self.outbox.run)
            upkeep.start_soon(self.credentials.run)
            upkeep.start_soon(self.circuits.run)
            upkeep.start_soon(self.keeper.run)
            upkeep.start_soon(self._watch)
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self.intake.run)
                await stop.wait()
                self.intake.drain()
                _log.info("draining: %d attempts run", len(self._attempts))
                upkeep.start_soon(self._stop_stragglers, hurry, drain_seconds)
            with trio.move_on_after(LAST_WORDS_SECONDS):
                await self.outbox.emptied()
            _log.info("stopped")
            upkeep.cancel_scope.cancel()

    async def _stop_stragglers(self, hurry: trio.Event, drain_seconds: float) -> None:
        leaving = Failure("shutting_down", "The worker is shutting down; try again.")
        for attempt in list(self._attempts):
            if not attempt.asked:
                attempt.stop(leaving)
        with trio.move_on_after(drain_seconds):
            await hurry.wait()
        for attempt in list(self._attempts):
            attempt.stop(leaving)

    def deliver(self, channel: bytes, message: bytes) -> None:
        """A message on one of the worker's channels. Foreign or damaged orders are logged and dropped."""
        if channel == self._news_channel:
            self.look_again()
            return
        try:
            orders = _orders.decode(self._seal.open(message, channel))
        except (SealBroken, msgspec.DecodeError, UnicodeDecodeError) as problem:
            _log.error("refused a message on the worker's channel: %s", problem)
            return
        self.outbox.answered(orders.frontend)
        for kind, job_id, attempt, seq in orders.orders:
            retained = self.outbox.find(job_id, attempt)
            if retained is None:
                if kind == OrderKind.RESEND:
                    self.outbox.remind(orders.frontend)
                continue
            if kind == OrderKind.CONSUMED:
                retained.consumed(seq)
            elif kind == OrderKind.RESEND:
                self.outbox.resend(retained, seq)
            elif kind == OrderKind.FINISHED:
                self.outbox.drop(retained)
            elif kind == OrderKind.CANCEL:
                self.outbox.drop(retained)
                retained.gone()

    def resubscribed(self) -> None:
        """Messages on the worker's channels may have been lost."""
        self.outbox.ear_restored()
        self.look_again()

    def look_again(self) -> None:
        """There are news of the credential pool, or some may have been missed."""
        self.credentials.look_again()
        self.keeper.look_again()

    def problems(self) -> list[str]:
        """What keeps this worker from taking jobs, as short sentences; empty when it is ready."""
        problems = {
            "shutting down": self.intake.draining,
            "Redis is not reachable": not self._roads.link.up,
            "not subscribed to the worker's channel": not self._roads.subscription.subscribed,
        }
        return [problem for problem, holds in problems.items() if holds]

    def statistics(self) -> dict[str, int]:
        """Attempts that run, those that are retained for their owners, and what they hold."""
        return {"running": len(self._attempts), "claimed": self.intake.running, **self.outbox.statistics()}

    def _accept(self, job: Job, probe: bool) -> None:
        assert self._nursery is not None
        self._nursery.start_soon(self._attempt, job, probe)

    async def _attempt(self, job: Job, probe: bool) -> None:
        attempt = Attempt(job, self._means, probe=probe)
        self._attempts.add(attempt)
        try:
            await attempt.run()
        finally:
            self._attempts.discard(attempt)
            self.intake.one_more_done()

    async def _watch(self) -> None:
        while True:
            await trio.sleep(WATCH_SECONDS)
            now = trio.current_time()
            self.outbox.flush()
            for attempt in list(self._attempts):
                attempt.expire(now)
            down_since = self._roads.link.down_since
            if down_since is not None and now - down_since > REDIS_AWAY_SECONDS and self._attempts:
                _log.error(
                    "Redis has been away for %.0f s, giving up %d attempts", now - down_since, len(self._attempts)
                )
                self.outbox.abandon_all()

    def _advertisement(self) -> WorkerAdvertisement:
        provider = self._provider
        return WorkerAdvertisement(
            id=self.id,
            provider=provider.name,
            models=list(provider.models),
            endpoints=list(provider.endpoints),
            room=self.intake.room,
            running=self.intake.running,
            version=self._version,
            started=self._started,
            sealing_key=self._seal.fingerprint,
            opens=list(self._seal.ring),
            accepts_any_model=provider.accepts_any_model,
            caller_credentials=provider.caller_credentials,
            draining=self.intake.draining,
            total_seconds=self._limits.total,
        )
