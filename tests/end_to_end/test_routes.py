"""Several providers for one model: the next one answers when the first cannot, and the headers say who did."""

import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator

import httpx2
import pytest
import trio

from tests.end_to_end.gateway import API_KEY, Gateway, free_port, gateway, until
from tests.redis_server import RedisServer
from tests.simulators.openai_compatible import OpenAICompatible

pytestmark = pytest.mark.slow

KEY = "sk-upstream-0123456789"


class Two:
    """The gateway with its two upstreams, for one test."""

    def __init__(
        self, house: Gateway, first: OpenAICompatible, spare: OpenAICompatible, client: httpx2.AsyncClient
    ) -> None:
        self.house, self.first, self.spare, self.client = house, first, spare, client

    async def ask(
        self, model: str, words: str = "hello there", *, stream: bool = False, **headers: str
    ) -> httpx2.Response:
        body = {"model": model, "messages": [{"role": "user", "content": words}], "stream": stream}
        headers = {"authorization": f"Bearer {API_KEY}"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        return await self.client.post(f"{self.house.base_url}/chat/completions", json=body, headers=headers)

    @property
    def calls(self) -> tuple[int, int]:
        return self.first.ledger.calls_seen, self.spare.ledger.calls_seen


def who(reply: httpx2.Response) -> tuple[int, str, str]:
    return reply.status_code, reply.headers["x-sluice-provider"], reply.headers["x-sluice-attempts"]


@pytest.fixture(scope="module")
def ports() -> tuple[int, int]:
    return free_port(), free_port()


@pytest.fixture(scope="module")
def house(ports: tuple[int, int]) -> Iterator[Gateway]:
    with contextlib.closing(RedisServer()) as redis, gateway(redis) as running:
        running.environment |= {
            "OPENAI_API_KEY": KEY,
            "OPENAI_BASE_URL": f"http://127.0.0.1:{ports[0]}/v1",
            "OPENAI_MODELS": "shared,mine",
            "SLUICE_PROVIDER_SPARE_API_KEY": KEY,
            "SLUICE_PROVIDER_SPARE_BASE_URL": f"http://127.0.0.1:{ports[1]}/v1",
            "SLUICE_PROVIDER_SPARE_MODELS": "shared,other",
            "SLUICE_ROUTES": "spare-first=spare/other>openai/mine,lot=3*openai/mine;spare/other",
        }
        running.frontend()
        running.worker("openai")
        running.worker("spare")
        running.wait_ready("mine", "other", "spare-first")
        yield running


@pytest.fixture
async def client() -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(timeout=20) as client:
        yield client


@pytest.fixture
async def two(house: Gateway, ports: tuple[int, int], client: httpx2.AsyncClient) -> AsyncIterator[Two]:
    async with (
        OpenAICompatible("openai", keys={KEY}).running(ports[0]) as first,
        OpenAICompatible("openai", keys={KEY}).running(ports[1]) as spare,
    ):
        yield Two(house, first, spare, client)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_all_is_well_with_the_first(two: Two, stream: bool) -> None:
    reply = await two.ask("shared", stream=stream)
    assert who(reply) == (200, "openai", "1")
    assert 0 <= int(reply.headers["x-sluice-queue-ms"]) < 1000
    assert "hello" in reply.text
    assert two.calls == (1, 0)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    "trouble",
    [
        {"status": 503}, {"status": 529}, {"status": 500}, {"status": 429, "retry_after": 1}, {"status": 402},
        {"fault": "close_before_headers"}, {"fault": "reset_after_headers"},
    ],
    ids=lambda trouble: "-".join(map(str, trouble.values())),
)  # fmt: skip
async def test_the_next_one_answers_when_the_first_cannot(two: Two, trouble: dict[str, object], stream: bool) -> None:
    two.first.control.next(**trouble)
    reply = await two.ask("shared", "elsewhere please", stream=stream)
    assert who(reply) == (200, "spare", "2")
    assert "elsewhere" in reply.text
    assert two.calls == (1, 1), "and the first is asked once"
    await _rested(two)


async def _rested(two: Two) -> None:
    """A credential that was refused rests or is set aside: put the pool back for the next test."""
    two.house.redis.client.delete(*two.house.redis.client.keys("sluice:credentials:*"))
    await trio.lowlevel.checkpoint()


async def test_an_unreachable_upstream_is_passed_by(
    house: Gateway, ports: tuple[int, int], client: httpx2.AsyncClient
) -> None:
    async with OpenAICompatible("openai", keys={KEY}).running(ports[1]) as spare:
        reply = await Two(house, spare, spare, client).ask("shared")
    assert who(reply) == (200, "spare", "2")


async def test_a_callers_error_is_the_callers(two: Two) -> None:
    two.first.control.next(status=400)
    assert who(await two.ask("shared")) == (400, "openai", "1")
    assert two.calls == (1, 0)


async def test_no_other_provider_after_a_token(two: Two) -> None:
    two.first.control.next(fault="drop_mid")
    reply = await two.ask("shared", "one two three four five six", stream=True)
    assert who(reply) == (200, "openai", "1")
    assert '"error"' in reply.text and "[DONE]" not in reply.text
    assert two.calls == (1, 0)


async def test_a_whole_answer_that_broke_off_is_told_by_the_next(two: Two) -> None:
    two.first.control.next(fault="drop_mid")
    reply = await two.ask("shared", "one two three four five six")
    assert who(reply) == (200, "spare", "2")
    assert "one two three four five six" in reply.text


async def test_a_providers_name_pins(two: Two) -> None:
    two.first.control.always(status=503)
    reply = await two.ask("openai/shared")
    assert who(reply) == (503, "openai", "2"), "tried again, and nowhere else"
    assert two.calls == (2, 0)
    assert who(await two.ask("spare/shared")) == (200, "spare", "1")


async def test_when_everybody_fails_the_last_word_counts(two: Two) -> None:
    two.first.control.always(status=500)
    two.spare.control.always(status=500)
    reply = await two.ask("shared")
    assert who(reply) == (502, "spare", "2")
    assert reply.headers["x-should-retry"] == "false"
    assert two.calls == (1, 1), "two starts in all"


async def test_the_settings_order(two: Two) -> None:
    assert who(await two.ask("spare-first")) == (200, "spare", "1")
    two.spare.control.next(status=503)
    reply = await two.ask("spare-first")
    assert who(reply) == (200, "openai", "2")
    assert reply.json()["model"] == "spare-first", "the caller's own name for it"
    assert two.first.ledger.calls[-1].json()["model"] == "mine"


async def test_weights(two: Two) -> None:
    drawn = Counter([(await two.ask("lot")).headers["x-sluice-provider"] for _ in range(60)])
    assert 30 <= drawn["openai"] <= 57 and drawn.total() == 60  # p < 1e-4 for either side


async def test_routes_are_listed(two: Two) -> None:
    headers = {"authorization": f"Bearer {API_KEY}"}
    listed = (await two.client.get(f"{two.house.base_url}/models", headers=headers)).json()["data"]
    assert {"shared", "mine", "other", "spare-first", "lot"} == {model["id"] for model in listed}


async def test_a_worker_that_goes_away_is_passed_by(redis_server: RedisServer, client: httpx2.AsyncClient) -> None:
    """Killed while the job waits in its queue: after some seconds the next provider is asked."""
    async with OpenAICompatible("openai").running() as upstream:
        with gateway(redis_server, SLUICE_PROVIDER_SPARE_BASE_URL=upstream.base_url) as running:
            running.environment |= {
                "OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": upstream.base_url, "OPENAI_MODELS": "shared",
                "SLUICE_PROVIDER_SPARE_API_KEY": KEY, "SLUICE_PROVIDER_SPARE_MODELS": "shared",
            }  # fmt: skip
            running.frontend()
            worker = running.worker("openai")
            running.worker("spare")
            await trio.to_thread.run_sync(running.wait_ready, "shared")
            with trio.fail_after(20):
                await until(lambda: running.redis.client.scard("sluice:alive") == 3)
                worker.kill()
                reply = await Two(running, upstream, upstream, client).ask("shared")
    assert who(reply) == (200, "spare", "1")
    assert int(reply.headers["x-sluice-queue-ms"]) > 500
