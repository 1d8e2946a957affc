"""`sluice credentials` on a real pool, beside workers that use it."""

from functools import partial
from pathlib import Path

import pytest
import trio
from click.testing import Result
from typer.testing import CliRunner

from cli.__main__ import app
from cli.pool import PoolTrouble, duration, masked
from shared.errors import Failure, GatewayError
from shared.schema.credential import Opened
from tests.redis_server import RedisServer
from tests.workers.colleagues import SECRET_KEY, Colleague, Keyed, Office
from workers.provider import Call, Check

LONG = "sk-abcdefghijklmnop-0123"


class Sound(Keyed):
    """Keys that can be tested; `bad` ones are refused."""

    bad: frozenset[str] = frozenset()

    def validate(self, call: Call) -> Check:
        yield from ()
        if call.credential.secret in self.bad:
            raise GatewayError(Failure("credential_invalid", "It does not know this key."))


@pytest.fixture
def sluice(redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs a command in a thread of its own, as if in a terminal; the workers of the test go on meanwhile."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    environment = {"REDIS_URL": redis_server.url, "SLUICE_SECRET_KEY": SECRET_KEY}

    async def run(*words: str, typed: str = "") -> Result:
        invoke = partial(CliRunner().invoke, app, ["credentials", *words], input=typed, env=environment)
        with trio.fail_after(15):
            return await trio.to_thread.run_sync(invoke)

    return run


@pytest.fixture
def office(redis_server: RedisServer, nursery: trio.Nursery) -> Office:
    return Office(redis_server, nursery)


async def ids(worker: Colleague) -> dict[str, str]:
    return {one.opened.secret: one.id for one in await worker.pool.standing()}


async def test_lists_what_there_is_without_showing_it(sluice, office: Office) -> None:
    assert "no credentials for openai" in (await sluice("list", "openai")).output
    worker = await office.hire(Keyed(LONG, "short"))
    known = await ids(worker)
    lease = await worker.lease(tried={known["short"]})
    refused = await worker.lease(tried={known[LONG]})
    worker.give_back(refused, Failure("credential_invalid", "no"), accepted=False)
    await worker.pool.rest(known[LONG], 7200, "large")
    listed = (await sluice("list", "OpenAI")).output
    assert LONG not in listed and "short" not in listed
    first = next(line for line in listed.splitlines() if known[LONG] in line)
    assert all(word in first for word in ("***0123", "settings", "rests 2.0 h for large", " 1 "))
    second = next(line for line in listed.splitlines() if known["short"] in line)
    assert "*** " in second and "refused by the upstream, tried again in 10 min" in second
    worker.give_back(lease)


async def test_adds_for_all_workers_and_removes(sluice, office: Office) -> None:
    worker = await office.hire(Keyed("a"))
    added = await sluice("add", "openai", "--extra", "device=d-1", typed=LONG + "\n")
    assert added.exit_code == 0 and LONG not in added.output
    leases = {lease.credential.secret: lease for lease in [await worker.lease(), await worker.lease()]}
    assert leases[LONG].credential.extra == {"device": "d-1"}
    known = await ids(worker)
    assert (await sluice("remove", "openai", known[LONG][:6])).output == f"Removed {known[LONG]}.\n"
    assert set(await ids(worker)) == {"a"}
    kept = await sluice("remove", "openai", known["a"])
    assert isinstance(kept.exception, PoolTrouble) and "settings of a running worker" in str(kept.exception)


@pytest.mark.parametrize("typed", ["", "\n", "two words\n", "schlüssel\n"])
async def test_refuses_what_is_no_secret(sluice, office: Office, typed: str) -> None:
    assert isinstance((await sluice("add", "openai", typed=typed)).exception, PoolTrouble)


async def test_lets_one_rest_and_ends_that(sluice, office: Office) -> None:
    worker = await office.hire(Keyed("a"))
    (who,) = (await ids(worker)).values()
    assert "rests for 10 min" in (await sluice("rest", "openai", who[:5], "--seconds", "600")).output
    with pytest.raises(GatewayError):
        await worker.lease()
    assert "not rest" in (await sluice("rest", "openai", who, "--seconds", "0")).output
    assert await worker.lease()
    nobody = await sluice("rest", "openai", "zzzz")
    assert isinstance(nobody.exception, PoolTrouble) and "No credential" in str(nobody.exception)


async def test_has_them_tested_by_a_worker(sluice, office: Office) -> None:
    provider = Sound("good", "bad")
    worker = await office.hire(provider)
    known = await ids(worker)
    worker.give_back(await worker.lease(tried={known["bad"]}), Failure("billing", "unpaid"), accepted=False)
    assert (await sluice("test", "openai", known["good"])).exit_code == 0
    assert (await worker.lease(tried={known["bad"]})).credential.secret == "good", "it counts at once"
    provider.bad = frozenset({"bad"})
    both = await sluice("test", "openai")
    assert both.exit_code == 1
    assert set(both.output.splitlines()) == {
        f"{known['good']}: the upstream accepts it",
        f"{known['bad']}: credential_invalid: It does not know this key.",
    }


async def test_without_a_worker_nothing_is_tested(sluice, office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.pool.TEST_SECONDS", 0.2)
    await sluice("add", "openai", typed=LONG)
    nobody = await sluice("test", "openai")
    assert isinstance(nobody.exception, PoolTrouble) and "No worker of openai has answered" in str(nobody.exception)


async def test_without_redis_one_sentence(sluice, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.pool.START_SECONDS", 0.2)
    redis_server.kill()
    nothing = await sluice("list", "openai")
    assert isinstance(nothing.exception, PoolTrouble) and "Redis" in str(nothing.exception)


def test_words_for_people() -> None:
    assert [duration(seconds) for seconds in (0, 89, 90, 5399, 5400)] == ["0 s", "89 s", "2 min", "90 min", "1.5 h"]
    assert [masked(one) for one in (None, Opened("sk-short"), Opened(LONG))] == [
        "sealed with another key",
        "***",
        "***0123",
    ]
