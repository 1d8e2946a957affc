"""Which models exist now, and who serves them: read once a second from what live workers advertise.

A name is resolved in this order: an alias from the settings; a name whose routes are in the settings; a model that workers
offer, or that their upstreams list (read every few seconds, where a worker has asked for it), each provider that has it being
a route; `provider/model`, where the provider may take names that it does not list.
A model that was served a moment ago and has no worker now is unavailable (503), not unknown (404).
"""

import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar

import msgspec
import trio

from frontend.routing import in_order
from shared.errors import fail
from shared.redis import keys
from shared.redis.failures import LinkDown, RedisError
from shared.redis.link import Link
from shared.redis.presence import alive
from shared.schema.advertisement import MOST_MODELS, Model, WorkerAdvertisement
from shared.schema.job import PROTOCOL
from shared.settings.routes import Tiers

_log = logging.getLogger(__name__)
_advertisement = msgspec.json.Decoder(WorkerAdvertisement)
_models = msgspec.json.Decoder(list[Model])
T = TypeVar("T")

REMEMBERED_MODELS = 10_000
LISTS_SECONDS = 5.0
DOUBT_SECONDS = 3.0
"""How long after Redis was away an advertisement that is missing does not mean a worker that is gone."""


@dataclass(frozen=True)
class Route:
    """Where a request goes. `model` is the provider's name, `asked_model` the caller's. `endpoints`: what the provider has."""

    provider: str
    model: str
    asked_model: str
    total_seconds: float
    caller_credentials: bool
    endpoints: Sequence[str] = ()


class Catalog:
    """The models of all live workers whose protocol and secret key are ours."""

    def __init__(
        self,
        link: Link,
        ring: Sequence[str],
        *,
        aliases: Mapping[str, str],
        default_model: str | None,
        started: int,
        routes: Mapping[str, Tiers] = MappingProxyType({}),
        chance: random.Random | None = None,
    ) -> None:
        """`routes`: from the settings. `chance`: for routes that are drawn by lot."""
        self._link = link
        self._ring = list(ring)
        self._aliases = dict(aliases)
        self._default_model = default_model
        self._started = started
        self._workers: list[WorkerAdvertisement] = []
        self._providers: dict[str, WorkerAdvertisement] = {}
        self._models: dict[str, tuple[Model, str]] = {}
        self._planned = routes
        self._chance = chance or random.Random()
        self._servers: dict[str, list[str]] = {}
        self._listed: set[tuple[str, str]] = set()
        self._known_providers: set[str] = set()
        self._lists: dict[str, list[Model]] = {}
        self._lists_due = 0.0
        self._remembered: set[str] = set()
        self._complained: set[str] = set()
        self._doubt_until = 0.0
        self.read_once = False

    @property
    def workers(self) -> list[WorkerAdvertisement]:
        return self._workers

    @property
    def known_providers(self) -> frozenset[str]:
        """Providers that have workers or have had some since this process began."""
        return frozenset(self._known_providers)

    @property
    def takes_callers_keys(self) -> bool:
        """Whether any live provider is called with the caller's own upstream key."""
        return any(worker.caller_credentials for worker in self._providers.values())

    def lists(self, provider: str, model: str) -> bool:
        """Whether the provider offers the model by name."""
        return (provider, model) in self._listed

    def alive(self, provider: str) -> bool:
        return provider in self._providers

    async def run(self) -> None:
        """Read the advertisements every second."""
        self._link.on_up.append(self._doubt)  # a Redis that came back empty between two looks was away all the same
        while True:
            try:
                texts = await alive(self._link, "worker")
                await self._read_lists()
            except LinkDown:
                await self._link.wait_up()
                continue
            except RedisError as refusal:
                _log.error("cannot read who is alive: %s", refusal)
            else:
                self._update([worker for text in texts if (worker := self._read(_advertisement, text)) is not None])
            await trio.sleep(keys.REFRESH_SECONDS)

    def _doubt(self) -> None:
        self._doubt_until = trio.current_time() + DOUBT_SECONDS

    def _read(self, decoder: "msgspec.json.Decoder[T]", text: bytes) -> T | None:
        """None for what we do not understand: an advertisement like that costs us this worker, not all of them."""
        try:
            return decoder.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError) as problem:
            if str(problem) not in self._complained:
                self._complained.add(str(problem))
                _log.error("what a worker says cannot be read: %s", problem)
            return None

    async def _read_lists(self) -> None:
        """The models that upstreams list, now and then. As long as a provider lives, its last list counts."""
        now = trio.current_time()
        if now < self._lists_due and self._providers.keys() <= self._lists.keys():
            return
        self._lists_due = now + LISTS_SECONDS
        texts = await self._link.many([(b"GET", keys.models(provider)) for provider in self._providers])
        found = {
            provider: self._read(_models, text) if text is not None else None
            for provider, text in zip(self._providers, texts, strict=True)
        }
        self._lists = {provider: models or self._lists.get(provider, []) for provider, models in found.items()}

    def _update(self, advertisements: list[WorkerAdvertisement]) -> None:
        """Advertisements that Redis lost, or let expire while it hung, come again within a second or two: wait for them."""
        if trio.current_time() < self._doubt_until:
            found = {worker.id for worker in advertisements}
            advertisements += [worker for worker in self._workers if worker.id not in found]
        self.update(advertisements)

    def update(self, advertisements: list[WorkerAdvertisement]) -> None:
        """Take these workers for all that live."""
        self._workers = [worker for worker in advertisements if self._speaks_with_us(worker)]
        self._providers, self._models, self._listed, self._servers = {}, {}, set(), {}
        for worker in sorted(self._workers, key=lambda worker: (worker.draining, worker.provider, worker.started)):
            if worker.draining and worker.provider in self._providers:
                continue
            self._providers.setdefault(worker.provider, worker)
            self._known_providers.add(worker.provider)
            self._offer(worker.models, worker.provider)
        # What upstreams list comes after what somebody has named: a name, also as `provider/model`, means what it meant before.
        named = frozenset(self._listed)
        for provider in self._providers:
            listed = self._lists.get(provider, [])[:MOST_MODELS]
            self._offer([model for model in listed if model.id.partition("/")[::2] not in named], provider)
        self.read_once = True

    def _offer(self, models: list[Model], provider: str) -> None:
        for model in models:
            if (provider, model.id) not in self._listed:
                self._listed.add((provider, model.id))
                self._servers.setdefault(model.id, []).append(provider)
            self._models.setdefault(model.id, (model, provider))
            if len(self._remembered) < REMEMBERED_MODELS:
                self._remembered.add(model.id)

    def _speaks_with_us(self, worker: WorkerAdvertisement) -> bool:
        understood = worker.sealing_key in self._ring and self._ring[0] in (worker.sealing_key, *worker.opens)
        if worker.protocol == PROTOCOL and understood:
            return True
        if worker.id not in self._complained:
            self._complained.add(worker.id)
            _log.error(
                "worker %s (%s, version %s) is ignored: it speaks protocol %d with secret key %s, this frontend %d with %s; "
                "SLUICE_SECRET_KEY must be the same everywhere",
                worker.id, worker.provider, worker.version, worker.protocol, worker.sealing_key, PROTOCOL, self._ring[0],
            )  # fmt: skip
        return False

    def models(self, allow: Callable[[Route], bool] = lambda route: True) -> list[Model]:
        """What `/v1/models` lists: the served models, and the aliases that lead to one. `allow`: what this caller may use."""
        named = {name: (name, model) for name, (model, _) in self._models.items()}
        for name, target in (dict.fromkeys(self._planned, "") | self._aliases).items():
            named.setdefault(name, (target or name, Model(name, self._started)))
        served = []
        for name, (target, model) in named.items():
            route = next(filter(allow, self._routes(target, name)), None)
            if route is not None:
                served.append(self._complete(model, route.provider))
        return sorted(served, key=lambda model: model.id)

    def model(self, name: str, allow: Callable[[Route], bool] = lambda route: True) -> Model:
        """One model by any name that a request may use. Raises as `routes`."""
        route = self.routes(name, allow)[0]
        if name in self._models:
            return self._complete(*self._models[name])
        return Model(name, self._started, route.provider)

    def _complete(self, model: Model, provider: str) -> Model:
        return Model(model.id, model.created or self._started, model.owned_by or provider, model.context_tokens)

    def resolve(self, asked: str | None) -> Route:
        """The first of the routes for this name. Raises as `routes`."""
        return self.routes(asked)[0]

    def routes(self, asked: str | None, allow: Callable[[Route], bool] = lambda route: True) -> list[Route]:
        """Where a request for this model may go, in the order in which it is to be tried; at least one.

        `allow`: what this caller may use.

        Raises `GatewayError`: `model_not_found`, `provider_unavailable`, `invalid_request` when no model is named.
        """
        name = asked or self._default_model
        if not name:
            raise fail(
                "invalid_request",
                "you must provide a model parameter",
                param="model",
                code="missing_required_parameter",
            )
        target = self._aliases.get(name, name)
        # Names are shown to people, also on terminals, and where a provider takes any name they are the caller's.
        found = list(self._routes(target, asked or name)) if name.isprintable() else []
        allowed = [route for route in found if allow(route)]
        if allowed:
            return allowed
        if not found and self._was_served(target):
            raise fail("provider_unavailable", "No worker that serves this model is running right now.")
        shown = name if len(name) <= 128 else name[:128] + "…"
        raise fail(
            "model_not_found",
            f"The model `{shown}` does not exist or you do not have access to it."
            " `GET /v1/models` lists those that you may use.",
            param="model",
        )

    def _was_served(self, name: str) -> bool:
        """Whether a worker served this name at some time, and none does now."""
        provider, separator, _ = name.partition("/")
        gone = separator and provider in self._known_providers and provider not in self._providers
        return bool(gone) or name in self._remembered or name in self._planned

    def _routes(self, name: str, asked: str) -> Iterator[Route]:
        if name in self._planned:
            plans = in_order(self._planned[name], lambda plan: self._serves(plan.provider, plan.model), self._chance)
            yield from (self._route(plan.provider, plan.model, asked) for plan in plans)
        elif name in self._servers:
            yield from (self._route(provider, name, asked) for provider in self._servers[name])
        else:
            provider, _, model = name.partition("/")
            if model and self._serves(provider, model):
                yield self._route(provider, model, asked)

    def _serves(self, provider: str, model: str) -> bool:
        worker = self._providers.get(provider)
        return worker is not None and (worker.accepts_any_model or (provider, model) in self._listed)

    def _route(self, provider: str, model: str, asked: str) -> Route:
        worker = self._providers[provider]
        return Route(provider, model, asked, worker.total_seconds, worker.caller_credentials, tuple(worker.endpoints))
