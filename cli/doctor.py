"""`sluice doctor`: looks at everything that a gateway needs, and says what to do about what is not well.

1. settings: what is wrong with them, which providers are configured
2. Redis: does it answer, how fast, how old is it, will it throw data away, or lose callers' keys when it ends
3. processes: who advertises itself, is there a worker for each configured provider, do all seal with our key, did any
   job take workers along
4. gateway: is it ready, does it accept our key
5. upstreams: does each answer, does it accept each key, does it know the models that we offer

Every check is a generator of findings and runs whatever the others found; only wrong settings end it early.
"""

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import httpx2
import msgspec
import redis
from rich.console import Console
from rich.text import Text

from cli.advertisements import live_frontends, live_workers
from cli.embedded import OLDEST_VERSION, NoServer, find_server
from cli.gateway import GatewayTrouble, client, model_ids, of_settings
from shared.redis import dead_jobs, keys
from shared.schema.advertisement import WorkerAdvertisement
from shared.sealing import Seal
from shared.settings import (
    ProviderSettings,
    Secret,
    UpSettings,
    WorkerSettings,
    check,
    load_up,
    load_worker,
    process_environment,
    split_model,
)
from shared.settings.providers import KNOWN

REDIS_SECONDS = 2.0
UPSTREAM_SECONDS = 10.0
SLOW_REDIS_SECONDS = 0.005
_RECENT_SECONDS = 24 * 3600.0
_PINGS = 21

Level = Literal["good", "notice", "bad"]
_MARKS: dict[Level, tuple[str, str]] = {"good": ("✓", "green"), "notice": ("!", "yellow"), "bad": ("✗", "red")}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `advice`: what to do, where something is not well."""

    level: Level
    subject: str
    sentence: str
    advice: str = ""


def examine(console: Console | None = None) -> int:
    """Look at everything and print what was found; 1 if something is bad, else 0."""
    console = console or Console(soft_wrap=True, highlight=False)
    worst_is_bad = False
    for finding in findings():
        mark, style = _MARKS[finding.level]
        console.print(Text.assemble((f"{mark} ", style), (f"{finding.subject:<11}", "bold"), finding.sentence))
        if finding.advice:
            console.print(Text(f"  {'':<11}-> {finding.advice}", style=style))
        worst_is_bad |= finding.level == "bad"
    return 1 if worst_is_bad else 0


def findings() -> Iterator[Finding]:
    """Everything, in the order of the list above."""
    environ = process_environment()
    problems = check(environ)
    for problem in problems:
        yield Finding("bad", "settings", str(problem), "`sluice settings` shows all of them as they stand")
    if problems:
        return
    settings = load_up(environ)
    providers = [provider.name for provider in settings.providers]
    yield Finding("good", "settings", f"in order; configured: {', '.join(providers)}")
    if providers == ["echo"]:
        yield Finding(
            "notice", "settings", "no upstream has a key, so only `echo` answers", "set OPENAI_API_KEY or another"
        )
    yield from _redis(settings)
    yield from _gateway(settings)
    worker = load_worker("echo", environ)
    for provider in settings.providers:
        if provider.base_url:
            yield from _upstream(provider, worker)


# Redis and who is alive


def _redis(settings: UpSettings) -> Iterator[Finding]:
    server: Any = redis.Redis.from_url(
        settings.frontend.redis_url.reveal(), socket_timeout=REDIS_SECONDS, socket_connect_timeout=REDIS_SECONDS
    )
    try:
        with server:
            server.ping()
            yield from _server(server)
            yield from _processes(server, settings)
            yield from _dead_jobs(server)
    except (redis.RedisError, OSError) as error:
        yield _no_redis(settings, error)


def _no_redis(settings: UpSettings, error: Exception) -> Finding:
    if settings.redis_is_given:
        return Finding("bad", "redis", f"does not answer: {error}", "check REDIS_URL, its password, and that it runs")
    try:
        return Finding("bad", "redis", f"none runs; `sluice up` will start {find_server()}", "run `sluice up`")
    except NoServer as missing:
        return Finding("bad", "redis", "none runs", str(missing))


def _server(server: Any) -> Iterator[Finding]:
    took: list[float] = []
    for _ in range(_PINGS):
        began = time.perf_counter()
        server.ping()
        took.append(time.perf_counter() - began)
    median = statistics.median(took)
    known: dict[str, Any] = server.info()
    name = "Valkey" if "valkey_version" in known else "Redis"
    version = str(known.get("valkey_version") or known["redis_version"])
    sentence = f"{name} {version} answers in {median * 1000:.2f} ms"
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_VERSION:
        yield Finding("bad", "redis", sentence, "install 6.2 or later")
    elif median > SLOW_REDIS_SECONDS:
        yield Finding("notice", "redis", sentence, "every token crosses it; bring it nearer")
    else:
        yield Finding("good", "redis", sentence)
    if known.get("maxmemory_policy") != "noeviction":
        yield Finding(
            "bad",
            "redis",
            f"throws data away when it is full (maxmemory-policy {known.get('maxmemory_policy')})",
            "`redis-cli config set maxmemory-policy noeviction`, and in redis.conf",
        )
    if not known.get("maxmemory"):
        yield Finding(
            "notice",
            "redis",
            "may take all the memory of its machine",
            "set maxmemory in redis.conf, for example 512mb",
        )
    yield from _kept(server, known)


def _kept(server: Any, known: dict[str, Any]) -> Iterator[Finding]:
    """Whether callers' keys survive an end of Redis."""
    count = server.hlen(keys.CALLERS)
    if not count:
        return
    if known.get("aof_enabled"):
        yield Finding("good", "redis", f"writes down each change; {count} keys of callers survive its end")
        return
    try:
        snapshots = bool(server.config_get("save").get("save"))
    except redis.ResponseError:
        snapshots = None  # a rented one, which does not let itself be asked
    has = {True: "writes down snapshots only", False: "keeps nothing", None: "does not say what it keeps"}[snapshots]
    yield Finding(
        "notice",
        "redis",
        f"{has}, and {count} keys of callers are in it, with their limits and usage",
        "have it write down each change: `redis-cli config set appendonly yes`, and in redis.conf",
    )


def _dead_jobs(server: Any) -> Iterator[Finding]:
    """Jobs that several workers died of; who of them is to blame, the log tells by the request id."""
    recent = [
        job for job in dead_jobs.read(server.lrange(keys.DEAD, 0, -1)) if time.time() - job.time < _RECENT_SECONDS
    ]
    if recent:
        last = recent[0]
        yield Finding(
            "bad",
            "dead jobs",
            f"{len(recent)} jobs took their workers along in the last day, the last for {last.provider}/{last.model}",
            f"look for {last.request_id} in the logs of {', '.join(last.workers)}",
        )


def _processes(server: Any, settings: UpSettings) -> Iterator[Finding]:
    fingerprint = Seal([key.reveal() for key in settings.frontend.secret_keys]).fingerprint
    frontends = live_frontends(server)
    workers = live_workers(server)
    if not frontends and not workers:
        yield Finding("bad", "processes", "no process of a gateway is alive", "run `sluice up`")
        return
    streams = sum(one.streams for one in frontends)
    if frontends:
        yield Finding("good", "frontends", f"{len(frontends)} alive, {streams} streams open")
    else:
        yield Finding("bad", "frontends", "none is alive", "run `sluice up` or `sluice frontend`")
    for name in sorted({one.provider for one in workers} | {provider.name for provider in settings.providers}):
        yield _workers(name, [one for one in workers if one.provider == name])
    seals = {one.id: one.sealing_key for one in frontends} | {one.id: one.sealing_key for one in workers}
    strangers = [name for name, sealing_key in seals.items() if sealing_key != fingerprint]
    if strangers:
        yield Finding(
            "bad",
            "processes",
            f"{len(strangers)} seal with another secret key than ours: {', '.join(strangers)}",
            "give all of them the same SLUICE_SECRET_KEY",
        )


def _workers(provider: str, alive: Sequence[WorkerAdvertisement]) -> Finding:
    if not alive:
        return Finding("bad", "workers", f"none for {provider}", f"run `sluice worker {provider}`")
    room, running = sum(one.room for one in alive), sum(one.running for one in alive)
    sentence = f"{len(alive)} for {provider}, {running} jobs running, room for {room} more"
    if all(one.draining for one in alive):
        return Finding("notice", "workers", f"{sentence}; all are about to stop", f"run `sluice worker {provider}`")
    if room <= 0:
        return Finding("notice", "workers", sentence, f"run another `sluice worker {provider}`")
    return Finding("good", "workers", sentence)


# The gateway


def _gateway(settings: UpSettings) -> Iterator[Finding]:
    gateway = of_settings(settings.frontend)
    try:
        with client() as http:
            answer = http.get(f"{gateway.url}/health/ready")
            if answer.status_code != 200:
                reasons = "; ".join(msgspec.json.decode(answer.content).get("problems", []))
                yield Finding("bad", "gateway", f"{gateway.url} is not ready: {reasons}", "see the findings above")
                return
            if gateway.key is None and settings.frontend.auth == "on":
                yield Finding("good", "gateway", f"{gateway.base_url} is ready; callers bring their own upstream key")
                return
            models = model_ids(gateway, http)
    except httpx2.HTTPError as error:
        yield Finding("bad", "gateway", str(gateway.explain(error)))
    except (GatewayTrouble, msgspec.DecodeError) as trouble:
        yield Finding("bad", "gateway", str(trouble), "is it another program that listens there?")
    else:
        yield Finding("good", "gateway", f"{gateway.base_url} is ready, accepts our key, offers {len(models)} models")


# Upstreams


def _upstream(provider: ProviderSettings, worker: WorkerSettings) -> Iterator[Finding]:
    keys_to_try: Sequence[Secret | None] = provider.keys or (None,)
    proxy = worker.upstream_proxy.reveal() if worker.upstream_proxy else None
    known = KNOWN.get(provider.name)
    with httpx2.Client(trust_env=False, timeout=UPSTREAM_SECONDS, proxy=proxy) as http:
        if known is not None and not known.speaks_openai:
            yield _reach(http, provider)
            return
        for number, key in enumerate(keys_to_try, start=1):
            named = f"{provider.name} key {number}" if len(keys_to_try) > 1 else provider.name
            yield _ask_upstream(http, provider, key, named)


def _reach(http: httpx2.Client, provider: ProviderSettings) -> Finding:
    """Whether anything answers: what has no list of models has no way to try a key that costs nothing."""
    try:
        http.get(provider.base_url)
    except httpx2.HTTPError as error:
        return _unreachable(provider, provider.name, error)
    return Finding("good", "upstream", f"{provider.name}: {provider.base_url} answers; only a call would try its keys")


def _unreachable(provider: ProviderSettings, named: str, error: httpx2.HTTPError) -> Finding:
    return Finding(
        "bad",
        "upstream",
        f"{named}: {provider.base_url} cannot be reached ({error or type(error).__name__})",
        "check the address, this machine's network, and SLUICE_UPSTREAM_PROXY",
    )


def _ask_upstream(http: httpx2.Client, provider: ProviderSettings, key: Secret | None, named: str) -> Finding:
    """Ask for the list of models, which costs nothing, with one key."""
    headers = {"authorization": f"Bearer {key.reveal()}"} if key else {}
    try:
        answer = http.get(f"{provider.base_url}/models", headers=headers)
    except httpx2.HTTPError as error:
        return _unreachable(provider, named, error)
    if answer.status_code in (401, 403):
        return Finding(
            "bad", "upstream", f"{named}: the key is refused (status {answer.status_code})", "replace the key"
        )
    if answer.status_code != 200:
        return Finding(
            "notice",
            "upstream",
            f"{named}: {provider.base_url}/models answers with status {answer.status_code}",
            "not every server lists its models; try one with `sluice chat`",
        )
    try:
        offered = {str(model["id"]) for model in answer.json()["data"]}
    except (ValueError, KeyError, TypeError):
        return Finding("notice", "upstream", f"{named}: answers, but not with a list of models", "check the address")
    own_names = [split_model(model)[1] for model in provider.models]
    missing = [model for model in own_names if model not in offered and model.partition(":")[0] not in offered]
    if missing and offered:
        return Finding(
            "notice",
            "upstream",
            f"{named}: accepts the key, but does not list {', '.join(missing)}",
            "name the models to offer in the setting that ends in _MODELS (`sluice settings`)",
        )
    return Finding("good", "upstream", f"{named}: accepts the key, lists {len(offered)} models")
