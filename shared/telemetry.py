"""Logs: one JSON object per line (or a line for people), with nothing secret in it.

Redaction happens here, at the sink, so that no caller can forget it: what looks like a key, a token or a bearer header is
replaced before it is written, in messages and in tracebacks alike.
"""

import json
import logging
import re
import sys
import time
from typing import Final

_SECRETS: Final = re.compile(
    r"""(?ix)
    ( (?: bearer \s+ )+ | authorization ["']? \s* [:=] \s* ["']? (?: bearer \s+ )* | api[-_]?key ["']? \s* [:=] \s* ["']? )
      [^\s"',;]+
    | \b (?: sk | csk | hf | ak ) [-_] [A-Za-z0-9_\-]{6,}
    | \b eyJ [A-Za-z0-9_\-]+ \. [A-Za-z0-9_\-]+ \. [A-Za-z0-9_\-]+
    | (?<= :// ) [^/\s@]* : [^/\s@]* (?= @ )
    """
)
_KNOWN_FIELDS: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def redact(text: str) -> str:
    """The text with everything that looks like a secret replaced by `***`."""
    return _SECRETS.sub(lambda found: f"{found[1] or ''}***", text)


class JsonLines(logging.Formatter):
    """One JSON object per record; fields given as `extra` are added to it."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: value for name, value in vars(record).items() if name not in _KNOWN_FIELDS}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return redact(json.dumps(line, ensure_ascii=False, default=str))


class PlainLines(logging.Formatter):
    """A line for people."""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        text = f"{clock} {record.levelname.lower():7} {record.name}: {record.getMessage()}"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return redact(text)


class AccessLines(logging.Formatter):
    """Access lines are JSON already, and hold only fields that the edge has chosen."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(record.getMessage())


def set_up_logs(level: str, style: str) -> None:
    """Send every log to standard error. `level`: debug, info, warning, error; `style`: json or text."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if style == "json" else PlainLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    access = logging.getLogger("sluice.access")
    access.propagate = False
    access_handler = logging.StreamHandler(sys.stderr)
    access_handler.setFormatter(AccessLines())
    access.handlers = [access_handler]
    for noisy in ("httpx2", "httpcore2", "hypercorn", "quart"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLogger().level))
