"""What an upstream's answer to `GET /models` says: OpenAI's list, with what some vendors add.

Hugging Face names for each model who serves it: one that is live can be asked for as `id:provider`. The length of the context
is told under several names, or not at all.
"""

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from shared.schema.advertisement import MOST_MODELS, Model

LONGEST_NAME: Final = 256


class _Server(msgspec.Struct):
    provider: Any = None
    status: Any = None
    context_length: Any = None


class _Entry(msgspec.Struct):
    id: Any = None
    created: Any = None
    owned_by: Any = None
    context_length: Any = None
    context_window: Any = None
    max_model_len: Any = None
    providers: list[_Server] | None = None


class _List(msgspec.Struct):
    data: list[_Entry]


_decode = msgspec.json.Decoder(_List).decode


def listed_models(body: bytes) -> list[Model] | None:
    """The models of a list, at most `MOST_MODELS`; None if `body` is something else. What has no proper name is left out."""
    try:
        entries = _decode(body).data
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
    found = {model.id: model for entry in entries for model in _models(entry) if _is_name(model.id)}
    return list(found.values())[:MOST_MODELS]


def _models(entry: _Entry) -> Iterator[Model]:
    created = entry.created if isinstance(entry.created, int) else 0
    owner = entry.owned_by if isinstance(entry.owned_by, str) else ""
    lengths = (entry.context_length, entry.context_window, entry.max_model_len)
    yield Model(str(entry.id), created, owner, next(filter(None, map(_tokens, lengths)), None))
    for server in entry.providers or ():
        if server.status == "live" and isinstance(server.provider, str):
            yield Model(f"{entry.id}:{server.provider}", created, owner, _tokens(server.context_length))


def _tokens(length: Any) -> int | None:
    return length if type(length) is int and length > 0 else None


def _is_name(name: str) -> bool:
    return bool(name) and len(name) <= LONGEST_NAME and name.isprintable() and " " not in name
