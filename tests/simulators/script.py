"""The script of one answer: what a simulator says, how fast, and what goes wrong on the way.

A script is a set of options. They come from three places; the later one wins, option by option:

1. the simulator's `control` object, set by a test in the same process (or by `POST /_simulator/control`);
2. the model name of the request: `gpt-4o,sim:gap=0.05,sim:chunks=20`;
3. the words of the last user message: `tell me sim:delay=0.5 sim:fault=drop_mid`.

Words that start with `sim:` are not echoed. A value cannot hold spaces or commas. An option or fault that does not exist
is answered with status 400 and the header `x-simulator-error`, so that a misspelt test fails with a reason.

What is said: the words of the last user message, piece by piece, white space kept (`answer_text` computes it for a test).

=============  =====================================================================================================
option         meaning
=============  =====================================================================================================
chunks=N       exactly N pieces; the words are repeated as needed and numbered (`hello.0 world.1 hello.2`), so
               that every lost, doubled or swapped piece shows in the text
size=N         an answer of N bytes, in pieces of 4096
text=NAME      instead of the words, a difficult text: one of `DIFFICULT_TEXTS`
think=N        N pieces of thinking before the answer, in the vendor's field
tools=N        N tool calls, if the request brings tools; a `tool_choice` that demands one counts as `tools=1`
finish=WORD    finish reason, as the vendor spells it (default `stop`; `length` when max_tokens cuts)
usage=WHERE    `finish` (on the chunk with the finish reason), `choice` (inside its choice), `own` (own chunk), `none`;
               default: what the vendor does
delay=S        seconds before the status line
first=S        seconds between headers and the first byte of the body
gap=S          seconds between pieces
comments=N     N keep-alive comments before the first piece (blank lines in a JSON body), `gap` apart
blank=0        no blank lines between events (DashScope native only)
nospace=1      `data:` without the space after the colon
crlf=1         events end their lines with CRLF
bytes=N        the body in HTTP chunks of N bytes, each in a write of its own
burst=N        N events in each write
gzip=1         compress if the client offers it (DashScope: always, unless `gzip=0`)
linger=S       keep the socket open S seconds after the client has closed its side
status=N       answer with this status, in the vendor's error shape
error=FILE     answer with `tests/wire/errors/FILE` (`.json` may be left out), its status and its headers
retry_after=V  header `Retry-After: V`, on any error answer
play=FILE      send `tests/wire/FILE` byte for byte, with its status and headers
fault=NAME     one of `FAULTS`
insert=NAME    one of `ODD_EVENTS`, put into an otherwise good stream before piece `at`
at=K           how many pieces go out before the fault (default: half of them)
times=N        status, error, play and fault apply to the first N calls with this message only; later ones are well
=============  =====================================================================================================

Options of single simulators are listed in their modules.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from dataclasses import dataclass, field, fields, replace
from typing import Any

FAULTS = {
    "close_before_headers": "the connection is closed without an answer",
    "reset_before_headers": "the connection is reset without an answer",
    "hang_before_headers": "the request is read and never answered",
    "reset_after_headers": "status and headers, then a reset",
    "hang_after_headers": "status and headers, then silence",
    "reset_mid_chunk": "a reset in the middle of an HTTP chunk, after `at` pieces",
    "drop_mid": "the connection is closed in the middle of an HTTP chunk, after `at` pieces",
    "hang_mid": "silence after `at` pieces",
    "comments": "after `at` pieces (default 0) nothing but comments, `gap` apart, until the client closes",
    "drip": "one byte of the body per `gap` seconds",
    "truncate": "a clean end of the body after `at` pieces: no finish reason, no [DONE]",
    "no_finish": "all pieces and [DONE], but no finish reason",
    "no_done": "all pieces and the finish reason, but no [DONE]",
    "after_done": "the answer goes on after [DONE]",
    "endless": "pieces until the client closes",
    "endless_line": "one line without end, in writes of 64 KiB, until the client closes",
    "error_mid": "an error event in the vendor's shape after `at` pieces, then the end of the body",
    "error_200": "status 200 with the error as JSON body, although a stream was asked for",
    "error_200_event": "status 200 and an event stream whose first event is the error",
    "html": "an HTML page, with `status` (default 502)",
    "empty": "an empty body, with `status` (default 200)",
    "wrong_type": "a good stream labelled `text/plain`",
    "short_length": "Content-Length promises more than comes before the connection is closed",
    "redirect": "307 to the same path on another host name (`localhost`) of the same port",
    "gzip_bomb": "Content-Encoding: gzip, unasked: 10 KiB that unfold to 10 MiB",
    "switching": "101 Switching Protocols out of nowhere",
    "informational": "1,000 answers with status 103, then the real one",
    "many_headers": "2,000 headers",
    "big_header": "a header of 1 MiB",
    "bad_status_line": "something that is not HTTP",
}

ODD_EVENTS = {
    "not_json": b"{not json",
    "array": b"[1,2,3]",
    "string": b'"just a string"',
    "number": b"42",
    "null": b"null",
    "empty_object": b"{}",
    "no_choices": b'{"id":"odd","object":"chat.completion.chunk","created":1760000000,"model":"odd"}',
    "null_choices": b'{"id":"odd","object":"chat.completion.chunk","created":1760000000,"model":"odd","choices":null}',
    "empty_choices": b'{"id":"odd","object":"chat.completion.chunk","created":1760000000,"model":"odd","choices":[]}',
    "null_delta": b'{"id":"odd","object":"chat.completion.chunk","created":1760000000,"model":"odd",'
    b'"choices":[{"index":0,"delta":null,"finish_reason":null}]}',
    "no_delta": b'{"id":"odd","object":"chat.completion.chunk","created":1760000000,"model":"odd","choices":[{"index":0}]}',
    "unknown_fields": b'{"id":"odd","object":"chat.completion.chunk","created":1760000000,"model":"odd","x_new":{"a":[1]},'
    b'"choices":[{"index":0,"delta":{"x_audio":null},"x_score":0.5,"finish_reason":null}]}',
    "index_gap": b'{"id":"odd","object":"chat.completion.chunk","created":1760000000,"model":"odd",'
    b'"choices":[{"index":7,"delta":{"content":""},"finish_reason":null}]}',
    "null_error": b'{"id":"odd","object":"chat.completion.chunk","created":1760000000,"model":"odd","choices":[],"error":null}',
    "invalid_utf8": b'{"id":"odd","object":"chat.completion.chunk","created":1760000000,"model":"odd",'
    b'"choices":[{"index":0,"delta":{"content":"\xff\xfe"},"finish_reason":null}]}',
    "empty_data": b"",
}
"""Payloads of one `data:` line; the last but one carries text that is not UTF-8."""

DIFFICULT_TEXTS = {
    "nul": ["a", "\x00", "b"],
    "lone_surrogate": ["a", "\ud83d", "b"],
    "split_surrogate": ["a ", "\ud83d", "\ude00", " b"],
    "line_separators": ["a\u2028", "b\u2029", "c\u0085", "d\r\n", "e"],
    "sse_lookalike": ["data: [DONE]\n\n", "data: {}\n\n", ": comment\n", "[DONE]"],
    "emoji": ["👩‍👩‍👧‍👦", "🇩🇪", "é", "नि", "👋🏽"],
    "markup": ['<script>"&\\', "</script>\t\b\f\u007f"],
    "blank": [" ", "\n", "\t", "  "],
}
"""Pieces. Lone surrogates are sent as `\\ud83d` escapes, as upstreams written in JavaScript do."""

_WORD = re.compile(r"(?:^|(?<=[\s,]))sim:(?P<name>\w+)(?:=(?P<value>[^\s,]*))?")
_PIECE = re.compile(r"\s*\S{1,12}|\s+")


class ScriptError(ValueError):
    """An option, fault or file that does not exist."""


@dataclass(frozen=True, slots=True)
class Script:
    """Options of one answer; the module's table says what each one means. Durations in seconds."""

    chunks: int | None = None
    size: int | None = None
    text: str | None = None
    think: int = 0
    tools: int = 0
    finish: str | None = None
    usage: str | None = None
    delay: float = 0.0
    first: float = 0.0
    gap: float = 0.0
    comments: int = 0
    blank: bool = True
    nospace: bool = False
    crlf: bool = False
    bytes: int | None = None
    burst: int = 1
    gzip: bool | None = None
    linger: float = 0.0
    status: int | None = None
    error: str | None = None
    retry_after: str | None = None
    play: str | None = None
    fault: str | None = None
    insert: str | None = None
    at: int | None = None
    times: int | None = None
    extra: dict[str, str] = field(default_factory=dict)
    """Options of single simulators."""

    def well(self) -> Script:
        """The same answer with nothing going wrong."""
        return replace(self, status=None, error=None, play=None, fault=None, insert=None)

    def cut_at(self, pieces: int) -> int:
        """After how many of that many pieces the fault strikes."""
        if self.at is not None:
            return min(self.at, pieces)
        return 0 if self.fault == "comments" else (pieces + 1) // 2


_OPTIONS = {option.name: str(option.type) for option in fields(Script) if option.name != "extra"}


def parse_options(text: str) -> dict[str, str]:
    """The `sim:name=value` words of a text; a word without a value counts as `1`."""
    return {match["name"]: "1" if match["value"] is None else match["value"] for match in _WORD.finditer(text)}


def without_options(text: str) -> str:
    """The text without its `sim:` words and the white space before them."""
    return re.sub(r"(?:^|[\s,]+)sim:[^\s,]*", "", text).strip(" ,") if "sim:" in text else text


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What one kind of simulator understands beyond the table."""

    options: frozenset[str] = frozenset()
    faults: frozenset[str] = frozenset()


def build_script(options: dict[str, Any], vocabulary: Vocabulary = Vocabulary()) -> Script:
    """A script from options given as text, numbers or booleans. Raises ScriptError for what does not exist."""
    values: dict[str, Any] = {}
    extra: dict[str, str] = {}
    for name, value in options.items():
        if name in vocabulary.options:
            extra[name] = str(value)
        elif name in _OPTIONS:
            values[name] = _convert(name, _OPTIONS[name], str(value))
        else:
            raise ScriptError(f"unknown option {name!r}")
    script = Script(**values, extra=extra)
    for value, known, what in (
        (script.fault, FAULTS.keys() | vocabulary.faults, "fault"),
        (script.insert, ODD_EVENTS.keys(), "odd event"),
        (script.text, DIFFICULT_TEXTS.keys(), "text"),
        (script.usage, {"finish", "choice", "own", "none"}, "place for usage"),
    ):
        if value is not None and value not in known:
            raise ScriptError(f"unknown {what} {value!r}")
    return script


def _convert(name: str, kind: str, value: str) -> Any:
    try:
        if kind.startswith("bool"):
            return value not in ("0", "False", "false")
        if kind.startswith("int"):
            return int(value)
        return float(value) if kind.startswith("float") else value
    except ValueError:
        raise ScriptError(f"{value!r} does not suit the option {name!r}") from None


class Control:
    """What a test sets on a simulator in its own process. Options are keyword arguments named as in the table."""

    def __init__(self) -> None:
        self._always: dict[str, Any] = {}
        self._next: deque[dict[str, Any]] = deque()
        self._by_key: dict[str, dict[str, Any]] = {}
        self._seen: Counter[str] = Counter()

    def always(self, **options: Any) -> None:
        """Replace the options of every call from now on; without arguments: back to normal."""
        self._always = options

    def next(self, **options: Any) -> None:
        """Options of one coming call only; several of them queue up."""
        self._next.append(options)

    def for_key(self, key: str, **options: Any) -> None:
        """Options of every call that is made with this credential."""
        self._by_key[key] = options

    def forget(self) -> None:
        """Count the calls that `times` speaks of from one again."""
        self._seen.clear()

    def script(self, key: str, model: str, message: str, vocabulary: Vocabulary = Vocabulary()) -> Script:
        """The script of a call that has just come in; uses up what `next` has queued. Raises ScriptError."""
        options = {
            **self._always,
            **self._by_key.get(key, {}),
            **(self._next.popleft() if self._next else {}),
            **parse_options(model),
            **parse_options(message),
        }
        script = build_script(options, vocabulary)
        if script.times is None:
            return script
        self._seen[message] += 1
        return script if self._seen[message] <= script.times else script.well()


def last_user_text(messages: Any) -> str:
    """Text of the last message whose role is `user`; the text parts joined if its content is a list."""
    for message in reversed(messages if isinstance(messages, list) else []):
        if isinstance(message, dict) and message.get("role") == "user":
            content = message.get("content")
            if isinstance(content, list):
                return "".join(part.get("text") or "" for part in content if isinstance(part, dict))
            return content if isinstance(content, str) else ""
    return ""


def answer_pieces(message: str, script: Script = Script()) -> list[str]:
    """The pieces that answer this message under this script, before `max_tokens` cuts them."""
    if script.text is not None:
        return list(DIFFICULT_TEXTS[script.text])
    words = _PIECE.findall(without_options(message)) or ["ok"]
    if script.size is not None:
        return _sized(words, script.size)
    if script.chunks is None:
        return words
    return [("" if k == 0 else " ") + words[k % len(words)].strip() + f".{k}" for k in range(script.chunks)]


def _sized(words: list[str], size: int) -> list[str]:
    ascii_words = "".join(words).encode("ascii", "replace").decode() + " "
    text = (ascii_words * (size // len(ascii_words) + 1))[:size]
    return [text[start : start + 4096] for start in range(0, size, 4096)]


def answer_text(message: str) -> str:
    """The whole text that answers this message, by the options it carries itself."""
    options = parse_options(message)
    shaping: dict[str, Any] = {name: options[name] for name in ("chunks", "size", "text") if name in options}
    return "".join(answer_pieces(message, build_script(shaping)))
