"""Kept answers against a real Redis: found while they live, bounded together, readable by nobody else."""

import time

from shared.redis import keys
from shared.redis.answers import Answers, KeptAnswer
from shared.redis.link import Link
from shared.schema.job import Outcome
from shared.sealing import Seal
from tests.redis_server import RedisServer
from tests.waiting import until

SEAL = Seal(["a-secret-key-only-for-tests-0123456789abcdef"])


def answer(text: bytes, *, request: bytes = b"digest", life_seconds: float = 60.0) -> KeptAnswer:
    return KeptAnswer(request, "openai", [text], Outcome(prompt_tokens=3, completion_tokens=5), life_seconds)


async def names(link: Link) -> set[bytes]:
    """What is kept, and a check that the three keys agree about it."""
    await link.call(b"PING")
    await link.call(b"PING")  # what a server that did not know the script is told again comes after the first
    answers, ends, held = await link.many(
        [(b"HGETALL", keys.ANSWERS[0]), (b"ZRANGE", keys.ANSWERS[1], b"0", b"-1"), (b"GET", keys.ANSWERS[2])]
    )
    kept = dict(zip(answers[::2], answers[1::2], strict=True))
    assert set(kept) == set(ends)
    assert int(held or 0) == sum(map(len, kept.values()))
    return set(kept)


async def test_an_answer_is_found_with_its_age(link: Link) -> None:
    store = Answers(link, SEAL, 10_000)
    store.keep("a", answer(b"hello"))
    found = await store.find("a", b"digest")
    assert found is not None
    kept, age_seconds = found
    assert kept == answer(b"hello")
    assert 0 <= age_seconds < 5
    assert await store.find("b", b"digest") is None


async def test_another_request_of_the_same_name_finds_nothing(link: Link) -> None:
    store = Answers(link, SEAL, 10_000)
    store.keep("a", answer(b"hello"))
    assert await store.find("a", b"another digest") is None


async def test_an_answer_ends_by_itself(link: Link, redis_server: RedisServer) -> None:
    store = Answers(link, SEAL, 10_000)
    store.keep("short", answer(b"hello", life_seconds=0.05))
    store.keep("long", answer(b"hello", life_seconds=60))
    assert await store.find("long", b"digest") is not None
    await names(link)
    await until(lambda: redis_server.client.zscore(keys.ANSWERS[1], "short") < time.time() * 1000)
    assert await store.find("short", b"digest") is None
    store.keep("next", answer(b"hello"))
    assert await names(link) == {b"long", b"next"}
    assert all(redis_server.client.pttl(key) > 0 for key in keys.ANSWERS)


async def test_the_bound_holds_and_the_next_to_go_make_room(link: Link) -> None:
    store = Answers(link, SEAL, 4_000)
    for number in range(20):
        store.keep(f"{number}", answer(b"x" * 1000, life_seconds=60 + number))
    kept = await names(link)
    assert kept == {b"17", b"18", b"19"}


async def test_what_is_larger_than_the_bound_is_not_kept(link: Link) -> None:
    store = Answers(link, SEAL, 500)
    store.keep("large", answer(b"x" * 1000))
    assert await store.find("large", b"digest") is None
    assert await names(link) == set()


async def test_the_same_name_again_replaces(link: Link) -> None:
    store = Answers(link, SEAL, 10_000)
    store.keep("a", answer(b"first"))
    store.keep("a", answer(b"second"))
    found = await store.find("a", b"digest")
    assert found is not None
    assert found[0].chunks == [b"second"]
    assert await names(link) == {b"a"}


async def test_what_redis_holds_is_sealed_to_its_name(link: Link, redis_server: RedisServer) -> None:
    store = Answers(link, SEAL, 10_000)
    store.keep("a", answer(b"a telling text"))
    assert await store.find("a", b"digest") is not None
    sealed = redis_server.client.hget(keys.ANSWERS[0], "a")
    assert b"telling" not in sealed
    redis_server.client.hset(keys.ANSWERS[0], "b", sealed)
    redis_server.client.zadd(keys.ANSWERS[1], {"b": 10**15})
    assert await store.find("b", b"digest") is None, "a copied answer opens nowhere else"
    assert await Answers(link, Seal(["another-secret-key-0123456789-abcdefgh"]), 10_000).find("a", b"digest") is None
