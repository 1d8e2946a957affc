"""`sluice keys` and `sluice usage` as a person uses them, on a real gateway."""

import contextlib
import csv
import io
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx2
import pytest
from click.testing import Result
from typer.testing import CliRunner

from cli.__main__ import app
from cli.callers import CallersTrouble, Wanted, duration, moment, number
from cli.troubles import TROUBLES
from cli.usage import grouped
from shared.redis import keys
from shared.redis.usage import row_name
from shared.schema import key_text
from tests.cli.processes import sluice
from tests.end_to_end.gateway import API_KEY, SECRET_KEY, Gateway, gateway
from tests.redis_server import RedisServer

Command = Callable[..., Result]


@pytest.fixture(scope="module")
def house() -> Iterator[Gateway]:
    with contextlib.closing(RedisServer()) as redis, gateway(redis) as house:
        house.frontend()
        house.worker("echo")
        house.wait_ready("echo")
        yield house


def settings_of(house: Gateway) -> dict[str, str]:
    own = {"SLUICE_API_KEY": API_KEY, "SLUICE_SECRET_KEY": SECRET_KEY, "REDIS_URL": house.redis.url}
    return own | {"SLUICE_PORT": str(house.ports[0]), "COLUMNS": "200"}


@pytest.fixture
def run(house: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs `sluice …` with the gateway's settings; what a person can mend comes as `exception`, as `main` gets it."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str, **further: str) -> Result:
        return CliRunner().invoke(app, words, env=settings_of(house) | further)

    return run


def status(house: Gateway, key: str, model: str = "echo") -> int:
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
    headers = {"authorization": f"Bearer {key}"}
    return httpx2.post(f"{house.base_url}/chat/completions", json=body, headers=headers, timeout=20).status_code


def test_bare_keys_shows_the_gateways_own_and_commands_stand_behind_it(house: Gateway, tmp_path: Path) -> None:
    """As processes: only the key on standard output, one sentence and status 1 where a person must do something."""
    shown = sluice("keys", directory=tmp_path, **settings_of(house))
    assert (shown.returncode, shown.stdout) == (0, f"{API_KEY}\n")
    made = sluice("keys", "create", "Process", directory=tmp_path, **settings_of(house))
    assert made.returncode == 0 and key_text.id_of(made.stdout.removesuffix("\n"))
    failed = sluice("keys", "show", "nobody", directory=tmp_path, **settings_of(house))
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr == "No key has the id or the name 'nobody'; `sluice keys list` shows all.\n"


def test_the_life_of_a_key(house: Gateway, run: Command) -> None:
    made = run("keys", "create", "Ada", "--requests-per-minute", "60", "--daily-tokens", "1M", "--expires", "90d")
    assert made.exit_code == 0, made.stderr
    key = made.stdout.strip()
    key_id = key_text.id_of(key)
    assert key_id and status(house, key) == 200
    assert "1 000 000" in made.stderr and key not in made.stderr and "Ada" in made.stderr

    listed, shown = run("keys", "list"), run("keys", "show", "Ada")
    for output in (listed.stdout, shown.stdout):
        assert key_id in output and "Ada" in output and "active" in output and "1 000 000" in output
        assert key not in output
    record = json.loads(run("keys", "show", key_id, "--json").stdout)
    ninety_days = datetime.now(UTC).timestamp() + 90 * 86_400
    assert abs(record["expires_at"] - ninety_days) < 120 and record["requests_per_minute"] == 60

    updated = run("keys", "update", "Ada", "--daily-tokens", "none", "--expires", "none", "--name", "Ada L.", "--json")
    assert json.loads(updated.stdout) == record | {
        "daily_tokens": None, "expires_at": None, "name": "Ada L.", "revision": 2,
    }  # fmt: skip
    limited = json.loads(run("keys", "update", key_id, "--model", "gpt-*,o*", "--provider", "openai", "--json").stdout)
    assert (limited["models"], limited["providers"]) == (["gpt-*", "o*"], ["openai"])
    assert run("keys", "update", key_id, "--model", "none", "--provider", "none").exit_code == 0

    rotated = run("keys", "rotate", "Ada L.", "--grace", "1h")
    second = rotated.stdout.strip()
    assert second != key and key_text.id_of(second) == key_id and "1h" in rotated.stderr
    assert [status(house, one) for one in (key, second)] == [200, 200]
    third = run("keys", "rotate", "Ada L.").stdout.strip()
    assert [status(house, one) for one in (key, second, third)] == [401, 401, 200]

    revoked = run("keys", "revoke", "Ada L.")
    assert revoked.exit_code == 0 and "revoked" in revoked.stdout
    assert status(house, third) == 401
    assert "revoked" in run("keys", "list").stdout
    listed_again = json.loads(run("keys", "list", "--json").stdout)["data"]
    assert [one["status"] for one in listed_again if one["id"] == key_id] == ["revoked"]


def test_what_goes_wrong_is_said_in_one_sentence(run: Command, house: Gateway) -> None:
    created = run("keys", "create", "Bob").stdout.strip()
    run("keys", "create", "Bob")
    cases = [
        (("keys", "show", "nobody"), "No key has the id or the name 'nobody'"),
        (("keys", "show", "Bob"), "Several keys have the name 'Bob'"),
        (("keys", "show", "ffffffff"), "No key has this id"),
        (("keys", "update", "nobody"), "Nothing to change"),
        (("keys", "create", "Eve", "--requests-per-minute", "many"), "Expected a number"),
        (("keys", "create", "Eve", "--requests-per-minute", "0"), "Expected a value >= 1"),
        (("keys", "create", "Eve", "--expires", "2001-01-01"), "time in the future"),
        (("keys", "rotate", "Bob", "--grace", "soon"), "Expected a duration"),
        (("keys", "list", "--key", created), "SLUICE_API_KEY"),
        (("keys", "list", "--key", "sk-wrong"), "Incorrect or missing API key"),
        (("keys", "list", "--url", "http://127.0.0.1:9"), "No gateway answers"),
        (("usage", "--by", "colour"), "expected one of key, model, provider, day"),
        (("usage", "--from", "yesterday"), "expected a day"),
        (("usage", "--caller", "nobody"), "No key has the id or the name 'nobody'"),
    ]
    for words, sentence in cases:
        failed = run(*words)
        assert isinstance(failed.exception, TROUBLES) and failed.stdout == "", words
        assert sentence in str(failed.exception) and "\n" not in str(failed.exception), (words, failed.exception)
    assert "'low'" in run("keys", "create", "Eve", "--priority", "high").stderr


def test_usage_in_the_rows_that_a_person_asks_for(run: Command, house: Gateway) -> None:
    key_id = key_text.id_of(run("keys", "create", "=Cleo").stdout.strip())
    assert key_id
    for day, caller, model, counts in [
        ("2026-01-30", key_id, "gpt-4o", "2 1 1 0 0 100 50 0"), ("2026-01-31", key_id, "gpt-4o", "1 1 0 0 0 10 5 0"),
        ("2026-01-31", key_id, "o3", "1 0 0 0 1 7 0 1"), ("2026-01-31", "master", "o3", "1 1 0 0 0 1 1 0"),
    ]:  # fmt: skip
        house.redis.client.hset(keys.usage(day), row_name(caller, "openai", model), counts)
    january = ("usage", "--from", "2026-01-01", "--to", "2026-01-31")
    table = run(*january).stdout
    assert "=Cleo" in table and "master key" in table and "172" in table and "174" in table
    by_day = json.loads(run(*january, "--by", "day", "--json").stdout)
    assert [(row["day"], row["total_tokens"]) for row in by_day["data"]] == [("2026-01-30", 150), ("2026-01-31", 24)]
    told = run(*january, "--by", "key", "--by", "model", "--csv", "--caller", "=Cleo").stdout
    rows = list(csv.DictReader(io.StringIO(told)))
    assert [(row["name"], row["model"], row["requests"], row["failed"]) for row in rows] == [
        ("'=Cleo", "gpt-4o", "3", "1"), ("'=Cleo", "o3", "1", "1"),
    ]  # fmt: skip
    assert "o3" not in run(*january, "--by", "model", "--model", "gpt-4o").stdout


def test_numbers_durations_and_moments():
    assert [number(text) for text in ("5", "1_500", "50k", "2M", "3G", "none")] == [
        5,
        1500,
        50_000,
        2_000_000,
        3 * 10**9,
        None,
    ]
    assert [duration(text) for text in ("0", "90", "90s", "1.5m", "12h", "30d")] == [0, 90, 90, 90, 43_200, 2_592_000]
    assert [moment(text, 1000.5) for text in ("none", "1m", "1900000000", "2030-01-31", "2030-01-31T12:00Z")] == [
        None, 1061, 1_900_000_000, "2030-01-31", "2030-01-31T12:00Z",
    ]  # fmt: skip
    for read, text in [
        (number, "-5"),
        (number, "5kk"),
        (number, ""),
        (duration, "1y"),
        (duration, ""),
        (duration, "-1"),
    ]:
        with pytest.raises(CallersTrouble):
            read(text)


def test_only_what_was_typed_is_asked_for():
    nothing = Wanted(None, [None] * 5, None, None, None, None, None)
    assert nothing.fields(0.0) == {}
    lifted = Wanted("", ["none"] * 5, ["none"], ["none"], "none", "low", "none")
    assert lifted.fields(0.0) == {
        "name": "", "requests_per_minute": None, "tokens_per_minute": None, "concurrent_requests": None,
        "daily_tokens": None, "monthly_tokens": None, "models": None, "providers": None, "expires_at": None,
        "priority": "low", "cache_seconds": 0.0,
    }  # fmt: skip


def test_rows_are_added_up():
    counts = {"requests": 1, "done": 1, "failed": 1, "cancelled": 0, "unsettled": 1, "prompt_tokens": 2}
    row = counts | {"completion_tokens": 3, "total_tokens": 5, "day": "d", "key": "k", "name": "n"}
    (total,) = grouped([row, row | {"name": "n"}], ["key"])
    assert total["requests"] == 2 and total["failed"] == 4 and total["total_tokens"] == 10
    assert grouped([], ["key"]) == []


def test_no_number_is_cut_on_a_narrow_terminal(run: Command, house: Gateway) -> None:
    caller = key_text.id_of(run("keys", "create", "Narrow").stdout.strip())
    assert caller
    house.redis.client.hset(keys.usage("2026-02-01"), row_name(caller, "openai", "o3"), "9 9 0 0 0 1234567890 1 0")
    table = run("usage", "--from", "2026-02-01", "--to", "2026-02-01", COLUMNS="60").stdout
    (line,) = [line for line in table.splitlines() if caller in line]
    assert line.split() == [
        caller,
        "Narrow",
        "9",
        "9",
        "0",
        "0",
        "1",
        "234",
        "567",
        "890",
        "1",
        "1",
        "234",
        "567",
        "891",
    ]
    listed = run("keys", "list", COLUMNS="80").stdout
    assert "Narrow" in listed and "active" in listed
