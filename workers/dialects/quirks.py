"""What particular upstreams cannot take of an OpenAI request, mended where the caller's meaning survives it.

A quirk is a function that changes a request's fields in place; the fields are raw JSON by name, so what a quirk does not look
at goes through byte for byte. A quirk that cannot read a field leaves it alone: the upstream will say what is wrong with it.
"""

from collections.abc import Callable
from typing import Any, Final

import msgspec

Fields = dict[str, msgspec.Raw]
Quirk = Callable[[Fields], None]

_encode = msgspec.json.Encoder().encode
_decode_messages = msgspec.json.Decoder(list[Fields]).decode
_decode_number = msgspec.json.Decoder(float | None).decode
_decode_parts = msgspec.json.Decoder(list[dict[str, Any]]).decode

_CEREBRAS_MESSAGE: Final = {"role", "content", "name", "tool_calls", "tool_call_id"}
_TOOL_ROLES: Final = {b'"tool"', b'"function"'}


def known_message_fields_only(fields: Fields) -> None:
    """Cerebras refuses a request for any foreign field, also for those that its own answers carry (`reasoning`) and for those
    that clients add to a history (`refusal`, `reasoning_content`)."""

    def strip(messages: list[Fields]) -> list[Fields]:
        return [{name: value for name, value in each.items() if name in _CEREBRAS_MESSAGE} for each in messages]

    _change_messages(fields, strip)


def reasoning_only_with_tools(fields: Fields) -> None:
    """DeepSeek wants the earlier `reasoning_content` back when tools were called, and refused it otherwise."""

    def strip(messages: list[Fields]) -> list[Fields]:
        if any("tool_calls" in each or bytes(each.get("role", b"")) in _TOOL_ROLES for each in messages):
            return messages
        return [{name: value for name, value in each.items() if name != "reasoning_content"} for each in messages]

    _change_messages(fields, strip)


def text_parts_as_text(fields: Fields) -> None:
    """Kimi's text models take no list of parts; a list of nothing but texts means the texts one after the other."""

    def flatten(messages: list[Fields]) -> list[Fields]:
        return [each | {"content": _flat(each["content"])} if "content" in each else each for each in messages]

    _change_messages(fields, flatten)


def temperature_up_to_one(fields: Fields) -> None:
    """Kimi's temperature ends at 1, OpenAI's at 2."""
    try:
        temperature = _decode_number(fields.get("temperature", msgspec.Raw(b"null")))
    except msgspec.MsgspecError:
        return
    if temperature is not None and temperature > 1:
        fields["temperature"] = msgspec.Raw(b"1")


def _change_messages(fields: Fields, change: Callable[[list[Fields]], list[Fields]]) -> None:
    try:
        messages = _decode_messages(fields.get("messages", msgspec.Raw(b"null")))
    except msgspec.MsgspecError:
        return
    fields["messages"] = msgspec.Raw(_encode(change(messages)))


def _flat(content: msgspec.Raw) -> msgspec.Raw:
    if not bytes(content).lstrip().startswith(b"["):
        return content
    try:
        parts = _decode_parts(content)
    except msgspec.MsgspecError:
        return content
    texts = [part.get("text") for part in parts if part.get("type") == "text"]
    if not parts or len(texts) != len(parts):
        return content
    return msgspec.Raw(_encode("".join(text for text in texts if isinstance(text, str))))
