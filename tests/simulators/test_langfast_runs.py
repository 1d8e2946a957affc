"""The langfast simulator: every way a run can go."""

from __future__ import annotations

import json

import pytest
import trio

from tests.simulators.langfast import Langfast
from tests.simulators.langfast_client import connected_user, play, run_body, sign_up, start
from tests.simulators.langfast_scene import RECORDED_JOB_ID, scene
from tests.simulators.raw_client import ask
from tests.simulators.recordings import WIRE, recording
from tests.simulators.script import DIFFICULT_TEXTS, ScriptError
from tests.simulators.socket_client import socket_client

NOW = 1_760_000_000


@pytest.fixture
async def upstream():
    with trio.fail_after(10):
        async with Langfast(clock=lambda: NOW).running() as simulator:
            yield simulator


async def test_a_run_repeats_everything_said_so_far(upstream):
    job_id, heard = await play(upstream, "one two  three")

    assert heard == [
        ("execution:chunk", {"executionId": job_id, "status": "in_progress", "finish_reason": None, "content": text})
        for text in ("one", "one two", "one two  three")
    ] + [
        (
            "execution:chunk",
            {"executionId": job_id, "status": "completed", "finish_reason": "stop", "content": "one two  three"},
        ),
        ("completion_finished", {"executionId": job_id}),
    ]
    run = upstream.runs[0]
    assert (run.delivered, run.lost, run.text) == (4, 0, "one two  three")


def contents(heard):
    return [payload["content"] for name, payload in heard if name == "execution:chunk"]


async def test_foreign_duplicate_and_other_events_are_mixed_in(upstream):
    job_id, heard = await play(upstream, "a b sim:foreign=1 sim:duplicate=1 sim:other=1")

    assert contents(heard) == ["a", "a", "Another user's text", "a b", "a b", "a b"]
    assert {name for name, _ in heard} == {"execution:chunk", "execution:progress", "completion_finished"}
    strangers = [payload for name, payload in heard if payload["executionId"] != job_id]
    assert [payload["content"] for payload in strangers] == ["Another user's text"]


async def test_payloads_can_be_strings(upstream):
    _, as_json = await play(upstream, "a b sim:strings=1")
    _, as_text = await play(upstream, "a b sim:plain=1")
    _, no_ids = await play(upstream, "a b sim:no_id=1")

    assert [json.loads(payload)["content"] for name, payload in as_json[:-1]] == ["a", "a b", "a b"]
    assert [payload for name, payload in as_text[:-1]] == ["a", "a b", "a b"]
    assert all("executionId" not in payload for _, payload in no_ids)


async def test_an_answer_can_be_revised(upstream):
    _, heard = await play(upstream, "a b sim:fault=revised")

    assert not contents(heard)[-1].startswith(contents(heard)[-2])


async def test_the_end_can_be_told_by_completion_alone(upstream):
    _, heard = await play(upstream, "a b sim:fault=no_finish sim:finish=length")

    chunks = [payload for name, payload in heard if name == "execution:chunk"]
    assert [(chunk["status"], chunk["finish_reason"]) for chunk in chunks] == [
        ("in_progress", None),
        ("in_progress", "length"),
    ]


async def test_completion_finished_can_be_missing(upstream):
    async with connected_user(upstream) as (session, client):
        await start(upstream, session, "a sim:fault=no_done")
        assert (await client.receive_event())[1]["status"] == "in_progress"
        assert (await client.receive_event())[1]["status"] == "completed"
        await upstream.ledger.wait_for(lambda _: upstream.runs[0].ended)
        await start(upstream, session, "next")
        assert (await client.receive_event())[1]["content"] == "next"


async def test_a_run_can_fail_in_a_chunk(upstream):
    _, heard = await play(upstream, "a b c d sim:fault=error_mid")

    assert heard[-1][1]["status"] == "failed" and heard[-1][1]["error"]
    assert contents(heard) == ["a", "a b", "a b"]


@pytest.mark.parametrize("fault", ["truncate", "drop_mid", "reset_mid_chunk"])
async def test_the_connection_can_end_in_the_middle_of_a_run(upstream, fault):
    _, heard = await play(upstream, f"a b c d sim:fault={fault}")

    assert contents(heard) == ["a", "a b"]
    call = upstream.ledger.by_path("/socket.io/")[0]
    assert call.closed_by == "us"


@pytest.mark.parametrize(("fault", "pieces"), [("hang_mid", 2), ("hang_after_headers", 0)])
async def test_a_run_can_fall_silent(upstream, fault, pieces):
    async with connected_user(upstream) as (session, _):
        await start(upstream, session, f"a b c d sim:fault={fault}")
        await upstream.ledger.wait_for(lambda _: upstream.runs[0].ended)

        assert upstream.runs[0].pieces_sent == pieces


async def test_chunks_can_come_before_the_answer_that_names_the_run(upstream):
    async with connected_user(upstream) as (session, client):
        heard = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(start, upstream, session, "a b c sim:early=2 sim:delay=0.05")
            for _ in range(2):
                heard.append((await client.receive_event())[1]["content"])
            assert upstream.ledger.by_path("initiate-prompt-run")[0].open
        heard.append((await client.receive_event())[1]["content"])

        assert heard == ["a", "a b", "a b c"]


async def test_chunks_for_nobody_are_lost_or_the_run_is_refused(upstream):
    _, session = await sign_up(upstream)
    status, _ = await start(upstream, session, "a b")
    await upstream.ledger.wait_for(lambda _: upstream.runs[0].ended)
    upstream.unconnected = "refuse"

    refused, _ = await start(upstream, session, "a b")

    assert (status, upstream.runs[0].delivered, upstream.runs[0].lost) == (200, 0, 3)
    assert refused == 400


async def test_two_runs_on_one_socket_are_told_apart_by_execution(upstream):
    async with connected_user(upstream) as (session, client):
        _, first = await start(upstream, session, "one sim:chunks=10 sim:gap=0.001")
        _, second = await start(upstream, session, "two sim:chunks=10 sim:gap=0.001")
        texts, finished = {}, 0
        while finished < 2:
            name, payload = await client.receive_event()
            finished += name == "completion_finished"
            if name == "execution:chunk":
                texts[payload["executionId"]] = payload["content"]

        assert texts == {
            answer["jobs"][0]["job_id"]: " ".join(f"{word}.{k}" for k in range(10))
            for answer, word in ((first, "one"), (second, "two"))
        }


async def test_wrong_runs_are_refused(upstream):
    _, session = await sign_up(upstream)
    upstream.signup.next(token_seconds=-1)
    _, expired = await sign_up(upstream)
    sampled = run_body(upstream, session, "a", model="gpt-5", temperature=0.5)["prompt_meta"]
    system = run_body(upstream, session, "a", model="o1", messages=[{"role": "system", "content": "x"}])["prompt_meta"]

    assert (await start(upstream, expired, "a"))[0] == 401
    for changes in (
        {"run_id": "not a uuid"},
        {"prompt_id": "unknown"},
        {"created_by": expired["user"]["id"]},
        {"prompt_meta": sampled},
        {"prompt_meta": system},
        {"prompt_meta": {"model": "gpt-4o", "messages": []}},
    ):
        status, body = await start(upstream, session, "a", **changes)
        assert status == 400 and body["error"]
    assert upstream.runs == []


async def test_the_recorded_requests_are_good(upstream):
    _, session = await sign_up(upstream)
    for name in ("langfast_initiate_request.json", "langfast_initiate_request_reasoning.json"):
        body = json.loads((WIRE / name).read_text())
        status, answer = await start(
            upstream,
            session,
            "x",
            run_id=body["run_id"],
            prompt_meta=body["prompt_meta"],
            test_cases=body["test_cases"],
        )

        assert status == 200
        assert answer.keys() == json.loads(recording("langfast_initiate.json").body).keys()


async def test_the_answer_to_a_run_can_fail(upstream):
    _, session = await sign_up(upstream)
    upstream.control.next(error="langfast_run_500")

    assert (await start(upstream, session, "a"))[0] == 500
    assert (await start(upstream, session, "a sim:fault=html"))[0:1] == (502,)


async def test_prompts_can_be_created(upstream):
    _, session = await sign_up(upstream)
    seen = await ask(upstream, {"p_name": "x"}, path="/rest/v1/rpc/create_prompt", apikey=upstream.anon_key)

    status, _ = await start(upstream, session, "a", prompt_id=json.loads(seen.body))

    assert status == 200


async def test_difficult_texts(upstream):
    for name in ("emoji", "split_surrogate", "line_separators", "nul"):
        _, heard = await play(upstream, f"sim:text={name}")
        said = "".join(DIFFICULT_TEXTS[name]).encode("utf-16", "surrogatepass").decode("utf-16")
        assert contents(heard)[-1] == said


SCENES = [("langfast_socketio.txt", 1), *(("langfast_socketio_errors.txt", number) for number in range(1, 7))]


@pytest.mark.parametrize(("file", "number"), SCENES)
async def test_a_recorded_conversation_is_played_verbatim(upstream, file, number):
    wanted = [frame for direction, frame in scene(file, number) if direction == "S"]
    upstream.sockets.next(play=file, scene=number)
    _, session = await sign_up(upstream)

    async with socket_client(upstream) as client:
        heard = [await client.receive()]
        await client.send("40" + json.dumps({"token": session["access_token"]}))
        heard.append(await client.receive())
        if heard[-1].startswith("40"):
            _, answer = await start(upstream, session, "anything")
            assert answer["jobs"][0]["job_id"] == RECORDED_JOB_ID
        while len(heard) < len(wanted):
            heard.append(await client.receive())
            if heard[-1] == "2":
                await client.send("3")
        if file == "langfast_socketio.txt":  # there the client takes its leave
            await client.send("41")
            await client.send("1")
        assert await client.receive() is None

    assert heard == wanted


async def test_a_scene_that_does_not_exist_is_told(upstream):
    with pytest.raises(ScriptError):
        scene("langfast_socketio.txt", 2)
