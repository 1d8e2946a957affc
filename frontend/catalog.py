"""Which models exist now, and who serves them: read once a second from what live workers advertise.

A name is resolved in this order: an alias from the settings; a model that a worker lists; `provider/model`, where the provider
may take names that it does not list. A model that was served a moment ago and has no worker now is unavailable (503), not
unknown (404).
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
import trio

from shared.errors import fail
from shared.redis import keys
from shared.redis.failures import RedisError
from shared.redis.link import Link
from shared.redis.presence import alive
from shared.schema.advertisement import Model, WorkerAdvertisement
from shared.schema.job import PROTOCOL

_log = logging.getLogger(__name__)
_advertisement = msgspec.json.Decoder(WorkerAdvertisement)

REMEMBERED_MODELS = 10_000


@dataclass(frozen=True)
class Route:
    """Where a request goes. `model` is the provider's name, `asked_model` the caller's."""

    provider: str
    model: str
    asked_model: str
    total_seconds: float
    caller_credentials: bool


class Catalog:
    """The models of all live workers whose protocol and secret key are ours."""

    def __init__(
        self, link: Link, sealing_key: str, *, aliases: Mapping[str, str], default_model: str | None, started: int
    ) -> None:
        self._link = link
        self._sealing_key = sealing_key
        self._aliases = dict(aliases)
        self._default_model = default_model
        self._started = started
        self._workers: list[WorkerAdvertisement] = []
        self._providers: dict[str, WorkerAdvertisement] = {}
        self._models: dict[str, tuple[Model, str]] = {}
        self._remembered: dict[str, str] = {}
        self._complained: set[str] = set()
        self.read_once = False

    @property
    def workers(self) -> list[WorkerAdvertisement]:
        return self._workers

    @property
    def takes_callers_keys(self) -> bool:
        """Whether any live provider is called with the caller's own upstream key."""
        return any(worker.caller_credentials for worker in self._providers.values())

    def alive(self, provider: str) -> bool:
        return provider in self._providers

    async def run(self) -> None:
        """Read the advertisements every second."""
        while True:
            try:
                self.update([_advertisement.decode(text) for text in await alive(self._link, "worker")])
            except RedisError:
                await self._link.wait_up()
                continue
            except msgspec.DecodeError as problem:
                _log.error("a worker's advertisement cannot be read: %s", problem)
            await trio.sleep(keys.REFRESH_SECONDS)

    def update(self, advertisements: list[WorkerAdvertisement]) -> None:
        """Take these workers for all that live."""
        self._workers = [worker for worker in advertisements if self._speaks_with_us(worker)]
        self._providers, self._models = {}, {}
        for worker in sorted(self._workers, key=lambda worker: (worker.draining, worker.provider, worker.started)):
            if worker.draining and worker.provider in self._providers:
                continue
            self._providers.setdefault(worker.provider, worker)
            for model in worker.models:
                self._models.setdefault(model.id, (model, worker.provider))
                if len(self._remembered) < REMEMBERED_MODELS:
                    self._remembered[model.id] = worker.provider
        self.read_once = True

    def _speaks_with_us(self, worker: WorkerAdvertisement) -> bool:
        if worker.protocol == PROTOCOL and worker.sealing_key == self._sealing_key:
            return True
        if worker.id not in self._complained:
            self._complained.add(worker.id)
            _log.error(
                "worker %s (%s, version %s) is ignored: it speaks protocol %d with secret key %s, this frontend %d with %s; "
                "SLUICE_SECRET_KEY must be the same everywhere",
                worker.id, worker.provider, worker.version, worker.protocol, worker.sealing_key, PROTOCOL, self._sealing_key,
            )  # fmt: skip
        return False

    def models(self) -> list[Model]:
        """What `/v1/models` lists: the served models, and the aliases that lead to one."""
        served = [self._complete(model, provider) for model, provider in self._models.values()]
        for alias, target in self._aliases.items():
            route = self._find(target, alias)
            if route is not None and alias not in self._models:
                served.append(Model(alias, self._started, route.provider))
        return sorted(served, key=lambda model: model.id)

    def model(self, name: str) -> Model:
        """One model by any name that a request may use. Raises `GatewayError` `model_not_found`."""
        route = self.resolve(name)
        if name in self._models:
            return self._complete(*self._models[name])
        return Model(name, self._started, route.provider)

    def _complete(self, model: Model, provider: str) -> Model:
        return Model(model.id, model.created or self._started, model.owned_by or provider, model.context_tokens)

    def resolve(self, asked: str | None) -> Route:
        """Raises `GatewayError`: `model_not_found`, `provider_unavailable`, `invalid_request` when no model is named."""
        name = asked or self._default_model
        if not name:
            raise fail(
                "invalid_request",
                "you must provide a model parameter",
                param="model",
                code="missing_required_parameter",
            )
        route = self._find(self._aliases.get(name, name), asked or name)
        if route is not None:
            return route
        target = self._aliases.get(name, name)
        if target in self._remembered or target.partition("/")[0] in self._remembered.values():
            raise fail("provider_unavailable", "No worker that serves this model is running right now.")
        shown = name if len(name) <= 128 else name[:128] + "…"
        raise fail(
            "model_not_found",
            f"The model `{shown}` does not exist or you do not have access to it.",
            param="model",
        )

    def _find(self, name: str, asked: str) -> Route | None:
        if name in self._models:
            return self._route(self._models[name][1], name, asked)
        provider, separator, model = name.partition("/")
        worker = self._providers.get(provider)
        if separator and model and worker is not None:
            listed = self._models.get(model)
            known = (listed is not None and listed[1] == provider) or any(model == entry.id for entry in worker.models)
            if known or worker.accepts_any_model:
                return self._route(provider, model, asked)
        return None

    def _route(self, provider: str, model: str, asked: str) -> Route:
        worker = self._providers[provider]
        return Route(provider, model, asked, worker.total_seconds, worker.caller_credentials)
