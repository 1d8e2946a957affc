"""`sluice doctor`: each thing that can be wrong is found and comes with what to do; secrets are never shown."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import pytest

from cli.alive import main as alive
from cli.doctor import Finding, examine, findings
from shared.redis import keys
from shared.schema.advertisement import FrontendAdvertisement, Model, WorkerAdvertisement
from shared.sealing import Seal
from tests.cli.scripted_gateway import KEY, ScriptedGateway
from tests.redis_server import RedisServer

RING = "0123456789abcdef0123456789abcdef"


@pytest.fixture(autouse=True)
def in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLUICE_SECRET_KEY", RING)
    monkeypatch.setenv("SLUICE_API_KEY", KEY)


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch):
    def set_all(**variables: str) -> None:
        for name, text in variables.items():
            monkeypatch.setenv(name, text)

    return set_all


def advertise(server: RedisServer, provider: str | None, sealing_key: str = "", **changes) -> None:
    """Make a live frontend (provider None) or worker appear."""
    seal = sealing_key or Seal([RING]).fingerprint
    rest = {"version": "1", "started": time.time(), "sealing_key": seal}
    shown: msgspec.Struct
    if provider is None:
        kind, one = "frontend", "f-1"
        shown = FrontendAdvertisement(**({"id": one, "address": "x", "streams": 3} | rest | changes))
    else:
        kind, one = "worker", f"w-{provider}"
        listed = {"models": [Model("m")], "endpoints": ["chat"], "room": 7, "running": 2}
        shown = WorkerAdvertisement(**({"id": one, "provider": provider} | listed | rest | changes))
    server.client.set(keys.alive(kind, one), msgspec.json.encode(shown))
    server.client.sadd(keys.ALIVE, f"{kind}:{one}")


def found(subject: str) -> list[Finding]:
    return [finding for finding in findings() if finding.subject == subject]


class Upstream(BaseHTTPRequestHandler):
    """An upstream that knows one key and two models."""

    def do_GET(self) -> None:
        known = self.headers["authorization"] == "Bearer sk-good-hidden"
        value = {"data": [{"id": "m-1"}, {"id": "m-2"}]} if known else {"error": {"message": "no sk-bad-hidden"}}
        body = b"<html>" if "page" in self.path else json.dumps(value).encode()
        self.send_response(404 if "lost" in self.path else 200 if known else 401)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def upstream():
    with ThreadingHTTPServer(("127.0.0.1", 0), Upstream) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_all_is_well(redis_server, settings, upstream, capsys):
    advertise(redis_server, None)
    advertise(redis_server, "openai")
    redis_server.client.config_set("maxmemory", "100mb")
    with ScriptedGateway() as gateway:
        settings(
            REDIS_URL=redis_server.url,
            SLUICE_PORT=str(gateway.server_address[1]),
            OPENAI_API_KEY="sk-good-hidden",
            OPENAI_BASE_URL=upstream,
            OPENAI_MODELS="m-1,m-2",
        )
        assert examine() == 0
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "✓ settings   in order; configured: openai"
    assert lines[1].startswith("✓ redis      ")
    assert lines[2:] == [
        "✓ frontends  1 alive, 3 streams open",
        "✓ workers    1 for openai, 2 jobs running, room for 7 more",
        f"✓ gateway    {gateway.url}/v1 is ready, accepts our key, offers 2 models",
        "✓ upstream   openai: accepts the key, lists 2 models",
    ]


def test_wrong_settings_end_it_early(settings, capsys):
    settings(SLUICE_PORT="x", SLUICE_PROT="1")
    assert examine() == 1
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("✗")] == [
        "✗ settings   SLUICE_PORT: expected a whole number from 0 to 65535, got 'x'",
        "✗ settings   SLUICE_PROT: is not a setting; did you mean SLUICE_PORT?",
    ]


def test_a_redis_that_is_not_there(settings):
    settings(REDIS_URL="redis://:hidden@127.0.0.1:1/0", SLUICE_PORT="1")
    finding = found("redis")[0]
    assert finding.level == "bad"
    assert finding.sentence.startswith("does not answer: ")
    assert "hidden" not in finding.sentence


def test_without_a_redis_it_says_what_up_would_do(monkeypatch, settings):
    settings(SLUICE_PORT="1")
    monkeypatch.setattr("shared.settings.load.LOCAL_REDIS", "redis://127.0.0.1:1/0")
    assert found("redis") == [
        Finding("bad", "redis", found("redis")[0].sentence, "run `sluice up`"),
    ]
    assert "`sluice up` will start" in found("redis")[0].sentence


def test_a_redis_that_throws_data_away(redis_server, settings):
    redis_server.client.config_set("maxmemory-policy", "allkeys-lru")
    redis_server.client.config_set("maxmemory", "0")
    settings(REDIS_URL=redis_server.url, SLUICE_PORT="1")
    assert [(finding.level, finding.sentence) for finding in found("redis")[1:]] == [
        ("bad", "throws data away when it is full (maxmemory-policy allkeys-lru)"),
        ("notice", "may take all the memory of its machine"),
    ]


def test_a_redis_that_would_lose_callers_keys(redis_server, settings):
    settings(REDIS_URL=redis_server.url, SLUICE_PORT="1")
    server = redis_server.client

    def about_keys() -> list[tuple[str, str]]:
        return [
            (finding.level, finding.sentence) for finding in found("redis") if "keys of callers" in finding.sentence
        ]

    assert about_keys() == [], "there are none to lose"
    server.hset(keys.CALLERS, mapping={"1f2e3d4c": "{}", "5b6a7980": "{}"})
    assert about_keys() == [("notice", "keeps nothing, and 2 keys of callers are in it, with their limits and usage")]
    server.config_set("save", "3600 1")
    ((level, sentence),) = about_keys()
    assert level == "notice" and sentence.startswith("writes down snapshots only")
    server.config_set("appendonly", "yes")
    assert about_keys() == [("good", "writes down each change; 2 keys of callers survive its end")]


def test_nobody_is_alive_and_a_provider_has_no_worker(redis_server, settings, upstream):
    settings(REDIS_URL=redis_server.url, SLUICE_PORT="1", OPENAI_API_KEY="k", OPENAI_BASE_URL=upstream)
    assert found("processes") == [Finding("bad", "processes", "no process of a gateway is alive", "run `sluice up`")]
    advertise(redis_server, "echo")
    assert [finding.sentence for finding in found("workers")] == [
        "1 for echo, 2 jobs running, room for 7 more",
        "none for openai",
    ]
    assert found("frontends")[0].sentence == "none is alive"


def test_full_draining_and_foreign_processes(redis_server, settings):
    settings(REDIS_URL=redis_server.url, SLUICE_PORT="1")
    advertise(redis_server, "echo", room=0)
    assert found("workers")[0].advice == "run another `sluice worker echo`"
    advertise(redis_server, "echo", draining=True)
    assert found("workers")[0].sentence.endswith("all are about to stop")
    advertise(redis_server, "echo", sealing_key="deadbeef")
    assert found("processes")[0].sentence == "1 seal with another secret key than ours: w-echo"
    redis_server.client.set(keys.alive("worker", "w-echo"), b'{"of": "another version"}')
    assert found("processes")[0].sentence == "no process of a gateway is alive"


def test_the_gateway_refuses_our_key(redis_server, settings):
    with ScriptedGateway() as gateway:
        settings(REDIS_URL=redis_server.url, SLUICE_PORT=str(gateway.server_address[1]), SLUICE_API_KEY="another-key")
        assert found("gateway")[0].sentence.startswith("The gateway says: Incorrect API key.")


def test_upstreams(redis_server, settings, upstream):
    settings(
        REDIS_URL=redis_server.url,
        SLUICE_PORT="1",
        OPENAI_API_KEY="sk-good-hidden,sk-bad-hidden",
        OPENAI_BASE_URL=upstream,
        OPENAI_MODELS="m-1,m-9,m-2:fast",
        KIMI_API_KEY="sk-good-hidden",
        KIMI_BASE_URL=f"{upstream}/lost",
        CEREBRAS_API_KEY="sk-good-hidden",
        CEREBRAS_BASE_URL=f"{upstream}/page",
        DEEPSEEK_API_KEY="sk-good-hidden",
        DEEPSEEK_BASE_URL="http://127.0.0.1:2",
        SLUICE_PROVIDER_BOX_BASE_URL=upstream,
    )
    sentences = [(finding.level, finding.sentence) for finding in found("upstream")]
    assert sentences[:2] == [
        ("notice", "openai key 1: accepts the key, but does not list m-9"),
        ("bad", "openai key 2: the key is refused (status 401)"),
    ]
    assert sentences[2][0] == "bad"
    assert sentences[2][1].startswith("deepseek: http://127.0.0.1:2 cannot be reached (")
    assert sentences[3:] == [
        ("notice", "cerebras: answers, but not with a list of models"),
        ("notice", f"kimi: {upstream}/lost/models answers with status 404"),
        ("bad", "box: the key is refused (status 401)"),
    ]
    assert "hidden" not in str(sentences)


def test_the_health_check_of_containers(redis_server, settings):
    settings(REDIS_URL=redis_server.url)
    assert alive("echo") == 1
    advertise(redis_server, "echo")
    assert alive("echo") == 0
    with ScriptedGateway() as gateway:
        settings(SLUICE_PORT=str(gateway.server_address[1]))
        assert alive("frontend") == 0
    assert alive("frontend") == 1


def test_where_callers_bring_their_keys_nothing_can_be_tried_but_the_address(redis_server, settings, upstream):
    with ScriptedGateway() as gateway:
        settings(
            REDIS_URL=redis_server.url,
            SLUICE_PORT=str(gateway.server_address[1]),
            SLUICE_API_KEY="",
            DASHSCOPE_NATIVE_CALLER_KEYS="on",
            DASHSCOPE_NATIVE_BASE_URL=upstream,
        )
        assert found("gateway") == [
            Finding("good", "gateway", f"{gateway.url}/v1 is ready; callers bring their own upstream key")
        ]
        assert found("upstream") == [
            Finding("good", "upstream", f"dashscope-native: {upstream}/api/v1 answers; only a call would try its keys")
        ]
        settings(DASHSCOPE_NATIVE_BASE_URL="http://127.0.0.1:1")
        assert found("upstream")[0].level == "bad"
