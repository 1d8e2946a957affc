"""The langfast simulator: accounts and their limit, and the socket's rules."""

from __future__ import annotations

import json

import pytest
import trio

from tests.simulators.langfast import Langfast
from tests.simulators.langfast_client import connected_user, sign_up
from tests.simulators.langfast_socket import NOISE, SOCKET_FAULTS
from tests.simulators.raw_client import ask
from tests.simulators.recordings import WIRE, recording
from tests.simulators.socket_client import socket_client
from tests.simulators.supabase import claims_of

NOW = 1_760_000_000


@pytest.fixture
async def upstream():
    with trio.fail_after(10):
        async with Langfast(clock=lambda: NOW).running() as simulator:
            yield simulator


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
        async with Langfast(ping_interval=0.01, ping_timeout=0.2).running() as upstream:
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
