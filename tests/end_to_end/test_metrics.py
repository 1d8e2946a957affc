"""What Prometheus reads of a whole gateway is what happened, and one `grep` shows a request's whole road."""

import contextlib
import fcntl
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping

import httpx2
import openai
import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from shared.metrics import METRICS
from tests.end_to_end.conftest import MODELS, UPSTREAM_KEY
from tests.end_to_end.gateway import API_KEY, Gateway, Process, free_port, gateway, until
from tests.redis_server import RedisServer
from tests.simulators.openai_compatible import OpenAICompatible

pytestmark = pytest.mark.slow

Samples = dict[str, list[tuple[dict[str, str], float]]]
SECONDS = 20.0


class Watched:
    """A gateway whose processes have ports for watchers."""

    def __init__(self, running: Gateway, upstream_port: int) -> None:
        self.gateway = running
        self.upstream_port = upstream_port
        self.frontend_port, self.worker_port = free_port(), free_port()
        running.environment |= {
            "OPENAI_API_KEY": UPSTREAM_KEY,
            "OPENAI_BASE_URL": f"http://127.0.0.1:{upstream_port}/v1",
            "OPENAI_MODELS": MODELS,
            "SLUICE_LOG_LEVEL": "debug",
            "SLUICE_CIRCUIT": "on",
        }
        self.frontend: Process = running.frontend(SLUICE_METRICS_LISTEN=f"127.0.0.1:{self.frontend_port}")
        self.worker = running.worker("openai", SLUICE_WORKER_METRICS_LISTEN=f"127.0.0.1:{self.worker_port}")
        running.wait_ready("gpt-4o")

    def frontend_says(self) -> Samples:
        return scrape(self.frontend_port)

    def worker_says(self) -> Samples:
        return scrape(self.worker_port)


def scrape(port: int) -> Samples:
    reply = httpx2.get(f"http://127.0.0.1:{port}/metrics")
    assert reply.status_code == 200
    found: Samples = {}
    for family in text_string_to_metric_families(reply.text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def total(samples: Samples, name: str, **labels: str) -> float:
    """The sum over all series of a metric with these labels."""
    return sum(value for found, value in samples.get(name, []) if labels.items() <= found.items())


@pytest.fixture(scope="module")
def watched() -> Iterator[Watched]:
    with contextlib.closing(RedisServer()) as redis, gateway(redis) as running:
        yield Watched(running, free_port())


@pytest.fixture
async def upstream(watched: Watched) -> AsyncIterator[OpenAICompatible]:
    async with OpenAICompatible("openai", keys={UPSTREAM_KEY}).running(watched.upstream_port) as simulator:
        yield simulator


@pytest.fixture
async def sdk(watched: Watched) -> AsyncIterator[openai.AsyncOpenAI]:
    client = openai.AsyncOpenAI(base_url=watched.gateway.base_url, api_key=API_KEY, max_retries=0, timeout=SECONDS)
    yield client
    with trio.CancelScope(shield=True):
        await client.close()


def say(words: str) -> dict[str, object]:
    return {"model": "gpt-4o", "messages": [{"role": "user", "content": words}]}


async def test_every_job_is_counted_once_with_its_outcome(
    watched: Watched, upstream: OpenAICompatible, sdk: openai.AsyncOpenAI
) -> None:
    before, before_worker = watched.frontend_says(), watched.worker_says()

    def more(samples: Samples, earlier: Samples, name: str, **labels: str) -> float:
        return total(samples, name, **labels) - total(earlier, name, **labels)

    with trio.fail_after(SECONDS):
        await sdk.chat.completions.create(**say("a whole answer"))
        async for _ in await sdk.chat.completions.create(**say("one sim:chunks=5 sim:gap=0.05"), stream=True):
            pass
        with pytest.raises(openai.APIError):
            async for _ in await sdk.chat.completions.create(**say("two sim:chunks=9 sim:fault=drop_mid"), stream=True):
                pass
        with pytest.raises(openai.BadRequestError):
            await sdk.chat.completions.create(**say("three sim:status=400"))
        async with await sdk.chat.completions.create(**say("four sim:fault=endless sim:gap=0.01"), stream=True) as left:
            async for _ in left:
                break
        with pytest.raises(openai.NotFoundError):
            await sdk.chat.completions.create(**say("five") | {"model": "nobody-has-it"})
        with pytest.raises(openai.AuthenticationError):
            await sdk.with_options(api_key="sk-not-a-key").chat.completions.create(**say("six"))
        await until(lambda: total(watched.frontend_says(), "sluice_jobs_open") == 0)
        await until(lambda: total(watched.worker_says(), "sluice_upstream_calls_open") == 0)

    seen, worker = watched.frontend_says(), watched.worker_says()
    ended = {
        (labels["outcome"], labels["error"]): more(seen, before, "sluice_jobs_ended_total", **labels)
        for labels, _ in seen["sluice_jobs_ended_total"]
    }
    assert ended == {
        ("done", ""): 2,
        ("failed", "disconnected"): 1,
        ("failed", "invalid_request"): 1,
        ("cancelled", ""): 1,
    }
    assert more(seen, before, "sluice_jobs_accepted_total", endpoint="chat", provider="openai") == 5
    assert more(seen, before, "sluice_requests_refused_total", reason="model_not_found") == 1
    assert more(seen, before, "sluice_requests_refused_total", reason="invalid_api_key") == 1
    assert more(seen, before, "sluice_http_requests_total", endpoint="/v1/chat/completions", status="200") == 4
    assert more(seen, before, "sluice_http_requests_total", endpoint="/v1/chat/completions", status="401") == 1
    assert more(seen, before, "sluice_first_token_seconds_count", provider="openai") == 3
    assert more(seen, before, "sluice_token_gap_seconds_count") >= 3
    assert more(seen, before, "sluice_queue_wait_seconds_count", provider="openai") == 5
    assert more(seen, before, "sluice_job_seconds_count") == 5
    assert more(seen, before, "sluice_tokens_total", provider="openai", model="gpt-4o", kind="completion") > 0
    assert total(seen, "sluice_streams_open") == 0
    assert seen["sluice_queue_depth"] == [({"provider": "openai"}, 0)]

    calls = {
        (labels["outcome"], labels["status"]): more(
            worker, before_worker, "sluice_upstream_calls_ended_total", **labels
        )
        for labels, _ in worker["sluice_upstream_calls_ended_total"]
    }
    assert calls == {("complete", "200"): 2, ("broken", "200"): 1, ("refused", "400"): 1, ("cancelled", "200"): 1}
    assert more(worker, before_worker, "sluice_upstream_calls_opened_total") == len(upstream.ledger.calls) == 5
    assert more(worker, before_worker, "sluice_jobs_claimed_total") == 5
    assert more(worker, before_worker, "sluice_attempts_ended_total", outcome="cancelled") == 1
    assert more(worker, before_worker, "sluice_upstream_head_seconds_count") == 5
    assert more(worker, before_worker, "sluice_upstream_first_token_seconds_count") == 4
    assert more(worker, before_worker, "sluice_upstream_token_gap_seconds_count") >= 3
    states = {labels["state"]: number for labels, number in worker["sluice_credentials"]}
    assert states.pop("usable") == 1
    assert set(states.values()) == {0}
    assert more(worker, before_worker, "sluice_credential_verdicts_total", verdict="ok") == 4


async def test_an_open_circuit_shows(watched: Watched, upstream: OpenAICompatible, sdk: openai.AsyncOpenAI) -> None:
    def circuits() -> dict[str, float]:
        return {labels["state"]: number for labels, number in watched.frontend_says()["sluice_circuits"]}

    assert circuits() == {"open": 0, "half_open": 0}
    with trio.fail_after(SECONDS):
        while circuits() == {"open": 0, "half_open": 0}:
            with pytest.raises(openai.APIStatusError):
                await sdk.chat.completions.create(**say("no sim:status=503") | {"model": "gpt-4o-mini"})
    assert circuits() == {"open": 1, "half_open": 0}


async def test_answers_from_memory_are_no_jobs(
    watched: Watched, upstream: OpenAICompatible, sdk: openai.AsyncOpenAI
) -> None:
    before = watched.frontend_says()
    with trio.fail_after(SECONDS):
        for result in ("miss", "hit"):
            asking = sdk.chat.completions.with_raw_response
            answer = await asking.create(**say("the same"), extra_headers={"x-sluice-cache": "60"})
            assert answer.headers["x-sluice-cache"] == result
            await until(lambda: "sluice:answers" in str(watched.gateway.redis.client.keys()))
    seen = watched.frontend_says()
    for result in ("hit", "miss"):
        assert total(seen, "sluice_answers_from_memory_total", result=result) == 1
    jobs = "sluice_jobs_accepted_total"
    assert total(seen, jobs) - total(before, jobs) == 1


async def test_what_is_under_way_shows_while_it_lasts(
    watched: Watched, upstream: OpenAICompatible, sdk: openai.AsyncOpenAI
) -> None:
    with trio.fail_after(SECONDS):
        async with await sdk.chat.completions.create(**say("on sim:fault=endless sim:gap=0.02"), stream=True) as stream:
            async for _ in stream:
                break
            seen, worker = watched.frontend_says(), watched.worker_says()
            assert total(seen, "sluice_streams_open", provider="openai") == 1
            assert total(seen, "sluice_jobs_open", provider="openai", state="running") == 1
            assert total(worker, "sluice_upstream_calls_open", provider="openai") == 1
            assert total(worker, "sluice_worker_running", provider="openai") == 1
            assert total(worker, "sluice_upstream_connections", state="busy") == 1
        await until(lambda: total(watched.worker_says(), "sluice_worker_running") == 0)


def test_each_process_measures_everything_that_the_table_promises(watched: Watched) -> None:
    for process, port in (("frontend", watched.frontend_port), ("worker", watched.worker_port)):
        text = httpx2.get(f"http://127.0.0.1:{port}/metrics").text
        told = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE sluice_")}
        assert told == {metric.name for metric in METRICS.values() if process in metric.of}
        assert "process_resident_memory_bytes " in text


def test_a_link_that_is_up_says_so(watched: Watched) -> None:
    for seen in (watched.frontend_says(), watched.worker_says()):
        assert {labels["link"]: up for labels, up in seen["sluice_redis_up"]} == {"commands": 1, "channel": 1}
        assert total(seen, "sluice_redis_connects_total", link="commands") == 1
        assert total(seen, "sluice_redis_round_trip_seconds_count") > 0
        assert total(seen, "sluice_event_loop_lag_seconds_count") > 0
        assert total(seen, "sluice_log_lines_dropped_total") == 0


def test_health_of_a_worker(watched: Watched) -> None:
    origin = f"http://127.0.0.1:{watched.worker_port}"
    assert httpx2.get(f"{origin}/health/live").json() == {"status": "ok"}
    assert httpx2.get(f"{origin}/health/ready").json() == {"status": "ready", "problems": []}


def test_a_port_of_their_own_is_the_only_one_for_metrics(watched: Watched) -> None:
    authorization = {"authorization": f"Bearer {API_KEY}"}
    assert httpx2.get(f"{watched.gateway.origin}/metrics", headers=authorization).status_code == 404


def test_without_a_port_of_their_own_metrics_take_a_master_key(house: Gateway) -> None:
    def ask(**headers: str) -> httpx2.Response:
        return httpx2.get(f"{house.origin}/metrics", headers=headers)

    assert ask().status_code == 401
    assert ask(authorization="Bearer sk-not-a-key").status_code == 401
    reply = ask(authorization=f"Bearer {API_KEY}")
    assert reply.status_code == 200
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "sluice_jobs_accepted_total" in reply.text


def grep(process: Process, words: str) -> list[Mapping[str, object]]:
    return [json.loads(line) for line in process.text().splitlines() if words in line]


async def lines(process: Process, words: str, enough: Callable[[list[Mapping[str, object]]], object]) -> list:  # type: ignore[type-arg]
    with trio.fail_after(SECONDS):
        await until(lambda: enough(grep(process, words)))
    return grep(process, words)


async def test_one_grep_shows_the_whole_road_of_a_request(
    watched: Watched, upstream: OpenAICompatible, sdk: openai.AsyncOpenAI
) -> None:
    answer = await sdk.chat.completions.with_raw_response.create(**say("hello there"))
    request_id = answer.headers["x-request-id"]
    front = await lines(watched.frontend, request_id, lambda found: found and "path" in found[-1])
    back = await lines(watched.worker, request_id, lambda found: found and found[-1]["message"] == "attempt ended")

    assert [line.get("message", line.get("path")) for line in front] == ["job accepted", "/v1/chat/completions"]
    assert [line["message"] for line in back] == ["attempt begins", "attempt ended"]
    assert {line["request_id"] for line in front + back} == {request_id}

    access, attempt = front[-1], back[-1]
    assert attempt["upstream_request_id"] == access["upstream_request_id"] == "req_test0001"
    assert attempt["worker"] == access["worker"]
    assert attempt["upstream_status"] == 200
    assert (attempt["outcome"], attempt["model"], attempt["attempt"]) == ("done", "gpt-4o", 1)
    assert 0 <= access["queue_ms"] <= attempt["total_ms"] + access["job_ms"]
    assert attempt["completion_tokens"] == access["completion_tokens"] == answer.parse().usage.completion_tokens
    sent = dict(upstream.ledger.calls[-1].headers)
    assert sent["x-client-request-id"] == request_id, "OpenAI takes our name for the call into its own logs"


async def test_a_failed_attempt_and_its_repetition_are_one_road(
    watched: Watched, upstream: OpenAICompatible, sdk: openai.AsyncOpenAI
) -> None:
    before = watched.frontend_says()
    answer = await sdk.chat.completions.with_raw_response.create(**say("again sim:status=503 sim:times=1"))
    request_id = answer.headers["x-request-id"]
    back = await lines(
        watched.worker, request_id, lambda found: sum(line["message"] == "attempt ended" for line in found) == 2
    )
    first, second = (line for line in back if line["message"] == "attempt ended")
    assert (first["outcome"], first["error"], first["upstream_status"], first["attempt"]) == (
        "failed", "overloaded", 503, 1,
    )  # fmt: skip
    assert (second["outcome"], second["attempt"]) == ("done", 2)
    access = (await lines(watched.frontend, request_id, lambda found: "path" in found[-1]))[-1]
    assert (access["attempts"], access["setbacks"]) == (2, ["overloaded"])
    seen = watched.frontend_says()
    assert total(seen, "sluice_retries_total", reason="overloaded") == 1 + total(before, "sluice_retries_total")


@pytest.mark.fault("E5")
@pytest.mark.parametrize("sink", ["a pipe that nobody reads", "a full disk"])
def test_a_log_that_takes_nothing_stops_no_request(watched: Watched, sink: str) -> None:
    running, port = watched.gateway, free_port()
    with contextlib.ExitStack() as stack:
        if sink == "a full disk":
            descriptor = os.open("/dev/full", os.O_WRONLY)
        else:
            reads, descriptor = os.pipe()
            stack.callback(os.close, reads)
            fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, 4096)
        stack.callback(os.close, descriptor)
        process = running.start("frontend", "frontend", environment={"SLUICE_PORT": str(port)}, sink=descriptor)
        running.wait_ready("gpt-4o", port=port)
        # Each request is a line of some 200 bytes: many times what the pipe holds.
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=SECONDS) as client:
            for _ in range(200):
                assert client.get("/health/live").status_code == 200
        assert process.stop() == 0
