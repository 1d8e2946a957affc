"""Carries out what the credential pool decides: signs up, refreshes, validates, tests.

Every worker of a provider has a keeper, and the pool gives each chore to one of them. In between a keeper sleeps until the
pool has said that something will be due, or until there are news. A chore that a keeper does not end in time, because it
hangs or has died, is given to another.
"""

import logging
import math
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Generator
from functools import partial
from typing import Final, TypeVar

import trio

from shared.errors import Failure, GatewayError
from shared.redis.credentials.pool import NO_MINTING, Pool
from shared.redis.failures import LinkDown, RefusalKind, Refused
from shared.schema.credential import ACCEPTED, Chore, Opened
from workers.asking import ask
from workers.credentials import VERDICTS
from workers.exchange import HttpReply, HttpRequest
from workers.provider import Call, Credential, MintedCredential, Minter, Provider, Refresher, Validator
from workers.transports.http import HttpTransport

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")

CHORE_SECONDS: Final = 20.0
CLAIM_SECONDS: Final = 30.0
"""How long a chore is nobody else's: longer than it may take, so that no two keepers are at it."""
AGAIN_SECONDS: Final = 30.0
REFRESH_AT: Final = 0.8
"""Of a credential's life."""
JITTER: Final = 0.05
REDIS_PAUSE_SECONDS: Final = 5.0
FINAL_STATUSES: Final = (400, 401, 403, 404, 422)
"""With these an upstream says that it will never refresh the credential."""


class Keeper:
    """One worker's keeper. `chore_seconds`: after that a chore has failed."""

    def __init__(
        self, provider: Provider, pool: Pool, transport: HttpTransport, worker_id: str, *,
        chore_seconds: float = CHORE_SECONDS,
    ) -> None:  # fmt: skip
        self._provider = provider
        self._pool = pool
        self._transport = transport
        self._worker_id = worker_id
        self._chore_seconds = chore_seconds
        self._minting = provider.minting if isinstance(provider, Minter) else NO_MINTING
        self._rounds = 0
        self._news = trio.Event()

    async def run(self) -> None:
        """Until cancelled. A provider without credentials of its own needs none."""
        if not self._provider.credentials and not self._minting.most:
            return
        while True:
            self._news = trio.Event()
            self._rounds += 1
            token = f"{self._worker_id}:{self._rounds}"
            chore = await self._surely(partial(self._next, token))
            if isinstance(chore, Chore):
                await self._carry_out(chore, token)
            else:
                with trio.move_on_after(math.inf if chore is None else chore):
                    await self._news.wait()

    def look_again(self) -> None:
        """There are news of the pool, or somebody waits for a credential."""
        self._news.set()

    # --- chores

    async def _next(self, token: str) -> Chore | float | None:
        validates = isinstance(self._provider, Validator)
        return await self._pool.upkeep(token, self._minting, validates=validates, chore_seconds=CLAIM_SECONDS)

    async def _carry_out(self, chore: Chore, token: str) -> None:
        if chore.kind == "mint" and isinstance(self._provider, Minter):
            await self._mint(self._provider, token)
        elif chore.kind == "refresh":
            await self._refresh(chore)
        elif chore.kind in ("validate", "test"):
            await self._validate(chore)

    async def _mint(self, provider: Minter, token: str) -> None:
        made = await self._try(provider.mint(self._call(None)))
        if isinstance(made, MintedCredential):
            made = await self._problem_with(made) or made
        if isinstance(made, Failure):
            await self._not_minted(token, made)
            return
        fresh, (life, refresh) = Opened(made.secret, made.extra), self._times(made)
        added = await self._surely(
            lambda: self._pool.add(
                fresh, "minted", life_seconds=life, refresh_seconds=refresh,
                renewable=isinstance(provider, Refresher), token=token, most=self._minting.most,
            )
        )  # fmt: skip
        _log.info("signed up at %s: credential %s", self._pool.provider, added or "that nobody needs any more")

    async def _not_minted(self, token: str, problem: Failure) -> None:
        wait, factor = problem.retry_after_seconds or 0.0, random.uniform(0.8, 1.2)
        pause = await self._surely(lambda: self._pool.mint_failed(token, wait, factor))
        _log.error("signing up at %s failed, no other within %.0f s: %s", self._pool.provider, pause, problem.message)

    async def _problem_with(self, made: MintedCredential) -> Failure | None:
        """Why a fresh credential is worth nothing."""
        if self._is_over(made):
            return Failure("protocol_error", "the credential had expired, or was about to")
        if not isinstance(self._provider, Validator):
            return None
        fresh = Opened(made.secret, made.extra)
        checked = await self._try(self._provider.validate(self._call(self._credential(self._pool.name(fresh), fresh))))
        return checked if isinstance(checked, Failure) else None

    async def _refresh(self, chore: Chore) -> None:
        if chore.opened is None or not isinstance(self._provider, Refresher):
            return  # sealed with a key, or made by a version, that is not ours: another keeper may try in a while
        made = await self._try(self._provider.refresh(self._call(self._credential(chore.id, chore.opened))))
        if isinstance(made, MintedCredential) and self._is_over(made):
            made = Failure("protocol_error", "the new one had expired, or was about to")
        if isinstance(made, Failure):
            await self._not_refreshed(chore, made)
            return
        renewed, (life, refresh) = Opened(made.secret, made.extra), self._times(made)
        await self._surely(lambda: self._pool.refreshed(chore, renewed, life_seconds=life, refresh_seconds=refresh))
        _log.info("credential %s was refreshed", chore.id)

    async def _not_refreshed(self, chore: Chore, problem: Failure) -> None:
        again: float | None = max(problem.retry_after_seconds or 0.0, AGAIN_SECONDS * random.uniform(0.8, 1.2))
        if problem.row.credential in ("retire", "suspend") or problem.row.status in FINAL_STATUSES:
            again = None
        _log.warning("credential %s could not be refreshed: %s", chore.id, problem.message)
        await self._surely(lambda: self._pool.not_refreshed(chore, again))

    async def _validate(self, chore: Chore) -> None:
        verdict, found, wait = "", "", None
        if chore.opened is None:
            found = "its secret cannot be opened: it was sealed with another SLUICE_SECRET_KEY"
        elif not isinstance(self._provider, Validator):
            found = "this provider knows no way to test a credential but a call"
        else:
            outcome = await self._try(self._provider.validate(self._call(self._credential(chore.id, chore.opened))))
            if isinstance(outcome, Failure):
                verdict, wait = VERDICTS.get(outcome.row.credential, ""), outcome.retry_after_seconds or None
                found = f"{outcome.kind}: {outcome.message}"
            else:
                verdict, found = "cleared" if chore.kind == "test" else "valid", ACCEPTED
        if chore.kind == "validate":
            _log.info("credential %s was validated: %s", chore.id, found)
        await self._surely(lambda: self._pool.judge(chore, verdict, found=found, wait_seconds=wait))

    # --- means

    async def _try(self, plan: Generator[HttpRequest, HttpReply, _Result]) -> _Result | Failure:
        """What the plan brings, or why it brings nothing."""
        try:
            with trio.move_on_after(self._chore_seconds):
                return await ask(plan, self._transport, timeout_seconds=self._chore_seconds)
            return Failure("timeout", f"no answer within {self._chore_seconds:g} s")
        except GatewayError as error:
            return error.failure
        except Exception:  # noqa: BLE001 - the boundary of an attempt: a provider's defect must not end the worker
            _log.exception("a chore for %s failed", self._pool.provider)
            return Failure("internal", "the provider does not understand the upstream's answer")

    async def _surely(self, tell: Callable[[], Awaitable[_Result]]) -> _Result:
        """Tell the pool, however often Redis goes away meanwhile; everything that is told may be told twice."""
        while True:
            try:
                return await tell()
            except LinkDown:
                await self._pool.link.wait_up()
            except Refused as refusal:
                if refusal.kind is RefusalKind.BUG:
                    raise
                _log.error("the credential pool cannot be kept: %s", refusal)
                await trio.sleep(REDIS_PAUSE_SECONDS)

    def _times(self, made: MintedCredential) -> tuple[float | None, float]:
        """For how many seconds it may be leased, and after how many it should be refreshed."""
        if made.expires_at is None:
            return None, 0.0
        life = made.expires_at - time.time()
        usable = life - self._minting.margin_seconds
        return usable, max(0.0, min(life * random.uniform(REFRESH_AT - JITTER, REFRESH_AT + JITTER), usable * 0.95))

    def _is_over(self, made: MintedCredential) -> bool:
        life, _ = self._times(made)
        return life is not None and life <= 0

    def _credential(self, credential_id: str, opened: Opened) -> Credential:
        return Credential(credential_id, opened.secret, opened.extra)

    def _call(self, credential: Credential | None) -> Call:
        return Call("", "", False, {}, credential, time.time(), secrets.token_hex(16))
