"""Keys for callers on a gateway with two frontends: made, changed, exchanged and revoked, at once and everywhere."""

import contextlib
import csv
import io
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import openai
import pytest
import trio

from shared.redis import keys
from shared.redis.usage import row_name
from shared.schema import key_text
from tests.eavesdropper import Eavesdropper, everything_in
from tests.end_to_end.door import HELLO, Door
from tests.end_to_end.gateway import API_KEY, Gateway, free_port, gateway, until
from tests.redis_server import RedisServer
from tests.simulators.dashscope_native import DashScopeNative

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with contextlib.closing(RedisServer()) as server:
        yield server


@pytest.fixture(scope="module")
def house(redis: RedisServer) -> Iterator[Gateway]:
    """Two frontends, an echo worker, debug logs."""
    with gateway(redis, SLUICE_LOG_LEVEL="debug", SLUICE_MODEL_ALIASES="fast=echo") as house:
        house.frontend()
        house.frontend()
        house.worker("echo")
        for port in house.ports:
            house.wait_ready("echo", port=port)
        yield house


@pytest.fixture
def doors(house: Gateway) -> list[Door]:
    return [Door(port) for port in house.ports]


async def refused(doors: list[Door], key: str) -> None:
    """Until no frontend takes the key any more."""
    with trio.fail_after(10):
        while [await door.status(key) for door in doors] != [401, 401]:  # noqa: ASYNC110 - nobody tells
            await trio.sleep(0.05)


async def refusal(door: Door, key: str | None) -> tuple[int, bytes]:
    reply = await door.chat(key)
    return reply.status_code, reply.content


async def test_a_key_works_at_once_on_every_frontend_and_shows_once(doors: list[Door]) -> None:
    one, other = doors
    key, record = await one.make(name="Ada", requests_per_minute=600, models=["echo*"])
    assert key_text.id_of(key) == record["id"]
    assert record == {
        "object": "caller_key", "id": record["id"], "name": "Ada", "revision": 1, "status": "active",
        "created_at": record["created_at"], "expires_at": None, "revoked_at": None,
        "models": ["echo*"], "providers": [], "requests_per_minute": 600, "tokens_per_minute": None,
        "concurrent_requests": None, "daily_tokens": None, "monthly_tokens": None,
        "priority": "normal", "cache_seconds": 0.0,
    }  # fmt: skip
    assert abs(record["created_at"] - time.time()) < 60 and isinstance(record["created_at"], int)
    assert [await door.status(key) for door in (other, one, other)] == [200] * 3
    shown = await other.ask("GET", f"/admin/keys/{record['id']}")
    assert shown.json() == record
    listed = (await other.ask("GET", "/admin/keys")).json()
    assert listed["object"] == "list" and record in listed["data"]
    assert key not in shown.text and shown.headers["cache-control"] == "no-store"


async def test_openais_client_streams_with_it(doors: list[Door]) -> None:
    key, _ = await doors[0].make(name="SDK")
    async with openai.AsyncOpenAI(base_url=f"{doors[1].origin}/v1", api_key=key, max_retries=0) as client:
        stream = await client.chat.completions.create(model="echo", messages=HELLO, stream=True)  # type: ignore[arg-type]
        assert "hello" in "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])


async def test_a_revoked_key_is_refused_at_once_on_every_frontend_and_stays_listed(doors: list[Door]) -> None:
    one, other = doors
    key, record = await one.make(name="Bob")
    assert [await door.status(key) for door in doors] == [200, 200]
    revoked = (await one.ask("DELETE", f"/admin/keys/{record['id']}")).json()
    assert [await door.status(key) for door in doors] == [401, 401]
    assert revoked["status"] == "revoked" and revoked["revoked_at"] >= record["created_at"]
    assert revoked in (await other.ask("GET", "/admin/keys")).json()["data"]
    again = await other.ask("DELETE", f"/admin/keys/{record['id']}")
    assert (again.status_code, again.json()) == (200, revoked)
    for method, path, body in [("PATCH", "", {"name": "Eve"}), ("POST", "/rotate", None)]:
        reply = await one.ask(method, f"/admin/keys/{record['id']}{path}", json=body)
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, "key_revoked")


async def test_news_that_are_lost_cost_a_second(doors: list[Door], redis: RedisServer) -> None:
    """Somebody cuts the frontends' ears off; what they cannot hear they ask for."""
    key, record = await doors[0].make()
    assert [await door.status(key) for door in doors] == [200, 200]
    redis.client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
    await doors[0].ask("DELETE", f"/admin/keys/{record['id']}")
    await refused(doors, key)


async def test_a_changed_key_is_changed_everywhere(doors: list[Door]) -> None:
    one, other = doors
    key, record = await one.make(name="Cleo", daily_tokens=10**9)
    assert [await door.status(key) for door in doors] == [200, 200]
    path = f"/admin/keys/{record['id']}"
    changed = (await other.ask("PATCH", path, json={"models": ["other"], "daily_tokens": None})).json()
    assert changed == record | {"models": ["other"], "daily_tokens": None, "revision": 2}
    assert [await door.status(key) for door in doors] == [404, 404]
    assert (await one.ask("PATCH", path, json={"models": None})).json() == changed | {"models": [], "revision": 3}
    assert [await door.status(key) for door in doors] == [200, 200]


async def test_a_key_is_exchanged_at_once_or_with_a_grace(doors: list[Door]) -> None:
    one, other = doors
    first, record = await one.make(name="Dana")
    assert [await door.status(first) for door in doors] == [200, 200]
    rotated = (await one.ask("POST", f"/admin/keys/{record['id']}/rotate")).json()
    second = rotated.pop("key")
    assert rotated == record | {"revision": 2}
    assert [await door.status(first) for door in doors] == [401, 401]
    assert [await door.status(second) for door in doors] == [200, 200]
    third = (await other.ask("POST", f"/admin/keys/{record['id']}/rotate", json={"grace_seconds": 1.5})).json()["key"]
    began = time.monotonic()
    statuses = [await door.status(key) for key in (second, third) for door in doors]
    assert time.monotonic() - began > 1.4 or statuses == [200] * 4
    await refused(doors, second)
    assert time.monotonic() - began > 1.0
    assert [await door.status(third) for door in doors] == [200, 200]


async def test_a_key_expires_by_itself(doors: list[Door]) -> None:
    end = time.time() + 3
    key, record = await doors[0].make(expires_at=end)
    moment = datetime.fromtimestamp(2e9, UTC).isoformat()
    _, later = await doors[0].make(expires_at=moment)
    assert later["expires_at"] == 2_000_000_000
    statuses = [await door.status(key) for door in doors]
    assert statuses == [200, 200] or time.time() > end, "a busy machine may come too late for that"
    await refused(doors, key)
    path = f"/admin/keys/{record['id']}"
    assert (await doors[1].ask("GET", path)).json()["status"] == "expired"
    await doors[1].ask("PATCH", path, json={"expires_at": None})
    assert [await door.status(key) for door in doors] == [200, 200]


@pytest.mark.fault("S3")
async def test_everybody_who_may_not_hears_the_same(doors: list[Door]) -> None:
    one = doors[0]
    key, record = await one.make()
    expired, _ = await one.make(expires_at=time.time() + 3)
    revoked, ended = await one.make()
    await one.ask("DELETE", f"/admin/keys/{ended['id']}")
    await refused(doors, expired)
    strangers = [
        None, "x", expired, revoked, key[:-1], key + "A", key.swapcase(), f"{key} {key}", "sk-upstream",
        key_text.compose(record["id"], bytes(32)), key_text.compose("ffffffff", bytes(32)),
    ]  # fmt: skip
    bodies = {await refusal(one, stranger) for stranger in strangers}
    assert len(bodies) == 1
    ((status, body),) = bodies
    assert status == 401 and b"invalid_api_key" in body
    listing = {(await one.ask("GET", "/v1/models", stranger)).content for stranger in strangers}
    assert listing == {body}


@pytest.mark.fault("S15")
async def test_only_master_keys_administer(doors: list[Door]) -> None:
    one, _ = doors
    key, record = await one.make(name="Eve")
    path = f"/admin/keys/{record['id']}"
    for method, where in [
        ("POST", "/admin/keys"), ("GET", "/admin/keys"), ("GET", path), ("PATCH", path), ("DELETE", path),
        ("POST", path + "/rotate"), ("GET", "/admin/usage"), ("GET", "/admin/keys/ffffffff"),
    ]:  # fmt: skip
        by_caller, by_nobody = await one.ask(method, where, key), await one.ask(method, where, None)
        assert (by_caller.status_code, by_caller.json()["error"]["code"]) == (403, "permission_denied")
        assert (by_nobody.status_code, by_nobody.content) == await refusal(one, None)
    assert await one.status(key) == 200


async def test_ids_that_nobody_has(doors: list[Door]) -> None:
    for where in ("ffffffff", "x", "%00", "..%2f..", "a" * 1000, "%ff%fe"):
        for method, path in [("GET", ""), ("PATCH", ""), ("DELETE", ""), ("POST", "/rotate")]:
            body = {"json": {}} if method == "PATCH" else {}
            reply = await doors[0].ask(method, f"/admin/keys/{where}{path}", **body)
            assert reply.status_code == 404, (method, where)


IMPOSSIBLE: list[tuple[Any, str | None, str]] = [
    ({"nmae": "Ada"}, "nmae", "unknown_parameter"),
    ({"id": "ffffffff"}, "id", "unknown_parameter"),
    ({"key": "sk-sluice-mine"}, "key", "unknown_parameter"),
    ({"name": 5}, "name", "invalid_type"),
    ({"name": None}, "name", "invalid_type"),
    ({"name": "x" * 129}, "name", "string_above_max_length"),
    ({"name": "a\u0007b"}, "name", "invalid_value"),
    ({"requests_per_minute": 0}, "requests_per_minute", "integer_below_min_value"),
    ({"requests_per_minute": -1}, "requests_per_minute", "integer_below_min_value"),
    ({"requests_per_minute": 1.5}, "requests_per_minute", "invalid_type"),
    ({"tokens_per_minute": "60"}, "tokens_per_minute", "invalid_type"),
    ({"concurrent_requests": True}, "concurrent_requests", "invalid_type"),
    ({"daily_tokens": 10**13}, "daily_tokens", "integer_above_max_value"),
    ({"monthly_tokens": []}, "monthly_tokens", "invalid_type"),
    ({"models": "gpt-4o"}, "models", "invalid_type"),
    ({"models": ["a", 5]}, "models[1]", "invalid_type"),
    ({"models": [""]}, "models[0]", "invalid_value"),
    ({"models": ["x" * 257]}, "models[0]", "string_above_max_length"),
    ({"models": ["a"] * 257}, "models", "array_above_max_length"),
    ({"models": ["a", "*****"]}, "models[1]", "invalid_value"),
    ({"providers": [" openai"]}, "providers[0]", "invalid_value"),
    ({"providers": ["open\nai"]}, "providers[0]", "invalid_value"),
    ({"expires_at": "tomorrow"}, "expires_at", "invalid_value"),
    ({"expires_at": 1_000_000_000}, "expires_at", "invalid_value"),
    ({"expires_at": "2020-01-01"}, "expires_at", "invalid_value"),
    ({"expires_at": 10**12}, "expires_at", "invalid_value"),
    ({"expires_at": "9999-12-31T23:59:59-23:59"}, "expires_at", "invalid_value"),
    ({"expires_at": True}, "expires_at", "invalid_type"),
    ({"priority": "high"}, "priority", "invalid_value"),
    ({"priority": None}, "priority", "invalid_type"),
    ({"cache_seconds": -1}, "cache_seconds", "invalid_value"),
    ({"cache_seconds": 10**9}, "cache_seconds", "invalid_value"),
    ([], None, "invalid_type"),
]
"""Body, and the `param` and `code` of the refusal."""


async def test_what_a_key_cannot_be_like(doors: list[Door]) -> None:
    _, record = await doors[0].make()
    for body, param, code in IMPOSSIBLE:
        for method, path in [("POST", "/admin/keys"), ("PATCH", f"/admin/keys/{record['id']}")]:
            reply = await doors[0].ask(method, path, json=body)
            error = reply.json()["error"]
            found = (reply.status_code, error["type"], error["param"], error["code"])
            assert found == (400, "invalid_request_error", param, code), (method, body)
    assert (await doors[0].ask("GET", f"/admin/keys/{record['id']}")).json() == record


async def test_bodies_that_are_no_request(doors: list[Door]) -> None:
    _, record = await doors[0].make()
    rotate = f"/admin/keys/{record['id']}/rotate"
    json_type = {"content-type": "application/json"}
    for method, path, content, status in [
        ("POST", "/admin/keys", b"", 400), ("POST", "/admin/keys", b"{", 400), ("POST", "/admin/keys", b"\xff", 400),
        ("POST", rotate, b'{"grace_seconds": -1}', 400), ("POST", rotate, b'{"grace": 1}', 400),
        ("POST", rotate, b'{"grace_seconds": 1e9}', 400), ("PATCH", f"/admin/keys/{record['id']}", b"", 400),
    ]:  # fmt: skip
        assert (await doors[0].ask(method, path, content=content, headers=json_type)).status_code == status
    text = await doors[0].ask("POST", "/admin/keys", content=b"{}", headers={"content-type": "text/plain"})
    assert text.status_code == 415
    assert (await doors[0].ask("GET", f"/admin/keys/{record['id']}")).json() == record


@pytest.mark.fault("S2")
async def test_no_key_is_readable_anywhere(house: Gateway, doors: list[Door], redis: RedisServer) -> None:
    """Not in what passes through Redis, not in what it would save, not in any log, not in what administrators list."""
    with contextlib.closing(Eavesdropper(redis)) as spy:
        first, record = await doors[0].make(name="canary")
        path = f"/admin/keys/{record['id']}"
        second = (await doors[1].ask("POST", f"{path}/rotate", json={"grace_seconds": 60})).json()["key"]
        assert [await door.status(key) for key in (first, second) for door in doors] == [200] * 4
        mistyped = first[:-1] + ("A" if first[-1] != "A" else "B")
        assert await doors[0].status(mistyped) == 401
        await until(lambda: b"PUBLISH" in spy.heard)
        heard, at_rest = spy.heard, everything_in(redis)
    listed = (await doors[0].ask("GET", "/admin/keys")).content
    logs = "\n".join(process.text() for process in house.processes)
    assert b"HMGET" in heard and b"canary" in at_rest and record["id"] in logs
    for key in (first, second, mistyped, API_KEY):
        secret = key.removeprefix("sk-sluice-").split("-", 1)[1]
        for place in (heard, at_rest, listed, logs.encode()):
            assert key.encode() not in place and secret[:20].encode() not in place


async def test_a_key_of_ours_is_never_shown_to_an_upstream_that_takes_callers_keys(
    doors: list[Door], redis_server: RedisServer
) -> None:
    async with DashScopeNative(keys={"sk-callers-own-0123456789"}).running(port := free_port()) as upstream:
        settings = {"DASHSCOPE_NATIVE_BASE_URL": f"http://127.0.0.1:{port}", "DASHSCOPE_NATIVE_CALLER_KEYS": "on"}
        with gateway(redis_server, **settings) as house:
            house.frontend()
            house.worker("dashscope-native")
            house.wait_ready("farui-plus")
            door = Door(house.ports[0])
            key, record = await door.make()
            await door.ask("DELETE", f"/admin/keys/{record['id']}")
            for mistaken in (key, key[:-1], "sk-sluice-of-another-gateway"):
                assert await door.status(mistaken, "farui-plus") == 401
            assert await door.status("sk-callers-own-0123456789", "farui-plus") == 200
            assert [call.key for call in upstream.ledger.calls] == ["sk-callers-own-0123456789"]


@pytest.mark.fault("S19")
async def test_a_key_sees_and_uses_only_its_models_and_providers(doors: list[Door]) -> None:
    one, other = doors

    async def listed(key: str) -> set[str]:
        return {model["id"] for model in (await other.ask("GET", "/v1/models", key)).json()["data"]}

    everything = await listed(API_KEY)
    assert {"echo", "echo-slow", "fast"} <= everything
    for fields, visible in [
        ({}, everything),
        ({"models": ["echo"]}, {"echo", "fast"}),
        ({"models": ["fast"]}, {"fast"}),
        ({"models": ["echo/*"], "providers": ["ec*"]}, everything),
        ({"providers": ["openai"]}, set()),
        ({"models": ["gpt-*"]}, set()),
    ]:
        key, _ = await one.make(**fields)
        assert await listed(key) == visible, fields
        for model in ("echo", "fast", "echo-slow"):
            shown = await other.ask("GET", f"/v1/models/{model}", key)
            assert (shown.status_code == 200) == (model in visible), (fields, model)
            if model != "echo-slow" or model not in visible:
                assert await other.status(key, model) == (200 if model in visible else 404), (fields, model)
    key, _ = await one.make(models=["gpt-*"])
    impermissible, unknown = [(await one.chat(key, model)).text.replace(model, "") for model in ("echo", "nonesuch")]
    assert impermissible == unknown and "model_not_found" in unknown


async def test_what_was_used_is_counted_under_the_key(doors: list[Door]) -> None:
    one, other = doors
    key, record = await one.make(name="Finn")
    used = (await one.chat(key)).json()["usage"]
    with trio.fail_after(10):
        while not (rows := (await other.ask("GET", f"/admin/usage?key={record['id']}")).json()["data"]):  # noqa: ASYNC110
            await trio.sleep(0.05)
    (row,) = rows
    assert (row["name"], row["provider"], row["model"]) == ("Finn", "echo", "echo")
    assert (row["requests"], row["done"], row["total_tokens"]) == (1, 1, used["total_tokens"])


async def test_usage_as_json_and_as_a_table(doors: list[Door], redis: RedisServer) -> None:
    one, other = doors
    _, record = await one.make(name="=cmd()")
    day, key_id = "2026-01-31", record["id"]
    rows = [
        (key_id, "openai", "gpt-4o", "3 2 1 0 0 100 50 1"), (key_id, "kimi", "@k3", "1 1 0 0 0 7 0 0"),
        ("master", "openai", "gpt-4o", "1 0 0 1 0 1 1 0"), ("gone0000", "echo", "echo", "1 1 0 0 0 1 1 0"),
    ]  # fmt: skip
    for caller, provider, model, counts in rows:
        redis.client.hset(keys.usage(day), row_name(caller, provider, model), counts)
    report = (await other.ask("GET", f"/admin/usage?from={day}&to={day}")).json()
    assert (report["object"], report["from"], report["to"]) == ("list", day, day)
    assert len(report["data"]) == 4 and report["total"]["total_tokens"] == 161 and report["total"]["failed"] == 1
    assert {(row["key"], row["name"]) for row in report["data"]} == {
        (key_id, "=cmd()"), ("master", "master key"), ("gone0000", ""),
    }  # fmt: skip
    assert report["data"][-1] | {"day": day} == report["data"][-1]
    filtered = (await one.ask("GET", f"/admin/usage?from={day}&to={day}&key={key_id}&provider=openai")).json()
    assert filtered["data"] == [
        {
            "day": day, "key": key_id, "name": "=cmd()", "provider": "openai", "model": "gpt-4o", "requests": 3, "done": 2,
            "failed": 1, "cancelled": 0, "unsettled": 0, "prompt_tokens": 100, "completion_tokens": 50, "estimated": 1,
            "total_tokens": 150,
        }
    ]  # fmt: skip
    table = await one.ask("GET", f"/admin/usage?from={day}&to={day}&key={key_id}&format=csv")
    assert table.headers["content-type"] == "text/csv; charset=utf-8" and table.headers["cache-control"] == "no-store"
    assert "attachment" in table.headers["content-disposition"]
    read = list(csv.DictReader(io.StringIO(table.text, newline="")))
    assert {(row["name"], row["model"], row["total_tokens"]) for row in read} == {
        ("'=cmd()", "gpt-4o", "150"), ("'=cmd()", "'@k3", "7"),
    }  # fmt: skip
    assert table.text.count("\r\n") == 3
    assert (await one.ask("GET", "/admin/usage?from=tomorrow")).json()["error"]["param"] == "from"
    assert (await one.ask("GET", "/admin/usage")).json()["to"] == datetime.now(UTC).date().isoformat()


async def test_administration_can_be_switched_off(redis: RedisServer, house: Gateway) -> None:
    with gateway(redis, SLUICE_ADMIN="off") as closed:
        closed.frontend()
        closed.wait_ready("echo")
        door = Door(closed.ports[0])
        for method, path in [("GET", "/admin/keys"), ("POST", "/admin/keys"), ("DELETE", "/admin/keys/ffffffff")]:
            reply = await door.ask(method, path, json={})
            assert (reply.status_code, reply.json()["error"]["code"]) == (404, "unknown_url")
        key, _ = await Door(house.ports[0]).make()
        assert await door.status(key) == 200, "keys count there all the same"
