"""One frontend process: its parts, how they hang together, and the order in which they start and stop.

1. the link to Redis, whose user must have our rights; then our ear, on which workers answer;
2. upkeep: the catalog, callers' keys, the watch over all jobs, our advertisement;
3. the server. `stop` ends it when its last answer is over, `hurry` at once; what owes something to others comes after it.
"""

import hashlib
import logging
import time
from functools import partial
from typing import Final

import trio

from frontend.admission import Admission
from frontend.app import create_app
from frontend.cache import AnswerCache
from frontend.catalog import Catalog
from frontend.edge import Cors
from frontend.jobs import Jobs
from frontend.known_keys import KnownKeys
from frontend.live import Live
from frontend.observe import Observer
from frontend.overview import Lookout
from frontend.own_voice import OwnVoice
from frontend.server import ServerSettings, serve
from frontend.services import Services
from frontend.statistics import Statistics
from frontend.usage_today import UsageToday
from frontend.watch import Patience, Watch
from shared.errors import Failure
from shared.exposition import Exposition
from shared.measuring import Measures
from shared.neighbours import Neighbours
from shared.process import stop_on_signal, tell_on_signal
from shared.pulse import pulse
from shared.redis import keys
from shared.redis.address import Address
from shared.redis.answers import Answers
from shared.redis.callers import CallerStore
from shared.redis.health import measure_redis
from shared.redis.link import Link
from shared.redis.presence import advertise
from shared.redis.rights import FRONTEND, require_rights
from shared.redis.subscription import Subscription
from shared.schema.advertisement import FrontendAdvertisement
from shared.sealing import Seal
from shared.settings import FrontendSettings
from shared.tracing import Tracer
from shared.version import VERSION

_log = logging.getLogger(__name__)

SETTLE_SECONDS: Final = 2.0
"""For Redis to confirm what was owed for the last jobs."""
LAST_WORDS_SECONDS: Final = 1.0
"""For the error events of streams that outlive the drain."""


class Frontend:
    """Everything that one process consists of. Nothing runs before `run`."""

    def __init__(self, settings: FrontendSettings, tracer: Tracer) -> None:
        self._settings = settings
        self._started = time.time()
        self._stop, self._hurry = trio.Event(), trio.Event()
        address = Address.parse(settings.redis_url.reveal())
        ring = [key.reveal() for key in settings.secret_keys]
        self._seal = seal = Seal(ring)
        self._neighbours = Neighbours("f")
        self.id = self._neighbours.id
        self._link = link = Link(address, name="sluice-frontend")
        self._jobs = jobs = Jobs(self.id, link, seal, queue_limit=settings.queue_limit, max_starts=settings.max_starts)
        self._catalog = catalog = Catalog(
            link,
            seal.ring,
            aliases=settings.model_aliases,
            default_model=settings.default_model or None,
            started=int(self._started),
            routes=settings.routes,
        )
        patience = Patience(settings.queue_seconds, settings.keepalive_comment_seconds)
        self._voice = OwnVoice(link, self.id, jobs.liveness)
        self._watch = Watch(jobs, catalog, self._voice, self._neighbours, patience)
        self._subscription = Subscription(
            address,
            [keys.frontend_channel(self.id), self._voice.channel, keys.CALLERS_NEWS],
            name="sluice-frontend-frames",
            on_resubscribed=self._watch.resubscribed,
        )
        link.on_down.append(self._subscription.moved)
        link.on_up.append(jobs.settling.came_up)

        callers = CallerStore(link, seal)
        self._known_keys = KnownKeys(callers)
        self._statistics = Statistics()
        self._measures = Measures("frontend", VERSION)
        measure_redis(self._measures, link, self._subscription)
        lookout = Lookout(link, catalog, UsageToday(link, callers), self.id, VERSION)
        self._live = Live(lookout.read)
        pepper = hashlib.sha256(b"sluice fingerprints" + ring[0].encode()).digest()
        self._server = _server(settings)
        self._services = Services(
            settings=settings,
            server=self._server,
            admission=Admission(
                [key.reveal() for key in settings.api_keys],
                pepper,
                open_door=settings.auth == "off",
                store=callers,
                known=self._known_keys,
            ),
            catalog=catalog,
            jobs=jobs,
            cache=AnswerCache(Answers(link, seal, settings.cache_bytes) if settings.cache_bytes else None, pepper),
            readiness=self.problems,
            statistics=self._statistics,
            lookout=lookout,
            live=self._live,
            measures=self._measures,
            observer=Observer(self._measures, catalog, jobs),
            tracer=tracer,
            version=VERSION,
        )

    def problems(self) -> list[str]:
        """What keeps this process from serving, as short sentences."""
        problems = {
            "shutting down": self._stop.is_set(),
            "Redis is not reachable": not self._link.up,
            "not subscribed to the frontend's channel": not self._subscription.subscribed,
            "the catalog was not read yet": not self._catalog.read_once,
        }
        return [problem for problem, holds in problems.items() if holds]

    async def run(self) -> None:
        """Serve until a signal says that it is enough, and all that was begun has ended."""
        app = create_app(self._services)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stop_on_signal, self._stop, self._hurry, nursery.cancel_scope)
            nursery.start_soon(tell_on_signal, lambda: {"jobs": len(self._jobs), **self._jobs.counts})
            nursery.start_soon(self._neighbours.run)
            await nursery.start(self._link.run)
            await require_rights(self._link, FRONTEND)
            await nursery.start(self._subscription.run, self._deliver)
            nursery.start_soon(self._known_keys.run)
            nursery.start_soon(self._catalog.run)
            nursery.start_soon(self._watch.run)
            nursery.start_soon(pulse, self._measures)
            nursery.start_soon(self._live.run, self._stop)
            nursery.start_soon(advertise, self._link, "frontend", self.id, self._advertisement)
            nursery.start_soon(self._end_streams)
            if self._settings.metrics_listen is not None:
                await nursery.start(Exposition(self._measures, self.problems).serve, *self._settings.metrics_listen)
            async with trio.open_nursery() as serving:
                host, port = await serving.start(partial(serve, app, self._server, shutdown=self._stop))
                _log.info("frontend %s listens on %s:%d", self.id, host, port)
            self._jobs.flush_orders()  # workers that leave as well wait to hear that we have everything
            await self._jobs.settling.finish(SETTLE_SECONDS)
            _log.info("stopped")
            nursery.cancel_scope.cancel()

    def _deliver(self, channel: bytes, message: bytes) -> None:
        if channel == self._voice.channel:
            self._voice.hear(message)
        elif channel == keys.CALLERS_NEWS:
            self._known_keys.changed(message.decode("ascii", "replace"))
        else:
            self._jobs.deliver(channel, message)

    def _advertisement(self) -> FrontendAdvertisement:
        return FrontendAdvertisement(
            id=self.id,
            address=f"{self._settings.host}:{self._settings.port}",
            streams=len(self._jobs),
            version=VERSION,
            started=self._started,
            sealing_key=self._seal.fingerprint,
            draining=self._stop.is_set(),
            flows=self._statistics.flows(self._jobs.all()),
        )

    async def _end_streams(self) -> None:
        """What is not answered when the drain is over, or cut short, ends with an error that says so, before it is cut."""
        await self._stop.wait()
        _log.info("draining: %d answers are under way", len(self._jobs))
        with trio.move_on_after(self._settings.drain_seconds):
            await self._hurry.wait()
        for job in self._jobs.all():
            job.fail(Failure("shutting_down", "The gateway is shutting down; try again."))


def _server(settings: FrontendSettings) -> ServerSettings:
    return ServerSettings(
        host=settings.host,
        port=settings.port,
        write_stall_seconds=settings.stall_seconds,
        graceful_seconds=settings.drain_seconds + LAST_WORDS_SECONDS,
        max_connections=settings.max_connections,
        max_connections_per_address=settings.max_connections_per_address,
        refusal_headers=Cors(settings.cors_origins).headers,
        reuse_port=settings.share_port,
    )
