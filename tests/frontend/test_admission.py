"""Who is asking: by digest, in constant words, without ever repeating a key."""

import logging

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from frontend.admission import LONGEST_KEY, Admission
from frontend.known_keys import KnownKeys
from shared.errors import GatewayError
from shared.redis.address import Address
from shared.redis.callers import CallerStore
from shared.redis.link import Link
from shared.schema import key_text
from shared.schema.caller import ANYBODY, FOREIGN, MASTER
from shared.sealing import Seal

KEY = "sk-sluice-0123456789abcdef"
OTHER = "sk-sluice-fedcba9876543210"


def admission_with(keys, open_door=False, pepper=b"pepper"):
    """Redis is away, so whatever asks it fails."""
    store = CallerStore(Link(Address.parse("unix:///nowhere")), Seal(["a-secret-key-only-for-tests-0123456789"]))
    return Admission(keys, pepper, open_door=open_door, store=store, known=KnownKeys(store))


def an_admission(**options):
    return admission_with((KEY, OTHER), **options)


@pytest.mark.parametrize(
    "header",
    [
        f"Bearer {KEY}",
        f"bearer {KEY}",
        f"BEARER {KEY}",
        f"Bearer   {KEY}  ",
        f"\tBearer\t{KEY}",
        f"Bearer Bearer {KEY}",
        f"Bearer bearer Bearer {KEY}",
        f"Bearer {OTHER}",
    ],
)
async def test_a_known_key(header):
    admission = an_admission()
    caller = await admission.identify([header])
    assert caller.known
    admission.require(caller)


@pytest.mark.fault("S3")
@pytest.mark.parametrize(
    "headers",
    [
        [],
        [""],
        [" "],
        ["Bearer"],
        ["Bearer "],
        ["Bearer Bearer"],
        [KEY],
        [f"Basic {KEY}"],
        [f"Token {KEY}"],
        [f"Bearer {KEY} {KEY}"],
        [f"Bearer {KEY}, Bearer {KEY}"],
        [f"Bearer {KEY}x"],
        [f"Bearer {KEY[:-1]}"],
        [f"Bearer {KEY.upper()}"],
        [f'Bearer "{KEY}"'],
        [f"Bearer\u00a0{KEY}\u200b"],
        [f"Bearer {KEY}", f"Bearer {KEY}"],
        [f"Bearer {KEY}" + " " * LONGEST_KEY],
        ["Bearer " + "x" * 10_000],
        ["Bearer \udcff\ud800"],
        ["Bearer ключ"],
    ],
)
async def test_everybody_else_hears_the_same(headers):
    admission = an_admission()
    caller = await admission.identify(headers)
    assert not caller.known
    with pytest.raises(GatewayError) as refused:
        admission.require(caller)
    failure = refused.value.failure
    assert (failure.kind, failure.row.status, failure.row.code) == ("invalid_api_key", 401, "invalid_api_key")
    with pytest.raises(GatewayError) as missing:
        admission.require(await admission.identify([]))
    assert failure == missing.value.failure
    assert not any(word in failure.message for header in headers for word in header.split() if word.lower() != "bearer")


async def test_an_open_door_knows_everybody_and_still_tells_them_apart():
    admission = an_admission(open_door=True)
    nobody, somebody = [await admission.identify(headers) for headers in ([], ["Bearer upstream-key"])]
    assert nobody.known and somebody.known
    assert nobody.key.id == somebody.key.id == ANYBODY
    admission.require(nobody)
    assert nobody.fingerprint == "none" != somebody.fingerprint
    assert somebody.presented == "upstream-key"


async def presented(key, **options):
    return (await an_admission(**options).identify([f"Bearer {key}"])).presented


async def test_only_a_foreign_key_can_be_an_upstreams():
    assert await presented("sk-upstream") == "sk-upstream"
    assert await presented(KEY) == ""
    assert await presented(KEY, open_door=True) == ""
    assert await presented(KEY + "x") == "", "ours, mistyped: no upstream may see it"
    for odd in ("ключ", "sk-\x01", "\udcff"):
        assert await presented(odd) == "", "no header could carry it"


@pytest.mark.parametrize("keys", [[], [""]], ids=["none", "empty"])
async def test_without_keys_nobody_is_known(keys):
    admission = admission_with(keys)
    for headers in ([], ["Bearer "], [f"Bearer {KEY}"]):
        assert not (await admission.identify(headers)).known


async def test_a_fingerprint_names_a_key_only_here():
    callers = [await an_admission().identify([f"Bearer {key}"]) for key in (KEY, KEY, OTHER)]
    one, again, other = (caller.fingerprint for caller in callers)
    assert one == again != other
    assert len(one) == 8 and int(one, 16) >= 0
    assert one != (await an_admission(pepper=b"another").identify([f"Bearer {KEY}"])).fingerprint


async def test_a_caller_never_shows_its_key(caplog):
    caller = await an_admission().identify(["Bearer sk-upstream-0123456789"])
    with caplog.at_level(logging.INFO):
        logging.getLogger("test").info("%s %r %s", caller, caller, [caller])
    assert caller.presented == "sk-upstream-0123456789"
    assert caller.presented not in caplog.text
    assert caller.fingerprint in caplog.text


@given(st.lists(st.text(max_size=40), max_size=3))
def test_no_header_breaks_it(headers):
    assert not trio.run(an_admission().identify, headers).known


async def test_who_is_charged_and_who_administers():
    admission = an_admission()
    master, foreign = [await admission.identify([f"Bearer {key}"]) for key in (KEY, "sk-upstream")]
    assert (master.key.id, foreign.key.id) == (MASTER, FOREIGN)
    admission.require_master(master)
    with pytest.raises(GatewayError, match="invalid_api_key"):
        admission.require_master(foreign)
    open_door = an_admission(open_door=True)
    with pytest.raises(GatewayError, match="permission"):
        open_door.require_master(await open_door.identify([]))
    open_door.require_master(await open_door.identify([f"Bearer {KEY}"]))


async def test_a_key_that_only_redis_knows_is_no_longer_a_matter_of_yes_and_no_without_redis():
    admission = an_admission()
    created = key_text.compose("0123abcd", bytes(32))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(admission._known.run)
        with trio.fail_after(5), pytest.raises(GatewayError, match="queue_unavailable"):
            await admission.identify([f"Bearer {created}"])
        nursery.cancel_scope.cancel()
    mistyped = created[:-1] + ("A" if created[-1] != "A" else "B")
    assert not (await admission.identify([f"Bearer {mistyped}"])).known, "nobody needs to be asked"
