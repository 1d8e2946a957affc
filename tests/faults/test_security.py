"""S: nothing secret is readable anywhere, nobody reaches what is another's, and no spelling of a path opens a door."""

import contextlib
import json
import os
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx2
import pytest
import trio

from shared.redis import keys
from tests.eavesdropper import Eavesdropper, everything_in
from tests.end_to_end.gateway import API_KEY, SECRET_KEY
from tests.faults.house import House
from tests.faults.scripted_upstream import answering
from tests.faults.standing import KEY, MODEL, Standing, standing_house
from tests.simulators.raw_client import receive_message, request_bytes
from tests.simulators.speech import encode

ROOT = Path(__file__).parents[2]
PROMPT, ANSWER, THEIRS = "canaryprompt7f3a", "canaryanswer91bc", "sk-canary-callers-own-0123456789"
COOKIE = "canarycookie55aa"


@pytest.fixture(scope="module")
def standing() -> Iterator[Standing]:
    with standing_house(SLUICE_LOG_LEVEL="debug", SLUICE_FIRST_TOKEN_SECONDS="1", SLUICE_SILENCE_SECONDS="1") as made:
        yield made


@pytest.fixture
async def house(standing: Standing) -> AsyncIterator[House]:
    async with standing.visited() as made:
        with trio.fail_after(60):
            yield made


async def send(house: House, payload: bytes) -> bytes:
    """One request, and everything that came back."""
    async with await trio.open_tcp_stream("127.0.0.1", house.gateway.ports[0]) as stream:
        await stream.send_all(payload)
        return (await receive_message(stream)).raw


def chat(words: str, *, key: str = API_KEY, **fields: object) -> bytes:
    body = {"model": MODEL, "messages": [{"role": "user", "content": f"{PROMPT} {words}"}], **fields}
    return request_bytes(body, Authorization=f"Bearer {key}", Content_Type="application/json", Cookie=COOKIE)


ERRORS = [
    *(f"sim:fault={fault}" for fault in (
        "close_before_headers", "reset_after_headers", "hang_before_headers", "drop_mid", "truncate", "no_finish", "html",
        "redirect", "switching", "big_header", "bad_status_line", "gzip_bomb", "short_length", "error_mid", "hang_mid",
    )),
    *(f"sim:error={error}" for error in (
        "openai_400_context_length", "openai_404_model_not_found", "openai_429_rate_limit", "openai_500_server_error",
        "openai_503_overloaded", "openai_403_region", "openai_429_insufficient_quota",
    )),
    "sim:fault=error_200 sim:error=openai_500_server_error", "sim:insert=not_json", "sim:insert=array",
]  # fmt: skip


AT_ONCE = 4


@pytest.mark.fault("S4", "S5", "S6", "S7", "S17")
@pytest.mark.promise("P18")
async def test_canaries_are_heard_nowhere(house: House) -> None:
    """Keys, a prompt, an answer, a cookie go through some forty error paths with logs at their loudest."""
    secrets = [API_KEY, KEY, SECRET_KEY, PROMPT, ANSWER, THEIRS, COOKIE]
    told: list[bytes] = []

    async def tell(words: str, stream: bool) -> None:
        told.append(await send(house, chat(words, stream=stream)))

    with contextlib.closing(Eavesdropper(house.redis)) as spy:
        for first in range(0, len(ERRORS), AT_ONCE):
            async with trio.open_nursery() as nursery:
                for words in ERRORS[first : first + AT_ONCE]:
                    nursery.start_soon(tell, words, True)
                    nursery.start_soon(tell, words, False)
            for name in house.redis.client.keys(
                "sluice:c[ir]*:*"
            ):  # what a refusal taught about the key and the circuit
                house.redis.client.delete(name)
        leaky = {"message": f"key {KEY} of {PROMPT}, Bearer {THEIRS} at https://{COOKIE}.example", "code": "odd"}
        for status in (400, 401, 402, 403, 404, 422, 500):
            body = encode({"error": leaky})
            house.upstream.script = answering(
                b"HTTP/1.1 %d No\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (status, len(body))
                + body
            )
            told.append(await send(house, chat("", stream=False)))
        house.upstream.script = None
        told.append(await send(house, chat("", key=THEIRS)))
        told.append(await send(house, chat("", model=THEIRS)))
        told.append(await send(house, chat("").replace(b'"messages": [', b'"messages": {')))
        told.append(await send(house, chat(ANSWER, stream=True, temperature=[KEY])))
        kept = everything_in(house.redis)
        heard = spy.heard
    metrics = await scraped(house)
    logs = {process.name: process.text() for process in house.processes}
    assert b"XADD" in heard and b"PUBLISH" in heard and len(told) >= 60
    for secret in secrets:
        for place, text in {"MONITOR": heard, "Redis": kept, "metrics": metrics, **logs}.items():
            text = text if isinstance(text, bytes) else text.encode()
            assert secret.encode() not in text, (secret, place)
    for text in told:
        for secret in (API_KEY, KEY, SECRET_KEY, COOKIE):
            assert secret.encode() not in text, text[:500]
        assert not re.search(rb"Traceback|sluice:|127\.0\.0\.1|File \"", text)


async def scraped(house: House) -> bytes:
    async with httpx2.AsyncClient() as client:
        reply = await client.get(
            f"http://127.0.0.1:{house.gateway.ports[0]}/metrics", headers={"authorization": f"Bearer {API_KEY}"}
        )
    assert reply.status_code == 200
    return reply.content


def routes() -> list[tuple[str, str]]:
    """Method and path of everything that the frontend serves, read from where the routes are made."""
    found = []
    for module in (ROOT / "frontend" / "api").glob("*.py"):
        for method, path in re.findall(
            r"@routes\.(get|post|put|patch|delete)\(\s*\"([^\"]+)\"", module.read_text(encoding="utf-8")
        ):
            found.append((method.upper(), re.sub(r"<[^>]+>", "x", path)))
    return found


PUBLIC = {
    "/",
    "/health",
    "/health/live",
    "/health/ready",
    "/openapi.json",
    "/dashboard",
    "/playground",
    "/docs",
    "/pages/x",
}
"""What needs no key: nothing there is about this installation, except how many workers and models there are."""


WRONG = "Authorization: Bearer sk-wrong-0123456789abcdef\r\n"


def spellings(path: str) -> list[str]:
    """Other ways to write a path, which a proxy's rules or our own might take for another one, or for the same."""
    encoded = "".join(
        f"%{ord(letter):02x}" if letter.isalpha() and index % 2 else letter for index, letter in enumerate(path)
    )
    first = path.split("/")[1]
    return [
        path, encoded, "/" + path, path + "/", f"/x/..{path}", f"/x/%2e%2e{path}", f"/.{path}", f"{path}/.", f"{path}?key=x",
        f"{path};x", f"{path}%00", f"{path}%20", f"{path}#x", path.upper(), path.replace("/", "//"), path.replace("/", "%2f"),
        path.replace("/", "\\"), f"http://x{path}", f"http://x@y{path}", f"/health/../{first}", f"/%2e%2e/{first}",
    ]  # fmt: skip


@pytest.mark.fault("D10", "S15")
async def test_no_spelling_of_a_path_opens_a_door(house: House) -> None:
    """Every route of the frontend, spelled in twenty ways, with every method, without a key and with a wrong one."""
    guarded = [(method, path) for method, path in routes() if path not in PUBLIC]
    assert len(guarded) >= 8
    opened = []
    for method, path in guarded:
        for target in spellings(path):
            tries = [(method, ""), (method, WRONG)] + [("HEAD", ""), ("OPTIONS", "")] * (target == path)
            for verb, authorization in tries:
                head = f"{verb} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{authorization}"
                payload = (head + "Content-Length: 2\r\nContent-Type: application/json\r\n\r\n{}").encode()
                status = await status_of(house, payload)
                if status not in (400, 401, 403, 404, 405):
                    opened.append((verb, target, bool(authorization), status))
    assert opened == []


async def status_of(house: House, payload: bytes) -> int:
    async with await trio.open_tcp_stream("127.0.0.1", house.gateway.ports[0]) as stream:
        heard = b""
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.send_all(payload)
            while b"\r\n" not in heard and (piece := await stream.receive_some(4096)):
                heard += piece
    return int(heard.split()[1])


@pytest.mark.fault("S15", "S22")
async def test_what_everybody_may_see_says_nothing(house: House) -> None:
    """The pages that need no key, searched for what is secret or only ours."""
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{house.gateway.ports[0]}") as client:
        for path in sorted(PUBLIC - {"/pages/x"}):
            reply = await client.get(path)
            assert reply.status_code in (200, 404), path
            for secret in (API_KEY, KEY, SECRET_KEY, str(house.gateway.directory), house.redis.url):
                assert secret not in reply.text, path
        assert (await client.get("/health/live")).json() == {"status": "ok"}


@pytest.mark.fault("S18", "D13")
async def test_nobody_reaches_the_job_of_another(house: House) -> None:
    """Forged parcels and orders on the channels of both processes: by whoever may publish, but has no secret key."""
    redis = house.redis.client
    told: list[bytes] = []

    async def ask() -> None:
        told.append(await send(house, chat("good sim:chunks=40 sim:gap=0.05", stream=True)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await house.ledger.wait_for_call()
        channels = [channel for channel in redis.pubsub_channels("sluice:*")]
        recorded: list[bytes] = []
        with contextlib.closing(redis.pubsub()) as ears:
            ears.subscribe(*channels)
            with trio.move_on_after(1):
                while True:
                    message = await trio.to_thread.run_sync(lambda: ears.get_message(timeout=0.2))
                    if message and message["type"] == "message":
                        recorded.append(message["data"])
                        for channel in channels:  # a message said again, on its own channel and on all others
                            redis.publish(channel, message["data"])
                            redis.publish(channel, b"\x93\x01" + os.urandom(64))
                            redis.publish(channel, message["data"][:-1] + b"\0")
        assert recorded
    events = [line for line in told[0].split(b"\n") if line.startswith(b"data: {")]
    text = "".join(
        json.loads(event[6:])["choices"][0]["delta"].get("content") or ""
        for event in events
        if b'"choices":[{' in event
    )
    assert text == house.ledger.calls[0].text and told[0].count(b"[DONE]") == 1


@pytest.mark.fault("S4")
async def test_a_sealed_thing_opens_in_its_own_place_only(house: House) -> None:
    """A queued job is moved to another provider's queue, or changed by a byte: it fails alone, and nobody else notices."""
    worker, redis = house.workers[0], house.redis.client
    worker.freeze()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, house, chat("never", stream=False))
            stream = keys.jobs("openai")
            while not (entries := redis.xrange(stream)):  # noqa: ASYNC110
                await trio.sleep(0.01)
            fields = entries[0][1]
            changed = {name: value[:-1] + bytes([value[-1] ^ 1]) for name, value in fields.items()}
            redis.xadd(stream, changed)
            nursery.cancel_scope.cancel()
    finally:
        worker.thaw()
    with trio.fail_after(10):
        assert b'"content"' in await send(house, chat("still here", stream=False))
        while redis.xlen(stream):  # noqa: ASYNC110
            await trio.sleep(0.02)
    assert "refused queue entry" in worker.text()


@pytest.mark.fault("S21")
async def test_processes_keep_no_dumps_and_hand_nothing_on(house: House) -> None:
    """What the kernel would write of a crashed process, and what a child of it would inherit."""
    for process in house.processes:
        limits = await trio.Path(f"/proc/{process.pid}/limits").read_text()
        assert re.search(r"^Max core file size +0 +0 ", limits, re.M)


@pytest.mark.fault("S11", "D7")
async def test_whatever_is_sent_is_answered_or_refused(house: House) -> None:
    """A thousand bodies that were valid and are so no more, by chance: 200 or 400, and nobody ends."""
    chance = __import__("random").Random(20260101)
    good = chat("hi", stream=False).partition(b"\r\n\r\n")[2]
    statuses: dict[int, int] = {}

    async def some(count: int) -> None:
        async with await trio.open_tcp_stream("127.0.0.1", house.gateway.ports[0]) as stream:
            for _ in range(count):
                body = bytearray(good)
                for _ in range(chance.randint(1, 4)):
                    at = chance.randrange(len(body))
                    body[at : at + chance.randint(0, 3)] = chance.choice(
                        [
                            b"\xff",
                            b"\\",
                            b'"',
                            b"{",
                            b"]",
                            b"\\ud800",
                            b"null",
                            b"1e999",
                            b"\x00",
                            b",",
                            b":",
                            os.urandom(2),
                        ]
                    )
                await stream.send_all(
                    request_bytes(bytes(body), Authorization=f"Bearer {API_KEY}", Content_Type="application/json")
                )
                status = (await receive_message(stream)).status
                statuses[status] = statuses.get(status, 0) + 1

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(some, 200)
    assert statuses.keys() <= {200, 400, 404} and statuses[400] > 500, statuses
