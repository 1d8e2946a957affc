"""What a worker tells of its calls, and what it makes of the answer; against a real Redis."""

import json

import pytest

from shared.errors import Failure
from shared.redis import keys
from shared.redis.address import Address
from shared.redis.circuit import IN_A_ROW, JITTER, PAUSE_SECONDS, SEVERAL, circuits
from shared.redis.link import Link
from shared.schema.job import PROTOCOL, Job
from workers.circuits import Circuits
from workers.dialects.refusal_rules import OPENAI
from workers.dialects.refusals import refusal
from workers.exchange import HttpReply

BROKEN = Failure("upstream_error", "")


def a_job(model="m", number=1, caller="c"):
    return Job(
        PROTOCOL,
        bytes([number]) * 16,
        1,
        "f",
        "chat",
        "openai",
        model,
        model,
        True,
        False,
        60.0,
        b"{}",
        "r",
        caller=caller,
    )


@pytest.fixture
async def link(redis_server, nursery):
    link = Link(Address.parse(redis_server.url))
    await nursery.start(link.run)
    return link


@pytest.fixture
def worker(link):
    return Circuits(link, "openai", watched=True)


async def told(link, model=b"m"):
    """Whatever was posted is done; what is counted for the model."""
    await link.call(b"PING")  # the first report makes Redis ask for the script: it runs after what was posted meanwhile
    return await link.call(b"HGET", keys.circuits("openai")[1], model)


def call(worker, number=1, *, probe=False, model="m", caller="c"):
    return worker.begin(a_job(model, number, caller), probe=probe)


async def test_faults_are_told_at_once_and_jobs_that_were_queued_before_are_refused(worker, link):
    for _ in range(IN_A_ROW):
        assert call(worker).refusal is None
        call(worker).ended(BROKEN, complete=False)
    await told(link)
    refused = call(worker).refusal
    assert refused.kind == "circuit_open"
    assert 0 < refused.retry_after_seconds <= PAUSE_SECONDS * (1 + JITTER)
    assert call(worker, probe=True).refusal is None
    assert call(worker, model="other").refusal is None


async def test_a_firewall_that_objects_to_the_words_of_one_caller_opens_nothing(worker, link):
    objection = refusal(HttpReply(status=403, headers={}, body=b"<html>Request blocked</html>"), OPENAI)
    assert objection.kind == BROKEN.kind
    for _ in range(2 * IN_A_ROW):
        call(worker).ended(objection, complete=False)
    assert await told(link) is None
    assert call(worker).refusal is None


async def test_whose_calls_went_well_and_whose_did_not_is_told(worker, link):
    for caller in ("one", "two", "three"):
        call(worker, caller=caller).went_well()
    for _ in range(2 * IN_A_ROW):
        call(worker, caller="one").ended(BROKEN, complete=False)
    counted = json.loads(await told(link))
    assert (counted["well"], counted["badly"]) == (SEVERAL, "one")
    assert call(worker).refusal is None, "only one caller is in trouble"
    call(worker, caller="two").ended(BROKEN, complete=False)
    await told(link)
    assert call(worker).refusal is not None


async def test_successes_are_told_with_the_next_fault_and_count_once(worker, link):
    for _ in range(3):
        one = call(worker)
        one.went_well()
        one.went_well()
        one.ended(None, complete=True)
    assert await told(link) is None, "not yet"
    late = call(worker)
    late.went_well()
    late.ended(BROKEN, complete=False)
    assert b'"calls":5' in await told(link) and b'"faults":1' in await told(link)


async def test_successes_are_told_every_second(worker, link, nursery, mock_clock):
    call(worker).ended(None, complete=True)
    nursery.start_soon(worker.run)
    mock_clock.rate = 20
    while await told(link) is None:
        pass
    assert b'"calls":1' in await told(link)


@pytest.mark.parametrize("kind", ["rate_limit", "invalid_request", "no_credential", "deadline"])
async def test_other_failures_say_nothing(worker, link, kind):
    for _ in range(10):
        call(worker).ended(Failure(kind, ""), complete=False)
        call(worker).ended(None, complete=False)
    assert await told(link) is None


@pytest.mark.parametrize(
    ("ending", "what_follows"),
    [
        (lambda probe: probe.went_well(), None),
        (lambda probe: probe.ended(None, complete=True), None),
        (lambda probe: probe.ended(BROKEN, complete=False), (2, "")),
        (lambda probe: probe.ended(None, complete=False), (1, "")),
        (lambda probe: probe.ended(Failure("rate_limit", ""), complete=False), (1, "")),
    ],
    ids=["answers", "complete", "fault", "left", "says nothing"],
)
async def test_what_becomes_of_a_probe_is_told_at_once(worker, link, ending, what_follows):
    for _ in range(IN_A_ROW):
        call(worker).ended(BROKEN, complete=False)
    probe = a_job(number=9)
    await told(link)
    key = keys.circuits("openai")[0]
    await link.call(
        b"HSET", key, b"m", b'{"pause_ends":0,"pauses":1,"probe":"%b","probe_ends":9e15}' % probe.id.hex().encode()
    )
    ending(worker.begin(probe, probe=True))
    await told(link)
    found = (await circuits(link, "openai")).get("m")
    assert (found and (found.pauses, found.probe)) == what_follows
    assert (call(worker).refusal is None) == (what_follows != (2, ""))


async def test_nobody_is_told_where_circuits_are_switched_off(link):
    worker = Circuits(link, "openai", watched=False)
    for _ in range(2 * IN_A_ROW):
        call(worker).ended(BROKEN, complete=False)
    assert await told(link) is None and call(worker).refusal is None
