"""Workers of one provider, as far as the credential pool is concerned: each with its own link and its own ear."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import trio
from trio.testing import wait_all_tasks_blocked

from shared.errors import Failure
from shared.redis import keys
from shared.redis.address import Address
from shared.redis.credentials.pool import Pool
from shared.redis.failures import LinkDown
from shared.redis.link import Link
from shared.redis.subscription import Subscription
from shared.schema.job import PROTOCOL, Job
from shared.sealing import Seal
from tests.redis_server import RedisServer
from workers.credentials import Credentials, Lease
from workers.keeper import Keeper
from workers.provider import Credential, Timeouts
from workers.transports.http import HttpTransport

SECRET_KEY = "a-secret-key-of-a-test-32-characters"


class Keyed:
    """A provider with these keys, or none."""

    name = "openai"
    models: Sequence[Any] = ()
    endpoints: Sequence[str] = ("chat",)
    timeouts = Timeouts()
    accepts_any_model = True

    def __init__(self, *secrets: str, caller_credentials: bool = False) -> None:
        self.credentials = [Credential(secret, secret) for secret in secrets]
        self.caller_credentials = caller_credentials


@dataclass
class Colleague:
    """One worker."""

    id: str
    link: Link
    pool: Pool
    credentials: Credentials
    keeper: Keeper
    cable: trio.CancelScope = field(default_factory=trio.CancelScope)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    starved: list[bool] = field(default_factory=list)

    async def lease(self, model: str = "m", tried: set[str] | None = None, refused: list[Failure] | None = None,
                    lost: Callable[[], object] = lambda: None) -> Lease:  # fmt: skip
        tried = set() if tried is None else tried
        return await self.credentials.lease(job(model), tried, refused or [], lost)

    def give_back(self, lease: Lease, failure: Failure | None = None, *, accepted: bool = True) -> None:
        self.credentials.give_back(lease, failure, accepted=accepted)

    async def settled(self) -> None:
        """Everything that was posted until now has been answered; after a reconnect, if one was due."""
        while True:
            with contextlib.suppress(LinkDown):
                await self.link.wait_up()
                await self.link.call("PING")
                return


@dataclass
class Office:
    """Where they come to work and from where they disappear."""

    redis: RedisServer
    nursery: trio.Nursery
    count: int = 0

    async def hire(self, provider: Any, *, calls: int = 0, secret_key: str = SECRET_KEY) -> Colleague:
        """A worker that is up, and whose credentials are in the pool."""
        self.count += 1
        link = Link(Address.parse(self.redis.url), timeout_seconds=0.3)
        pool = Pool(link, Seal([secret_key]), provider.name)
        transport = HttpTransport(connect_seconds=1, idle_connections=2, idle_seconds=1)
        keeper = Keeper(provider, pool, transport, f"w{self.count}")
        starved: list[bool] = []
        credentials = Credentials(
            provider, pool, f"w{self.count}", calls=calls, wanted=keeper.look_again, starving=starved.append
        )
        colleague = Colleague(f"w{self.count}", link, pool, credentials, keeper, starved=starved)
        await self.nursery.start(self._work, colleague, provider.name)
        return colleague

    async def _work(self, colleague: Colleague, provider: str, *, task_status: trio.TaskStatus[None]) -> None:
        ear = Subscription(Address.parse(self.redis.url), [keys.pool_news(provider)])
        with colleague.scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(self._connect, colleague)
                await nursery.start(
                    ear.run, lambda *_: (colleague.credentials.look_again(), colleague.keeper.look_again())
                )
                nursery.start_soon(colleague.credentials.run)
                nursery.start_soon(colleague.keeper.run)
                await wait_all_tasks_blocked()
                await colleague.settled()
                task_status.started()

    async def _connect(self, colleague: Colleague, *, task_status: trio.TaskStatus[None]) -> None:
        with colleague.cable:
            await colleague.link.run(task_status=task_status)

    async def kill(self, colleague: Colleague) -> None:
        """As SIGKILL does it: nothing is given back, since the connection ends first."""
        colleague.cable.cancel()
        await wait_all_tasks_blocked()
        colleague.scope.cancel()
        await wait_all_tasks_blocked()


def job(model: str = "m", credential: str | None = None) -> Job:
    return Job(PROTOCOL, b"j" * 16, 1, "f", "chat", "openai", model, model, True, False, 60.0, b"{}", "r", credential)
