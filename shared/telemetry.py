"""Logs: one JSON object per line (or a line for people), with nothing secret in it.

Redaction happens here, at the sink, so that no caller can forget it: what looks like a key, a token or a bearer header is
replaced before it is written, in messages and in tracebacks alike.
"""

import json
import logging
import re
import time
from collections.abc import Mapping
from typing import Final

from shared.log_sink import LogSink, SinkHandler

_TELLING: Final = r"(?: authorization | cookie | password | (?:api|secret)[-_]?key | (?:access|refresh|id)[-_]?token )"
_SECRETS: Final = re.compile(
    rf"""(?ix)
    (?P<kept>
        {_TELLING} (?: \\* ["']? \s* [:=] | \\* ["'] \s* , ) (?: [\s"'\\\[({{] | b (?= ["'] ) )*
        (?: (?: bearer | basic ) \s+ )*
      | (?: bearer \s+ )+
      | https?:// [^\s?"'\\]{{1,2000}} \?
    )
    [^\s"',;\\]+
    | (?<= :// ) [^\s@]{{1,1000}} (?= @ )
    | (?<! [a-z0-9] ) (?: c?sk [-_] | ak [-_] | hf_ ) [a-z0-9_\-]{{6,}}
    | (?<! [a-z0-9] ) eyJ [a-z0-9_\-]{{1,1000}} \. [a-z0-9_\-]+ \. [a-z0-9_\-]*
    """
)
"""What is hidden in a text: the value after a telling name or scheme, a URL's query and credentials, keys that show by their
prefix, JWTs. The text may be the `repr` of something, or JSON, even twice encoded."""
_TELLING_NAME: Final = re.compile(_TELLING, re.IGNORECASE | re.VERBOSE)
_HINTS: Final = (
    "authorization", "cookie", "password", "apikey", "api-key", "api_key", "secretkey", "secret-key", "secret_key",
    "accesstoken", "access-token", "access_token", "refreshtoken", "refresh-token", "refresh_token",
    "idtoken", "id-token", "id_token", "bearer", "?", "@", "sk-", "sk_", "ak-", "ak_", "hf_", "eyj",
)  # fmt: skip
"""A text without any of these holds nothing to hide. Most lines have none, and that is found out in a few microseconds."""
_KNOWN_FIELDS: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_PLAIN: Final = re.compile(r"[!#-<>-~]+")
"""What needs no quotes behind `name=`."""
_HIDDEN: Final = "***"
_STANDARD_ERROR: Final = LogSink(2)


def redact(text: str) -> str:
    """The text with everything that looks like a secret replaced by `***`."""
    return _SECRETS.sub(lambda found: (found["kept"] or "") + _HIDDEN, text) if _is_suspect(text) else text


def hide(value: object) -> object:
    """`redact` for anything that goes into JSON. The value of a telling name is hidden whatever it looks like."""
    if isinstance(value, str):
        return redact(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {redact(str(name)): _HIDDEN if _is_telling(name) else hide(inner) for name, inner in value.items()}
    if isinstance(value, tuple) and len(value) == 2 and _is_telling(value[0]):
        return [hide(value[0]), _HIDDEN]
    if isinstance(value, list | tuple | set | frozenset):
        return [hide(item) for item in value]
    return redact(str(value))


def _is_suspect(text: str) -> bool:
    lowered = text.lower()
    return any(hint in lowered for hint in _HINTS)


def _is_telling(name: object) -> bool:
    return isinstance(name, str | bytes) and _TELLING_NAME.search(str(name)) is not None


def _json_line(fields: Mapping[str, object]) -> str:
    try:
        line = json.dumps(fields, ensure_ascii=False, default=str)
    except (TypeError, ValueError):  # a key that is no text
        line = _HINTS[0]
    if _is_suspect(line):
        line = json.dumps(hide(fields), ensure_ascii=False)
    return line if line.isprintable() else _inert(line)


def _inert(text: str) -> str:
    """The text without what does something to a terminal or turns the line round, as JSON and people write that; lines may end.
    Anybody can ask for a path that holds such characters, without any key."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else json.dumps(letter)[1:-1] for letter in text)


def _message(record: logging.LogRecord) -> str:
    """The record's text. Arguments that do not fit are a mistake that must not cost the line, nor print it unredacted."""
    try:
        return record.getMessage()
    except (TypeError, ValueError, KeyError):
        return f"{record.msg} {record.args}"


def _extra(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name, value in vars(record).items() if name not in _KNOWN_FIELDS}


class JsonLines(logging.Formatter):
    """One JSON object per record; fields given as `extra` are added to it."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
        }
        line |= _extra(record)
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return _json_line(line)


def _pairs(fields: Mapping[str, object]) -> str:
    """`name=value …` of what there is; no value can end the line or look like the next pair."""
    return " ".join(f"{name}={_quoted(hide(value))}" for name, value in fields.items() if value is not None)


def _quoted(value: object) -> str:
    return value if isinstance(value, str) and _PLAIN.fullmatch(value) else json.dumps(value, default=str)


class PlainLines(logging.Formatter):
    """A line for people; fields given as `extra` stand behind it."""

    def format(self, record: logging.LogRecord) -> str:
        fields = _pairs(_extra(record))
        text = f"{_clock(record)} {record.levelname.lower():7} {record.name}: {_message(record)} {fields}".rstrip()
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return _inert(redact(text))


def _clock(record: logging.LogRecord) -> str:
    return time.strftime("%H:%M:%S", time.localtime(record.created))


class AccessLines(logging.Formatter):
    """Access records are dicts, with only those fields that the edge has chosen: one JSON object each."""

    def format(self, record: logging.LogRecord) -> str:
        return _json_line(record.msg if isinstance(record.msg, Mapping) else {"message": _message(record)})


class PlainAccessLines(logging.Formatter):
    """The same for people: what was asked, what became of it and how long it took come first."""

    def format(self, record: logging.LogRecord) -> str:
        if not isinstance(record.msg, Mapping):
            return redact(f"{_clock(record)} {_message(record)}")
        facts = dict(record.msg)
        facts.pop("time", None)
        status, method, path, took = (_quoted(facts.pop(name, "")) for name in ("status", "method", "path", "total_ms"))
        return redact(f"{_clock(record)} {status} {method} {path} {took} ms {_pairs(facts)}".rstrip())


def flush_logs() -> None:
    """Write what could not be written before, as far as it can be now."""
    _STANDARD_ERROR.flush()


def dropped_lines() -> int:
    """Log lines that were lost since the process began."""
    return _STANDARD_ERROR.dropped


def set_up_logs(level: str, style: str) -> None:
    """Send every log to standard error. `level`: debug, info, warning, error; `style`: json or text."""
    handler = SinkHandler(_STANDARD_ERROR, JsonLines() if style == "json" else PlainLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    access = logging.getLogger("sluice.access")
    access.propagate = False
    access.handlers = [SinkHandler(_STANDARD_ERROR, AccessLines() if style == "json" else PlainAccessLines())]
    for noisy in ("httpx2", "httpcore2", "hypercorn", "quart"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLogger().level))
