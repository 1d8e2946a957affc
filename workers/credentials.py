"""Which credential an attempt uses, and what its outcome says about the credential.

The pool is shared by all workers of the provider and decides (`shared/redis/credentials`); this is one worker's part of it:

1. The credentials of the settings are brought in at the start, whenever Redis comes back, and vouched for every three seconds.
2. A lease holds for ten seconds and is renewed with all others every three. With a limit on calls per credential, a lease
   whose renewal has not been confirmed in time is given up, because by then another worker may have it.
3. Where all are busy, or one is being signed up for, callers wait in a line for news. One of them looks at each piece of news,
   and the next one as soon as that has found something. Where all rest, there is no point in waiting.

The credential that a caller brings is used for that call and goes nowhere else.
"""

import contextlib
import logging
import math
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import trio

from shared.errors import Failure, GatewayError, fail
from shared.redis.credentials.pool import LEASE_SECONDS, NO_MINTING, Pool
from shared.redis.failures import LinkDown, RedisError, RefusalKind, Refused
from shared.redis.wire import Reply
from shared.schema.credential import Granted, Nothing, Opened
from shared.schema.job import Job
from workers.provider import Credential, Minter, Provider

_log = logging.getLogger(__name__)

RENEW_SECONDS: Final = 3.0
SURELY_HELD: Final = 0.95
"""Of a lease's life: after that a worker that could not renew it has to let go, so that it is gone when Redis says so."""
PATIENCE_SECONDS: Final = 15.0
"""How long a call waits for a credential that may be free at any moment."""
REFUSALS_THAT_NO_SIGN_UP_CURES: Final = 2
VERDICTS: Final = {"cool_down": "rest", "retire": "retire", "suspend": "suspend"}


def _ignore() -> None:
    """Nobody wants to know."""


@dataclass(eq=False, slots=True)
class Lease:
    """Permission to use a credential for one call. `credential` is None where the upstream needs none.

    `lost` is called if the permission ends before it is given back. `ends`: `trio.current_time()` of that, unless renewed.
    """

    credential: Credential | None
    granted: Granted | None = None
    model: str = ""
    lost: Callable[[], object] = _ignore
    ends: float = math.inf


class _Turn:
    """One who waits. `seen`: the news that it knew when it looked last."""

    __slots__ = ("come", "seen")

    def __init__(self, seen: int) -> None:
        self.come = trio.Event()
        self.seen = seen


class Credentials:
    """The provider's credentials as this worker uses them. `calls`: how many may use one at once, 0 for any number.

    `wanted` is called when somebody has to wait; `starving` with whether anybody does, whenever that changes.
    """

    def __init__(
        self, provider: Provider, pool: Pool, worker_id: str, *, calls: int = 0,
        wanted: Callable[[], object] = _ignore, starving: Callable[[bool], object] = lambda _: None,
    ) -> None:  # fmt: skip
        self._provider = provider
        self._pool = pool
        self._worker_id = worker_id
        self._calls = calls
        self._wanted = wanted
        self._starving = starving
        self._minting = provider.minting if isinstance(provider, Minter) else NO_MINTING
        self._own = [
            (pool.name(opened), opened) for opened in (Opened(one.secret, one.extra) for one in provider.credentials)
        ]
        self._pooled = bool(self._own) or self._minting.most > 0
        self._held: set[Lease] = set()
        self._leases = 0
        self._renewed_at = 0.0
        self._news = 0
        self._line: deque[_Turn] = deque()
        self._waiters = 0
        self.verdicts: Counter[str] = Counter()
        self._scarce = False

    async def run(self) -> None:
        """Renew until cancelled; then everything that is still held is given back."""
        if not self._pooled:
            return
        self._pool.link.on_up.append(self._introduce)
        self._introduce()
        try:
            while True:
                await trio.sleep_until(min([self._renewed_at + RENEW_SECONDS, *(lease.ends for lease in self._held)]))
                now = trio.current_time()
                for lease in [lease for lease in self._held if lease.ends <= now]:
                    self._lose(lease)
                if now >= self._renewed_at + RENEW_SECONDS:
                    self._renew()
        finally:
            self._pool.link.on_up.remove(self._introduce)
            self._pool.leave(self._worker_id)

    async def lease(
        self, job: Job, tried: set[str], refused: list[Failure], lost: Callable[[], object] = _ignore
    ) -> Lease:
        """A credential for this job that is not among `tried`, which gets those that turn out to be unusable here.

        Raises `GatewayError`: the last refusal in the caller's terms when the walk is over, `no_credential` when all are busy
        or rest, `queue_unavailable` when Redis does not answer.
        """
        if job.credential is not None:
            if tried:
                raise GatewayError(callers_own(refused[-1]))
            return Lease(Credential("caller", job.credential))
        if not self._pooled:
            if self._provider.caller_credentials:
                raise fail("invalid_api_key", "This provider takes your own upstream key as the API key.")
            return Lease(None)
        granted = await self._walk(job.model, tried, refused)
        assert granted.opened is not None
        lease = Lease(Credential(granted.id, granted.opened.secret, granted.opened.extra), granted, job.model, lost)
        if self._calls:
            lease.ends = granted.asked_at + SURELY_HELD * LEASE_SECONDS
        self._held.add(lease)
        return lease

    def give_back(self, lease: Lease, failure: Failure | None, *, accepted: bool) -> None:
        """End of the call. `accepted`: the upstream took the credential, whatever happened later. Synchronous."""
        if lease.granted is None:
            return
        self._held.discard(lease)
        verdict = "ok" if accepted else ""
        if failure is not None:
            verdict = VERDICTS.get(failure.row.credential, verdict)
        if failure is not None and verdict in ("retire", "suspend"):
            _log.warning("credential %s is set aside: %s", lease.granted.id, failure.kind)
        self.verdicts[verdict or "none"] += 1
        wait = failure.retry_after_seconds if failure is not None else None
        self._pool.release(lease.granted, verdict, model=lease.model, wait_seconds=wait or None)

    @property
    def waiters(self) -> int:
        """Jobs that wait for a credential."""
        return self._waiters

    def look_again(self) -> None:
        """There are news of the pool, or some may have been missed."""
        self._news += 1
        self._next_in_line()

    # --- asking and waiting

    async def _walk(self, model: str, tried: set[str], refused: list[Failure]) -> Granted:
        """Ask, and where that makes sense wait and ask again."""
        deadline = trio.current_time() + PATIENCE_SECONDS
        waited = introduced = False
        try:
            while True:
                news = self._news
                answer = await self._ask(model, tried, refused, deadline)
                if isinstance(answer, Granted):
                    self._next_in_line()
                    if answer.opened is not None:
                        return answer
                    self._set_apart(answer, tried)
                elif answer.known == 0 and self._own and not introduced:
                    introduced = True
                    self._introduce()  # Redis has forgotten everything, and our link did not notice
                else:
                    left = deadline - trio.current_time()
                    if not answer.coming or left <= 0:
                        raise GatewayError(_exhausted(refused, answer.hope_seconds))
                    if tried or answer.hope_seconds is not None:
                        self._next_in_line()  # what is of no use to this one may be to another
                    self._wanted()
                    first, waited = waited, True
                    if not first:
                        self._count_waiters(+1)
                    await self._wait(news, min(left, answer.hope_seconds or LEASE_SECONDS), first=first)
        finally:
            if waited:
                self._count_waiters(-1)

    async def _ask(self, model: str, tried: set[str], refused: list[Failure], deadline: float) -> Granted | Nothing:
        self._leases += 1
        name = f"{self._worker_id}:{self._leases}"
        minting = self._minting if len(refused) < REFUSALS_THAT_NO_SIGN_UP_CURES else NO_MINTING
        while True:
            try:
                return await self._pool.lease(
                    name, model, calls=self._calls, patience_seconds=PATIENCE_SECONDS, minting=minting, tried=tried
                )
            except LinkDown:
                with trio.move_on_at(deadline):
                    await self._pool.link.wait_up()
                    continue
            except Refused as refusal:
                if refusal.kind is RefusalKind.BUG:
                    raise
                _log.error("no credential can be leased: %s", refusal)
            raise fail("queue_unavailable", "The gateway's Redis does not answer.")

    async def _wait(self, news: int, seconds: float, *, first: bool) -> None:
        """Until there are news after `news` and it is this one's turn. `first`: it has waited already, it stays in front."""
        if news != self._news:
            return
        turn = _Turn(news)
        self._line.insert(0 if first else len(self._line), turn)
        try:
            with trio.move_on_after(seconds):
                await turn.come.wait()
        except trio.Cancelled:
            if turn.come.is_set():
                self._next_in_line()
            raise
        finally:
            with contextlib.suppress(ValueError):
                self._line.remove(turn)

    def _count_waiters(self, change: int) -> None:
        starved = self._waiters > 0
        self._waiters += change
        if starved != (self._waiters > 0):
            self._starving(not starved)

    def _next_in_line(self) -> None:
        """It is the turn of the first one that has not looked since the last news."""
        for turn in self._line:
            if turn.seen != self._news:
                self._line.remove(turn)
                turn.come.set()
                return

    # --- holding

    def _set_apart(self, granted: Granted, tried: set[str]) -> None:
        """Its secret was sealed with a key that this worker does not have; others may use it."""
        _log.error("credential %s cannot be opened: is SLUICE_SECRET_KEY the same everywhere?", granted.id)
        tried.add(granted.id)
        self._pool.release(granted, "")

    def _lose(self, lease: Lease) -> None:
        if lease in self._held:
            self._held.discard(lease)
            _log.error("the lease of credential %s ended before its call", lease.granted and lease.granted.id)
            lease.lost()

    def _introduce(self) -> None:
        self._pool.register(self._own)
        self._renew()

    def _renew(self) -> None:
        self._renewed_at = trio.current_time()
        held = list(self._held)
        self._pool.renew(
            [lease.granted for lease in held if lease.granted],
            [credential_id for credential_id, _ in self._own],
            self._calls,
            partial(self._renewed, held, self._renewed_at),
        )

    def _renewed(self, held: list[Lease], sent_at: float, reply: Reply) -> None:
        if isinstance(reply, RedisError):
            _log.warning("leases could not be renewed: %s", reply)
            return
        lost, unknown, usable, known = reply
        for lease in held:
            if lease.granted and lease.granted.name.encode() in lost:
                self._lose(lease)
            elif self._calls:
                lease.ends = sent_at + SURELY_HELD * LEASE_SECONDS
        if unknown:
            self._pool.register(self._own)
        if self._scarce != (usable * 2 < known):
            self._scarce = not self._scarce
            log = _log.error if self._scarce else _log.info
            log("%d of %d credentials of %s can be used", usable, known, self._pool.provider)


def _exhausted(refused: list[Failure], hope_seconds: float | None) -> Failure:
    wait = None if hope_seconds is None else max(1.0, hope_seconds)
    if refused and refused[-1].kind == "rate_limit":
        return Failure("rate_limit", refused[-1].message, None, None, refused[-1].retry_after_seconds or wait)
    if refused:
        return Failure(refused[-1].kind, "The upstream refused every credential that this gateway has.")
    return Failure("no_credential", "All upstream credentials are busy or resting; try again later.", None, None, wait)


def callers_own(failure: Failure) -> Failure:
    """The upstream refused the key that the caller brought: this time it is the caller's business."""
    kind = {"credential_invalid": "invalid_api_key", "billing": "insufficient_quota"}.get(failure.kind, failure.kind)
    return Failure(
        kind, failure.message, failure.param, failure.code, failure.retry_after_seconds, failure.upstream_status
    )
