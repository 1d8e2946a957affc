"""Composes what an OpenAI-compatible simulator answers to a request: the speech, legacy completions, embeddings."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from typing import Any

from tests.simulators.dialects.openai import Dialect
from tests.simulators.ledger import Call
from tests.simulators.playback import Material, halves
from tests.simulators.script import Script, answer_pieces, last_user_text
from tests.simulators.speech import Frame, Speech, ToolCall, Usage, encode, encode_pretty

THOUGHTS = ("Thinking about", " it", " step by", " step.")
EMBEDDING_DIMENSIONS = 8
FRAGMENT_SIZE = 12

Body = dict[str, Any]


def asked(body: Body) -> str:
    """The text that is to be echoed: of the last user message, the last prompt, or the last input."""
    if "messages" in body:
        return last_user_text(body["messages"])
    given = body.get("prompt", body.get("input", ""))
    last = given[-1] if isinstance(given, list) and given else given
    return last if isinstance(last, str) else ""


def compose(dialect: Dialect, call: Call, body: Body, message: str, script: Script) -> Material:
    """The healthy answer to this call, by its path and its `stream` field."""
    if call.path.endswith("/embeddings"):
        return _whole(dialect, embeddings_body(body), 1, "")
    if not call.path.endswith("/chat/completions"):
        return _completion_material(dialect, call.number, body, message, script)
    speech = speech_for(dialect, call.number, body, message, script)
    text = "".join(speech.choices[0])
    if body.get("stream"):
        return _streamed(dialect, list(dialect.frames(speech)), text)
    return _whole(dialect, dialect.body(speech), len(speech.choices[0]) + len(speech.thoughts), text)


def _streamed(dialect: Dialect, frames: list[Frame], text: str) -> Material:
    return Material(
        headers=[("content-type", dialect.event_stream)],
        frames=frames,
        error=dialect.error_body,
        error_event=dialect.error_event,
        gzip_if_offered=dialect.gzip_if_offered,
        text=text,
    )


def _whole(dialect: Dialect, payload: bytes, pieces: int, text: str) -> Material:
    return Material(
        headers=[("content-type", "application/json")],
        frames=halves(payload),
        error=dialect.error_body,
        error_event=dialect.error_event,
        comment=b"\n",
        length=len(payload),
        silent_pieces=pieces,
        gzip_if_offered=dialect.gzip_if_offered,
        text=text,
    )


def speech_for(dialect: Dialect, number: int, body: Body, message: str, script: Script) -> Speech:
    """What is said to this request, call `number` of the simulator."""
    calls = _tool_calls(dialect, number, body, message, script)
    pieces, finish = _capped(body, answer_pieces(message, script), "tool_calls" if calls else "stop")
    count = int(body.get("n") or 1)
    choices = [tuple(pieces) + ((f" ({index + 1})",) if index else ()) for index in range(count)]
    if calls:
        choices = [()]
    thoughts = [f"{THOUGHTS[k % len(THOUGHTS)]}" for k in range(script.think)]
    options = body.get("stream_options") or {}
    return Speech(
        id=dialect.id(number),
        model=dialect.answered_model(str(body.get("model")).partition(",")[0]),
        choices=tuple(choices),
        finishes=(script.finish or finish,) * len(choices),
        usage=_usage(body, sum(len(choice) for choice in choices) + len(thoughts), len(thoughts)),
        thoughts=tuple(thoughts),
        tool_calls=calls,
        include_usage=bool(options.get("include_usage")),
        usage_place=script.usage,
        obfuscate=dialect.obfuscates and bool(options) and options.get("include_obfuscation") is not False,
        logprobs=bool(body.get("logprobs")),
    )


def _capped(body: Body, pieces: list[str], finish: str) -> tuple[list[str], str]:
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    if limit is not None and len(pieces) > limit:
        return pieces[:limit], "length"
    return pieces, finish


def _usage(body: Body, completion: int, reasoning: int = 0) -> Usage:
    source = body.get("messages", body.get("prompt", body.get("input", "")))
    return Usage(prompt=max(1, len(json.dumps(source).split())), completion=completion, reasoning=reasoning)


def _tool_calls(dialect: Dialect, number: int, body: Body, message: str, script: Script) -> tuple[ToolCall, ...]:
    functions = [tool["function"] for tool in body.get("tools") or () if tool.get("type") == "function"]
    choice = body.get("tool_choice")
    if isinstance(choice, dict):
        functions = [entry for entry in functions if entry["name"] == choice["function"]["name"]]
    count = script.tools or int(choice == "required" or isinstance(choice, dict))
    if not functions or choice == "none":
        return ()
    text = "".join(answer_pieces(message, script))
    return tuple(
        tool_call(dialect.tool_id(number * 100 + index), functions[index % len(functions)], text, index)
        for index in range(count)
    )


def tool_call(identity: str, function: Body, text: str, index: int) -> ToolCall:
    """A call of that function whose first argument is the text, numbered from the second call on."""
    properties = (function.get("parameters") or {}).get("properties") or {"text": {}}
    arguments = json.dumps({next(iter(properties)): f"{text} ({index + 1})" if index else text}, ensure_ascii=False)
    fragments = [arguments[start : start + FRAGMENT_SIZE] for start in range(0, len(arguments), FRAGMENT_SIZE)]
    return ToolCall(identity, function["name"], ("", *fragments))


# Legacy completions


def _completion_material(dialect: Dialect, number: int, body: Body, message: str, script: Script) -> Material:
    texts = _completion_texts(body, message, script)
    first = "".join(texts[0][0])
    if body.get("stream"):
        return _streamed(dialect, _completion_frames(number, body, texts), first)
    choices = [_completion_choice(index, "".join(pieces), finish) for index, (pieces, finish) in enumerate(texts)]
    usage = _usage(body, sum(len(pieces) for pieces, _ in texts))
    counted = {"prompt_tokens": usage.prompt, "completion_tokens": usage.completion, "total_tokens": usage.total}
    whole = {**_completion(number, body, choices), "usage": counted}
    return _whole(dialect, encode_pretty(whole), len(texts[0][0]), first)


def _completion_frames(number: int, body: Body, texts: list[tuple[list[str], str]]) -> list[Frame]:
    frames: list[Frame] = []
    for index, (pieces, finish) in enumerate(texts):
        for piece in pieces:
            chunk = _completion(number, body, [_completion_choice(index, piece, None)])
            frames.append(Frame("piece", b"data: " + encode(chunk) + b"\n\n"))
        chunk = _completion(number, body, [_completion_choice(index, "", finish)])
        frames.append(Frame("finish", b"data: " + encode(chunk) + b"\n\n"))
    return [*frames, Frame("done", b"data: [DONE]\n\n")]


def _completion_texts(body: Body, message: str, script: Script) -> list[tuple[list[str], str]]:
    prompts = body.get("prompt")
    listed = prompts if isinstance(prompts, list) and all(isinstance(prompt, str) for prompt in prompts) else [message]
    return [
        _capped(body, answer_pieces(prompt, script), script.finish or "stop")
        for prompt in listed
        for _ in range(int(body.get("n") or 1))
    ]


def _completion_choice(index: int, text: str, finish: str | None) -> Body:
    return {"text": text, "index": index, "logprobs": None, "finish_reason": finish}


def _completion(number: int, body: Body, choices: list[Body]) -> Body:
    return {
        "id": f"cmpl-test{number:04}",
        "object": "text_completion",
        "created": 1760000000,
        "choices": choices,
        "model": body.get("model"),
    }


# Embeddings


def embeddings_body(body: Body) -> bytes:
    """Vectors that depend on the input alone; `float` or `base64` (little-endian float32), as asked."""
    given = body.get("input", "")
    inputs = given if isinstance(given, list) and not all(isinstance(item, int) for item in given) else [given]
    entries = []
    for index, item in enumerate(inputs):
        vector: Any = embedding(item, body.get("dimensions") or EMBEDDING_DIMENSIONS)
        if body.get("encoding_format") == "base64":
            vector = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
        entries.append({"object": "embedding", "index": index, "embedding": vector})
    prompt = _usage(body, 0).prompt
    usage = {"prompt_tokens": prompt, "total_tokens": prompt}
    return encode_pretty({"object": "list", "data": entries, "model": body.get("model"), "usage": usage})


def embedding(item: Any, dimensions: int) -> list[float]:
    """The vector of one input; every component is exact in float32."""
    seed = json.dumps(item).encode()
    octets = b"".join(hashlib.sha256(seed + bytes([block])).digest() for block in range(dimensions // 32 + 1))
    return [(octet - 128) / 128 for octet in octets[:dimensions]]
