"""Nothing secret reaches a log, whichever way it tries."""

import json
import logging
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.telemetry import AccessLines, JsonLines, PlainAccessLines, PlainLines, hide, redact, set_up_logs

CANARY = "c4n4ryAbCdEf0123456789"
JWT = f"eyJ{CANARY}.eyJ{CANARY}.{CANARY}-_x"

SECRETS = [
    f"Bearer {CANARY}",
    f"bearer  {CANARY}",
    f"Bearer Bearer sk-{CANARY}",
    f"Bearer bearer Bearer {CANARY}",
    f"Authorization: Bearer {CANARY}",
    f"Authorization: Bearer Bearer {CANARY}",
    f"authorization: {CANARY}",
    f"Authorization: Basic {CANARY}=",
    f"Proxy-Authorization: Basic {CANARY}",
    f"authorization={CANARY}",
    f"Cookie: session={CANARY}",
    f"set-cookie: session={CANARY}",
    f"apikey: {CANARY}",
    f"x-api-key: {CANARY}",
    f"API_KEY={CANARY}",
    f"SLUICE_SECRET_KEY={CANARY}",
    f"password={CANARY}",
    f"access_token={CANARY}&expires=5",
    f"refresh_token: {CANARY}",
    f"sk-{CANARY}",
    f"sk-proj-{CANARY}",
    f"sk_{CANARY}",
    f"csk-{CANARY}",
    f"hf_{CANARY}",
    f"key=sk-{CANARY}.",
    f"(sk-{CANARY})",
    f"OPENAI_sk-{CANARY}",
    JWT,
    f"token {JWT}!",
    f"redis://:{CANARY}@127.0.0.1:6379/0",
    f"rediss://user:p/{CANARY}@127.0.0.1:6379/0",
    f"https://{CANARY}@proxy.example:8080",
    f"GET https://upstream.example/v1/run?apikey={CANARY}&x=1 failed",
    f"https://upstream.example/v1/run?x=1&{CANARY}",
]
SHAPES = [
    str,
    repr,
    lambda secret: json.dumps({"body": secret}),
    lambda secret: json.dumps(json.dumps([secret])),
    lambda secret: str([("header", secret)]),
    lambda secret: f"before {secret} after",
    lambda secret: f"line one\n{secret}\nline three",
]
PAIRS = [
    {"authorization": f"Bearer {CANARY}"},
    {"Authorization": CANARY},
    {"api_key": CANARY},
    {"apikey": CANARY},
    [(b"authorization", f"Bearer {CANARY}".encode())],
    [(b"apikey", CANARY.encode())],
    [("x-api-key", CANARY)],
    {"nested": [{"password": CANARY}]},
    {"cookie": [CANARY]},
]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("shape", SHAPES)
def test_secrets_in_text(secret, shape):
    hidden = redact(shape(secret))
    assert CANARY not in hidden
    assert "***" in hidden


@pytest.mark.parametrize("pair", PAIRS, ids=str)
@pytest.mark.parametrize(
    "shape", [str, lambda pair: json.dumps(pair, default=bytes.decode), lambda pair: repr(str(pair))]
)
def test_secrets_under_telling_names(pair, shape):
    assert CANARY not in redact(shape(pair))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "worker w-1 is lost with 3 jobs",
        "max_tokens: 5, prompt_tokens=3, first_token_ms 12",
        "task-force risk-averse ask-me hf-inference desk-1234567",
        "SLUICE_SECRET_KEY must be the same everywhere",
        "access-control-allow-headers: authorization, content-type",
        "connecting to https://upstream.example/v1/chat failed: 503",
        "someone@example.com wrote",
        "model org/some-model:fast?",
        "x" * 1000,
    ],
)
def test_what_is_no_secret_stays(text):
    assert redact(text) == text


@pytest.mark.parametrize(
    "piece", ["bearer ", "://", "https://", "eyJ", "_eyJ", "sk-", "authorization ", "authorization: ", "\\", "@"]
)
def test_hostile_text_costs_little(piece):
    began = time.perf_counter()
    redact(piece * (20_000 // len(piece)))
    assert time.perf_counter() - began < 2


@pytest.fixture
def logs(capfd):
    """The process's logging, set up as told; what it has written so far, as lines."""
    names = ["sluice.access", "httpx2", "httpcore2", "hypercorn", "quart"]
    loggers = [logging.getLogger(), *map(logging.getLogger, names)]
    before = [(logger.handlers[:], logger.level, logger.propagate) for logger in loggers]

    def set_up(style="json", level="debug"):
        set_up_logs(level, style)
        return lambda: capfd.readouterr().err.splitlines()

    yield set_up
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


def leak_everywhere(secret):
    """Every way that a secret has into a record."""
    log = logging.getLogger("workers.somewhere")
    log.info("seen: %s", secret)
    log.info(secret)
    log.info("%s and %s", {"headers": [secret]}, (secret.encode(),))
    log.debug("with fields", extra={"header": secret, "nested": {"a": [secret, {"b": secret}]}, "odd": Odd(secret)})
    try:
        try:
            raise ValueError(f"inner {secret}")
        except ValueError as inner:
            raise RuntimeError({"outer": secret}) from inner
    except RuntimeError:
        log.exception("failed with %r", secret)
    try:
        raise ExceptionGroup(f"group {secret}", [KeyError(secret), ExceptionGroup("in it", [OSError(secret)])])
    except ExceptionGroup as group:
        log.error("many", exc_info=group)
    log.info("too few arguments: %s %s", secret)
    log.info("of a wrong type: %d", secret)
    log.info("%(missing)s", {"there": secret})
    logging.getLogger("sluice.access").info({"path": f"/x?{secret}", "error": secret, "nested": [{"a": secret}]})


class Odd:
    def __init__(self, text):
        self.text = text

    def __str__(self):
        return f"Odd({self.text})"


@pytest.mark.parametrize("style", ["json", "text"])
@pytest.mark.parametrize("secret", SECRETS)
def test_no_way_into_the_log(logs, style, secret):
    written = logs(style)
    leak_everywhere(secret)
    lines = written()
    assert len(lines) >= 10
    assert CANARY not in "\n".join(lines)
    assert not any("Logging error" in line for line in lines)


@pytest.mark.parametrize("secret", SECRETS)
def test_every_line_stays_json(logs, secret):
    """Whatever is hidden in it, no quote and no bracket of the line itself is touched."""
    written = logs("json")
    for shape in SHAPES:
        leak_everywhere(shape(secret))
    lines = written()
    assert len(lines) == 10 * len(SHAPES)
    assert all(isinstance(json.loads(line), dict) for line in lines)


def test_a_json_line(logs):
    written = logs("json", "info")
    log = logging.getLogger("frontend.jobs")
    log.debug("too quiet")
    log.warning("job %s: größer", "r1", extra={"request_id": "r1", "count": 3})
    (text,) = written()
    line = json.loads(text)
    assert abs(line.pop("time") - time.time()) < 10
    assert line == {
        "level": "warning", "logger": "frontend.jobs", "message": "job r1: größer", "request_id": "r1", "count": 3,
    }  # fmt: skip


def test_a_traceback_is_one_json_line(logs):
    written = logs("json")
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("x").exception("failed")
    (text,) = written()
    assert json.loads(text)["traceback"].endswith("ValueError: broken")


def test_a_line_for_people(logs):
    written = logs("text")
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("frontend.jobs").exception("job %s failed", "r1")
    lines = written()
    assert lines[0].endswith("error   frontend.jobs: job r1 failed")
    assert lines[-1] == "ValueError: broken"


def test_a_line_for_people_has_the_fields_too(logs):
    written = logs("text")
    fields = {"request_id": "req_1", "error": "a = b\nc", "attempt": 2, "worker": None, "api_key": CANARY}
    logging.getLogger("workers.attempt").info("attempt ended", extra=fields)
    (line,) = written()
    assert line.endswith('workers.attempt: attempt ended request_id=req_1 error="a = b\\nc" attempt=2 api_key=***')


def test_access_lines_for_people_begin_with_what_matters(logs):
    written = logs("text")
    facts = {"request_id": "req_1", "method": "POST", "path": "/x\n200 GET /fake", "status": 502, "total_ms": 1.5}
    logging.getLogger("sluice.access").info({"time": 1.0, **facts, "error": "worker_lost", "setbacks": ["worker_lost"]})
    (line,) = written()
    clock, _, rest = line.partition(" ")
    assert len(clock) == len("00:00:00")
    assert rest == (r'502 POST "/x\n200 GET /fake" 1.5 ms request_id=req_1 error=worker_lost setbacks=["worker_lost"]')


@pytest.mark.parametrize("style", ["json", "text"])
@pytest.mark.parametrize("control", ["\x1b[2J", "\x9b2J", "\x07", "\u202e", "\u2028", "\ud800"], ids=ascii)
def test_no_line_does_anything_to_a_terminal(logs, style, control):
    written = logs(style)
    said = f"a{control}b"
    logging.getLogger("test").warning("heard %s", said, extra={"said": said})
    logging.getLogger("sluice.access").info({"status": 404, "method": "GET", "path": f"/{said}", "total_ms": 1})
    lines = written()
    assert len(lines) == 2
    assert all(line.isprintable() for line in lines)
    if style == "json":
        assert (json.loads(lines[0])["said"], json.loads(lines[1])["path"]) == (said, f"/{said}")


def test_access_lines_are_written_once_and_as_they_are(logs):
    written = logs("json")
    logging.getLogger("sluice.access").info({"id": "r1", "path": "/ü", "status": 200})
    assert written() == ['{"id": "r1", "path": "/ü", "status": 200}']


@pytest.mark.parametrize(("level", "quiet", "loud"), [("debug", "info", "warning"), ("error", "warning", "error")])
def test_libraries_are_no_louder_than_they_have_to_be(logs, level, quiet, loud):
    written = logs("json", level)
    log = logging.getLogger("hypercorn.error")
    getattr(log, quiet)("chatter")
    getattr(log, loud)("news")
    assert [json.loads(line)["message"] for line in written()] == ["news"]


PIECES = st.sampled_from(
    ["bearer ", "Bearer", "authorization", '"', "'", "\\", ": ", "=", ",", " ", "\n", "sk-", "abcdefgh", "://", "@", "?", "eyJ",
     ".", "https", "b'", "api_key", "ü", "\u2028"]
)  # fmt: skip


@given(st.lists(PIECES, max_size=20).map("".join))
def test_any_text_makes_a_json_line(text):
    fields = {"inner": [text, (text, text)], text: text}
    record = logging.makeLogRecord({"msg": text, "args": (), "extra": fields, "levelname": "INFO", "name": "x"})
    assert set(json.loads(JsonLines().format(record))) == {"time", "level", "logger", "message", "extra"}
    assert isinstance(PlainLines().format(record), str)
    access = logging.makeLogRecord({"msg": {"path": text}, "args": ()})
    assert list(json.loads(AccessLines().format(access))) == ["path"]
    assert len(PlainAccessLines().format(access).splitlines()) == 1


@given(st.lists(PIECES, max_size=20).map("".join))
def test_redacting_twice_changes_nothing_more(text):
    once = redact(text)
    assert redact(once).replace("***", "") == once.replace("***", "")


@pytest.mark.parametrize("pair", PAIRS, ids=str)
@pytest.mark.parametrize("style", ["json", "text"])
def test_telling_names_in_fields(logs, pair, style):
    written = logs(style)
    log = logging.getLogger("x")
    log.info("headers %s", pair, extra={"headers": pair, "more": [[pair]], **(pair if isinstance(pair, dict) else {})})
    (line,) = written()
    assert CANARY not in line


def test_whatever_a_telling_name_has_for_a_value():
    assert hide({"Cookie": {"session": CANARY}, "password": [CANARY, 1], "count": 5}) == {
        "Cookie": "***", "password": "***", "count": 5,
    }  # fmt: skip
    assert hide([("x-api-key", CANARY), (b"authorization", b"x"), ("a", "b")]) == [
        ["x-api-key", "***"], ["b'authorization'", "***"], ["a", "b"],
    ]  # fmt: skip


def test_fields_that_json_cannot_say(logs):
    written = logs("json")
    logging.getLogger("x").info("odd", extra={"odd": {(1, 2): {3}, None: Odd("x")}, "bytes": b"\xff"})
    (line,) = written()
    assert json.loads(line)["odd"] == {"(1, 2)": [3], "None": "Odd(x)"}
