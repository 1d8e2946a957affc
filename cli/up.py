"""`sluice up`: a whole gateway on this machine, from one command to the first streamed answer.

1. read and check all settings; make an API key if there is none;
2. reserve the port, raise the limit of open files;
3. start Redis if none is given, on the data of the last time, and tell processes in this directory where it is;
4. start the frontends and the workers (`supervisor`), and print the banner as soon as the gateway answers;
5. on a signal: frontends, then workers, then Redis.
"""

import contextlib
import os
import shutil
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import trio

from cli import banner, plan, ports
from cli.children import Backoff, dies_with_us, ended, raise_descriptor_limit
from cli.embedded import DataInUse, EmbeddedRedis, NoServer
from cli.supervisor import Output, Supervisor, stop_signals
from shared.settings import UpSettings, load_up, process_environment
from shared.settings.providers import canonical
from shared.settings.state import REDIS_DATA, REDIS_URL, StateDir, StateError


@dataclass(frozen=True, slots=True)
class Size:
    """How many processes to start: frontends, and workers by provider where a person asked for another number than one."""

    frontends: int = 1
    workers: Mapping[str, int] | None = None


class UnknownProvider(ValueError):
    """A worker was asked for whose provider is not configured."""


def up(size: Size) -> int:
    """Run a gateway until a signal; the exit status.

    Raises:
        SettingsError, PortTaken, NoServer, UnknownProvider: before anything runs, with a sentence for a person.
    """
    environ = process_environment()
    settings = load_up()
    workers = _workers(settings, size.workers or {})
    held, port = ports.hold(settings.frontend.host, settings.frontend.port)
    raise_descriptor_limit()
    output = Output()
    with held, _redis(settings, output) as (redis, overrides):
        frontends, backs = plan.children(
            size.frontends, workers, environ, {**overrides, **_listening(port), **_for_people(settings)}
        )
        frontends = plan.on_ports(frontends, "SLUICE_METRICS_LISTEN", settings.frontend.metrics_listen)
        backs = plan.on_ports(backs, "SLUICE_WORKER_METRICS_LISTEN", settings.worker_metrics_listen)
        supervisor = Supervisor([frontends, backs], output, drain_seconds=settings.frontend.drain_seconds)
        announce = partial(banner.announce, settings.frontend, port, _kept(redis), output)
        return trio.run(_run, supervisor, announce, redis, output)


async def _run(
    supervisor: Supervisor, announce: Callable[[], Awaitable[None]], redis: EmbeddedRedis | None, output: Output
) -> int:
    with trio.open_signal_receiver(*stop_signals()) as signals:
        async with trio.open_nursery() as nursery:
            if redis is not None:
                nursery.start_soon(_keep, redis, output)
            status = await supervisor.run(signals, beside=announce)
            nursery.cancel_scope.cancel()
    return status


def _listening(port: int) -> dict[str, str]:
    """What the frontends are told: the port, which may have been any free one, and that they share it."""
    return {"SLUICE_PORT": str(port), "SLUICE_SHARE_PORT": "on"}


def _for_people(settings: UpSettings) -> dict[str, str]:
    """On a terminal the lines are for whoever sits there, unless the settings say otherwise."""
    unsaid = settings.frontend.log_format is None
    return {"SLUICE_LOG_FORMAT": "text"} if unsaid and sys.stdout.isatty() else {}


def _workers(settings: UpSettings, wanted: Mapping[str, int]) -> dict[str, int]:
    counts = {provider.name: 1 for provider in settings.providers}
    for spelled, count in wanted.items():
        name = canonical(spelled)
        if name not in counts and name != "echo":
            raise UnknownProvider(
                f"There is no configured provider {spelled}; configured: {', '.join(counts)}. "
                "`sluice settings` shows which variable sets a key."
            )
        counts[name] = count
    return {name: count for name, count in counts.items() if count > 0}


# Redis


@contextlib.contextmanager
def _redis(settings: UpSettings, output: Output) -> Iterator[tuple[EmbeddedRedis | None, dict[str, str]]]:
    """The embedded Redis, if none is given, and what the children are told of it."""
    if settings.redis_is_given:
        yield None, {}
        return
    state = StateDir(settings.frontend.state_dir)
    _sweep(state)
    redis = _started(state, output)
    try:
        try:
            state.write(REDIS_URL, redis.url)
        except StateError as error:
            output.say(f"processes started by hand will not find this Redis: {error}")
        yield redis, {"REDIS_URL": redis.url}
    finally:
        state.remove(REDIS_URL, if_holds=redis.url)
        redis.stop()


def _kept(redis: EmbeddedRedis | None) -> str:
    """What the banner says of Redis."""
    if redis is None:
        return "as REDIS_URL says"
    kept = f"keys and usage stay in {os.path.relpath(redis.data)}" if redis.data else "what it has ends with it"
    return f"its own; {kept}"


def _started(state: StateDir, output: Output) -> EmbeddedRedis:
    """A Redis that keeps what it has; where that cannot be, one that keeps nothing."""
    try:
        redis = EmbeddedRedis(preexec=dies_with_us(), data=state.directory(REDIS_DATA))
        redis.start()
    except (DataInUse, StateError) as trouble:
        output.say(f"{trouble}; callers' keys and usage of this gateway will end with it")
        redis = EmbeddedRedis(preexec=dies_with_us())
        redis.start()
    return redis


def _sweep(state: StateDir) -> None:
    """Deletes what the embedded Redis of a gateway left behind that was killed and could not."""
    with contextlib.suppress(StateError):
        left = state.read(REDIS_URL)
        path = Path(urlsplit(left).path) if left else None
        if path and path.parent.name.startswith("sluice-redis-") and not _listens(path):
            shutil.rmtree(path.parent, ignore_errors=True)
            state.remove(REDIS_URL, if_holds=str(left))


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(str(path))
        except OSError:
            return False
        return True


async def _keep(redis: EmbeddedRedis, output: Output) -> None:
    """Starts the embedded Redis again whenever it ends."""
    backoff = Backoff()
    while True:
        began = trio.current_time()
        if redis.pid is not None:
            await ended(redis.pid, redis.poll)
        pause = backoff.after_crash(trio.current_time() - began)
        output.say(f"redis ended (status {redis.poll()}); starting it again in {pause:.1f} s")
        await trio.sleep(pause)
        try:
            redis.start()
        except NoServer as error:
            output.say(str(error))
