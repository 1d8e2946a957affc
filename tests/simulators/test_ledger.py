"""The ledger and the server under it: waiting, reading odd requests, administration, a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.simulators.__main__ import SIMULATORS
from tests.simulators.ledger import Ledger
from tests.simulators.metronome import Metronome
from tests.simulators.openai_compatible import OpenAICompatible
from tests.simulators.raw_client import HELLO, ask, chat, connected, receive_message, request_bytes

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
async def _in_time():
    with trio.fail_after(10):
        yield


async def test_waiting_ends_with_the_change_that_fulfils_it():
    ledger = Ledger()
    call = ledger.open(1, "GET", "/a%20b?x=1", (("Authorization", "Bearer k"),), b"")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ledger.wait_until_idle)
        nursery.start_soon(ledger.wait_closed, call)
        await trio.testing.wait_all_tasks_blocked()
        ledger.close(call, "us", finished=True)

    assert (call.path, call.query, call.key) == ("/a b", {"x": "1"}, "k")
    ledger.close(call, "client")
    assert (call.closed_by, call.finished) == ("us", True)
    assert ledger.open_by_key["k"] == 0 and ledger.peak_by_key["k"] == 1


async def test_cleared_calls_are_forgotten_and_numbers_go_on():
    ledger = Ledger()
    ledger.close(ledger.open(1, "GET", "/", (), b""), "us")
    kept = ledger.open(1, "GET", "/", (), b"")
    ledger.clear()

    assert ledger.calls == [kept]
    assert (await ledger.wait_for_call(2)) is kept


async def test_chunked_requests_pipelining_and_bad_requests():
    async with OpenAICompatible().running() as upstream, connected(upstream) as stream:
        body = json.dumps(HELLO).encode()
        head = b"POST /v1/chat/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
        await stream.send_all(head + b"%x;ext=1\r\n%b\r\n0\r\nTrailer: x\r\n\r\n" % (len(body), body))
        assert (await receive_message(stream)).ended == "complete"

        await stream.send_all(request_bytes(chat("sim:delay=0.01 a")) + request_bytes(HELLO))
        assert (await receive_message(stream)).status == 200
        await upstream.ledger.wait_for(lambda ledger: ledger.calls_seen == 3)
        await upstream.ledger.wait_until_idle()
        assert [call.finished for call in upstream.ledger.calls] == [True] * 3

        async with connected(upstream) as other:
            await other.send_all(b"nonsense\r\n\r\n")
            assert (await receive_message(other)).status == 400


async def test_the_ledger_and_the_control_can_be_reached_over_http():
    async with OpenAICompatible().running() as upstream:
        options = {"always": {"chunks": 2}, "next": [{"status": 503}], "for_key": {"bad": {"status": 401}}}
        answer = await ask(upstream, options, path="/_simulator/control")
        statuses = [(await ask(upstream, HELLO, authorization=f"Bearer {key}")).status for key in ("a", "a", "bad")]
        told = json.loads((await ask(upstream, path="/_simulator/ledger", method="GET")).body)
        wrong = await ask(upstream, {"control": "nothing"}, path="/_simulator/control")
        missing = await ask(upstream, path="/_simulator/nothing", method="GET")
        await ask(upstream, path="/_simulator/clear")

        assert (answer.status, wrong.status, missing.status) == (200, 400, 404)
        assert statuses == [503, 200, 401]
        assert told["calls_seen"] == 3 and told["calls"][1]["text"] == "hello.0 wide.1"
        assert told["calls"][1]["closed_by"] == "us" and told["calls"][1]["finished"]
        assert upstream.ledger.calls == []


@pytest.mark.parametrize("name", SIMULATORS)
async def test_every_simulator_can_tell_its_settings(name):
    async with SIMULATORS[name]().running() as upstream:
        assert str(upstream.port) in "".join(upstream.settings.values())
        assert all(key.isupper() and value for key, value in upstream.settings.items())


@contextmanager
def simulator_process(*arguments):
    command = [sys.executable, "-m", "tests.simulators", *arguments]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()


async def test_a_simulator_as_a_process_of_its_own():
    def talk() -> None:
        with simulator_process("kimi") as process:
            settings = {}
            while not (line := process.stdout.readline()).startswith("# ready"):
                if line.startswith("export "):
                    name, _, value = line.removeprefix("export ").strip().partition("=")
                    settings[name] = value
            body = json.dumps(chat("hi", stream=False)).encode()
            request = urllib.request.Request(settings["KIMI_BASE_URL"] + "/chat/completions", body)
            with urllib.request.urlopen(request, timeout=5) as answer:
                assert json.load(answer)["choices"][0]["message"]["content"] == "hi"
            assert settings["KIMI_API_KEY"]

    await trio.to_thread.run_sync(talk)


async def test_sleepers_wake_in_order_never_early_and_can_be_cancelled():
    metronome = Metronome()
    woken = []

    async def sleep(name, seconds):
        when = trio.current_time() + seconds
        await metronome.sleep_until(when)
        woken.append((name, trio.current_time() >= when))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(metronome.run)
        async with trio.open_nursery() as sleepers:
            for name, seconds in (("last", 0.03), ("first", 0.01), ("second", 0.02), ("at once", -1)):
                sleepers.start_soon(sleep, name, seconds)
            with trio.move_on_after(0.005):
                await sleep("cancelled", 0.01)
        nursery.cancel_scope.cancel()

    assert woken == [("at once", True), ("first", True), ("second", True), ("last", True)]
