"""A provider's credential pool as a process sees it; `rules.py` has the theory.

    answer = await pool.lease("w-1f3a:7", "gpt-4o", calls=0, patience_seconds=15)     # Granted or Nothing
    pool.release(answer, "ok")                                                        # synchronous: fits into a finally

Verdicts on a credential: `ok` (the upstream accepted it), `rest` (429), `retire` (401), `suspend` (unpaid), `valid` (a keeper
has asked the upstream), `cleared` (the same, on an operator's word), and the empty one, which says nothing. Secrets are
sealed for their place: provider, credential and generation.
"""

import contextlib
import itertools
import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Final

import msgspec
import trio

from shared.redis import keys
from shared.redis.credentials import keeping, leasing, operating
from shared.redis.credentials.standings import standings
from shared.redis.failures import RedisError
from shared.redis.link import Link
from shared.redis.wire import Reply
from shared.schema.credential import Chore, Granted, Minting, Nothing, Opened, Standing
from shared.sealing import Seal, SealBroken

_log = logging.getLogger(__name__)
_encode = msgspec.msgpack.Encoder().encode
_decode_opened = msgspec.msgpack.Decoder(Opened).decode

LEASE_SECONDS: Final = 10.0
CACHED_SECRETS: Final = 1024
NO_MINTING: Final = Minting(least=0, most=0, per_hour=0)


class Pool:
    """`clock` gives a test's own milliseconds; without it Redis' clock counts."""

    def __init__(self, link: Link, seal: Seal, provider: str, *, clock: Callable[[], int] | None = None) -> None:
        self.link = link
        self.provider = provider
        self._seal = seal
        self._keys = keys.pool(provider)
        self._clock: Callable[[], int | bytes] = clock or (lambda: b"")
        self._known: dict[tuple[str, int], Opened] = {}
        link.on_up.append(self._load_scripts)
        if link.up:
            self._load_scripts()

    def name(self, opened: Opened) -> str:
        """The id of a credential: the same in every process, and it tells nothing."""
        return self._seal.name(_encode(opened), self.provider.encode())

    # --- calls

    async def lease(
        self, name: str, model: str, *, calls: int, patience_seconds: float, minting: Minting = NO_MINTING,
        tried: Iterable[str] = (),
    ) -> Granted | Nothing:  # fmt: skip
        """Ask for a credential for one call.

        `name` of the lease: unique, beginning with that of the worker. `calls`: how many may use one credential at once, 0 for
        any number. `patience_seconds`: how long the caller would wait for news. `tried`: those that it does not want again.
        Raises `RedisError`. If the caller is cancelled, a lease that comes too late is given back at once.
        """
        asked_at = trio.current_time()
        first, second, third = await self.link.script(
            leasing.LEASE,
            self._keys,
            (
                self._clock(), name, model, _milliseconds(LEASE_SECONDS), calls, _milliseconds(patience_seconds),
                minting.most, minting.per_hour, *tried,
            ),
            unclaimed=partial(self._give_back, name),
        )  # fmt: skip
        if type(first) is int:
            return Nothing(bool(first), None if second < 0 else second / 1000, third)
        credential_id = first.decode()
        return Granted(credential_id, name, second, self._open(credential_id, second, third), asked_at)

    def release(self, granted: Granted, verdict: str, *, model: str = "", wait_seconds: float | None = None) -> None:
        """Give a lease back, and say what the call showed. `wait_seconds`: what the upstream asked for, with `rest`."""
        self._post(
            leasing.RELEASE, granted.id, granted.name, granted.stamp, verdict, model,
            -1 if wait_seconds is None else _milliseconds(wait_seconds), b"",
        )  # fmt: skip

    def renew(
        self, held: Sequence[Granted], vouched: Sequence[str], calls: int, on_reply: Callable[[Reply], object]
    ) -> None:
        """Keep leases and vouch for credentials for another `LEASE_SECONDS`; `on_reply` gets RENEW's answer or an error."""
        self._post(
            leasing.RENEW, _milliseconds(LEASE_SECONDS), calls, len(held),
            *itertools.chain.from_iterable((one.id, one.name) for one in held), *vouched, on_reply=on_reply,
        )  # fmt: skip

    def leave(self, worker_id: str) -> None:
        """Give back everything that a worker holds. Only for one that is certainly gone: otherwise leases end by themselves."""
        self._post(leasing.LEAVE, f"{worker_id}:")

    def register(self, own: Iterable[tuple[str, Opened]]) -> None:
        """Bring in the credentials of the settings, by id, and vouch for them."""
        words: list[str | bytes] = []
        for credential_id, opened in own:
            self._remember(credential_id, 1, opened)
            words += (credential_id, self._sealed(credential_id, 1, opened))
        if words:
            self._post(leasing.REGISTER, _milliseconds(LEASE_SECONDS), *words)

    # --- keepers

    async def add(
        self, opened: Opened, origin: str, *, life_seconds: float | None = None, refresh_seconds: float = 0.0,
        renewable: bool = False, token: str = "", most: int = 0,
    ) -> str | None:  # fmt: skip
        """Add a credential, which may be used for `life_seconds` (None: without end); its id, or None if the pool is full.

        `refresh_seconds`: after how long it should be refreshed, or replaced if it is not `renewable`. `token`, `most`: of the
        sign-up that made it. May be repeated.
        """
        credential_id = self.name(opened)
        added = await self._call(
            keeping.ADD, credential_id, self._sealed(credential_id, 1, opened), origin, _milliseconds(life_seconds or 0),
            _milliseconds(refresh_seconds), int(renewable), token, most,
        )  # fmt: skip
        return credential_id if added else None

    async def upkeep(
        self, token: str, minting: Minting, *, validates: bool, chore_seconds: float
    ) -> Chore | float | None:
        """What is to be done now, and is left to the caller for `chore_seconds`; or in how many seconds there will be
        something, None: not before there are news. `token` names the sign-up, if it is one."""
        numbers = (minting.least, minting.most, minting.per_hour)
        reply = await self._call(keeping.UPKEEP, _milliseconds(chore_seconds), int(validates), token, *numbers)
        kind = reply[0].decode()
        if kind == "wait":
            return None if reply[1] < 0 else reply[1] / 1000
        if kind == "mint":
            return Chore(kind)
        credential_id = reply[1].decode()
        return Chore(kind, credential_id, reply[2], self._open(credential_id, reply[2], reply[3]))

    async def mint_failed(self, token: str, wait_seconds: float, factor: float) -> float:
        """A sign-up came to nothing; seconds until the next. `wait_seconds`: what the upstream asked for, 0 if nothing."""
        pause = await self._call(keeping.MINT_FAILED, token, _milliseconds(wait_seconds), factor)
        return float(pause / 1000)

    async def refreshed(
        self, chore: Chore, opened: Opened, *, life_seconds: float | None, refresh_seconds: float
    ) -> bool:
        """Put in the new secret, unless somebody else has already."""
        sealed = self._sealed(chore.id, _generation(chore.stamp) + 1, opened)
        life, refresh = _milliseconds(life_seconds or 0), _milliseconds(refresh_seconds)
        return bool(await self._call(keeping.REFRESHED, chore.id, chore.stamp, sealed, life, refresh))

    async def not_refreshed(self, chore: Chore, again_seconds: float | None) -> None:
        """A refresh failed; None: the upstream will never grant it."""
        again = -1 if again_seconds is None else _milliseconds(again_seconds)
        await self._call(keeping.NOT_REFRESHED, chore.id, chore.stamp, again)

    async def judge(self, chore: Chore, verdict: str, *, found: str = "", wait_seconds: float | None = None) -> None:
        """What validating or testing a credential has shown; `found`: in words, for the operator who asked."""
        wait = -1 if wait_seconds is None else _milliseconds(wait_seconds)
        await self._call(leasing.RELEASE, chore.id, b"", chore.stamp, verdict, b"", wait, found)

    # --- operators

    async def standing(self) -> list[Standing]:
        """All credentials with everything that is known of them."""
        return standings(await self._call(operating.LIST), self._open)

    async def rest(self, credential_id: str, seconds: float, model: str = "") -> bool:
        """Let a credential rest for one model or (empty) for all; 0 seconds end all of its rests. False: it is not known."""
        return bool(await self._call(operating.REST, credential_id, model, _milliseconds(seconds)))

    async def test(self, credential_id: str) -> bool:
        """Have a keeper ask the upstream about a credential; the record tells the outcome. False: it is not known."""
        return bool(await self._call(operating.TEST, credential_id))

    async def remove(self, credential_id: str) -> int:
        """1: removed. 0: it is not known. -1: it comes from the settings of a live worker, which would bring it back."""
        removed: int = await self._call(operating.REMOVE, credential_id)
        return removed

    # --- Redis and the seal

    def _load_scripts(self) -> None:
        """A script that Redis must first be told runs after what was posted meanwhile; these must keep their order."""
        for script in (leasing.REGISTER, leasing.RENEW, leasing.LEASE, leasing.RELEASE, leasing.LEAVE):
            self.link.post(b"SCRIPT", b"LOAD", script.source)

    def _post(self, script: Any, *words: Any, on_reply: Callable[[Reply], object] | None = None) -> None:
        self.link.post_script(script, self._keys, (self._clock(), *words), on_reply or _log_refusal)

    async def _call(self, script: Any, *words: Any) -> Reply:
        return await self.link.script(script, self._keys, (self._clock(), *words))

    def _give_back(self, name: str, reply: Reply) -> None:
        """A lease that came when nobody waited for it any more."""
        if isinstance(reply, list) and isinstance(reply[0], bytes):
            self._post(leasing.RELEASE, reply[0], name, reply[1], b"", b"", -1, b"")

    def _context(self, credential_id: str, generation: int) -> bytes:
        return f"credential:{self.provider}:{credential_id}:{generation}".encode()

    def _sealed(self, credential_id: str, generation: int, opened: Opened) -> bytes:
        return self._seal.seal(_encode(opened), self._context(credential_id, generation))

    def _open(self, credential_id: str, stamp: bytes, sealed: bytes | None) -> Opened | None:
        generation = _generation(stamp)
        opened = self._known.get((credential_id, generation))
        if opened is None and sealed is not None:
            with contextlib.suppress(SealBroken, msgspec.DecodeError):
                opened = _decode_opened(self._seal.open(sealed, self._context(credential_id, generation)))
                self._remember(credential_id, generation, opened)
        return opened

    def _remember(self, credential_id: str, generation: int, opened: Opened) -> None:
        while len(self._known) >= CACHED_SECRETS:
            self._known.pop(next(iter(self._known)))
        self._known[credential_id, generation] = opened


def _log_refusal(reply: Reply) -> None:
    """What nobody waits for can still go wrong; leases then end by themselves."""
    if isinstance(reply, RedisError):
        _log.warning("the credential pool was not told: %s", reply)


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def _generation(stamp: bytes) -> int:
    return int(stamp.partition(b".")[0])
