"""`python -m frontend`: one frontend process."""

import argparse
import hashlib
import logging
import sys
import time
from functools import partial

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
from shared.process import run, stop_on_signal, tell_on_signal
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
from shared.settings import EXIT_SETTINGS, FrontendSettings, SettingsError, load_frontend
from shared.telemetry import set_up_logs
from shared.tracing import Tracer, TracingUnavailable, open_tracer
from shared.version import VERSION

_log = logging.getLogger("frontend")

SETTLE_SECONDS = 2.0
"""For Redis to confirm what was owed for the last jobs."""
LAST_WORDS_SECONDS = 1.0
"""For the error events of streams that outlive the drain."""


def main() -> int:
    argparse.ArgumentParser(
        prog="python -m frontend",
        description="Run one frontend: it takes OpenAI requests over HTTP and answers them through workers.",
        epilog="Example: SLUICE_API_KEY=sk-… SLUICE_PORT=8088 python -m frontend",
    ).parse_args()
    try:
        settings = load_frontend()
    except SettingsError as error:
        print(error, file=sys.stderr)
        return EXIT_SETTINGS
    set_up_logs(settings.log_level, settings.log_format)
    try:
        tracer = open_tracer(settings.otel, "frontend", VERSION)
    except TracingUnavailable as error:
        print(error, file=sys.stderr)
        return EXIT_SETTINGS
    status = run(lambda: _run(settings, tracer))
    tracer.close()
    return status


async def _run(settings: FrontendSettings, tracer: Tracer) -> None:
    address = Address.parse(settings.redis_url.reveal())
    neighbours = Neighbours("f")
    frontend_id = neighbours.id
    ring = [key.reveal() for key in settings.secret_keys]
    seal = Seal(ring)
    started = time.time()
    link = Link(address, name="sluice-frontend")
    jobs = Jobs(frontend_id, link, seal, queue_limit=settings.queue_limit, max_starts=settings.max_starts)
    catalog = Catalog(
        link,
        seal.ring,
        aliases=settings.model_aliases,
        default_model=settings.default_model or None,
        started=int(started),
        routes=settings.routes,
    )
    voice = OwnVoice(link, frontend_id, jobs.liveness)
    subscription = Subscription(
        address,
        [keys.frontend_channel(frontend_id), voice.channel, keys.CALLERS_NEWS],
        name="sluice-frontend-frames",
        on_resubscribed=lambda: watch.resubscribed(),
    )
    link.on_down.append(subscription.moved)
    link.on_up.append(jobs.settling.came_up)
    watch = Watch(
        jobs, catalog, voice, neighbours, Patience(settings.queue_seconds, settings.keepalive_comment_seconds)
    )
    statistics = Statistics()
    measures = Measures("frontend", VERSION)
    measure_redis(measures, link, subscription)
    observer = Observer(measures, catalog, jobs)
    stop, hurry = trio.Event(), trio.Event()

    def readiness() -> list[str]:
        problems = {
            "shutting down": stop.is_set(),
            "Redis is not reachable": not link.up,
            "not subscribed to the frontend's channel": not subscription.subscribed,
            "the catalog was not read yet": not catalog.read_once,
        }
        return [problem for problem, holds in problems.items() if holds]

    def advertisement() -> FrontendAdvertisement:
        return FrontendAdvertisement(
            id=frontend_id,
            address=f"{settings.host}:{settings.port}",
            streams=len(jobs),
            version=VERSION,
            started=started,
            sealing_key=seal.fingerprint,
            draining=stop.is_set(),
            flows=statistics.flows(jobs.all()),
        )

    pepper = hashlib.sha256(b"sluice fingerprints" + ring[0].encode()).digest()
    callers = CallerStore(link, seal)
    lookout = Lookout(link, catalog, UsageToday(link, callers), frontend_id, VERSION)
    live = Live(lookout.read)
    known_keys = KnownKeys(callers)
    admission = Admission(
        [key.reveal() for key in settings.api_keys], pepper,
        open_door=settings.auth == "off", store=callers, known=known_keys,
    )  # fmt: skip
    server = _server(settings)
    app = create_app(
        Services(
            settings,
            server,
            admission,
            catalog,
            jobs,
            AnswerCache(Answers(link, seal, settings.cache_bytes) if settings.cache_bytes else None, pepper),
            readiness,
            statistics,
            lookout,
            live,
            measures,
            observer,
            tracer,
            VERSION,
        )
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stop_on_signal, stop, hurry, nursery.cancel_scope)
        nursery.start_soon(tell_on_signal, lambda: {"jobs": len(jobs), **jobs.counts})
        nursery.start_soon(neighbours.run)
        await nursery.start(link.run)
        await require_rights(link, FRONTEND)
        await nursery.start(subscription.run, partial(_deliver, jobs, voice, known_keys))
        nursery.start_soon(known_keys.run)
        nursery.start_soon(catalog.run)
        nursery.start_soon(watch.run)
        nursery.start_soon(pulse, measures)
        nursery.start_soon(live.run, stop)
        nursery.start_soon(advertise, link, "frontend", frontend_id, advertisement)
        nursery.start_soon(_end_streams, stop, hurry, settings.drain_seconds, jobs)
        if settings.metrics_listen is not None:
            await nursery.start(Exposition(measures, readiness).serve, *settings.metrics_listen)
        async with trio.open_nursery() as serving:
            host, port = await serving.start(partial(serve, app, server, shutdown=stop))
            _log.info("frontend %s listens on %s:%d", frontend_id, host, port)
        jobs.flush_orders()  # workers that leave as well wait to hear that we have everything
        await jobs.settling.finish(SETTLE_SECONDS)
        nursery.cancel_scope.cancel()


def _deliver(jobs: Jobs, voice: OwnVoice, known_keys: KnownKeys, channel: bytes, message: bytes) -> None:
    if channel == voice.channel:
        voice.hear(message)
    elif channel == keys.CALLERS_NEWS:
        known_keys.changed(message.decode("ascii", "replace"))
    else:
        jobs.deliver(channel, message)


async def _end_streams(stop: trio.Event, hurry: trio.Event, drain_seconds: float, jobs: Jobs) -> None:
    """What is not answered when the drain is over, or cut short, ends with an error that says so, before the server cuts it."""
    await stop.wait()
    with trio.move_on_after(drain_seconds):
        await hurry.wait()
    for job in jobs.all():
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


if __name__ == "__main__":
    sys.exit(main())
