"""Half characters: mended in what upstreams send, refused in what callers send."""

import json
import time
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import GatewayError
from shared.sansio.surrogates import DEEPEST, MOST_CONTAINERS, SurrogateJoiner, check_request_text

WAVE = "👋"
FIRST, SECOND = "\ud83d", "\udc4b"


def chunk(text, choice=0):
    return json.dumps({"choices": [{"index": choice, "delta": {"content": text}}]}).encode()


def texts(documents, choice=0):
    return "".join(
        each["delta"]["content"]
        for document in documents
        for each in json.loads(document)["choices"]
        if each["index"] == choice
    )


def mended(*chunks):
    joiner = SurrogateJoiner()
    documents = [joiner.mend(each) for each in chunks]
    orphans = joiner.give_up()
    return documents + ([orphans] if orphans else [])


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        (["a " + FIRST, SECOND + " b"], f"a {WAVE} b"),
        ([FIRST, "", SECOND], WAVE),
        ([FIRST, FIRST + SECOND, FIRST, SECOND], f"\ufffd{WAVE}{WAVE}"),
        ([FIRST, "b"], "\ufffdb"),
        (["a" + SECOND, "b"], "a\ufffdb"),
        ([FIRST + "a" + SECOND], "\ufffda\ufffd"),
        (["a", FIRST], "a\ufffd"),
        (["a\0b", "\u2028"], "a\0b\u2028"),
        ([WAVE, WAVE], WAVE * 2),
    ],
)
def test_halves_are_joined_and_orphans_replaced(pieces, text):
    documents = mended(*map(chunk, pieces))
    assert texts(documents) == text
    assert all(document.decode() for document in documents)


def test_places_are_kept_apart():
    documents = mended(
        chunk(FIRST, 0),
        chunk(FIRST, 1),
        b'{"choices":[{"index":0,"delta":{"content":"","other":"\\udc4b"}}]}',
        chunk(SECOND, 1),
        chunk("\udc4c", 0),
    )
    assert texts(documents, 0) == "👌"
    assert texts(documents, 1) == WAVE
    assert json.loads(documents[2])["choices"][0]["delta"]["other"] == "\ufffd"


def test_orphans_are_given_up_where_asked():
    joiner = SurrogateJoiner()
    arguments = {"tool_calls": [{"index": 3, "function": {"arguments": FIRST}}, {"index": 5, "x": FIRST}]}
    joiner.mend(json.dumps({"choices": [{"index": 2, "delta": {"content": FIRST, **arguments}}]}).encode())
    joiner.mend(chunk(FIRST, 1))
    assert joiner.holding
    assert json.loads(joiner.give_up("choices", 2)) == {
        "choices": [
            {
                "index": 2,
                "delta": {
                    "content": "\ufffd",
                    "tool_calls": [
                        {"index": 3, "function": {"arguments": "\ufffd"}},
                        {"index": 5, "x": "\ufffd"},
                    ],
                },
            }
        ]
    }
    assert joiner.give_up("choices", 2) is None
    assert joiner.holding
    assert texts([joiner.give_up("choices", 1, "delta")], 1) == "\ufffd"
    assert not joiner.holding


@pytest.mark.parametrize("nonsense", [b"", b"{", b"[DONE]", b"[" * 100_000, b'{"a":"\xff"}'])
def test_what_is_not_json_is_refused(nonsense):
    with pytest.raises((ValueError, RecursionError)):
        SurrogateJoiner().mend(nonsense)


def test_numbers_and_names_survive():
    document = '{"a\ud83d":[1,2.5,-1e-7,9007199254740993,true,null,{}]}'
    mended_document = SurrogateJoiner().mend(
        document.encode("utf-8", "surrogatepass").replace(b"\xed\xa0\xbd", b"\\ud83d")
    )
    assert json.loads(mended_document) == {"a\ufffd": [1, 2.5, -1e-7, 9007199254740993, True, None, {}]}


@given(st.text(st.sampled_from(["a", WAVE, "ü", "\0", "\U0010ffff"])), st.lists(st.integers(0, 60)))
def test_a_text_cut_between_any_code_units_comes_back(text, cuts):
    units = text.encode("utf-16-le", "surrogatepass")
    edges = sorted({0, len(units), *(cut * 2 for cut in cuts if cut * 2 < len(units))})
    pieces = [units[start:end].decode("utf-16-le", "surrogatepass") for start, end in pairwise(edges)]
    assert texts(mended(*map(chunk, pieces))) == text


@given(st.text(st.sampled_from(["a", FIRST, SECOND, WAVE, '"', "\\", "\ud800", "\udfff"])))
def test_callers_may_send_whole_characters_only(text):
    body = json.dumps({"messages": [], "unknown": {"nested": [text]}}).encode()
    try:
        text.encode("utf-16", "surrogatepass").decode("utf-16")
        whole = True
    except UnicodeDecodeError:
        whole = False
    if whole:
        check_request_text(body)
    else:
        with pytest.raises(GatewayError) as caught:
            check_request_text(body)
        assert caught.value.failure.kind == "invalid_request" and caught.value.failure.code == "invalid_json"


@pytest.mark.parametrize("place", [b'{"a":"%b"}', b'{"%b":1}', b'[["x",{"y":"%b"}]]'])
@pytest.mark.parametrize("bad", [b"\xff", b"\xc3", b"\xed\xa0\xbd", b"\xf8\x88\x80\x80\x80", b"\xc0\xaf"])
def test_callers_must_send_utf8_everywhere(place, bad):
    with pytest.raises(GatewayError, match="not UTF-8 at byte"):
        check_request_text(place % bad)


@pytest.mark.parametrize(
    "body",
    [b'"\\\\ud83d"', b'{"a":"\\\\\\\\ud83d \\\\uD83D"}', '"你好\u2028\\u0000 👋"'.encode(), b"", b"nonsense", b"[1,"],
)
def test_what_only_looks_bad_passes(body):
    check_request_text(body)


def nested(depth):
    return b'{"a":[' * (depth // 2) + b"[" * (depth % 2) + b"1" + b"]" * (depth % 2) + b"]}" * (depth // 2)


@pytest.mark.parametrize("depth", [1, 5, DEEPEST - 1, DEEPEST, DEEPEST + 1, DEEPEST + 2, 1000, 100_000])
def test_depth(depth):
    body = b'{"x":' + nested(depth - 1) + b"}"
    if depth <= DEEPEST:
        check_request_text(body)
        msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    else:
        with pytest.raises(GatewayError, match=r"levels deep|arrays and objects"):
            check_request_text(body)


def test_brackets_in_strings_are_no_levels():
    code = 'if (a["x"] == "\\"[[[" ) {{{{ "' * 100
    check_request_text(json.dumps({"messages": [{"role": "user", "content": code}] * 50}).encode())


def test_many_values_are_refused_many_bytes_are_not():
    check_request_text(b"[" + b'"' + b"[{" * 1_000_000 + b'"]')
    check_request_text(b"[" + b"1," * 1_000_000 + b"1]")
    with pytest.raises(GatewayError, match="arrays and objects"):
        check_request_text(b"[" + b"{}," * MOST_CONTAINERS + b"{}]")


json_values = st.recursive(
    st.none() | st.integers() | st.text(st.sampled_from('[]{}"\\a,:')),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.sampled_from('[]{}"\\'), max_size=3), inner, max_size=4)
    ),
    max_leaves=20,
)


def levels(value):
    if isinstance(value, dict):
        value = list(value.values())
    return 1 + max(map(levels, value), default=0) if isinstance(value, list) else 0


@settings(max_examples=60, deadline=None)
@given(json_values, st.integers(DEEPEST - 3, DEEPEST + 1))
def test_depth_is_counted_exactly(value, wrapped):
    # Enough brackets in a string that the quick way out is not taken.
    body = b"[" * wrapped + json.dumps([value, "[" * 300]).encode() + b"]" * wrapped
    if wrapped + levels([value, ""]) <= DEEPEST:
        check_request_text(body)
    else:
        with pytest.raises(GatewayError, match="levels deep"):
            check_request_text(body)


MEGABYTES = 4_000_000


@pytest.mark.parametrize(
    "body",
    [
        b"[" * MEGABYTES,
        b"[]," * (MEGABYTES // 3),
        b"{" * MEGABYTES + b"}" * MEGABYTES,
        b'"' * MEGABYTES,
        b'"[",' * (MEGABYTES // 4),
        b'"]",' * (MEGABYTES // 4),
        b"\\" * MEGABYTES,
        b'\\"' * (MEGABYTES // 2),
        b'["' + b"\\ud83d\\udc4b" * (MEGABYTES // 12) + b"\\ud83d",
        b'["' + b"\\ud" * (MEGABYTES // 3),
        WAVE.encode() * (MEGABYTES // 4),
    ],
    ids=lambda body: repr(body[:12]),
)
def test_hostile_bodies_are_quick(body):
    start = time.process_time()
    try:
        check_request_text(body)
    except GatewayError as error:
        assert error.failure.kind == "invalid_request"
    assert time.process_time() - start < 1.0  # 20 to 60 ms; a quadratic search would need minutes
