"""Which models exist: names are resolved in one order, and what has just gone is unavailable, not unknown."""

import logging
from typing import ClassVar

import msgspec
import pytest
import trio

from frontend.catalog import REMEMBERED_MODELS, Catalog
from shared.errors import GatewayError
from shared.redis import keys
from shared.redis.address import Address
from shared.redis.failures import Refused
from shared.redis.link import Link
from shared.schema.advertisement import Model, WorkerAdvertisement
from shared.schema.job import PROTOCOL
from tests.waiting import until

OURS = "0011aabb"
OLDER = "22334455"


def worker(provider, *models, **more):
    facts = {"id": f"w-{provider}", "started": 100.0, "sealing_key": OURS} | more
    return WorkerAdvertisement(
        provider=provider,
        models=[model if isinstance(model, Model) else Model(model) for model in models],
        endpoints=["chat"],
        room=1,
        running=0,
        version="1",
        **facts,
    )


def a_catalog(*workers, aliases=None, default_model=None, link=None, routes=None):
    catalog = Catalog(
        link,
        [OURS, OLDER],
        aliases=aliases or {},
        default_model=default_model,
        started=1_700_000_000,
        routes=routes or {},
    )
    if workers:
        catalog.update(list(workers))
    return catalog


def where(catalog, asked):
    route = catalog.resolve(asked)
    return route.provider, route.model, route.asked_model


def refusal(catalog, asked):
    with pytest.raises(GatewayError) as refused:
        catalog.resolve(asked)
    failure = refused.value.failure
    return failure.kind, failure.param


# --- names


@pytest.mark.parametrize(
    ("asked", "provider", "model"),
    [
        ("gpt", "openai", "gpt"),
        ("openai/gpt", "openai", "gpt"),
        ("org/Model-3.1:fast", "hub", "org/Model-3.1:fast"),
        ("hub/org/Model-3.1:fast", "hub", "org/Model-3.1:fast"),
        ("hub/never/heard:of", "hub", "never/heard:of"),
        ("hub/a/b/c", "hub", "a/b/c"),
        ("kimi/latest", "kimi", "latest"),
    ],
)
def test_names_with_and_without_slashes(asked, provider, model):
    catalog = a_catalog(
        worker("openai", "gpt"),
        worker("hub", "org/Model-3.1:fast", accepts_any_model=True),
        worker("kimi", "latest"),
    )
    assert where(catalog, asked) == (provider, model, asked)


def test_an_alias_comes_before_a_model_and_a_model_before_a_provider():
    names = worker("openai", "gpt", "hub/small"), worker("hub", "small", accepts_any_model=True)
    assert where(a_catalog(*names), "hub/small") == ("openai", "hub/small", "hub/small")
    aliased = a_catalog(*names, aliases={"hub/small": "hub/big", "gpt": "small"})
    assert where(aliased, "hub/small") == ("hub", "big", "hub/small")
    assert where(aliased, "gpt") == ("hub", "small", "gpt")


def test_an_alias_leads_to_a_name_not_to_another_alias():
    catalog = a_catalog(worker("openai", "gpt"), aliases={"a": "b", "b": "gpt"})
    assert where(catalog, "b") == ("openai", "gpt", "b")
    assert refusal(catalog, "a") == ("model_not_found", "model")


@pytest.mark.parametrize("asked", [None, ""])
def test_the_default_model_serves_who_asks_for_none(asked):
    catalog = a_catalog(worker("openai", "gpt"), aliases={"usual": "gpt"}, default_model="usual")
    assert where(catalog, asked) == ("openai", "gpt", "usual")
    assert refusal(a_catalog(worker("openai", "gpt")), asked) == ("invalid_request", "model")


def test_two_providers_with_one_name():
    """The first in the alphabet serves it under its own name; both do under theirs."""
    catalog = a_catalog(worker("b", "same"), worker("a", "same"))
    assert where(catalog, "same") == ("a", "same", "same")
    assert where(catalog, "b/same") == ("b", "same", "b/same")


def test_workers_of_one_provider_add_up():
    """While settings are being rolled out, each worker may list something else."""
    catalog = a_catalog(
        worker("a", "old", id="1", started=1.0), worker("a", "new", id="2", started=2.0), worker("b", "new")
    )
    assert where(catalog, "a/old") == ("a", "old", "a/old")
    assert where(catalog, "a/new") == ("a", "new", "a/new")


def test_a_route_says_what_the_provider_wants():
    catalog = a_catalog(worker("a", "m", caller_credentials=True, total_seconds=99.0), worker("b", "n"))
    assert (catalog.resolve("m").caller_credentials, catalog.resolve("m").total_seconds) == (True, 99.0)
    assert not catalog.resolve("n").caller_credentials
    assert catalog.takes_callers_keys
    catalog.update([worker("b", "n")])
    assert not catalog.takes_callers_keys


# --- what is not there


@pytest.mark.parametrize(
    "asked", ["unknown", "openai", "openai/", "openai/unknown", "/gpt", "unknown/gpt", "GPT", " gpt", "x" * 500]
)
def test_unknown_models(asked):
    catalog = a_catalog(worker("openai", "gpt"))
    assert refusal(catalog, asked) == ("model_not_found", "model")


def test_a_long_name_is_not_repeated_whole():
    with pytest.raises(GatewayError) as refused:
        a_catalog(worker("a")).resolve("x" * 5000)
    assert len(refused.value.failure.message) < 300


def test_what_was_served_a_moment_ago_is_unavailable():
    catalog = a_catalog(worker("openai", "gpt"), worker("hub", accepts_any_model=True), aliases={"usual": "gpt"})
    catalog.update([])
    for asked in ("gpt", "usual", "openai/gpt", "openai/anything", "hub/some/model"):
        assert refusal(catalog, asked) == ("provider_unavailable", None), asked
    for asked in ("unknown", "openai", "hub", "other/model"):
        assert refusal(catalog, asked) == ("model_not_found", "model"), asked
    assert not catalog.alive("openai")


def test_a_live_provider_that_does_not_know_a_model_is_not_unavailable():
    catalog = a_catalog(worker("openai", "gpt"), worker("hub", "small"))
    catalog.update([worker("openai", "gpt")])
    assert refusal(catalog, "openai/unknown") == ("model_not_found", "model")
    assert refusal(catalog, "hub/unknown") == ("provider_unavailable", None)


def test_memory_of_names_is_bounded():
    catalog = a_catalog()
    for batch in range(0, REMEMBERED_MODELS + 500, 500):
        catalog.update([worker("a", *(f"m{number}" for number in range(batch, batch + 500)))])
    catalog.update([])
    assert refusal(catalog, "m0") == ("provider_unavailable", None)
    assert refusal(catalog, f"m{REMEMBERED_MODELS + 400}") == ("model_not_found", "model")
    assert refusal(catalog, f"a/m{REMEMBERED_MODELS + 400}") == ("provider_unavailable", None), (
        "its provider is remembered"
    )


# --- who counts


@pytest.mark.parametrize("odd", [{"protocol": PROTOCOL + 1}, {"sealing_key": "deadbeef"}])
def test_workers_that_cannot_talk_to_us_are_ignored_and_reported_once(odd, caplog):
    catalog = a_catalog()
    with caplog.at_level(logging.ERROR, "frontend.catalog"):
        for _ in range(3):
            catalog.update([worker("a", "m", id="odd", **odd), worker("b", "n")])
    assert refusal(catalog, "m") == ("model_not_found", "model")
    assert where(catalog, "n") == ("b", "n", "n")
    assert [one.provider for one in catalog.workers] == ["b"]
    assert len(caplog.records) == 1
    assert "SLUICE_SECRET_KEY" in caplog.text


def test_a_draining_worker_counts_only_while_there_is_no_other():
    leaving, fresh = worker("a", "old", id="1", draining=True, caller_credentials=True), worker("a", "new", id="2")
    catalog = a_catalog(leaving, fresh)
    assert refusal(catalog, "old") == ("model_not_found", "model")
    assert not catalog.resolve("new").caller_credentials
    catalog.update([leaving])
    assert where(catalog, "old") == ("a", "old", "old")
    assert len(catalog.workers) == 1


# --- what is listed


def test_the_list_of_models():
    catalog = a_catalog(
        worker("b", Model("m2", 5, "someone", 1000)),
        worker("a", "m1"),
        aliases={"usual": "m1", "dangling": "gone", "m2": "m1"},
    )
    assert catalog.models() == [
        Model("m1", 1_700_000_000, "a"),
        Model("m2", 5, "someone", 1000),
        Model("usual", 1_700_000_000, "a"),
    ]


def test_one_model_by_any_name():
    catalog = a_catalog(worker("hub", Model("org/m", 5), accepts_any_model=True), aliases={"usual": "org/m"})
    assert catalog.model("org/m") == Model("org/m", 5, "hub")
    assert catalog.model("usual") == Model("usual", 1_700_000_000, "hub")
    assert catalog.model("hub/other") == Model("hub/other", 1_700_000_000, "hub")
    with pytest.raises(GatewayError, match="model_not_found"):
        catalog.model("other")


# --- from Redis


async def test_it_reads_who_is_alive_and_survives_what_it_cannot_read(redis_server, nursery, caplog, monkeypatch):
    monkeypatch.setattr(keys, "REFRESH_SECONDS", 0.01)
    link = Link(Address.parse(redis_server.url), timeout_seconds=0.5)
    await nursery.start(link.run)
    catalog = a_catalog(link=link)
    assert not catalog.read_once
    nursery.start_soon(catalog.run)
    client = redis_server.client

    def advertise(worker_id, text):
        client.set(keys.alive("worker", worker_id), text)
        client.sadd(keys.ALIVE, f"worker:{worker_id}")

    def has(*models):
        return lambda: [model.id for model in catalog.models()] == list(models)

    await until(lambda: catalog.read_once)
    advertise("1", msgspec.json.encode(worker("a", "m")))
    await until(has("m"))
    for number, garbage in enumerate([b"{", b"{}", b"\xff", b'{"id": "\xff"}', b"[1]", b""]):
        advertise(f"bad{number}", garbage)
    advertise("2", msgspec.json.encode(worker("b", "n")))
    await until(has("m", "n"))
    client.set(keys.ALIVE, "not a set")
    await until(lambda: "cannot read who is alive" in caplog.text)
    assert has("m", "n")()
    redis_server.kill()
    await until(lambda: not link.up)
    redis_server.restart()
    advertise("3", msgspec.json.encode(worker("c", "o")))
    await until(has("o"))
    nursery.cancel_scope.cancel()


async def test_a_redis_that_was_back_before_the_next_look_makes_no_model_vanish(redis_server, nursery, monkeypatch):
    """The link was renewed between two looks, so that no look has failed; the advertisements are lost all the same."""
    monkeypatch.setattr(keys, "REFRESH_SECONDS", 0.2)
    link = Link(Address.parse(redis_server.url), timeout_seconds=0.5)
    await nursery.start(link.run)
    catalog = a_catalog(link=link)
    nursery.start_soon(catalog.run)
    redis_server.client.set(keys.alive("worker", "w-lab"), msgspec.json.encode(worker("lab", "m")))
    redis_server.client.sadd(keys.ALIVE, "worker:w-lab")
    await until(lambda: catalog.alive("lab"))
    looks = []
    monkeypatch.setattr(catalog, "update", lambda workers: looks.append([one.provider for one in workers]))
    redis_server.client.flushall()
    redis_server.client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    await until(lambda: len(looks) >= 3)
    assert looks == [["lab"]] * len(looks)
    nursery.cancel_scope.cancel()


async def test_an_answer_that_makes_no_sense_does_not_make_it_ask_without_end(nursery, autojump_clock):
    """A refusal leaves the link up, so waiting for the link would be no wait at all."""
    asked = 0

    class Refusing:
        on_up: ClassVar = []

        async def call(self, *command):
            nonlocal asked
            asked += 1
            await trio.lowlevel.checkpoint()
            raise Refused("LOADING Redis is loading the dataset in memory")

        async def wait_up(self):
            await trio.lowlevel.checkpoint()

    catalog = a_catalog(link=Refusing())
    nursery.start_soon(catalog.run)
    await trio.sleep(5.5)
    assert asked == 6
    nursery.cancel_scope.cancel()


def test_workers_stay_in_reach_while_the_secret_key_is_rotated():
    """First every process learns the new key beside the old one, then the order changes, then the old one goes."""
    catalog = a_catalog(worker("openai", "m", sealing_key=OLDER, opens=[OLDER, OURS]))
    assert catalog.resolve("m").provider == "openai"
    deaf = a_catalog(worker("openai", "m", sealing_key=OLDER))
    assert not deaf.alive("openai")


async def test_what_upstreams_list_comes_after_what_somebody_has_named(redis_server, nursery, monkeypatch):
    monkeypatch.setattr(keys, "REFRESH_SECONDS", 0.01)
    monkeypatch.setattr("frontend.catalog.LISTS_SECONDS", 0.02)
    link = Link(Address.parse(redis_server.url), timeout_seconds=0.5)
    await nursery.start(link.run)
    catalog = a_catalog(link=link)
    nursery.start_soon(catalog.run)
    client = redis_server.client

    def lists(provider, *names):
        client.set(keys.models(provider), msgspec.json.encode([Model(name) for name in names]))

    for provider in ("hub", "lab"):
        ours = worker(provider, *(["named"] if provider == "lab" else []), accepts_any_model=True)
        client.set(keys.alive("worker", provider), msgspec.json.encode(ours))
        client.sadd(keys.ALIVE, f"worker:{provider}")
    lists("hub", "named", "lab/named", "lab/other", "found")
    await until(lambda: len(catalog.models()) == 3)
    assert where(catalog, "found") == ("hub", "found", "found")
    assert where(catalog, "named") == ("lab", "named", "named")
    assert where(catalog, "lab/named") == ("lab", "named", "lab/named")
    assert where(catalog, "lab/other") == ("hub", "lab/other", "lab/other")
    client.set(keys.models("hub"), b"garbage")
    lists("lab", "fresh")
    await until(lambda: "fresh" in {model.id for model in catalog.models()})
    assert where(catalog, "found") == ("hub", "found", "found")
    client.delete(keys.alive("worker", "hub"))
    await until(lambda: not catalog.alive("hub"))
    assert refusal(catalog, "found") == ("provider_unavailable", None)
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("name", ["m\x1b[2J", "m\x9b31m", "m\r\nx", "m\u202e", "free/m\x07"])
def test_names_that_would_do_something_to_a_terminal_are_nobodys(name):
    catalog = a_catalog(worker("free", accepts_any_model=True), aliases={})
    assert where(catalog, "free/m") == ("free", "m", "free/m")
    for asked in (name, f"free/{name}"):
        assert refusal(catalog, asked) == ("model_not_found", "model")
