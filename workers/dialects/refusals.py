"""What an upstream's error body says, in our words: any shape in, a `Failure` out whose text may be shown to a caller.

Shapes that occur: `{"error": {"message", "type", "param", "code"}}`; the same with `error` a string; the fields without the
envelope; siblings beside the envelope; a list of one; `{"detail": …}`; HTML; nothing at all. What is not understood is never
passed on. What is understood is passed on where the caller can act on it, without keys, account names and addresses.
"""

import re
from typing import Any, Final

import msgspec

from shared.errors import KINDS, Failure
from workers.dialects.refusal_rules import BY_STATUS, Rules
from workers.dialects.waiting import waiting_seconds
from workers.exchange import HttpReply

MESSAGE_CHARACTERS: Final = 500
"""How much of an upstream's message a caller is shown."""

_READ_CHARACTERS: Final = 2000
"""How much of it we look at: what comes later cannot matter, and searches in an endless text take endless time."""

_OURS: Final = {
    "credential_invalid": "The upstream refused the key.",
    "billing": "The upstream account of this key is unpaid or used up.",
    "upstream_config": KINDS["upstream_config"].meaning,
}
"""Kinds between the owner of the key and the upstream, whose own texts speak of keys and accounts: what we say instead."""

_CALLERS: Final = {"invalid_request", "unsupported_parameter", "context_length", "content_filter", "payload_too_large"}
"""Kinds that keep the upstream's `param`; `invalid_request` also keeps its `code`."""

_SECRETS: Final = re.compile(
    r"""
      \b(?:sk|csk|ak|rk|pk|hf|gsk|org|proj)[-_][\w*-]{2,}                               # keys, organisations
    | \b(?:acct|key|req|user)[-_](?=[\w-]*\d)[\w-]{4,}                                 # accounts, requests
    | \beyJ[\w-]+(?:\.[\w-]*){0,2}                                                      # JSON web tokens
    | \bBearer\s+\S+
    | (?<=api\ key:\s)\S+
    | [\w.+-]+@[\w-]+\.[\w.-]+                                                          # mail addresses
    | \b(?:https?|wss?)://[^\s<>"'),]+
    | \b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b                                              # network addresses
    | (?<=on\ behalf\ of\ user\ )\S+
    | \b[0-9a-f]{32,}\b
    """,
    re.VERBOSE | re.IGNORECASE,
)


class Said(msgspec.Struct, frozen=True):
    """An upstream's error, whatever its shape. `words`: its code, its type and so on, in lower case."""

    message: str
    words: set[str]
    code: str | None = None
    type: str | None = None
    param: str | None = None
    status: int | None = None


def refusal(reply: HttpReply, rules: Rules) -> Failure:
    """The failure that an unexpected HTTP answer means."""
    said = read(reply.body)
    if said is None:
        return _unreadable(reply)
    wait = waiting_seconds(reply.headers, said.message)
    # A 200 that holds an error is an error; its status is what the body says.
    status = said.status if reply.status == 200 else reply.status
    return classified(said, rules, status, wait)


def reported(error: Any, rules: Rules, status: int | None = None) -> Failure:
    """The failure that an error inside a stream means. `error`: decoded JSON; `status`: if the stream named one."""
    said = understood(error) or Said("", set())
    return classified(said, rules, said.status if status is None else status, waiting_seconds({}, said.message))


def classified(said: Said, rules: Rules, status: int | None, wait: float | None) -> Failure:
    """The first rule that fits; else the status; else the type `invalid_request_error`; else the upstream is at fault."""
    kind = next((rule.kind for rule in rules if rule.fits(status, said.words, said.message)), None)
    if kind is None:
        kind = _by_status(status) if status else "upstream_error"
        if not status and "invalid_request_error" in said.words:
            kind = "invalid_request"
    return Failure(
        kind,
        _text(kind, said.message),
        said.param if kind in _CALLERS else None,
        said.code if kind == "invalid_request" else None,
        wait,
        status,
        _limited(said) if kind == "rate_limit" else None,
    )


def read(body: bytes) -> Said | None:
    """What an error body says; None if it is no JSON or says nothing."""
    try:
        return understood(msgspec.json.decode(body))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def understood(body: Any) -> Said | None:
    """What decoded JSON says if it is an error in any of the shapes; else None."""
    if isinstance(body, list) and len(body) == 1:
        body = body[0]
    if not isinstance(body, dict):
        return None
    error = body.get("error")
    inner = error if isinstance(error, dict) else body
    message = _first_text(error, *(inner.get(name) for name in ("message", "msg", "detail", "error_description")))
    words = [inner.get(name) for name in ("code", "type", "error_code", "error_type")] + [body.get("error_type")]
    if not message and not any(words):
        return None
    code, kind, param = inner.get("code"), inner.get("type"), inner.get("param")
    return Said(
        message,
        {str(word).lower() for word in words if word},
        code if isinstance(code, str) and code else None,
        kind if isinstance(kind, str) else None,
        param if isinstance(param, str) and param and len(param) <= MESSAGE_CHARACTERS else None,
        next((status for status in (body.get("status_code"), body.get("status"), code) if _is_status(status)), None),
    )


def scrubbed(text: str) -> str:
    """`text` in one line, cut to a readable length, without keys, account names, addresses and links."""
    line = " ".join(text[:_READ_CHARACTERS].split())
    if len(text) > _READ_CHARACTERS:  # the last word may be half a secret
        line = line.rpartition(" ")[0]
    return _SECRETS.sub("[…]", line)[:MESSAGE_CHARACTERS]


def _first_text(*values: Any) -> str:
    return next((value for value in values if isinstance(value, str) and value), "")[: 2 * _READ_CHARACTERS]


def _is_status(value: Any) -> bool:
    return isinstance(value, int) and 400 <= value < 600


def _by_status(status: int) -> str:
    if status in BY_STATUS:
        return BY_STATUS[status]
    if status < 400:
        return "upstream_config"  # a redirect: the base URL is not where the upstream is
    return "invalid_request" if status < 500 else "upstream_error"


def _unreadable(reply: HttpReply) -> Failure:
    """A page, an empty body, cut JSON. The status alone decides, and only where a page does not make it mean something else."""
    kind = _by_status(reply.status)
    if reply.status == 200:
        kind = "protocol_error"
    elif kind in ("invalid_request", "permission"):
        kind = "upstream_error"  # a firewall's or a proxy's word, not the upstream's
    elif kind == "model_not_found":
        kind = "upstream_config"  # the path does not exist
    return Failure(
        kind, KINDS[kind].meaning, retry_after_seconds=waiting_seconds(reply.headers), upstream_status=reply.status
    )


def _text(kind: str, message: str) -> str:
    return _OURS.get(kind) or scrubbed(message) or KINDS[kind].meaning


def _limited(said: Said) -> str | None:
    """OpenAI says in `type` whether requests or tokens ran out."""
    text = f"{said.type} {said.code} {said.message}".replace("_", " ")
    return "tokens" if re.search(r"\b(tokens?|TPM|TPD)\b", text, re.IGNORECASE) else None
