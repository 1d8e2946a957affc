"""The langfast simulator: accounts and their limit, the socket's rules, and every way a run can go."""

from __future__ import annotations

import json
import uuid
from contextlib import asynccontextmanager

import pytest
import trio

from tests.simulators.langfast import Langfast
from tests.simulators.langfast_socket import NOISE, SOCKET_FAULTS
from tests.simulators.raw_client import ask
from tests.simulators.recordings import WIRE, recording
from tests.simulators.script import DIFFICULT_TEXTS
from tests.simulators.socket_client import socket_client
from tests.simulators.supabase import claims_of

NOW = 1_760_000_000


@pytest.fixture
async def upstream():
    with trio.fail_after(10):
        async with Langfast(clock=lambda: NOW).running() as simulator:
            yield simulator


async def sign_up(upstream):
    seen = await ask(upstream, {}, path="/auth/v1/signup", apikey=upstream.anon_key)
    return seen.status, json.loads(seen.body)


def run_body(upstream, session, words, **meta):
    return {
        "run_id": str(uuid.uuid4()),
        "prompt_id": upstream.prompt_id,
        "prompt_meta": {
            "model": "gpt-4o-mini",
            "messages": [{"role": "user", "content": words}],
            "stream": True,
            **meta,
        },
        "test_cases": [],
        "created_by": session["user"]["id"],
    }


async def start(upstream, session, words, **changes):
    body = {**run_body(upstream, session, words), **changes}
    seen = await ask(
        upstream,
        body,
        path="/functions/v1/initiate-prompt-run",
        apikey=upstream.anon_key,
        authorization=f"Bearer {session['access_token']}",
    )
    return seen.status, json.loads(seen.body) if seen.headers.get("content-type") == "application/json" else None


@asynccontextmanager
async def connected_user(upstream):
    _, session = await sign_up(upstream)
    async with socket_client(upstream) as client:
        assert (await client.connect(session["access_token"])).startswith("40{")
        yield session, client


async def play(upstream, words):
    """Start a run and collect its events until completion or the end of the connection."""
    async with connected_user(upstream) as (session, client):
        status, answer = await start(upstream, session, words)
        assert status == 200
        heard = []
        while (event := await client.receive_event()) is not None:
            heard.append(event)
            if event[0] == "completion_finished" or event[1] == {"stop": True}:
                break
            if event[0] == "execution:chunk" and isinstance(event[1], dict) and event[1].get("status") == "failed":
                break
        return answer["jobs"][0]["job_id"], heard


# Accounts


async def test_a_sign_up_has_the_recorded_shape_and_a_decodable_token(upstream):
    status, session = await sign_up(upstream)

    recorded = json.loads(recording("langfast_signup.json").body)
    assert status == 200
    assert session.keys() == recorded.keys() and session["user"].keys() == recorded["user"].keys()
    claims = claims_of(session["access_token"])
    assert claims["sub"] == session["user"]["id"] != recorded["user"]["id"]
    assert (claims["exp"], session["expires_at"]) == (NOW + 3600, NOW + 3600)
    assert "=" not in session["access_token"] and set("-_") & set(session["access_token"].split(".")[1])


async def test_the_sign_up_limit_is_a_bucket_of_thirty(upstream):
    statuses = [(await sign_up(upstream))[0] for _ in range(31)]

    assert statuses == [200] * 30 + [429]
    status, body = await sign_up(upstream)
    assert (status, body["error_code"]) == (429, "over_request_rate_limit")


async def test_refresh_tokens_are_single_use_and_do_not_count_as_sign_ups():
    async with Langfast(signups_per_hour=1).running() as upstream:
        _, session = await sign_up(upstream)

        async def refresh(token):
            path = "/auth/v1/token?grant_type=refresh_token"
            seen = await ask(upstream, {"refresh_token": token}, path=path, apikey=upstream.anon_key)
            return seen.status, json.loads(seen.body)

        status, fresh = await refresh(session["refresh_token"])
        again, _ = await refresh(session["refresh_token"])

        assert (status, again) == (200, 400)
        assert fresh["user"]["id"] == session["user"]["id"]
        assert fresh["access_token"] != session["access_token"]


async def test_sign_up_can_fail_in_every_way(upstream):
    upstream.signup.next(error="langfast_signup_422_disabled")
    upstream.signup.next(status=500)
    upstream.signup.next(fault="html", status=200)
    upstream.signup.next(token_seconds=-10)

    disabled, broken = await sign_up(upstream), await sign_up(upstream)
    garbage = await ask(upstream, {}, path="/auth/v1/signup", apikey=upstream.anon_key)
    status, session = await sign_up(upstream)

    assert (disabled[0], disabled[1]["error_code"], broken[0]) == (422, "anonymous_provider_disabled", 500)
    assert garbage.body.startswith(b"<html>")
    assert status == 200 and session["expires_at"] < NOW


async def test_the_api_key_is_checked_everywhere(upstream):
    for path in ("/auth/v1/signup", "/functions/v1/initiate-prompt-run"):
        missing = await ask(upstream, {}, path=path)
        wrong = await ask(upstream, {}, path=path, apikey="nonsense")

        assert (missing.status, wrong.status) == (401, 401)
        assert json.loads(missing.body)["message"] == "No API key found in request"
        assert wrong.body == recording("errors/langfast_signup_401_apikey.json").body


# The socket


async def test_frames_have_the_recorded_shape(upstream):
    recorded = [line[2:] for line in (WIRE / "langfast_socketio.txt").read_text().splitlines() if line[0] == "S"]
    async with socket_client(upstream) as client:
        opened = await client.receive()
        _, session = await sign_up(upstream)
        await client.send("40" + json.dumps({"token": session["access_token"]}))
        connected = await client.receive()

    assert json.loads(opened[1:]).keys() == json.loads(recorded[0][1:]).keys()
    assert json.loads(opened[1:])["pingInterval"] == 25000
    assert json.loads(connected[2:]).keys() == json.loads(recorded[1][2:]).keys()


async def test_bad_and_expired_tokens_are_refused_with_44(upstream):
    upstream.signup.next(token_seconds=-1)
    _, expired = await sign_up(upstream)
    for token in ("nonsense", expired["access_token"], expired["access_token"][:-4] + "AAAA"):
        async with socket_client(upstream) as client:
            assert await client.connect(token) == '44{"message": "Authentication error"}'
            assert await client.receive() == "1"
            assert await client.receive() is None


async def test_clients_that_answer_pings_stay_and_others_are_dropped():
    with trio.fail_after(10):
        async with Langfast(ping_interval=0.01, ping_timeout=0.1).running() as upstream:
            async with connected_user(upstream) as (_, client):
                for _ in range(5):
                    assert await client.receive() == "2"
                    await client.send("3")
                socket = upstream.clients.connected[0]
                await upstream.ledger.wait_for(lambda _: socket.pongs == 5)
                assert await client.receive() == "2"
                assert await client.receive() == "1"
                assert await client.receive() is None
            await upstream.ledger.wait_for(lambda _: not upstream.clients.connected)

            assert socket.websocket.call.notes["dropped"] == "no pong"


async def test_the_client_closes_and_the_ledger_sees_it(upstream):
    async with connected_user(upstream) as (session, _):
        call = upstream.ledger.by_path("/socket.io/")[0]
        assert call.open and call.notes["sub"] == session["user"]["id"]
    await upstream.ledger.wait_for(lambda _: not upstream.clients.connected)

    assert call.closed_by == "client"


async def test_socket_faults(upstream):
    _, session = await sign_up(upstream)
    answers = {}
    for fault in SOCKET_FAULTS.keys() - {"no_open", "ignore_connect", "silent"}:
        upstream.sockets.next(fault=fault)
        async with socket_client(upstream) as client:
            answers[fault] = [await client.connect(session["access_token"])]
            answers[fault] += [await client.receive() for _ in range(2)]

    assert answers["refuse"][0].startswith("44") and answers["refuse"][1:] == ["1", None]
    assert json.loads(answers["refuse_with_data"][0][2:])["data"] == {"code": "invalid_token"}
    assert answers["close_after_connect"][1:] == ["41", "1"]
    assert answers["noop"][1:] == list(NOISE[:2])


@pytest.mark.parametrize("fault", ["no_open", "ignore_connect"])
async def test_sockets_that_do_not_answer(upstream, fault):
    _, session = await sign_up(upstream)
    upstream.sockets.next(fault=fault)
    async with socket_client(upstream) as client:
        if fault == "ignore_connect":
            assert (await client.receive()).startswith("0{")
        await client.send("40" + json.dumps({"token": session["access_token"]}))
        await client.send("4something odd")
        socket = upstream.ledger.calls[-1].notes["socket"]
        await upstream.ledger.wait_for(lambda _: socket.odd_frames)

        with trio.move_on_after(0.01) as silence:
            await client.receive()
        assert silence.cancelled_caught and upstream.clients.connected == []


async def test_the_upgrade_itself_can_be_refused(upstream):
    upstream.sockets.next(status=503)
    async with socket_client(upstream) as client:
        assert client.status == 503
    async with socket_client(upstream, "/socket.io/?EIO=3&transport=polling") as client:
        assert client.status == 400


# Runs


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
