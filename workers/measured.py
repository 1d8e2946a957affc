"""What `/metrics` reads from the parts of a worker at the moment of the scrape."""

from collections import Counter
from typing import Final

import trio

from shared.measuring import Measures, Numbers, Read
from shared.redis.credentials.standings import look
from shared.redis.failures import RedisError
from shared.redis.health import measure_redis
from shared.redis.link import Link
from shared.schema.credential import Standing
from workers.transports.http import HttpTransport
from workers.worker import Roads, Worker

POOL_SECONDS: Final = 1.0
STATES: Final = ("usable", "busy", "resting", "probation", "retired", "suspended", "expired")


def measure(
    measures: Measures, worker: Worker, provider: str, roads: Roads, transport: HttpTransport, calls: int
) -> None:
    """Have all of it read. `calls`: how many may use one credential at once, 0 for any number."""

    def of_provider(name: str, read: Read) -> None:
        measures.read(name, lambda: {(provider,): read()})  # type: ignore[dict-item]

    def connections() -> Numbers:
        now = transport.statistics()
        return {(provider, "idle"): now.idle, (provider, "busy"): now.open - now.idle}

    intake, outbox, credentials = worker.intake, worker.outbox, worker.credentials
    measure_redis(measures, roads.link, roads.subscription)
    of_provider("sluice_worker_running", lambda: intake.running)
    of_provider("sluice_worker_room", lambda: intake.room)
    of_provider("sluice_jobs_claimed_total", lambda: intake.claimed)
    of_provider("sluice_entries_refused_total", lambda: intake.refused_entries)
    of_provider("sluice_entries_taken_over_total", lambda: intake.taken_over)
    of_provider("sluice_frames_resent_total", lambda: outbox.resends)
    of_provider("sluice_frames_retained_bytes", lambda: outbox.statistics()["retained_bytes"])
    of_provider("sluice_frontends_lost_total", lambda: outbox.frontends_lost)
    of_provider("sluice_credential_waiters", lambda: credentials.waiters)
    of_provider("sluice_upstream_connections_opened_total", lambda: transport.statistics().opened)
    of_provider("sluice_upstream_connections_reused_total", lambda: transport.statistics().reused)
    measures.read("sluice_upstream_connections", connections)
    measures.read(
        "sluice_credential_verdicts_total",
        lambda: {(provider, verdict): number for verdict, number in credentials.verdicts.items()},
    )
    census = Census(roads.link, provider, calls)
    measures.before.append(census.look)
    measures.read("sluice_credentials", lambda: census.numbers)


class Census:
    """How many credentials of the provider's pool are in which state, as Redis says."""

    def __init__(self, link: Link, provider: str, calls: int) -> None:
        self.numbers: Numbers = {}
        self._link = link
        self._provider = provider
        self._calls = calls

    async def look(self) -> None:
        """Ask Redis; without an answer nothing is told."""
        self.numbers = {}
        with trio.move_on_after(POOL_SECONDS):
            try:
                standings = await look(self._link, self._provider)
            except RedisError:
                return
            found = Counter(state(standing, self._calls) for standing in standings)
            self.numbers = {(self._provider, each): found[each] for each in STATES}


def state(standing: Standing, calls: int) -> str:
    """The one word for a credential. One that rests for a single model is resting, though other models may use it."""
    states = {
        "retired": standing.retired_seconds > 0,
        "suspended": standing.suspended_seconds > 0,
        "expired": standing.expires_seconds is not None and standing.expires_seconds <= 0,
        "resting": any(seconds > 0 for seconds in standing.rests.values()),
        "probation": standing.record.state == "probation",
        "busy": 0 < calls <= standing.calls,
    }
    return next((name for name, holds in states.items() if holds), "usable")
