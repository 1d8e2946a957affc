"""What a frontend knows of callers' keys: without asking, without believing too long, and whatever strangers try."""

import secrets

import msgspec
import pytest
import trio
import trio.testing

from frontend import known_keys
from frontend.known_keys import KnownKeys
from shared.errors import GatewayError
from shared.redis import keys
from shared.redis.address import Address
from shared.redis.callers import CallerStore, Proof
from shared.redis.link import Link
from shared.schema import key_text
from shared.schema.caller import CallerKey
from shared.sealing import Seal
from tests.redis_server import RedisServer
from tests.waiting import until

SEAL = Seal(["a secret key only for tests, 0123456789abcdef"])


class Clock:
    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def link(redis_server: RedisServer, nursery: trio.Nursery) -> Link:
    link = Link(Address.parse(redis_server.url), timeout_seconds=0.5)
    await nursery.start(link.run)
    return link


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(link: Link, clock: Clock) -> CallerStore:
    return CallerStore(link, SEAL, clock=clock)


@pytest.fixture
def known(store: CallerStore, clock: Clock, nursery: trio.Nursery) -> KnownKeys:
    known = KnownKeys(store, clock=clock)
    nursery.start_soon(known.run)
    return known


def proof_of(store: CallerStore, key: str) -> Proof:
    proof = store.proof(key)
    assert proof is not None
    return proof


def made_up() -> str:
    return key_text.compose(secrets.token_hex(4), secrets.token_bytes(32))


async def test_a_key_is_asked_for_once(known: KnownKeys, store: CallerStore, link: Link) -> None:
    made, key = await store.create(CallerKey("", name="Ada"))
    before = link.statistics().commands
    proof = proof_of(store, key)
    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(known.find, proof)
    for _ in range(100):
        assert await known.find(proof) == made
    assert (known.lookups, link.statistics().commands - before) == (1, 1)


async def test_a_key_that_nobody_has_is_asked_for_once_in_a_while(
    known: KnownKeys, store: CallerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    proof = proof_of(store, made_up())
    for _ in range(100):
        assert await known.find(proof) is None
    assert known.lookups == 1
    monkeypatch.setattr(known_keys, "UNKNOWN_SECONDS", 0.0)
    known.changed("00000000")  # forgets, as any change does
    assert await known.find(proof) is None
    assert known.lookups == 2


@pytest.mark.fault("S2")
async def test_keys_that_are_made_up_cost_redis_next_to_nothing(
    known: KnownKeys, store: CallerStore, link: Link
) -> None:
    made, key = await store.create(CallerKey(""))
    proofs = [proof_of(store, made_up()) for _ in range(2000)]
    before = link.statistics().commands
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for proof in proofs:
                nursery.start_soon(known.find, proof)
            await trio.testing.wait_all_tasks_blocked()
            assert await known.find(proof_of(store, key)) == made, "an honest caller is served among them"
    assert link.statistics().commands - before <= 20
    assert len(known._unknown) == 2000


async def test_what_waits_is_bounded(known: KnownKeys, store: CallerStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_keys, "MOST_WAITING", 3)
    refused: list[str] = []

    async def ask() -> None:
        try:
            assert await known.find(proof_of(store, made_up())) is None
        except GatewayError as error:
            refused.append(error.failure.kind)

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(ask)
    assert refused == ["queue_unavailable"] * 2


async def test_what_is_remembered_is_bounded(
    known: KnownKeys, store: CallerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_keys, "MOST_KNOWN", 3)
    monkeypatch.setattr(known_keys, "MOST_UNKNOWN", 3)
    for _ in range(5):
        _, key = await store.create(CallerKey(""))
        assert await known.find(proof_of(store, key))
        assert not await known.find(proof_of(store, made_up()))
    assert len(known._known) == len(known._unknown) == 3


async def test_news_make_it_ask_again(known: KnownKeys, store: CallerStore) -> None:
    made, key = await store.create(CallerKey(""))
    proof = proof_of(store, key)
    assert await known.find(proof) == made
    changed = await store.update(made.id, lambda key: msgspec.structs.replace(key, name="Ada"))
    assert await known.find(proof) == made, "nobody has told"
    known.changed(made.id)
    assert await known.find(proof) == changed
    await store.revoke(made.id)
    known.changed(made.id)
    assert await known.find(proof) is None


async def test_an_answer_that_is_older_than_the_news_is_asked_again(
    store: CallerStore, clock: Clock, nursery: trio.Nursery
) -> None:
    made, key = await store.create(CallerKey(""))

    class Late(CallerStore):
        """Answers with what was true before the key was revoked, of which the news come first."""

        async def find(self, proofs):  # type: ignore[no-untyped-def]
            found = await super().find(proofs)
            if found[0] is not None:
                await self.revoke(made.id)
                known.changed(made.id)
            return found

    late = Late(store._link, SEAL, clock=clock)
    known = KnownKeys(late, clock=clock)
    nursery.start_soon(known.run)
    assert await known.find(proof_of(store, key)) is None
    assert known.lookups == 2


async def test_lost_news_are_noticed_within_a_second_or_so(
    known: KnownKeys, store: CallerStore, redis_server: RedisServer
) -> None:
    made, key = await store.create(CallerKey(""))
    _, kept_key = await store.create(CallerKey(""))
    proofs = [proof_of(store, text) for text in (key, kept_key)]
    for proof in proofs:
        assert await known.find(proof)
    await store.revoke(made.id)
    await until(lambda: proofs[0] not in known._known)
    assert await known.find(proofs[0]) is None
    assert proofs[1] in known._known
    redis_server.client.delete(keys.CALLERS, keys.CALLER_REVISIONS)
    await until(lambda: proofs[1] not in known._known)
    assert await known.find(proofs[1]) is None


async def test_a_key_ends_with_its_time_or_its_grace_without_any_news(
    known: KnownKeys, store: CallerStore, clock: Clock
) -> None:
    made, first = await store.create(CallerKey("", expires_at=clock.now + 100))
    _, second = await store.rotate(made.id, grace_seconds=10)
    proofs = [proof_of(store, text) for text in (first, second)]
    assert [bool(await known.find(proof)) for proof in proofs] == [True, True]
    clock.now += 10
    assert [bool(await known.find(proof)) for proof in proofs] == [False, True]
    clock.now += 90
    assert [bool(await known.find(proof)) for proof in proofs] == [False, False]


async def test_without_redis_what_was_confirmed_lately_counts_and_nothing_else(
    known: KnownKeys, store: CallerStore, redis_server: RedisServer, link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, key = await store.create(CallerKey(""))
    proof = proof_of(store, key)
    assert await known.find(proof) == made
    redis_server.kill()
    await until(lambda: not link.up)
    assert await known.find(proof) == made
    with trio.fail_after(5), pytest.raises(GatewayError, match="queue_unavailable"):
        await known.find(proof_of(store, made_up()))
    monkeypatch.setattr(known_keys, "TRUSTED_SECONDS", 0.0)
    with trio.fail_after(5), pytest.raises(GatewayError, match="queue_unavailable"):
        await known.find(proof)
    redis_server.restart()
    await until(lambda: link.up)
    with trio.fail_after(5):
        assert await known.find(proof) is None, "it came back empty"


async def test_a_question_that_its_asker_does_not_wait_for_is_answered_for_the_others(
    known: KnownKeys, store: CallerStore
) -> None:
    made, key = await store.create(CallerKey(""))
    proof = proof_of(store, key)
    async with trio.open_nursery() as nursery:
        impatient = trio.CancelScope()

        async def leave() -> None:
            with impatient:
                await known.find(proof)

        nursery.start_soon(leave)
        await trio.testing.wait_all_tasks_blocked()
        impatient.cancel()
        assert await known.find(proof) == made


async def test_a_key_is_adopted_when_it_is_used(
    link: Link, store: CallerStore, clock: Clock, nursery: trio.Nursery
) -> None:
    made, key = await store.create(CallerKey(""))
    ring = ["the next secret key, only for tests 0123456789", "a secret key only for tests, 0123456789abcdef"]
    turned = CallerStore(link, Seal(ring), clock=clock)
    known = KnownKeys(turned, clock=clock)
    nursery.start_soon(known.run)
    assert await known.find(proof_of(turned, key)) == made
    latest = CallerStore(link, Seal(ring[:1]), clock=clock)
    adopted = msgspec.structs.replace(made, revision=2)
    with trio.fail_after(5):
        while (await latest.find([proof_of(latest, key)]))[0] is None:
            await trio.lowlevel.checkpoint()
    await until(lambda: proof_of(turned, key) not in known._known)
    assert await known.find(proof_of(turned, key)) == adopted


async def test_a_caller_whose_record_changed_meanwhile_is_looked_at_anew(known: KnownKeys, store: CallerStore) -> None:
    made, key = await store.create(CallerKey(""))
    proof = proof_of(store, key)
    assert await known.find(proof) == made
    await store.rotate(made.id)
    assert await known.find_anew(proof) is None
