"""Vectors in the form that was asked for, whatever the upstream prefers."""

import base64
import json
import struct
from typing import Any

import pytest

from shared.schema.events import Complete, Failed, Usage, Whole
from tests.workers.recordings import body
from workers.dialects.embeddings import EmbeddingsDecoder

FLOATS, BASE64 = body("openai_embeddings_float.json"), body("openai_embeddings_base64.json")


def decoded(frame: bytes, *, as_base64: bool = False) -> list[Any]:
    return EmbeddingsDecoder(as_base64=as_base64).feed(frame)


@pytest.mark.parametrize("frame", [FLOATS, BASE64], ids=["floats", "base64"])
@pytest.mark.parametrize("as_base64", [True, False], ids=["as base64", "as floats"])
def test_the_form_that_was_asked_for(frame: bytes, as_base64: bool) -> None:
    usage, whole, end = decoded(frame, as_base64=as_base64)
    assert usage == Usage(5, 0, 5) and end == Complete()
    assert isinstance(whole, Whole)
    wanted = json.loads(BASE64 if as_base64 else FLOATS)
    assert json.loads(whole.body) == wanted


def test_numbers_that_need_no_change_keep_every_digit() -> None:
    frame = b'{"data":[{"embedding":[0.1000000000000000055511151231257827,1e-3]}]}'
    assert b"[0.1000000000000000055511151231257827,1e-3]" in decoded(frame)[0].body


def test_packed_vectors_are_little_endian_floats() -> None:
    frame = json.dumps({"data": [{"embedding": [0.5, -0.25]}]}).encode()
    packed = json.loads(decoded(frame, as_base64=True)[0].body)["data"][0]["embedding"]
    assert struct.unpack("<2f", base64.b64decode(packed)) == (0.5, -0.25)


@pytest.mark.parametrize(
    ("frame", "kind"),
    [
        (b'{"error":{"message":"no","type":"server_error","code":null}}', "upstream_error"),
        (b'{"error":{"message":"no","code":"rate_limit_exceeded"}}', "rate_limit"),
        (b"", "protocol_error"),
        (b"[]", "protocol_error"),
        (b"<html>", "protocol_error"),
        (b'{"data":5}', "protocol_error"),
        (b'{"data":[{"embedding":"!"}]}', "protocol_error"),
        (b'{"data":[{"embedding":"AAA="}]}', "protocol_error"),
    ],
)
def test_what_is_no_list_of_vectors(frame: bytes, kind: str) -> None:
    (failed,) = decoded(frame)
    assert isinstance(failed, Failed) and failed.failure.kind == kind
