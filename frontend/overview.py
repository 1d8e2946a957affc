"""What the whole installation is doing: read from Redis, where every process says it of itself, so any frontend can tell.

The classes are the schema of `GET /admin/overview`. There is no secret in it: credentials go by their ids.
"""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import msgspec

from frontend.catalog import Catalog
from frontend.usage_today import UsageShown, UsageToday
from shared.redis import keys
from shared.redis.circuit import Circuit, circuits
from shared.redis.credentials.standings import look
from shared.redis.link import Link
from shared.redis.presence import alive
from shared.schema.advertisement import FrontendAdvertisement, WorkerAdvertisement
from shared.schema.credential import Standing
from shared.schema.statistics import Flow, quantile, total

_log = logging.getLogger(__name__)
_worker = msgspec.json.Decoder(WorkerAdvertisement)
_frontend = msgspec.json.Decoder(FrontendAdvertisement)
T = TypeVar("T")

MOST_CREDENTIALS = 200
"""Of one provider that are shown; those that are not usable come first."""


class Traffic(msgspec.Struct, frozen=True):
    """`open`: requests that are being answered now; all else is of the last minute. `left`: ended by their callers. Times in
    seconds, None if nothing was streamed. `errors`: by the code that callers were told."""

    open: int
    requests: int
    left: int
    tokens: int
    tokens_per_second: float
    first_token_p50: float | None
    first_token_p95: float | None
    errors: dict[str, int]

    @classmethod
    def of(cls, flow: Flow) -> "Traffic":
        median, late = quantile(flow.first_token, 0.5), quantile(flow.first_token, 0.95)
        return cls(
            flow.open, flow.requests, flow.left, flow.tokens, flow.tokens_per_second,
            None if median is None else round(median, 3), None if late is None else round(late, 3), flow.errors,
        )  # fmt: skip


class WorkerShown(msgspec.Struct, frozen=True):
    """`room`: jobs that it takes in addition. `started`: Unix time."""

    id: str
    room: int
    running: int
    version: str
    started: float
    draining: bool
    models: int


class FrontendShown(msgspec.Struct, frozen=True):
    """`streams`: callers that it is answering now."""

    id: str
    address: str
    streams: int
    version: str
    started: float
    draining: bool


class CredentialShown(msgspec.Struct, frozen=True):
    """`state`: `ready`, `resting` (rate limited), `probation` (one call at a time), `refused` or `unpaid` by the upstream.
    `usable_in_seconds`: 0 now. `rests`: for single models, in seconds."""

    id: str
    source: str
    state: str
    usable_in_seconds: float
    calls: int
    rests: dict[str, float]
    expires_in_seconds: float | None

    @classmethod
    def of(cls, standing: Standing) -> "CredentialShown":
        rests = dict(standing.rests)
        resting = rests.pop("", 0.0)
        aside = max(standing.retired_seconds, standing.suspended_seconds)
        if aside:
            state = "unpaid" if standing.suspended_seconds >= standing.retired_seconds else "refused"
        elif resting:
            state = "resting"
        else:
            state = "probation" if standing.record.state == "probation" else "ready"
        return cls(
            id=standing.id,
            source=standing.record.origin,
            state=state,
            usable_in_seconds=round(max(aside, resting), 1),
            calls=standing.calls,
            rests={model: round(seconds, 1) for model, seconds in sorted(rests.items())},
            expires_in_seconds=None if standing.expires_seconds is None else round(standing.expires_seconds),
        )


class CircuitShown(msgspec.Struct, frozen=True):
    """A model whose upstream fails and is left alone. `probe_in_seconds`: until one call may try; 0 once it may or does."""

    model: str
    probe_in_seconds: float
    probing: bool


class ProviderShown(msgspec.Struct, frozen=True):
    """`waiting`: jobs that no worker has taken yet. `credentials`: at most 200 of `credentials_total`. `circuits`: those that
    are not closed."""

    name: str
    traffic: Traffic
    waiting: int
    workers: list[WorkerShown]
    credentials: list[CredentialShown]
    credentials_total: int
    circuits: list[CircuitShown]


class Overview(msgspec.Struct, frozen=True):
    """Everything at one moment. `time`: Unix time. `told_by`: the frontend that answers. `usage`: since midnight (UTC), the
    busiest of `usage_total` rows."""

    time: float
    told_by: str
    version: str
    traffic: Traffic
    waiting: int
    providers: list[ProviderShown]
    frontends: list[FrontendShown]
    usage: list[UsageShown]
    usage_total: int


class Lookout:
    """Reads overviews. A provider that has lost its last worker stays in sight."""

    def __init__(self, link: Link, catalog: Catalog, usage: UsageToday, frontend_id: str, version: str) -> None:
        self._link = link
        self._usage = usage
        self._catalog = catalog
        self._id = frontend_id
        self._version = version

    async def read(self) -> Overview:
        """Raises `RedisError`."""
        workers = _decoded(_worker, await alive(self._link, "worker"))
        frontends = _decoded(_frontend, await alive(self._link, "frontend"))
        flows: dict[str, list[Flow]] = {}
        for frontend in frontends:
            for provider, flow in frontend.flows.items():
                flows.setdefault(provider, []).append(flow)
        names = sorted({worker.provider for worker in workers} | flows.keys() - {""} | self._catalog.known_providers)
        depths = await self._depths(names)
        usage, usage_total = await self._usage.read()
        seconds, microseconds = await self._link.call(b"TIME")
        now_ms = int(seconds) * 1000 + int(microseconds) / 1000
        providers = [
            ProviderShown(
                name=name,
                traffic=Traffic.of(total(flows.get(name, ()))),
                waiting=depth,
                workers=_workers(worker for worker in workers if worker.provider == name),
                credentials=_credentials(standings := await look(self._link, name)),
                credentials_total=len(standings),
                circuits=_circuits(await circuits(self._link, name), now_ms),
            )
            for name, depth in zip(names, depths, strict=True)
        ]
        return Overview(
            time=time.time(),
            told_by=self._id,
            version=self._version,
            traffic=Traffic.of(total(flow for one in flows.values() for flow in one)),
            waiting=sum(depths),
            providers=providers,
            frontends=[
                FrontendShown(one.id, one.address, one.streams, one.version, one.started, one.draining)
                for one in sorted(frontends, key=lambda one: (one.started, one.id))
            ],
            usage=usage,
            usage_total=usage_total,
        )

    async def _depths(self, providers: Sequence[str]) -> list[int]:
        """Jobs that wait, by provider: those that are next, and both lines of the waiting room."""
        questions: list[tuple[bytes, bytes]] = []
        for provider in providers:
            counter, normal, low, *_ = keys.queue(provider)
            questions += (b"XLEN", counter), (b"ZCARD", normal), (b"ZCARD", low)
        lengths = await self._link.many(questions)
        return [sum(lengths[place : place + 3]) for place in range(0, len(lengths), 3)]


def _workers(workers: Iterable[WorkerAdvertisement]) -> list[WorkerShown]:
    return [
        WorkerShown(one.id, one.room, one.running, one.version, one.started, one.draining, len(one.models))
        for one in sorted(workers, key=lambda one: (one.started, one.id))
    ]


def _credentials(standings: Sequence[Standing]) -> list[CredentialShown]:
    shown = [CredentialShown.of(standing) for standing in standings]
    return sorted(shown, key=lambda one: (one.state == "ready", one.id))[:MOST_CREDENTIALS]


def _circuits(found: Mapping[str, Circuit], now_ms: float) -> list[CircuitShown]:
    return [
        CircuitShown(
            model=model,
            probe_in_seconds=round(max(0.0, circuit.pause_ends - now_ms) / 1000, 1),
            probing=bool(circuit.probe) and circuit.probe_ends > now_ms,
        )
        for model, circuit in sorted(found.items())
    ]


def _decoded(decoder: "msgspec.json.Decoder[T]", texts: Iterable[bytes]) -> list[T]:
    """Advertisements that can be read; of others the catalog complains."""
    found = []
    for text in texts:
        try:
            found.append(decoder.decode(text))
        except (msgspec.DecodeError, UnicodeDecodeError) as problem:
            _log.debug("an advertisement cannot be read: %s", problem)
    return found
