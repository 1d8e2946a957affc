"""The waiting room: fair between callers, two classes, bounded, never stuck. Real Redis, real scripts."""

import itertools
import random

import msgspec
import pytest
import trio

from shared.redis import keys
from shared.redis.submission.queue import COUNTER, LOW_EVERY, MOST_BYTES, SHARE, claimed, withdraw
from shared.redis.submission.script import Ask, Queued, Refusal, answer_to, submission

PROVIDER = "openai"
START_MS = 1_760_000_000_000.0


class Shop:
    """One provider's queue and a worker without hands: `claim` is what a worker does to Redis."""

    def __init__(self, link):
        self.link = link
        self.now_ms = START_MS
        self.numbers = itertools.count()

    async def open(self):
        await self.link.call(b"XGROUP", b"CREATE", keys.jobs(PROVIDER), keys.GROUP, b"0", b"MKSTREAM")
        return self

    async def submit(self, caller, name=None, *, most=1000, patience=1e9, size=0, **more):
        name = name or f"{caller}-{next(self.numbers)}"
        ask = Ask(
            job=name, name=name, caller=caller, whose=caller, model="m", patience_ms=patience, most_waiting=most,
            now_ms=self.now_ms, **more,
        )  # fmt: skip
        sealed = (b"sealed " + name.encode()).ljust(size)
        return answer_to(await self.link.script(*submission(PROVIDER, ask, sealed)))

    async def read(self, count=1):
        """What XREADGROUP hands out: pairs of entry and name."""
        reply = await self.link.call(
            b"XREADGROUP", b"GROUP", keys.GROUP, keys.CONSUMER, b"COUNT", count, b"STREAMS", keys.jobs(PROVIDER), b">"
        )
        found = [(entry, fields[3]) for _, entries in reply or () for entry, fields in entries]
        for _, entries in reply or ():
            for _, fields in entries:
                assert fields[1].rstrip() == b"sealed " + fields[3]
        return found

    async def answer_for(self, read, room=0):
        script, script_keys, arguments = claimed(
            PROVIDER, [entry for entry, _ in read], [name for _, name in read], room, now_ms=self.now_ms
        )
        await self.link.script(script, script_keys, arguments)

    async def claim(self, count=1, room=0):
        read = await self.read(count)
        await self.answer_for(read, room)
        return [name.decode() for _, name in read]

    async def serve_all(self):
        served = []
        while names := await self.claim():
            served += names
        return served

    async def leave(self, *names):
        return await self.link.script(*withdraw(PROVIDER, *names))

    async def left(self):
        """Keys that hold anything of the queue, the pace apart."""
        lengths = {
            b"stream": b"XLEN", b"zset": b"ZCARD", b"hash": b"HLEN", b"none": None,
        }  # fmt: skip
        found = {}
        for key in keys.queue(PROVIDER)[:-1]:
            command = lengths[await self.link.call(b"TYPE", key)]
            if command and (length := await self.link.call(command, key)):
                found[key] = length
        return found


@pytest.fixture
async def shop(link):
    return await Shop(link).open()


async def test_a_thousand_jobs_of_one_caller_do_not_delay_anothers_one(shop):
    for _ in range(500):
        assert isinstance(await shop.submit("a"), Queued)
    served = [name for _ in range(100) for name in await shop.claim()]
    await shop.submit("b", "late")
    served += await shop.serve_all()
    assert served.index("late") - 100 <= COUNTER + 1
    assert [name for name in served if name != "late"] == [f"a-{number}" for number in range(500)], (
        "each caller's in order"
    )
    assert await shop.left() == {}


async def test_callers_who_have_waiting_jobs_take_turns(shop):
    for caller, jobs in (("a", 40), ("b", 20), ("c", 10)):
        for _ in range(jobs):
            await shop.submit(caller)
    served = (await shop.serve_all())[COUNTER:]
    for first in range(0, 27, 3):
        assert {name[0] for name in served[first : first + 3]} == {"a", "b", "c"}


async def test_first_come_first_served_among_callers_with_one_job_each(shop):
    names = [f"job{number}" for number in range(30)]
    callers = [f"caller{number}" for number in range(30)]
    random.Random(1).shuffle(callers)
    for caller, name in zip(callers, names, strict=True):
        await shop.submit(caller, name)
        shop.now_ms += 0.5
    assert await shop.serve_all() == names


async def test_low_waits_behind_normal_but_gets_its_place(shop):
    await shop.submit("x", most=10_000)
    for _ in range(COUNTER):
        await shop.submit("filler", most=10_000)
    for _ in range(50):
        await shop.submit("low", low=True, most=10_000)
    for _ in range(100):
        await shop.submit("normal", most=10_000)
    served = (await shop.serve_all())[COUNTER + 1 :]
    lows = [place for place, name in enumerate(served[:110], 1) if name.startswith("low")]
    assert all(later - earlier == LOW_EVERY for earlier, later in itertools.pairwise(lows))
    assert len(lows) >= 110 // LOW_EVERY - 1
    assert all(name.startswith("low") for name in served[-30:])


async def test_the_counter_is_short_but_long_enough_for_who_has_room(shop):
    for _ in range(100):
        await shop.submit("a")
    assert (await shop.left())[keys.jobs(PROVIDER)] == COUNTER
    await shop.claim(COUNTER, room=32)
    assert (await shop.left())[keys.jobs(PROVIDER)] == 32
    await shop.claim(64, room=0)
    assert (await shop.left())[keys.jobs(PROVIDER)] == COUNTER


async def test_what_was_read_makes_room_on_the_counter_before_it_is_acknowledged(shop):
    for _ in range(COUNTER):
        await shop.submit("a")
    await shop.read(COUNTER)
    await shop.submit("b")
    assert [name for _, name in await shop.read()] == [b"b-4"]


async def test_withdrawn_jobs_are_gone_wherever_they_stood(shop):
    for _ in range(20):
        await shop.submit("a")
    assert await shop.leave("a-1", "a-10", "a-19", "never heard of") == 3
    assert await shop.leave("a-10") == 0
    served = await shop.serve_all()
    assert served == [f"a-{number}" for number in range(20) if number not in (1, 10, 19)]
    assert await shop.left() == {}


async def test_who_withdraws_everything_has_no_past(shop):
    for _ in range(100):
        await shop.submit("a")
    for _ in range(20):
        await shop.submit("b")
    await shop.leave(*(f"a-{number}" for number in range(100)))
    await shop.submit("a", "again")
    assert (await shop.serve_all()).index("again") <= COUNTER + 2


async def test_a_job_that_has_had_its_turn_does_not_wait_again(shop):
    for _ in range(20):
        await shop.submit("a")
    await shop.submit("a", "second attempt", again=True, returns=True, ahead=True, most=5)
    assert (await shop.serve_all()).index("second attempt") == COUNTER


async def test_the_queue_is_bounded_and_leaves_room_for_others(shop):
    let_in = 0
    while isinstance(answer := await shop.submit("a", most=100), Queued):
        let_in += 1
    assert let_in == pytest.approx(100 * SHARE / (SHARE + 1), abs=COUNTER + 1)
    assert (answer.kind, answer.own, answer.waiting) == ("queue_full", let_in - COUNTER, let_in)
    assert isinstance(await shop.submit("b", most=100), Queued), "somebody else still finds room"
    before = await shop.left()
    assert isinstance(await shop.submit("a", most=100), Refusal)
    assert await shop.left() == before, "a refused job leaves no trace"
    for caller in range(100):
        answer = await shop.submit(f"other{caller}", most=100)
    assert (answer.kind, answer.own, answer.waiting) == ("queue_full", 0, 100)


async def test_what_waits_does_not_take_the_memory_from_everybody(shop):
    for _ in range(COUNTER):
        await shop.submit("first")
    names = [f"large-{number}" for number in range(10)]
    answers = [await shop.submit("a", name, size=MOST_BYTES // 9) for name in names]
    assert [type(answer) for answer in answers] == [Queued] * 8 + [Refusal] * 2
    assert (answers[-1].kind, answers[-1].own) == ("queue_full", 8)
    assert isinstance(await shop.submit("b", "small", size=1000), Queued), "somebody else still finds room"
    too_large = await shop.submit("b", size=MOST_BYTES // 9)
    assert (too_large.kind, too_large.own) == ("queue_full", 0)
    await shop.leave(names[0])
    assert isinstance(await shop.submit("b", "large", size=MOST_BYTES // 9), Queued)
    assert len(await shop.serve_all()) == COUNTER + 7 + 2
    assert not await shop.left(), "nothing is counted that is not there"


async def test_small_queues_take_what_they_say(shop):
    answers = [await shop.submit("a", most=5) for _ in range(6)]
    assert [type(answer) for answer in answers] == [Queued] * 5 + [Refusal]


async def test_the_wait_is_estimated_from_what_is_claimed_while_somebody_waits(shop):
    for _ in range(100):
        await shop.submit("a")
    for _ in range(40):  # ten a second
        shop.now_ms += 100
        await shop.claim()
    patient = await shop.submit("a", patience=6000)
    impatient = await shop.submit("a", patience=3000)
    assert isinstance(patient, Queued)
    assert (impatient.kind, impatient.retry_after_seconds) == ("queue_full", pytest.approx(4.5, abs=0.5)), (
        "on the short side"
    )
    assert isinstance(await shop.submit("b", patience=3000), Queued), "another caller is served sooner"
    lows = [await shop.submit("c", patience=3000, low=True) for _ in range(6)]
    assert [type(answer) for answer in lows] == [Queued] * 4 + [Refusal] * 2, "of low priority, every eighth"


async def test_who_finds_room_does_not_wait(shop):
    """A worker that was slow to claim the first few may have room for all."""
    for _ in range(100):
        await shop.submit("a")
    for _ in range(4):
        shop.now_ms += 2000
        await shop.claim()
    assert isinstance(await shop.submit("a", patience=5000), Refusal)
    await shop.claim(1, room=500)
    assert isinstance(await shop.submit("a", patience=5000), Queued)
    shop.now_ms += 5000
    assert isinstance(await shop.submit("a", patience=5000), Refusal), "that was long ago"


async def test_a_queue_that_stands_still_is_seen_to(shop):
    """Nothing is claimed at all: the estimate grows with the time that it has been so."""
    for _ in range(COUNTER + 5):
        await shop.submit("a")
    assert isinstance(await shop.submit("a", patience=10_000), Queued), "nothing is known yet"
    shop.now_ms += 8000
    answer = await shop.submit("a", patience=10_000)
    assert (answer.kind, answer.retry_after_seconds > 10) == ("queue_full", True)


async def test_idle_times_say_nothing_about_the_speed(shop):
    for _ in range(10):
        await shop.submit("a")
        shop.now_ms += 60_000
        await shop.claim()
    for _ in range(200):
        answer = await shop.submit("a", patience=1000)
    assert isinstance(answer, Queued)


async def test_a_reader_that_died_stops_nobody(shop):
    for _ in range(20):
        await shop.submit("a")
    lost = await shop.read(COUNTER)  # and nobody answers for them
    await shop.answer_for([])  # a worker that waits in vain looks
    served = await shop.serve_all()
    assert served == [f"a-{number}" for number in range(COUNTER, 20)]
    _, taken_over, *_ = await shop.link.call(
        b"XAUTOCLAIM", keys.jobs(PROVIDER), keys.GROUP, keys.CONSUMER, b"0", b"0", b"COUNT", b"64"
    )
    assert [entry for entry, _ in taken_over] == [entry for entry, _ in lost]
    await shop.answer_for([(entry, fields[3]) for entry, fields in taken_over])
    assert await shop.left() == {}


async def test_a_waiting_room_without_a_counter_is_found(shop, redis_server):
    for _ in range(20):
        await shop.submit("a")
    redis_server.client.delete("sluice:jobs:{openai}")
    await shop.link.call(b"XGROUP", b"CREATE", keys.jobs(PROVIDER), keys.GROUP, b"0", b"MKSTREAM")
    assert await shop.claim() == []
    await shop.answer_for([], room=8)
    assert len(await shop.read(64)) == 8


async def test_without_a_group_nothing_breaks(link):
    """Before the first worker, and after Redis came back empty."""
    shop = Shop(link)
    for _ in range(10):
        assert isinstance(await shop.submit("a"), Queued)
    await shop.leave("a-0")
    await shop.answer_for([])
    await link.call(b"XGROUP", b"CREATE", keys.jobs(PROVIDER), keys.GROUP, b"0")
    assert await shop.serve_all() == [f"a-{number}" for number in range(1, 10)]


async def test_whatever_happens_everybody_is_served_once_and_nothing_is_left(shop):
    """Callers come, leave and are served at random; the waiting room ends empty, and each caller's jobs kept their order."""
    rng = random.Random(42)
    waiting, served, gone = set(), [], set()
    with trio.fail_after(30):
        for _ in range(1500):
            shop.now_ms += rng.expovariate(1 / 5)
            match rng.choices(("submit", "claim", "leave"), (6, 4, 1))[0]:
                case "submit":
                    name = f"{rng.choice('abcde')}.{next(shop.numbers):05}"
                    if isinstance(await shop.submit(name[0], name, low=rng.random() < 0.2, most=200), Queued):
                        waiting.add(name)
                case "claim":
                    served += await shop.claim(rng.randint(1, 5), rng.choice((0, 0, 3, 20)))
                case "leave":
                    left = rng.sample(sorted(waiting), min(len(waiting), rng.randint(1, 3)))
                    gone |= set(left) - set(served)
                    await shop.leave(*left)
            waiting -= set(served) | gone
        served += await shop.serve_all()
    assert len(served) == len(set(served))
    assert not set(served) & gone
    assert await shop.left() == {}
    assert not set(waiting) - set(served)


async def test_the_scripts_answer_in_the_words_that_python_reads(shop):
    assert await shop.submit("a") == Queued()
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(Queued())) == {"is": "queued", "limits": None}
