"""The FlowGPT simulator: who gets in, which conversations exist, and every kind of line."""

from __future__ import annotations

import json

import pytest
import trio

from tests.simulators.flowgpt import CHAT_FIELDS, FIXED_HEADERS, JUNK, FlowGPT, sign
from tests.simulators.raw_client import ask
from tests.simulators.recordings import WIRE, recording

NOW = 1_760_000_000
TOKEN, DEVICE_ID = "TEST-TOKEN", "TEST-DEVICE-ID-0001"


@pytest.fixture
async def upstream():
    with trio.fail_after(10):
        async with FlowGPT(tokens={TOKEN: DEVICE_ID}, clock=lambda: NOW).running() as simulator:
            yield simulator


def headers(**changes):
    fixed = {"authorization": f"Bearer {TOKEN}", **FIXED_HEADERS, "x-flow-device-id": DEVICE_ID}
    return {name: value for name, value in {**fixed, **changes}.items() if value is not None}


def signed(nonce, *, timestamp=str(NOW), template="{timestamp}{nonce}{device_id}", **changes):
    signature = sign(template, timestamp=timestamp, nonce=nonce, device_id=DEVICE_ID, authorization=f"Bearer {TOKEN}")
    return headers(**{"x-timestamp": timestamp, "x-nonce": nonce, "x-signature": signature, **changes})


async def create(upstream, **changes):
    body = {"promptId": "PROMPT", "location": "CHAT_PAGE", "messages": [{"role": "user", "content": "hi"}], **changes}
    seen = await ask(upstream, body, path="/conversation/create", **headers())
    return seen.status, json.loads(seen.body)


def question(conversation_id, words):
    return {
        "model": "FlowGPT-Ares",
        "nsfw": False,
        "question": words,
        "temperature": 0.7,
        "userId": "",
        "promptId": "PROMPT",
        "conversationId": conversation_id,
        "documentIds": [],
        "generateImage": False,
        "generateAudio": False,
    }


async def chat(upstream, words, **options):
    _, created = await create(upstream)
    nonce = f"{len(upstream.ledger.calls):032x}"
    return await ask(upstream, question(created["id"], words), path="/v3/chat", **(options or signed(nonce)))


def data(body):
    found = []
    for line in body.split(b"\n"):
        try:
            found.append(json.loads(line).get("data"))
        except (ValueError, AttributeError):
            continue
    return [text for text in found if isinstance(text, str)]


def test_the_signature_has_the_recorded_values():
    vectors = json.loads((WIRE / "flowgpt_signature.json").read_text())
    given = {name: vectors[name] for name in ("timestamp", "nonce", "device_id", "authorization")}

    assert [sign(vector["template"], **given) for vector in vectors["vectors"]] == [
        vector["md5"] for vector in vectors["vectors"]
    ]


async def test_a_conversation_and_its_answer(upstream):
    seen = await chat(upstream, "hello wide  world")

    assert (seen.status, seen.ended) == (200, "complete")
    assert seen.body == (
        b'{"event":"text","data":"hello"}\n{"event":"text","data":" wide"}\n{"event":"text","data":"  world"}\n'
    )
    assert upstream.ledger.calls[-1].text == "hello wide  world"
    assert (await create(upstream))[1].keys() == json.loads(recording("flowgpt_create.json").body).keys()


BAD_HEADERS = {
    "token": ({"authorization": "Bearer WRONG"}, 401),
    "no token": ({"authorization": None}, 401),
    "scheme": ({"authorization": TOKEN}, 401),
    "device": ({"x-flow-device-id": "OTHER"}, 403),
    "skew": ({"x-timestamp": str(NOW - 301)}, 403),
    "timestamp": ({"x-timestamp": f"{NOW}.5"}, 403),
    "nonce": ({"x-nonce": "0" * 31 + "G"}, 403),
    "signature": ({"x-signature": "0" * 32}, 403),
    **{name: ({name: "other"}, 403) for name in FIXED_HEADERS},
}


@pytest.mark.parametrize("name", BAD_HEADERS)
async def test_wrong_headers_are_refused(upstream, name):
    changes, status = BAD_HEADERS[name]

    seen = await chat(upstream, "hi", **signed("a" * 32, **changes))

    assert seen.status == status
    assert seen.body == recording(f"errors/flowgpt_{'401' if status == 401 else '403_signature'}.json").body
    assert seen.headers["date"] == "Thu, 09 Oct 2025 08:53:20 GMT"
    assert upstream.ledger.calls[-1].notes["refused"]


async def test_old_timestamps_are_refused_although_signed(upstream):
    seen = await chat(upstream, "hi", **signed("a" * 32, timestamp=str(NOW + 301)))

    assert (seen.status, upstream.ledger.calls[-1].notes["refused"]) == (403, "skew")


async def test_nonces_are_good_once(upstream):
    first = await chat(upstream, "hi", **signed("a" * 32))
    second = await chat(upstream, "hi", **signed("a" * 32))

    assert (first.status, second.status) == (200, 403)
    assert upstream.ledger.calls[-1].notes["refused"] == "repeated nonce"


async def test_the_template_is_a_setting():
    template = "{timestamp}-{nonce}-{authorization}"
    async with FlowGPT(tokens={TOKEN: DEVICE_ID}, template=template, clock=lambda: NOW).running() as upstream:
        assert (await chat(upstream, "hi", **signed("a" * 32))).status == 403
        assert (await chat(upstream, "hi", **signed("b" * 32, template=template))).status == 200


async def test_only_known_conversations_and_prompts(upstream):
    upstream.prompt_ids = frozenset({"PROMPT"})
    _, created = await create(upstream)
    other_prompt = {**question(created["id"], "hi"), "promptId": "OTHER"}

    unknown = await ask(upstream, question("conv-none", "hi"), path="/v3/chat", **signed("a" * 32))
    crossed = await ask(upstream, other_prompt, path="/v3/chat", **signed("b" * 32))

    assert (unknown.status, crossed.status) == (404, 404)
    assert (await create(upstream, promptId="OTHER"))[0] == 404
    assert (await create(upstream, messages=[]))[0] == 400
    assert (await create(upstream, messages=[{"role": "user", "content": [{"type": "text"}]}]))[0] == 400


async def test_every_field_of_a_chat_is_wanted(upstream):
    _, created = await create(upstream)
    for number, name in enumerate(CHAT_FIELDS):
        body = question(created["id"], "hi")
        del body[name]
        seen = await ask(upstream, body, path="/v3/chat", **signed(f"{number:032x}"))
        assert seen.status == 400 and name in upstream.ledger.calls[-1].notes["refused"]


async def test_a_preamble_ends_in_a_marker_that_is_cut_across_lines(upstream):
    seen = await chat(upstream, "the answer sim:preamble=1")

    assert all("Response:**" not in text for text in data(seen.body))
    assert "".join(data(seen.body)).partition("Response:**")[2].lstrip() == "the answer"
    assert upstream.ledger.calls[-1].text == "the answer"


async def test_a_late_marker_stays(upstream):
    seen = await chat(upstream, "the end sim:late=1")

    said = "".join(data(seen.body))
    assert len(said.partition("Response:**")[0]) > 150
    assert upstream.ledger.calls[-1].text == said


async def test_junk_lines_are_mixed_in(upstream):
    seen = await chat(upstream, "a b c d e f g sim:junk=1 sim:open_end=1")

    assert all(junk in seen.body for junk in JUNK)
    assert not seen.body.endswith(b"\n")
    assert "".join(data(seen.body)) == "ignored" + "a b c d e f g"


async def test_lines_without_an_event_and_cut_anywhere(upstream):
    seen = await chat(upstream, "a b sim:no_event=1 sim:bytes=1")

    assert seen.body == b'{"data":"a"}\n{"data":" b"}\n'
    assert seen.raw.count(b"\r\n1\r\n") == len(seen.body)


async def test_errors_and_faults(upstream):
    upstream.control.next(error="flowgpt_403_waf.html")
    waf = await chat(upstream, "hi")
    failed = await chat(upstream, "a b c d sim:fault=error_mid")
    dropped = await chat(upstream, "a b c d sim:fault=drop_mid")
    upstream.create.next(error="flowgpt_429")

    assert (waf.status, waf.headers["x-amzn-waf-action"]) == (403, "challenge")
    assert json.loads(failed.body.splitlines()[-1])["event"] == "error"
    assert (dropped.ended, data(dropped.body)) == ("closed", ["a", " b"])
    assert (await create(upstream))[0] == 429
