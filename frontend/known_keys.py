"""Callers' keys that this frontend has met lately, so that a request costs no question to Redis.

* A key is asked for when it is first presented; whoever presents it meanwhile waits for the same answer. Questions travel in
  batches, and no more than `LOOKUPS_PER_SECOND` of them: keys that somebody makes up cost Redis next to nothing, however many.
* A change is announced on a channel and forgets what was known at once. Since an announcement may be lost, the revisions of all
  known keys are compared every second. And a submission is refused by Redis itself if it rests on an outdated revision.
* While Redis is away, what was confirmed in the last `TRUSTED_SECONDS` is still believed.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

import trio

from shared.errors import GatewayError, fail
from shared.redis import keys
from shared.redis.callers import CallerStore, Found, Proof
from shared.redis.failures import RedisError
from shared.schema.caller import CallerKey

_log = logging.getLogger(__name__)

LOOKUPS_PER_SECOND: Final = 50
KEYS_PER_LOOKUP: Final = 256
MOST_WAITING: Final = 10 * KEYS_PER_LOOKUP
MOST_KNOWN: Final = 10_000
MOST_UNKNOWN: Final = 10_000
UNKNOWN_SECONDS: Final = 5.0
"""How long a key that does not exist is refused without asking again."""
TRUSTED_SECONDS: Final = 30.0
UNUSED_SECONDS: Final = 300.0


@dataclass(slots=True)
class _Known:
    """Times of `trio.current_time()`."""

    found: Found
    confirmed_at: float
    used_at: float


@dataclass(slots=True)
class _Question:
    """One key that is being asked for, and all who wait for the answer."""

    proof: Proof
    answered: trio.Event = field(default_factory=trio.Event)
    found: Found | None = None
    failed: bool = False


class KnownKeys:
    """`run` in a task of its own; `clock` gives Unix seconds."""

    def __init__(self, store: CallerStore, *, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock
        self._known: dict[Proof, _Known] = {}
        self._unknown: dict[Proof, float] = {}
        self._questions: dict[Proof, _Question] = {}
        self._asked = trio.Event()
        self._changes = 0
        self.lookups = 0
        """Questions to Redis so far; each is for many keys at once."""

    # --- for requests

    async def find(self, proof: Proof) -> CallerKey | None:
        """The record of a key that may be used now; None if there is none. Raises `GatewayError` `queue_unavailable`."""
        now = trio.current_time()
        known = self._known.get(proof)
        if known is not None and now < known.confirmed_at + TRUSTED_SECONDS:
            known.used_at = now
            return self._usable(known.found)
        if now < self._unknown.get(proof, 0.0):
            return None
        return self._usable(await self._ask(proof))

    async def find_anew(self, proof: Proof) -> CallerKey | None:
        """As `find`, but what was known until now does not count."""
        self._known.pop(proof, None)
        return self._usable(await self._ask(proof))

    def _usable(self, found: Found | None) -> CallerKey | None:
        if found is None:
            return None
        now = self._clock()
        if found.key.has_expired(now) or (found.until is not None and now >= found.until):
            return None
        return found.key

    async def _ask(self, proof: Proof) -> Found | None:
        question = self._questions.get(proof)
        if question is None:
            if len(self._questions) >= MOST_WAITING:
                raise _unavailable()
            question = self._questions[proof] = _Question(proof)
            self._asked.set()
        await question.answered.wait()
        if question.failed:
            raise _unavailable()
        return question.found

    # --- for news

    def changed(self, key_id: str) -> None:
        """The key with this id is not what it was."""
        self._changes += 1
        self._unknown.clear()
        for proof in [proof for proof in self._known if proof.id == key_id]:
            del self._known[proof]

    async def run(self) -> None:
        """Ask what requests want to know, and compare revisions, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._answer_questions)
            nursery.start_soon(self._compare_revisions)

    async def _answer_questions(self) -> None:
        while True:
            await self._asked.wait()
            batch = list(islice(self._questions.values(), KEYS_PER_LOOKUP))
            outdated = await self._answer(batch)
            for question in batch:
                del self._questions[question.proof]
                question.answered.set()
            if not self._questions:
                self._asked = trio.Event()
            await self._adopt(outdated)
            await trio.sleep(1 / LOOKUPS_PER_SECOND)

    async def _answer(self, batch: list[_Question]) -> list[Proof]:
        """Fill in the answers; those that Redis should know better are returned."""
        changes = -1
        try:
            while changes != self._changes:  # else the answer may be older than the news that came with it
                changes = self._changes
                self.lookups += 1
                answers = await self._store.find([question.proof for question in batch])
        except RedisError as error:
            _log.warning("callers' keys cannot be looked up: %s", error)
            for question in batch:
                question.failed = True
            return []
        now = trio.current_time()
        for question, found in zip(batch, answers, strict=True):
            question.found = found
            if found is None:
                self._unknown[question.proof] = now + UNKNOWN_SECONDS
            else:
                self._known[question.proof] = _Known(found, now, now)
        _shorten(self._unknown, MOST_UNKNOWN)
        _shorten(self._known, MOST_KNOWN)
        return [question.proof for question in batch if question.found is not None and question.found.outdated]

    async def _adopt(self, outdated: list[Proof]) -> None:
        try:
            for proof in outdated:
                await self._store.adopt(proof)
        except RedisError as error:
            _log.warning("a caller's key stays under an old secret key for now: %s", error)

    async def _compare_revisions(self) -> None:
        while True:
            await trio.sleep(keys.REFRESH_SECONDS)
            asked_at = trio.current_time()
            for proof in [proof for proof, known in self._known.items() if asked_at > known.used_at + UNUSED_SECONDS]:
                del self._known[proof]
            try:
                current = await self._store.revisions(list({proof.id for proof in self._known}))
            except RedisError:
                continue
            for known in list(self._known.values()):
                if known.confirmed_at > asked_at:
                    continue
                if current.get(known.found.key.id) == known.found.key.revision:
                    known.confirmed_at = asked_at
                else:
                    self.changed(known.found.key.id)


def _shorten(table: dict[Proof, Any], most: int) -> None:
    """Drop what has been there longest."""
    for proof in list(islice(table, max(0, len(table) - most))):
        del table[proof]


def _unavailable() -> GatewayError:
    return fail("queue_unavailable", "Keys cannot be checked right now; try again in a few seconds.")
