"""A simulator of DashScope's own API, text generation: events without a space, a status in a comment, no `[DONE]`.

    async with DashScopeNative(keys={"sk-one"}).running() as upstream:
        upstream.base_url            # http://127.0.0.1:PORT/api/v1

As at the service, streaming is asked for by `X-DashScope-SSE: enable` or `Accept: text/event-stream`; the text comes in
increments only with `incremental_output`, else every event repeats all of it; `result_format` chooses between `choices`
and `text`; the body is gzipped if the client offers it. Errors that are found before the stream starts are plain HTTP;
`fault=error_200_event` and `fault=error_mid` are events with HTTP 200, `error=dashscope_native_400_parameter` says which,
and `fault=error_200` with `error=dashscope_native_200_business` is a code without output.

Further options of the script: `end=last` puts the finish reason on the last text event (default with cumulative output
and tools), `end=own` on an event of its own (default with increments).
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

import trio

from tests.simulators.compose import tool_call
from tests.simulators.http_server import Answer, Simulator
from tests.simulators.ledger import Call
from tests.simulators.limits import Gate
from tests.simulators.native_events import Said, event_frames, native_error_event, native_events, whole_answer
from tests.simulators.playback import Material, halves, perform
from tests.simulators.recordings import error_recording
from tests.simulators.script import Script, ScriptError, Vocabulary, answer_pieces, last_user_text
from tests.simulators.speech import ToolCall, encode

JSON_TYPE = ("content-type", "application/json")
VOCABULARY = Vocabulary(options=frozenset({"end"}))
PATH = "/services/aigc/text-generation/generation"
MULTIMODAL_PATH = "/services/aigc/multimodal-generation/generation"
LONGEST_INPUT = 12_000
THOUGHTS = ("One", " plus", " one", " is two.")

Body = dict[str, Any]


class DashScopeNative(Simulator):
    """Keys and limits as in `OpenAICompatible`."""

    name = "dashscope-native"

    def __init__(
        self,
        *,
        keys: Collection[str] | None = None,
        concurrency: int | None = None,
        requests_per_minute: int | None = None,
    ) -> None:
        super().__init__()
        self.gate = Gate(keys, concurrency=concurrency, requests_per_minute=requests_per_minute)

    @property
    def base_url(self) -> str:
        return self.origin + "/api/v1"

    @property
    def settings(self) -> dict[str, str]:
        """The bare host, as people give it."""
        key = min(self.gate.keys) if self.gate.keys else "sk-simulated"
        return {"DASHSCOPE_NATIVE_BASE_URL": self.origin, "DASHSCOPE_NATIVE_API_KEY": key}

    async def respond(self, call: Call, answer: Answer) -> None:
        """Check path, key, limits and parameters, in this order; then answer by the script."""
        if not call.path.endswith((PATH, MULTIMODAL_PATH)):
            why = {"code": "InvalidURL", "message": "url error, please check url!", "request_id": request_id(call)}
            await answer.send(400, [JSON_TYPE], encode(why))
        elif not self.gate.knows(call.key):
            await _refuse(answer, "dashscope_native_401", "key")
        elif self.gate.refuses(call.key, self.ledger, trio.current_time()):
            await _refuse(answer, "dashscope_native_429_rate", "rate")
        else:
            await self._generate(call, answer)

    async def _generate(self, call: Call, answer: Answer) -> None:
        try:
            body = call.json()
            message = asked(body)
            script = self.control.script(call.key, str(body.get("model")), message, VOCABULARY)
        except ScriptError as problem:
            await answer.misused(problem)
            return
        except (ValueError, AttributeError):
            await _refuse(answer, "dashscope_native_400_parameter", "parameters")
            return
        if refusal := refused(body, message):
            await _refuse(answer, refusal, "parameters")
        else:
            await perform(answer, script, compose(call, body, message, script))


async def _refuse(answer: Answer, name: str, why: str) -> None:
    answer.call.notes["refused"] = why
    found = error_recording(name)
    await answer.send(found.status, found.headers, found.body)


def request_id(call: Call) -> str:
    return f"00000000-0000-9000-8000-{call.number:012x}"


def wants_stream(call: Call) -> bool:
    """Whether either of the two headers asks for an event stream."""
    by_header = (call.header("x-dashscope-sse") or "").lower() == "enable"
    return by_header or "text/event-stream" in (call.header("accept") or "")


def asked(body: Body) -> str:
    """The text of the last user message, or the prompt."""
    source = body.get("input") or {}
    messages = [
        {**message, "content": [{"text": part.get("text", "")} for part in message["content"]]}
        if isinstance(message.get("content"), list)
        else message
        for message in source.get("messages") or ()
    ]
    return last_user_text(messages) if messages else str(source.get("prompt", ""))


def refused(body: Body, message: str) -> str | None:
    """The recorded error for a request that the service would refuse; None if it would not."""
    parameters = body.get("parameters") or {}
    model = str(body.get("model"))
    temperature, top_p = parameters.get("temperature", 0.7), parameters.get("top_p", 0.8)
    if model.startswith("qwen-3"):
        return "dashscope_native_404_model"  # the vendor's names have no hyphen there
    if model == "farui-plus" and len(message) > LONGEST_INPUT:
        return "dashscope_native_400_length"
    bad_sampling = not 0 <= temperature < 2 or not 0 < top_p <= 1
    bad_thinking = parameters.get("enable_thinking") is True and parameters.get("incremental_output") is not True
    empty = any(not entry.get("content") for entry in (body.get("input") or {}).get("messages") or ())
    return "dashscope_native_400_parameter" if bad_sampling or bad_thinking or empty or not message else None


def compose(call: Call, body: Body, message: str, script: Script) -> Material:
    """The healthy answer, as a stream or whole."""
    parameters = body.get("parameters") or {}
    pieces = answer_pieces(message, script)
    said = Said(
        pieces=tuple(pieces),
        request_id=request_id(call),
        input_tokens=max(1, len(json.dumps(body.get("input")).split())),
        thoughts=tuple(THOUGHTS[k % len(THOUGHTS)] for k in range(script.think)),
        tool_calls=_tool_calls(call, parameters, message, script),
        finish="null" if script.fault == "no_finish" else script.finish or "stop",
        limit=parameters.get("max_tokens"),
        listed=call.path.endswith(MULTIMODAL_PATH),
    )
    message_format = parameters.get("result_format", "text") == "message" or said.listed or bool(said.tool_calls)
    headers = [("x-request-id", said.request_id), ("x-dashscope-call-gateway", "true"), ("req-cost-time", "369")]
    material = Material(
        headers=headers,
        frames=[],
        error=lambda status: encode(
            {"code": "InternalError", "message": f"simulated error {status}", "request_id": said.request_id}
        ),
        error_event=native_error_event,
        comment=b":keep-alive\n\n",
        odd_event=lambda payload: b"id:0\nevent:result\n:HTTP_STATUS/200\ndata:" + payload + b"\n\n",
        gzip_if_offered=True,
        text="".join(said.spoken),
    )
    if wants_stream(call):
        incremental = parameters.get("incremental_output") is True
        own_end = script.extra.get("end", "own" if incremental and not said.tool_calls else "last") == "own"
        events = native_events(said, incremental=incremental, message_format=message_format, own_end=own_end)
        material.headers = [("content-type", "text/event-stream;charset=UTF-8"), *headers]
        material.frames = event_frames(events, own_end=own_end and not said.tool_calls)
    else:
        payload = whole_answer(said, message_format=message_format)
        material.headers = [JSON_TYPE, *headers]
        material.frames, material.length = halves(payload), len(payload)
        material.silent_pieces, material.comment = len(said.spoken), b"\n"
    return material


def _tool_calls(call: Call, parameters: Body, message: str, script: Script) -> tuple[ToolCall, ...]:
    functions = [tool["function"] for tool in parameters.get("tools") or ()]
    count = script.tools or int(isinstance(parameters.get("tool_choice"), dict))
    if not functions:
        return ()
    text = "".join(answer_pieces(message, script))
    return tuple(
        tool_call(f"call_test_n_{call.number}_{index}", functions[index % len(functions)], text, index)
        for index in range(count)
    )
