"""Asking, and an exact record of what the caller was told: through OpenAI's own client, or as literal bytes."""

import json
import time
from dataclasses import dataclass, field
from typing import Any, Literal

import openai
import trio

from tests.end_to_end.gateway import API_KEY
from tests.faults.house import House
from tests.simulators.ledger import Ledger
from tests.simulators.raw_client import Seen, events, receive_message, request_bytes, said

Ending = Literal["complete", "error", "cut", "refused"]


@dataclass
class Told:
    """What one caller was told through OpenAI's client. Times in seconds from the request.

    `ended`: `complete` (a finish reason, and the stream ended well), `error` (raised with a code: an error event, or a
    refusal with a status), `cut` (the connection broke), `refused` (no connection at all). `silent` would be a lie: a stream
    that ended well without a finish reason raises AssertionError here.
    """

    text: str = ""
    pieces: list[str] = field(default_factory=list)
    finish_reason: str | None = None
    ended: Ending = "complete"
    error: openai.APIError | None = None
    first_seconds: float | None = None
    seconds: float = 0.0

    @property
    def status(self) -> int | None:
        """Of a refusal; None for an error event."""
        return getattr(self.error, "status_code", None)

    @property
    def code(self) -> str | None:
        return getattr(self.error, "code", None)

    @property
    def headers(self) -> dict[str, str]:
        """Of a refusal."""
        response = getattr(self.error, "response", None)
        return dict(response.headers) if response is not None else {}

    @property
    def outcome(self) -> str:
        """For tables: `complete`, or the error's code, or how the connection ended."""
        return self.code or f"status {self.status}" if self.ended == "error" else self.ended

    def _failed(self, error: openai.APIError) -> None:
        self.error = error
        if isinstance(error, openai.APIConnectionError):
            self.ended = "cut" if self.first_seconds is not None else "refused"
        else:
            self.ended = "error"


async def stream(house: House, words: str, *, sdk: openai.AsyncOpenAI | None = None, told: Told | None = None,
                 **fields: Any) -> Told:  # fmt: skip
    """Ask for a stream and read it to its end. `told` is filled as it comes, so that a test can wait for the k-th piece."""
    told = told if told is not None else Told()
    began = time.monotonic()
    try:
        answer = await (sdk or house.sdk).chat.completions.create(
            model=fields.pop("model", house.model), messages=[{"role": "user", "content": words}], stream=True, **fields
        )
        async for chunk in answer:
            if told.first_seconds is None:
                told.first_seconds = time.monotonic() - began
            for choice in chunk.choices:
                if choice.delta.content:
                    told.pieces.append(choice.delta.content)
                told.finish_reason = choice.finish_reason or told.finish_reason
        assert told.finish_reason, f"the stream ended as if it were complete, after {len(told.pieces)} pieces"
    except openai.APIError as error:
        told._failed(error)
    told.text = "".join(told.pieces)
    told.seconds = time.monotonic() - began
    return told


async def whole(
    house: House, words: str, *, sdk: openai.AsyncOpenAI | None = None, told: Told | None = None, **fields: Any
) -> Told:
    """Ask for an answer in one piece."""
    told = told if told is not None else Told()
    began = time.monotonic()
    try:
        answer = await (sdk or house.sdk).chat.completions.create(
            model=fields.pop("model", house.model), messages=[{"role": "user", "content": words}], **fields
        )
        told.text = answer.choices[0].message.content or ""
        told.finish_reason = answer.choices[0].finish_reason
    except openai.APIError as error:
        told._failed(error)
    told.seconds = time.monotonic() - began
    return told


async def many(house: House, count: int, words: str, **options: Any) -> list[Told]:
    """`count` streams at once; the k-th asks for `ask{k} words`, so that the ledger can tell them apart. In order."""
    told = [Told() for _ in range(count)]
    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(
                lambda number=number: stream(house, f"ask{number} {words}", told=told[number], **options)
            )
    return told


def sent(ledger: Ledger, first_word: str) -> list[str]:
    """What the upstream sent, or was going to send, to those calls whose text begins with this word (`ask3`)."""
    return [call.text for call in ledger.calls if call.text.replace(".", " ").split(" ", 1)[0] == first_word]


def assert_exact(told: Told, ledger: Ledger, first_word: str) -> None:
    """The caller has the whole text of one upstream call if its answer is complete, else a prefix of one."""
    texts = sent(ledger, first_word)
    if told.ended == "complete":
        assert told.text in texts, f"{first_word}: no call sent exactly {told.text[:200]!r}"
    else:
        assert not told.text or any(text.startswith(told.text) for text in texts), f"{first_word}: {told.text[:200]!r}"


@dataclass(frozen=True)
class Raw:
    """The literal bytes of one answer. `ended`: `complete`, `error`, `cut`: as the body says, checked for honesty."""

    seen: Seen
    events: list[str]
    ended: Ending

    @property
    def status(self) -> int:
        return self.seen.status

    @property
    def headers(self) -> dict[str, str]:
        return self.seen.headers

    @property
    def text(self) -> str:
        return said(self.seen.body)

    @property
    def error(self) -> dict[str, Any] | None:
        """OpenAI's error object: of the last event, or of the body of a refusal."""
        last = self.events[-1] if self.events else self.seen.body.decode()
        return json.loads(last).get("error") if last.startswith("{") else None


async def raw(house: House, words: str, *, frontend: int = 0, stream: bool = True, **fields: Any) -> Raw:
    """One request over a socket of its own, and an honest account of its answer; see `account`."""
    port = house.gateway.ports[frontend]
    body = {"model": house.model, "stream": stream, "messages": [{"role": "user", "content": words}], **fields}
    connection = await trio.open_tcp_stream("127.0.0.1", port)
    async with connection:
        headers = {"Authorization": f"Bearer {API_KEY}", "Content-Type": "application/json"}
        await connection.send_all(request_bytes(body, **headers))
        return account(await receive_message(connection), stream=stream)


def account(seen: Seen, *, stream: bool = True) -> Raw:
    """What the bytes say. Raises AssertionError where they are no honest answer:

    a body that ends well without finish reason and `[DONE]` or an error event; both; anything in the event stream that
    makes OpenAI's clients stumble (`id:`, `retry:`, `event:`, an empty `data:`, bytes that are no UTF-8).
    """
    if not stream or seen.status != 200:
        return Raw(seen, [], "error" if seen.status != 200 else "complete" if seen.ended == "complete" else "cut")
    assert seen.headers.get("content-type", "").startswith("text/event-stream"), seen.headers
    whole_events = seen.body.decode("utf-8", "strict" if seen.ended == "complete" else "ignore").split("\n\n")
    assert seen.ended != "complete" or whole_events[-1] == "", "the body ends in the middle of an event"
    for event in whole_events[:-1]:
        for line in event.split("\n"):
            assert line.startswith(": ") or (line.startswith("data: ") and line != "data: "), repr(line)
    payloads = events("\n\n".join(whole_events[:-1]).encode())
    finished = any(_finish_reason(payload) for payload in payloads)
    done = payloads.count("[DONE]")
    errors = [payload for payload in payloads if payload.startswith('{"error"')]
    assert done <= 1 and (not done or payloads[-1] == "[DONE]"), "something follows [DONE]"
    assert len(errors) <= 1 and (not errors or payloads[-1] == errors[0]), "something follows the error"
    assert not (errors and done)
    if seen.ended == "complete":
        assert errors or (finished and done), f"it ends as if it were complete: {payloads[-1:]}"
        return Raw(seen, payloads, "error" if errors else "complete")
    return Raw(seen, payloads, "cut")


def _finish_reason(payload: str) -> str | None:
    if not payload.startswith("{"):
        return None
    choices = json.loads(payload).get("choices") or [{}]
    return choices[0].get("finish_reason")
