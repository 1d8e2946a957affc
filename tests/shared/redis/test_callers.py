"""Callers' keys against a real Redis: found by proof alone, changed all or nothing, told to everybody, kept nowhere."""

import msgspec
import pytest
import trio

from shared.redis import keys
from shared.redis.address import Address
from shared.redis.callers import CallerStore, Found, RevokedKey, UnknownKey
from shared.redis.link import Link
from shared.redis.subscription import Subscription
from shared.schema import key_text
from shared.schema.caller import CallerKey
from shared.sealing import Seal
from tests.redis_server import RedisServer
from tests.waiting import until

OLD = "an old secret key only for tests 0123456789"
NEW = "a new secret key only for tests, 0123456789"
WANTED = CallerKey("", name="Ada", requests_per_minute=60, models=("gpt-4o*",), expires_at=2e9)


class Clock:
    """Unix seconds that a test sets."""

    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(link: Link, clock: Clock) -> CallerStore:
    return CallerStore(link, Seal([NEW]), clock=clock)


async def found(store: CallerStore, key: str) -> Found | None:
    proof = store.proof(key)
    assert proof is not None
    (found,) = await store.find([proof])
    return found


async def test_a_key_opens_its_record_and_only_it(store: CallerStore, clock: Clock) -> None:
    ada, adas = await store.create(WANTED)
    bob, bobs = await store.create(CallerKey("", name="Bob"))
    assert ada == msgspec.structs.replace(WANTED, id=ada.id, revision=1, created_at=clock.now)
    assert await found(store, adas) == Found(ada)
    assert await found(store, bobs) == Found(bob)
    stolen = key_text.compose(ada.id, bytes(32))
    proofs = [store.proof(key) for key in (bobs, stolen, adas, key_text.compose("00000000", bytes(32)))]
    assert await store.find([proof for proof in proofs if proof]) == [Found(bob), None, Found(ada), None]
    assert await store.find([]) == []


async def test_all_keys_are_listed_oldest_first(store: CallerStore, clock: Clock) -> None:
    made = []
    for name in "first", "second", "third":
        made.append((await store.create(CallerKey("", name=name)))[0])
        clock.now += 1
    revoked = await store.revoke(made[1].id)
    assert await store.all() == [made[0], revoked, made[2]]
    assert await store.get(made[0].id) == made[0]
    with pytest.raises(UnknownKey):
        await store.get("00000000")


async def test_every_change_counts_the_revision_and_is_told(
    store: CallerStore, redis_server: RedisServer, nursery: trio.Nursery
) -> None:
    news: list[str] = []
    ears = Subscription(Address.parse(redis_server.url), [keys.CALLERS_NEWS])
    await nursery.start(ears.run, lambda _channel, message: news.append(message.decode()))
    made, _ = await store.create(WANTED)
    assert await store.revisions([made.id, "00000000"]) == {made.id: 1}
    changed = await store.update(made.id, lambda key: msgspec.structs.replace(key, name="Ada L.", id="x", revision=99))
    assert changed == msgspec.structs.replace(made, name="Ada L.", revision=2)
    assert await store.revisions([made.id]) == {made.id: 2}
    assert await store.update(made.id, lambda key: key) == changed, "nothing to change is no change"
    rotated, _ = await store.rotate(made.id)
    assert rotated == msgspec.structs.replace(changed, revision=3)
    await store.revoke(made.id)
    assert await store.revisions([made.id]) == {made.id: -4}
    await until(lambda: len(news) == 4)
    assert news == [made.id] * 4


async def test_a_revoked_key_is_revoked_for_good(store: CallerStore, clock: Clock) -> None:
    made, key = await store.create(WANTED)
    clock.now += 5
    revoked = await store.revoke(made.id)
    assert revoked.revoked_at == clock.now
    clock.now += 5
    assert await store.revoke(made.id) == revoked, "the second time changes nothing"
    assert await found(store, key) is None
    for change in (store.rotate(made.id), store.update(made.id, lambda key: key)):
        with pytest.raises(RevokedKey):
            await change
    for change in (store.rotate("00000000"), store.revoke("00000000"), store.update("00000000", lambda key: key)):
        with pytest.raises(UnknownKey):
            await change


async def test_a_rotated_key_ends_at_once_or_after_its_grace(store: CallerStore, clock: Clock) -> None:
    made, first = await store.create(WANTED)
    _, second = await store.rotate(made.id)
    assert key_text.id_of(second) == made.id and second != first
    assert await found(store, first) is None
    _, third = await store.rotate(made.id, grace_seconds=60)
    leaving, staying = await found(store, second), await found(store, third)
    assert leaving and leaving.until == clock.now + 60
    assert staying and staying.until is None
    _, fourth = await store.rotate(made.id, grace_seconds=3600)
    leaving = await found(store, second)
    assert leaving and leaving.until == clock.now + 60, "a later grace does not lengthen an earlier one"
    clock.now += 60
    assert await found(store, second) is None
    assert await found(store, third) and await found(store, fourth)
    await store.rotate(made.id)
    assert await found(store, third) is None is await found(store, fourth)


async def test_changes_at_the_same_time_all_count(store: CallerStore) -> None:
    made, _ = await store.create(CallerKey("", name=""))

    async def add(letter: str) -> None:
        await store.update(made.id, lambda key: msgspec.structs.replace(key, name=key.name + letter))

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for letter in "abcdefghijklmnop":
                nursery.start_soon(add, letter)
    changed = await store.get(made.id)
    assert sorted(changed.name) == list("abcdefghijklmnop")
    assert changed.revision == 17


async def test_a_new_secret_key_is_rolled_out_and_no_callers_key_ends(link: Link) -> None:
    """old -> old, new -> new, old -> new: every process of two neighbouring steps knows every key that was used meanwhile."""
    old, both, turned, new = (CallerStore(link, Seal(ring)) for ring in ([OLD], [OLD, NEW], [NEW, OLD], [NEW]))
    made, key = await old.create(CallerKey(""))
    unused, unused_key = await old.create(CallerKey(""))
    assert await found(new, key) is None, "the new key alone proves nothing about it"
    assert await found(both, key) == Found(made)
    outdated = await found(turned, key)
    assert outdated == Found(made, outdated=True)
    proof = turned.proof(key)
    assert proof
    await turned.adopt(proof)
    adopted = msgspec.structs.replace(made, revision=2)
    for store in (old, both, turned, new):
        assert await found(store, key) == Found(adopted), "nobody has to adopt it again"
    await turned.adopt(proof)
    assert (await new.get(made.id)).revision == 2
    assert await found(turned, unused_key) and not await found(new, unused_key)
    later, later_key = await both.create(CallerKey(""))
    assert await found(new, later_key) == Found(later), "a key is known under the whole ring from the beginning"
    await turned.revoke(unused.id)
    unused_proof = turned.proof(unused_key)
    assert unused_proof
    await turned.adopt(unused_proof)  # too late, and harmless


async def test_the_end_of_a_grace_survives_adoption(link: Link, clock: Clock) -> None:
    old, turned = (CallerStore(link, Seal(ring), clock=clock) for ring in ([OLD], [NEW, OLD]))
    made, first = await old.create(CallerKey(""))
    await old.rotate(made.id, grace_seconds=60)
    proof = turned.proof(first)
    assert proof
    await turned.adopt(proof)
    ending = await found(CallerStore(link, Seal([NEW]), clock=clock), first)
    assert ending and ending.until == clock.now + 60


async def test_no_key_is_kept_and_what_is_kept_opens_nothing(store: CallerStore, redis_server: RedisServer) -> None:
    made, key = await store.create(WANTED)
    _, second = await store.rotate(made.id, grace_seconds=60)
    kept = b"".join(redis_server.client.hgetall(keys.CALLERS).values())
    for secret in (key, second):
        assert secret[len("sk-sluice-") :].encode() not in kept
        assert secret.split("-", 3)[3].encode() not in kept
    assert not set(Seal([OLD]).digests(key.encode())) & set(Seal([NEW]).digests(key.encode()))
    assert all(digest.encode() in kept for digest in Seal([NEW]).digests(key.encode()))
    assert Seal([NEW]).name(key.encode(), b"") not in kept.decode(), "named in logs by something else"


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff", b'{"id": 5}', b'{"id": "00000000"}', b"[" * 10_000])
async def test_a_record_that_nobody_wrote_opens_nothing_and_breaks_nothing(
    store: CallerStore, redis_server: RedisServer, damage: bytes
) -> None:
    made, key = await store.create(WANTED)
    other, others = await store.create(CallerKey(""))
    redis_server.client.hset(keys.CALLERS, made.id, damage)
    redis_server.client.hset(keys.CALLER_REVISIONS, made.id, b"one")
    assert await found(store, key) is None
    assert await store.revisions([made.id, other.id]) == {other.id: 1}
    assert await found(store, others) == Found(other)
    assert await store.all() == [other]
    with pytest.raises(UnknownKey):
        await store.revoke(made.id)
