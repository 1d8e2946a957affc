"""The last minute of one frontend, and what the minutes of several add up to."""

import random
from types import SimpleNamespace

import msgspec
import pytest
import trio

from frontend.edge import Visit
from frontend.statistics import Statistics
from shared.schema.statistics import Flow, quantile, step, total

PATH = "/v1/chat/completions"


def job(name, received, provider="echo", stream=True):
    return SimpleNamespace(
        submission=SimpleNamespace(request_id=name, provider=provider, stream=stream),
        ownership=SimpleNamespace(received=SimpleNamespace(next=received)),
    )


def visit(name="r", *, status=200, complete=True, path=PATH, **facts):
    return Visit("POST", path, request_id=name, began=0.0, status=status, complete=complete, facts=facts)


@pytest.fixture
def statistics():
    return Statistics()


async def test_chunks_count_while_they_come_and_the_end_sets_them_right(autojump_clock, statistics):
    assert statistics.flows([job("a", 12)])["echo"] == Flow(open=1, tokens=10, tokens_per_second=2.0)
    await trio.sleep(1)
    assert statistics.flows([job("a", 32)])["echo"].tokens == 30
    statistics.ended(visit("a", provider="echo", stream=True, completion_tokens=95, first_token_ms=250.0))
    ended = statistics.flows([])["echo"]
    assert (ended.open, ended.requests, ended.tokens, ended.errors) == (0, 1, 95, {})
    assert 0.24 < quantile(ended.first_token, 0.5) < 0.28


async def test_an_attempt_that_begins_again_takes_nothing_back(autojump_clock, statistics):
    statistics.flows([job("a", 12)])
    assert statistics.flows([job("a", 1)])["echo"].tokens == 10
    assert statistics.flows([job("a", 14)])["echo"].tokens == 12


async def test_the_minute_passes(autojump_clock, statistics):
    statistics.ended(visit(provider="echo", completion_tokens=40))
    assert statistics.flows([])["echo"].tokens_per_second == 8.0
    await trio.sleep(6)
    assert statistics.flows([])["echo"] == Flow(requests=1, tokens=40)
    await trio.sleep(55)
    assert statistics.flows([]) == {}


@pytest.mark.parametrize(
    ("ending", "expected"),
    [
        (visit(status=401, error="invalid_api_key"), {"": Flow(requests=1, errors={"invalid_api_key": 1})}),
        (visit(status=404), {"": Flow(requests=1, errors={"404": 1})}),
        (visit(status=0, complete=False, provider="p"), {"p": Flow(requests=1, left=1)}),
        (visit(provider="p", error="truncated", complete=True), {"p": Flow(requests=1, errors={"truncated": 1})}),
        (visit(path="/health"), {}),
        (visit(provider="p", first_token_ms=80.0, stream=False), {"p": Flow(requests=1)}),
    ],
    ids=["no key", "no page", "caller left", "cut", "not the API", "a whole answer has no first token"],
)
async def test_how_requests_end(autojump_clock, statistics, ending, expected):
    statistics.ended(ending)
    assert statistics.flows([]) == expected


async def test_what_is_told_survives_the_road(autojump_clock, statistics):
    statistics.ended(visit(provider="p", stream=True, first_token_ms=80.0, error="x"))
    flows = statistics.flows([job("a", 5)])
    assert msgspec.json.decode(msgspec.json.encode(flows), type=dict[str, Flow]) == flows


def test_quantiles_of_a_sum_are_those_of_all_values():
    chance = random.Random(5)
    values = sorted(chance.lognormvariate(-1, 1) for _ in range(2000))
    flows = []
    for part in (values[::3], values[1::3], values[2::3]):
        counts: dict[int, int] = {}
        for value in part:
            counts[step(value)] = counts.get(step(value), 0) + 1
        flows.append(Flow(first_token=counts, errors={"x": 1}, requests=len(part)))
    together = total(flows)
    assert (together.requests, together.errors) == (2000, {"x": 3})
    for share in (0.05, 0.5, 0.95, 0.99):
        exact = values[int(share * 2000) - 1]
        assert exact <= quantile(together.first_token, share) <= exact * 1.1


def test_nothing_has_no_quantile():
    assert quantile({}, 0.5) is None
    assert quantile({step(0.0): 1}, 0.95) == pytest.approx(0.001)
