"""A chat's history for upstreams whose messages are simpler than OpenAI's: a text for each, not a list of parts.

What cannot be said in the simpler form is refused by name: an answer to half a question is worse than none.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from shared.errors import GatewayError, fail

Message = dict[str, Any]

_decode = msgspec.json.Decoder(list[Message]).decode


def history(fields: Mapping[str, msgspec.Raw]) -> list[Message]:
    """The messages of a request. Raises `GatewayError` `invalid_request` if they are no list of objects, or there are none."""
    try:
        messages = _decode(fields.get("messages", msgspec.Raw(b"null")))
    except (msgspec.MsgspecError, ValueError, RecursionError):
        messages = []
    if not messages:
        raise fail("invalid_request", "Invalid 'messages': expected a list of messages.", param="messages")
    return messages


def text_of(message: Message, position: int) -> str:
    """The content of a message as one text, its parts on lines of their own; empty where there is none.

    Raises `GatewayError` `unsupported_parameter` for an image, a sound, a file.
    """
    content = message.get("content")
    if content is None or isinstance(content, str):
        return content or ""
    parts = content if isinstance(content, list) else [content]
    return "\n".join(_text_of_part(part, position) for part in parts)


def _text_of_part(part: Any, position: int) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    text = part.get(kind) if kind in ("text", "refusal") else None
    if not isinstance(text, str):
        raise unsupported(position, "content", f"parts of type '{str(kind)[:50]}' are")
    return text


def unsupported(position: int, field: str, what: str) -> GatewayError:
    """The refusal of something in one message. `what` begins a sentence: "tool calls are"."""
    param = f"messages[{position}].{field}"
    return fail(
        "unsupported_parameter", f"Unsupported value: '{param}': {what} not supported with this model.", param=param
    )
