"""langfast through real processes: accounts that are made on demand, answers that are pushed to the session of an account."""

import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx2
import openai
import pytest
import trio

from tests.end_to_end.gateway import API_KEY, Gateway, free_port, gateway, until
from tests.end_to_end.test_leaving import connect, leave, request
from tests.redis_server import RedisServer
from tests.simulators.langfast import Langfast

pytestmark = pytest.mark.slow

MODEL = "gpt-4o-mini"


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def house(port: int) -> Iterator[Gateway]:
    """A gateway whose two accounts serve four runs each at once. Their tokens outlive each test's simulator."""
    settings = Langfast().settings | {
        "LANGFAST_SUPABASE_URL": f"http://127.0.0.1:{port}",
        "LANGFAST_SOCKET_URL": f"ws://127.0.0.1:{port}",
        **{"LANGFAST_MIN_CREDENTIALS": "2", "LANGFAST_MAX_CREDENTIALS": "2", "LANGFAST_RUNS_PER_CREDENTIAL": "4"},
        "SLUICE_SILENCE_SECONDS": "0.5",
    }
    with contextlib.closing(RedisServer()) as redis, gateway(redis, **settings) as running:
        trio.run(begin, running, port)
        yield running


async def begin(running: Gateway, port: int) -> None:
    """Start the processes, and let them sign up."""
    async with Langfast().running(port) as simulator:
        running.frontend()
        running.worker("langfast")
        await trio.to_thread.run_sync(running.wait_ready, MODEL, "langfast")
        with trio.fail_after(10):
            await simulator.ledger.wait_for(lambda _: sum(not call.open for call in sign_ups(simulator)) == 2)


@pytest.fixture
async def upstream(house: Gateway, port: int) -> AsyncIterator[Langfast]:
    async with Langfast().running(port) as simulator:
        yield simulator


@pytest.fixture
async def sdk(house: Gateway) -> AsyncIterator[openai.AsyncOpenAI]:
    async with client(house) as made:
        yield made


@contextlib.asynccontextmanager
async def client(house: Gateway) -> AsyncIterator[openai.AsyncOpenAI]:
    made = openai.AsyncOpenAI(base_url=house.base_url, api_key=API_KEY, max_retries=0, timeout=20)
    try:
        with trio.fail_after(30):
            yield made
    finally:
        with trio.CancelScope(shield=True):
            await made.close()


def said(words: str) -> Any:
    return [{"role": "user", "content": words}]


async def streamed(sdk: openai.AsyncOpenAI, words: str, model: str = MODEL) -> tuple[list[str], str | None]:
    """The pieces of an answer, and its finish reason."""
    pieces, reason = [], None
    async for chunk in await sdk.chat.completions.create(model=model, messages=said(words), stream=True):
        reason = chunk.choices[0].finish_reason or reason
        if chunk.choices[0].delta.content:
            pieces.append(chunk.choices[0].delta.content)
    return pieces, reason


def sockets(upstream: Langfast) -> list[Any]:
    return upstream.ledger.by_path("/socket.io/")


def sign_ups(upstream: Langfast) -> list[Any]:
    return upstream.ledger.by_path("/auth/v1/signup")


async def test_a_stream_says_what_is_new(sdk: openai.AsyncOpenAI, upstream: Langfast) -> None:
    words = "one two  three sim:foreign=2 sim:duplicate=1 sim:other=1 sim:early=1"
    assert await streamed(sdk, words) == (["one", " two", "  three"], "stop")
    assert await streamed(sdk, "a b sim:strings=1 sim:finish=length", "langfast") == (["a", " b"], "length")
    assert await streamed(sdk, "a b sim:fault=no_finish", "gpt-5") == (["a", " b"], "stop")
    assert await streamed(sdk, "sim:text=split_surrogate") == (["a ", "😀", " b"], "stop")
    assert len(upstream.runs) == 4 and upstream.runs[0].lost == 0


async def test_a_whole_answer(sdk: openai.AsyncOpenAI, upstream: Langfast) -> None:
    answer = await sdk.chat.completions.create(
        model="o1-mini", messages=[{"role": "system", "content": "Be brief."}, *said("one two")], max_tokens=50
    )
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("Be brief.\n\none two", "stop")
    assert answer.usage is not None and answer.usage.model_extra == {"estimated": True}
    asked = upstream.ledger.by_path("initiate-prompt-run")[-1].json()["prompt_meta"]
    assert asked["messages"] == [{"role": "user", "content": "Be brief.\n\none two"}]
    assert asked["max_completion_tokens"] == 50


@pytest.mark.fault("C26")
async def test_answers_on_shared_sessions_never_mix(sdk: openai.AsyncOpenAI, upstream: Langfast) -> None:
    texts: dict[int, str] = {}

    async def caller(number: int) -> None:
        words = f"caller{number} sim:chunks=30 sim:gap=0.003 sim:foreign=3 sim:early={number % 3}"
        texts[number] = "".join((await streamed(sdk, words))[0])

    async with trio.open_nursery() as nursery:
        for number in range(16):
            nursery.start_soon(caller, number)
    assert texts == {number: " ".join(f"caller{number}.{k}" for k in range(30)) for number in range(16)}
    assert len(sockets(upstream)) == 2, "one session for each account"


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("truncate", "upstream_stream_truncated"),
        ("drop_mid", "upstream_disconnected"),
        ("reset_mid_chunk", "upstream_disconnected"),
        ("error_mid", "upstream_error"),
        ("revised", "upstream_protocol_error"),
        ("hang_mid", "upstream_timeout"),
    ],
)
@pytest.mark.fault("C26")
async def test_what_breaks_off_ends_with_an_error(
    sdk: openai.AsyncOpenAI, upstream: Langfast, fault: str, code: str
) -> None:
    pieces: list[str] = []
    with pytest.raises(openai.APIError) as caught:
        async for chunk in await sdk.chat.completions.create(
            model=MODEL, messages=said(f"a b c d sim:fault={fault}"), stream=True
        ):
            assert chunk.choices[0].finish_reason is None
            pieces.append(chunk.choices[0].delta.content or "")
    assert caught.value.code == code
    assert "".join(pieces) == ("a b c d" if fault == "revised" else "a b")
    assert await streamed(sdk, "all is well") == (["all", " is", " well"], "stop")


async def test_what_the_upstream_refuses(sdk: openai.AsyncOpenAI, upstream: Langfast) -> None:
    for words, status, code in (
        ("x sim:error=langfast_run_400_parameter", 400, "unsupported_parameter"),
        ("x sim:error=langfast_run_500", 502, "upstream_error"),
        ("x sim:fault=html", 502, "upstream_error"),
    ):
        with pytest.raises(openai.APIStatusError) as caught:
            await sdk.chat.completions.create(model=MODEL, messages=said(words))
        assert (caught.value.status_code, caught.value.code) == (status, code)
    with pytest.raises(openai.BadRequestError) as refused:
        await sdk.chat.completions.create(model="gpt-5", messages=said("x"), temperature=0.5)
    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", "temperature")


# --- accounts


@contextlib.asynccontextmanager
async def gateway_for(
    upstream: Langfast, redis: RedisServer, workers: int = 1, total_seconds: str = "", **settings: str
) -> AsyncIterator[Gateway]:
    chosen = {f"LANGFAST_{name}": text for name, text in settings.items()} | {"SLUICE_TOTAL_SECONDS": total_seconds}
    with gateway(redis, **upstream.settings, **chosen) as running:
        running.frontend()
        for _ in range(workers):
            running.worker("langfast")
        await trio.to_thread.run_sync(running.wait_ready, MODEL)
        yield running


@pytest.mark.fault("C26")
async def test_a_caller_that_leaves_frees_the_account_and_its_words_reach_nobody(redis_server: RedisServer) -> None:
    async with Langfast().running() as upstream, gateway_for(
        upstream, redis_server, MIN_CREDENTIALS="1", MAX_CREDENTIALS="1"
    ) as house:  # fmt: skip
        for stream in (True, False):
            caller = await connect(house)
            await caller.send_all(request("private sim:fault=endless sim:gap=0.005", stream=stream))
            with trio.fail_after(10):
                await upstream.ledger.wait_for(lambda _: upstream.runs and upstream.runs[-1].pieces_sent > 5)
                assert leased(redis_server) == 1
                left_at = await leave(caller, "fin")
                await until(lambda: leased(redis_server) == 0)
            assert trio.current_time() - left_at < 0.25
            async with client(house) as sdk:
                assert await streamed(sdk, "mine alone sim:gap=0.05") == (["mine", " alone"], "stop")
            assert not upstream.runs[-2].ended, "it cannot be stopped, and goes on talking to the account"
        assert len(sockets(upstream)) == 1


def leased(redis: RedisServer) -> int:
    """Calls that hold a credential."""
    found: Any = redis.client.zrange("sluice:credentials:{langfast}:timers", 0, -1)
    return sum(member.startswith(b"lease ") for member in found)


async def test_workers_share_accounts_but_not_answers(redis_server: RedisServer) -> None:
    async with Langfast().running() as upstream, gateway_for(
        upstream, redis_server, 2, MIN_CREDENTIALS="2", MAX_CREDENTIALS="2", RUNS_PER_CREDENTIAL="2"
    ) as house, client(house) as sdk:  # fmt: skip
        texts = {}

        async def caller(number: int) -> None:
            words = f"caller{number} sim:chunks=20 sim:gap=0.002 sim:early={number % 3}"
            texts[number] = "".join((await streamed(sdk, words))[0])

        async with trio.open_nursery() as nursery:
            for number in range(16):
                nursery.start_soon(caller, number)
        assert texts == {number: " ".join(f"caller{number}.{k}" for k in range(20)) for number in range(16)}
        assert len(sign_ups(upstream)) == 2
        assert len(sockets(upstream)) <= 4, "each worker has its own session of an account"


@pytest.mark.fault("C27", "S23")
async def test_the_sign_up_limit_stops_sign_ups_not_answers(redis_server: RedisServer) -> None:
    async with Langfast(signups_per_hour=1).running() as upstream, gateway_for(
        upstream, redis_server, MIN_CREDENTIALS="3", MAX_CREDENTIALS="3"
    ) as house, client(house) as sdk:  # fmt: skip
        for _ in range(5):
            assert await streamed(sdk, "still here") == (["still", " here"], "stop")
        assert [call.status for call in sign_ups(upstream)] == [200, 429]


@pytest.mark.fault("C27")
async def test_without_any_account_the_caller_is_told_to_wait(redis_server: RedisServer) -> None:
    async with Langfast().running() as upstream:
        upstream.signup.always(error="langfast_signup_422_disabled")
        async with gateway_for(upstream, redis_server) as house, httpx2.AsyncClient(timeout=20) as http:
            await until(lambda: len(sign_ups(upstream)) == 1)
            for _ in range(3):
                reply = await http.post(
                    f"{house.base_url}/chat/completions",
                    headers={"authorization": f"Bearer {API_KEY}"},
                    json={"model": MODEL, "messages": said("x")},
                )
                assert (reply.status_code, reply.json()["error"]["code"]) == (503, "no_upstream_credential")
                assert int(reply.headers["retry-after"]) > 1
            assert len(sign_ups(upstream)) == 1, "no hammering"


async def test_an_account_is_renewed_before_it_ends(redis_server: RedisServer) -> None:
    upstream = Langfast(token_seconds=3)
    async with upstream.running(), gateway_for(
        upstream, redis_server, MIN_CREDENTIALS="1", MAX_CREDENTIALS="1", total_seconds="1"
    ) as house, client(house) as sdk:  # fmt: skip
        assert await streamed(sdk, "hello") == (["hello"], "stop")
        await until(lambda: "was refreshed" in house.processes[-1].text())
        assert await streamed(sdk, "hello again") == (["hello", " again"], "stop")
        first, last = (call.key for call in upstream.ledger.by_path("initiate-prompt-run"))
        assert first != last, "the new token, of the same account"
        assert len(sign_ups(upstream)) == len(sockets(upstream)) == 1


@pytest.mark.parametrize("connected", [True, False], ids=["run refused", "socket refused"])
@pytest.mark.fault("C27")
async def test_an_expired_token_gives_way_to_another_account(redis_server: RedisServer, connected: bool) -> None:
    later = 0.0
    upstream = Langfast(clock=lambda: time.time() + later)
    async with upstream.running(), gateway_for(
        upstream, redis_server, MIN_CREDENTIALS="1", MAX_CREDENTIALS="2"
    ) as house, client(house) as sdk:  # fmt: skip
        await until(lambda: len(sign_ups(upstream)) == 1)
        if connected:
            assert await streamed(sdk, "hello") == (["hello"], "stop")
        later = 2 * 3600.0
        assert await streamed(sdk, "hello again") == (["hello", " again"], "stop")
        assert len(sign_ups(upstream)) == 2
        refused = [call for call in upstream.ledger.calls if call.notes.get("refused") == "token"]
        assert [call.path for call in refused][:1] == [
            "/functions/v1/initiate-prompt-run" if connected else "/socket.io/"
        ]
