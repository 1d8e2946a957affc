"""Models that nobody has named in the settings: the upstream is asked for its list now and then, and the frontends are told.

The workers of a provider take turns: whoever comes first in an interval asks, for all. What an upstream does not tell, or not
today, changes nothing: the last list stays in Redis for some intervals, and frontends keep it as long as the provider lives.
"""

import logging
import random
import secrets
import time
from typing import Final

import msgspec
import trio

from shared.errors import GatewayError
from shared.redis import keys
from shared.redis.failures import RedisError
from shared.redis.link import Link
from shared.schema.advertisement import Model
from workers.asking import ask
from workers.provider import Call, Lister
from workers.transports.http import HttpTransport

_log = logging.getLogger(__name__)

ASK_SECONDS: Final = 20.0
INTERVALS_KEPT: Final = 12
JITTER: Final = 0.1


class Discovery:
    """One worker's part in finding out. `seconds`: the interval."""

    def __init__(self, provider: Lister, name: str, link: Link, transport: HttpTransport, seconds: float) -> None:
        self._provider = provider
        self._name = name
        self._link = link
        self._transport = transport
        self._seconds = seconds
        self._asked = 0
        self._trouble = ""

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            trouble = ""
            try:
                if await self._is_our_turn():
                    await self._ask()
            except GatewayError as error:
                trouble = error.failure.message
            except RedisError as problem:
                trouble = str(problem)
            if trouble and trouble != self._trouble:  # said once; not every upstream has a list
                _log.warning("the models of %s stay as they are: %s", self._name, trouble)
            self._trouble = trouble
            await trio.sleep(self._seconds * random.uniform(1, 1 + JITTER))

    async def _is_our_turn(self) -> bool:
        milliseconds = str(int(self._seconds * 1000))
        return (
            await self._link.call(b"SET", keys.models_asked(self._name), b"1", b"NX", b"PX", milliseconds) is not None
        )

    async def _ask(self) -> None:
        models = await ask(self._provider.discover(self._call()), self._transport, timeout_seconds=ASK_SECONDS)
        if models:
            self._tell(models)
        _log.debug("%s lists %d models", self._name, len(models))

    def _call(self) -> Call:
        """The credentials of the settings take turns: one that is refused must not end it."""
        credentials = self._provider.credentials
        credential = credentials[self._asked % len(credentials)] if credentials else None
        self._asked += 1
        return Call("", "", False, {}, credential, time.time(), secrets.token_hex(16))

    def _tell(self, models: list[Model]) -> None:
        life = str(max(60, int(INTERVALS_KEPT * self._seconds)))
        self._link.post(b"SET", keys.models(self._name), msgspec.json.encode(models), b"EX", life)
