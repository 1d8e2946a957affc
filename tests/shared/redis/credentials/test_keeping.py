"""Sign-ups, refreshes, expiry, tests: what keepers are told to do, and operators' commands."""

import pytest

from shared.schema.credential import Chore, Granted, Minting, Nothing, Opened
from tests.shared.redis.credentials.conftest import Tried

MINUTE, HOUR = 60, 3600


@pytest.fixture
def minter(user: Tried) -> Tried:
    user.calls = 1
    user.minting = Minting(least=2, most=3, per_hour=5, margin_seconds=0)
    return user


async def mint(user: Tried, secret: str, life: float | None = HOUR, *, renewable: bool = False) -> str:
    """The next chore is a sign-up, and it goes well."""
    assert await user.upkeep(secret) == Chore("mint")
    made = await user.pool.add(
        Opened(secret), "minted", token=secret, most=user.minting.most, life_seconds=life,
        refresh_seconds=0.8 * (life or 0), renewable=renewable,
    )  # fmt: skip
    assert made is not None
    return made


async def test_signs_up_one_at_a_time_until_there_are_enough(minter: Tried) -> None:
    assert await minter.upkeep("first") == Chore("mint")
    assert await minter.upkeep("second") == 30, "somebody is at it"
    await minter.pool.add(Opened("one"), "minted", token="first", most=3)
    await mint(minter, "two")
    assert await minter.upkeep() == 0.8 * HOUR, "nothing to do before the first refresh"


async def test_more_are_made_only_when_somebody_waits_and_never_too_many(minter: Tried) -> None:
    await mint(minter, "one", None)
    await mint(minter, "two", None)
    await minter.lease()
    await minter.lease()
    assert await minter.upkeep() is None
    assert (await minter.none()).coming
    await mint(minter, "three", None)
    assert await minter.upkeep() is None, "one sign-up for one who waits"
    await minter.lease()
    assert (await minter.none()).coming, "a call may end at any moment"
    assert await minter.upkeep() is None, "and there are enough"
    assert await minter.pool.add(Opened("four"), "minted", most=3) is None


async def test_a_minter_that_died_holds_the_others_up_for_its_time_only(minter: Tried) -> None:
    assert await minter.upkeep("dead") == Chore("mint")
    minter.clock.add(29)
    assert await minter.upkeep("next") == 1
    minter.clock.add(1)
    assert await minter.upkeep("next") == Chore("mint")
    late = await minter.pool.add(Opened("late"), "minted", token="dead", most=3)
    assert late is not None, "it was slow, not dead: what it brings is welcome"
    assert await minter.upkeep("third") == 30, "but the second one is still at it"


@pytest.mark.fault("S23")
async def test_sign_ups_in_an_hour_are_limited_for_all_together(minter: Tried) -> None:
    for number in range(5):
        made = await mint(minter, f"{number}", None)
        await minter.pool.remove(made)
        minter.clock.add(MINUTE)
    assert await minter.upkeep() == 55 * MINUTE
    assert await minter.none() == Nothing(coming=False, hope_seconds=55 * MINUTE, known=0)
    minter.clock.add(55 * MINUTE)
    assert await minter.upkeep() == Chore("mint")
    assert await minter.pool.mint_failed("token", 0, 1.0) == MINUTE / 2
    minter.clock.add(MINUTE / 2)
    assert await minter.upkeep() == MINUTE / 2, "failed ones count too"


async def test_failures_make_pauses_that_double_up_to_a_quarter_of_an_hour(minter: Tried) -> None:
    minter.minting = Minting(1, 3, 1000)
    pauses = []
    for number in range(7):
        assert await minter.upkeep(f"{number}") == Chore("mint")
        pauses.append(await minter.pool.mint_failed(f"{number}", 0, 1.0))
        assert await minter.upkeep() == pauses[-1]
        assert await minter.none() == Nothing(coming=False, hope_seconds=pauses[-1], known=0)
        minter.clock.add(pauses[-1])
    assert pauses == [30, 60, 120, 240, 480, 900, 900]
    await mint(minter, "well", None)
    await minter.pool.remove((await minter.pool.standing())[0].id)
    assert await minter.upkeep("again") == Chore("mint")
    assert await minter.pool.mint_failed("again", 0, 1.0) == 30
    minter.clock.add(30)
    assert await minter.upkeep("asked") == Chore("mint")
    assert await minter.pool.mint_failed("asked", 1200, 1.0) == 1200, "the upstream knows best"
    assert await minter.pool.mint_failed("asked", 5000, 1.0) == 0, "told twice"


async def test_a_credential_that_can_be_refreshed_is_and_goes_on_meanwhile(minter: Tried) -> None:
    one = await mint(minter, "one", 1000, renewable=True)
    await mint(minter, "two", None)
    minter.clock.add(799)
    assert await minter.upkeep() == 1
    minter.clock.add(1)
    chore = await minter.upkeep()
    assert chore == Chore("refresh", one, b"1.1", Opened("one"))
    assert await minter.upkeep() == 30, "one keeper at a time"
    early, second = await minter.lease(), await minter.lease()
    assert sorted(held.opened.secret for held in (early, second)) == ["one", "two"]
    assert await minter.pool.refreshed(chore, Opened("one, anew"), life_seconds=1000, refresh_seconds=800)
    assert not await minter.pool.refreshed(chore, Opened("late"), life_seconds=1000, refresh_seconds=800)
    old = early if early.id == one else second
    minter.pool.release(old, "retire")  # a late refusal of the old secret
    granted = await minter.lease()
    assert (granted.id, granted.stamp, granted.opened) == (one, b"2.1", Opened("one, anew"))
    assert await minter.upkeep() == 800


async def test_a_refresh_that_fails_is_repeated_or_replaced(minter: Tried) -> None:
    one = await mint(minter, "one", 1000, renewable=True)
    await mint(minter, "two", None)
    minter.clock.add(800)
    chore = await minter.upkeep()
    assert isinstance(chore, Chore)
    await minter.pool.not_refreshed(chore, 50)
    assert await minter.upkeep() == 50
    minter.clock.add(50)
    assert await minter.upkeep() == chore
    await minter.pool.not_refreshed(chore, None)
    three = await mint(minter, "three", None)  # it serves to its end, but another is made in time
    assert {one.id for one in await minter.pool.standing()} > {one, three}
    assert await minter.upkeep() == 150
    minter.clock.add(150)
    assert one not in {(await minter.lease()).id, (await minter.lease()).id}
    await minter.none()
    assert await minter.upkeep() is not None
    assert one not in {one.id for one in await minter.pool.standing()}


async def test_one_that_cannot_be_refreshed_is_replaced_before_its_end(minter: Tried) -> None:
    minter.minting = Minting(least=1, most=1, per_hour=5)
    await mint(minter, "one", 1000)
    minter.clock.add(800)
    assert await minter.upkeep() == 200, "no more than one at any time"
    minter.clock.add(200)
    await mint(minter, "two", 1000)
    minter.minting = Minting(least=1, most=2, per_hour=5)
    minter.clock.add(800)
    await mint(minter, "three", 1000)


async def test_a_refused_one_is_refreshed_at_once(minter: Tried) -> None:
    one = await mint(minter, "one", HOUR, renewable=True)
    await minter.call("retire")
    chore = await minter.upkeep()
    assert chore == Chore("refresh", one, b"1.1", Opened("one"))
    await minter.pool.refreshed(chore, Opened("anew"), life_seconds=HOUR, refresh_seconds=2000)
    assert (await minter.lease()).opened == Opened("anew")
    (seen,) = await minter.pool.standing()
    assert (seen.record.strikes, seen.retired_seconds) == (1, 0), "trusted again, but not forgotten"


async def test_a_refused_one_is_replaced_and_comes_back_only_if_there_is_room(minter: Tried) -> None:
    minter.minting = Minting(least=1, most=1, per_hour=5)
    await mint(minter, "one", None)
    await minter.call("retire")
    two = await mint(minter, "two", None)
    minter.clock.add(10 * MINUTE)
    assert (await minter.lease()).id == two
    assert [one.id for one in await minter.pool.standing()] == [two]


async def test_the_third_refusal_in_a_row_is_the_last_of_a_minted_one(minter: Tried) -> None:
    minter.minting = Minting(least=0, most=3, per_hour=5)
    assert (await minter.none()).coming
    one = await mint(minter, "one", None)
    for pause in (10 * MINUTE, HOUR):
        assert (await minter.call("retire")).id == one
        minter.clock.add(pause)
    assert (await minter.call("retire")).id == one
    assert await minter.pool.standing() == []


async def test_a_refused_one_is_validated_soon_and_again_when_its_time_is_over(user: Tried) -> None:
    (a,) = user.register("a")
    await user.call("retire")
    assert await user.upkeep(validates=True) == 30
    user.wait(30)
    chore = await user.upkeep(validates=True)
    assert chore == Chore("validate", a, b"1.1", Opened("a"))
    assert await user.upkeep(validates=True) == 30
    await user.pool.judge(chore, "retire")
    assert await user.upkeep(validates=True) == 10 * MINUTE
    user.wait(10 * MINUTE)
    chore = await user.upkeep(validates=True)
    assert chore == Chore("validate", a, b"1.2", Opened("a"))
    await user.pool.judge(chore, "retire")
    assert await user.upkeep(validates=True) == HOUR
    user.wait(HOUR)
    chore = await user.upkeep(validates=True)
    assert isinstance(chore, Chore)
    await user.pool.judge(chore, "valid")
    assert await user.upkeep(validates=True) is None
    assert isinstance(await user.ask(), Granted) and isinstance(await user.ask(), Granted)


async def test_a_slip_of_the_upstream_costs_half_a_minute(user: Tried) -> None:
    user.register("a")
    await user.call("retire")
    user.wait(30)
    chore = await user.upkeep(validates=True)
    assert isinstance(chore, Chore)
    await user.pool.judge(chore, "valid")
    assert isinstance(await user.ask(), Granted) and isinstance(await user.ask(), Granted)


async def test_that_a_bill_is_paid_only_a_call_can_show(user: Tried) -> None:
    user.register("a")
    await user.call("suspend")
    user.wait(10 * MINUTE)
    chore = await user.upkeep(validates=True)
    assert isinstance(chore, Chore) and chore.kind == "validate"
    await user.pool.judge(chore, "valid")
    assert await user.upkeep(validates=True) is None
    probe = await user.lease()
    await user.none()
    user.pool.release(probe, "suspend")
    assert (await user.none()).hope_seconds == HOUR


async def test_without_a_way_to_validate_only_calls_can_tell(user: Tried) -> None:
    user.register("a")
    await user.call("retire")
    user.wait(30)
    assert await user.upkeep() is None
    user.wait(10 * MINUTE - 30)
    assert await user.upkeep() is None
    await user.call("ok")


async def test_an_operator_can_have_one_tested(user: Tried) -> None:
    (a,) = user.register("a")
    await user.call("suspend")
    assert await user.pool.test(a)
    assert not await user.pool.test("feedfeedfeedfeed")
    chore = await user.upkeep()
    assert chore == Chore("test", a, b"1.1", Opened("a"))
    user.clock.add(2)
    await user.pool.judge(chore, "cleared", found="the upstream accepts it")
    user.clock.add(3)
    (seen,) = await user.pool.standing()
    assert (seen.record.state, seen.record.tested, seen.tested_seconds_ago) == ("ready", "the upstream accepts it", 3)


async def test_an_operator_lets_one_rest_and_ends_that(user: Tried) -> None:
    (a,) = user.register("a")
    assert await user.pool.rest(a, 60)
    await user.none("any model")
    assert await user.pool.rest(a, 5), "an operator may also shorten"
    assert (await user.none()).hope_seconds == 5
    await user.pool.rest(a, 60, "large")
    await user.pool.rest(a, 0)
    await user.lease("large")
    assert not await user.pool.rest("feedfeedfeedfeed", 5)


async def test_an_operator_adds_and_removes(user: Tried) -> None:
    (a,) = user.register("a")
    b = await user.pool.add(Opened("b", {"device": "d"}), "added")
    assert b is not None and b == await user.pool.add(Opened("b", {"device": "d"}), "added")
    assert {(await user.lease()).id for _ in range(2)} == {a, b}
    await user.pool.rest(b, 60)
    assert [await user.pool.remove(who) for who in (a, b, b)] == [-1, 1, 0]
    user.clock.add(3600)
    user.register("a")
    assert [(one.id, one.record.origin) for one in await user.pool.standing()] == [(a, "settings")]
    await user.pool.add(Opened("b", {"device": "d"}), "added")
    assert {one.id: one.rests for one in await user.pool.standing()} == {a: {}, b: {}}, "its past went with it"
