"""`python -m workers NAME`: one worker process for one provider."""

import argparse
import importlib
import logging
import sys
from typing import TYPE_CHECKING

import trio

from shared.exposition import Exposition
from shared.measuring import Measures
from shared.neighbours import Neighbours
from shared.process import run, stop_on_signal, tell_on_signal
from shared.pulse import pulse
from shared.redis import keys
from shared.redis.address import Address
from shared.redis.blocking import BlockingLink
from shared.redis.link import Link
from shared.redis.rights import WORKER, require_rights
from shared.redis.subscription import Subscription
from shared.sealing import Seal
from shared.settings import EXIT_SETTINGS, SettingsError, WorkerSettings, load_worker
from shared.telemetry import set_up_logs
from shared.tracing import Tracer, TracingUnavailable, open_tracer
from shared.version import VERSION
from workers.attempt import Limits, Transports
from workers.discovery import Discovery
from workers.measured import measure
from workers.observe import Observer
from workers.provider import Lister, Provider, SessionUser
from workers.registry import build
from workers.transports.dial import Dialer, Proxy, tls_context
from workers.transports.ears import Ears, open_ears
from workers.transports.http import HttpTransport
from workers.worker import Roads, Worker

if TYPE_CHECKING:
    from workers.transports.sessions import Sessions

_log = logging.getLogger("workers")

IDLE_CONNECTIONS = 100
IDLE_SECONDS = 60.0


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m workers",
        description="Run one worker: it claims a provider's jobs from Redis and calls the upstream.",
        epilog="Example: OPENAI_API_KEY=sk-… python -m workers openai",
    )
    parser.add_argument(
        "provider",
        help="openai, deepseek, cerebras, kimi, dashscope, huggingface, flowgpt, langfast, echo, or one of your own",
    )
    name = parser.parse_args().provider
    try:
        settings = load_worker(name)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return EXIT_SETTINGS
    set_up_logs(settings.log_level, settings.log_format or "json")
    try:
        tracer = open_tracer(settings.otel, f"worker-{settings.provider.name}", VERSION)
    except TracingUnavailable as error:
        print(error, file=sys.stderr)
        return EXIT_SETTINGS
    status = run(lambda: _run(settings, tracer))
    tracer.close()
    return status


async def _run(settings: WorkerSettings, tracer: Tracer) -> None:
    provider = build(settings)
    address = Address.parse(settings.redis_url.reveal())
    neighbours = Neighbours("w")
    seal = Seal([key.reveal() for key in settings.secret_keys])
    name = f"sluice-worker-{provider.name}"
    deadlines = settings.provider.deadlines
    limits = Limits(
        first_token=settings.first_token_seconds or deadlines.first_token_seconds,
        silence=settings.silence_seconds or deadlines.silence_seconds,
        total=settings.total_seconds or deadlines.total_seconds,
        calls_per_credential=settings.provider.calls_per_credential,
        answer_bytes=settings.answer_limit_bytes,
        circuit=settings.circuit,
    )
    link = Link(address, name=name)
    with BlockingLink(address, name=f"{name}-claims") as blocking, open_ears() as ears:
        transport = HttpTransport(
            connect_seconds=deadlines.connect_seconds,
            idle_connections=IDLE_CONNECTIONS,
            idle_seconds=IDLE_SECONDS,
            proxy=settings.upstream_proxy.reveal() if settings.upstream_proxy else None,
            ears=ears,
        )
        sessions = _sessions(provider, settings, ears)
        channels = [keys.worker_channel(neighbours.id), keys.pool_news(provider.name)]
        subscription = Subscription(
            address, channels, name=f"{name}-orders", on_resubscribed=lambda: worker.resubscribed()
        )
        link.on_down.append(subscription.moved)
        measures = Measures("worker", VERSION, provider.name)
        roads = Roads(link, blocking, subscription, neighbours)
        worker = Worker(
            provider, roads, seal, Transports(transport, sessions), limits,
            observer=Observer(measures, provider.name, neighbours.id, tracer),
            concurrency=settings.concurrency, version=VERSION,
        )  # fmt: skip
        measure(measures, worker, provider.name, roads, transport, limits.calls_per_credential)
        stop, hurry = trio.Event(), trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stop_on_signal, stop, hurry, nursery.cancel_scope)
            nursery.start_soon(tell_on_signal, worker.statistics)
            if ears is not None:
                nursery.start_soon(ears.run)
            if sessions is not None:
                await nursery.start(sessions.run)
            await nursery.start(link.run)
            await require_rights(link, WORKER)
            await nursery.start(subscription.run, worker.deliver)
            nursery.start_soon(pulse, measures)
            if settings.metrics_listen is not None:
                await nursery.start(Exposition(measures, worker.problems).serve, *settings.metrics_listen)
            if settings.discover_seconds and isinstance(provider, Lister) and not settings.provider.chosen_models:
                discovery = Discovery(provider, provider.name, link, transport, settings.discover_seconds)
                nursery.start_soon(discovery.run)
            _log.info("worker %s of %s is ready", worker.id, provider.name)
            await worker.run(stop, hurry, settings.drain_seconds)
            await transport.aclose()
            if sessions is not None:
                await sessions.aclose()
            nursery.cancel_scope.cancel()


def _sessions(provider: Provider, settings: WorkerSettings, ears: Ears | None) -> "Sessions | None":
    """For a provider that uses sessions. What they take is loaded here, because it would make every worker 10 MB larger."""
    if not isinstance(provider, SessionUser):
        return None
    proxy = Proxy.from_url(settings.upstream_proxy.reveal()) if settings.upstream_proxy else None
    dialer = Dialer(tls_context(), settings.provider.deadlines.connect_seconds, proxy, ears)
    sessions: Sessions = importlib.import_module("workers.transports.sessions").Sessions(dialer)
    return sessions


if __name__ == "__main__":
    sys.exit(main())
