"""Where a request may go: every provider that has the model, or what the settings say, in order and in proportion."""

import random
from collections import Counter

import pytest

from frontend.admission import Caller
from frontend.api.asking import _open_to
from frontend.routing import in_order
from shared.errors import GatewayError
from shared.schema.caller import ANYBODY, FOREIGN, MASTER, CallerKey
from shared.settings.routes import ROUTES, RoutePlan
from shared.settings.row import Expected
from tests.frontend.test_catalog import a_catalog, worker


def routes(catalog, asked, **options):
    return [f"{route.provider}/{route.model}" for route in catalog.routes(asked, **options)]


# --- the setting


def test_the_setting_is_read():
    read = ROUTES.read(
        " fast = 3*openai/gpt-4o-mini ; deepseek/deepseek-chat > kimi/kimi-k2 ,org/m:x=openai>huggingface/a/b "
    )
    assert dict(read) == {
        "fast": (
            (RoutePlan("openai", "gpt-4o-mini", 3), RoutePlan("deepseek", "deepseek-chat")),
            (RoutePlan("kimi", "kimi-k2"),),
        ),
        "org/m:x": ((RoutePlan("openai", "org/m:x"),), (RoutePlan("huggingface", "a/b"),)),
    }


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("fast", "routes such as"),
        ("fast=", "routes such as"),
        ("=openai", "routes such as"),
        ("a b=openai", "routes such as"),
        (",", "routes such as"),
        ("fast=openai>", "a provider or provider/model, perhaps with a weight such as 3*, for fast (not '')"),
        ("fast=Open AI", "for fast (not 'Open AI')"),
        ("fast=0*openai", "weights from 1 to 1000 (not 0, for fast)"),
        ("fast=1001*openai", "weights from 1 to 1000"),
        ("fast=openai>openai/fast", "each route of fast once"),
        ("fast=openai,fast=kimi", "each model once (fast is given twice)"),
        ("fast=" + ">".join(f"p{number}" for number in range(17)), "at most 16 routes for fast"),
    ],
)
def test_nonsense_is_refused_with_what_is_wrong(text, complaint):
    with pytest.raises(Expected) as refused:
        ROUTES.read(text)
    assert complaint in str(refused.value)


# --- by lot


def test_within_a_tier_routes_are_drawn_as_their_weights_say():
    tiers = ((RoutePlan("a", "m", 6), RoutePlan("b", "m", 3), RoutePlan("c", "m", 1)), (RoutePlan("d", "m"),))
    chance = random.Random(7)
    drawn = [tuple(plan.provider for plan in in_order(tiers, lambda plan: True, chance)) for _ in range(4000)]
    assert all(order[3] == "d" for order in drawn), "the next tier comes after all of the first"
    first = Counter(order[0] for order in drawn)
    assert [round(first[name] / 4000, 1) for name in "abc"] == [0.6, 0.3, 0.1]
    second = Counter(order[1] for order in drawn if order[0] == "a")
    assert second["b"] / (second["b"] + second["c"]) == pytest.approx(0.75, abs=0.04)


def test_routes_that_do_not_serve_are_left_out():
    tiers = ((RoutePlan("a", "m", 9), RoutePlan("b", "m")), (RoutePlan("c", "m"),))
    order = in_order(tiers, lambda plan: plan.provider != "a", random.Random(1))
    assert [plan.provider for plan in order] == ["b", "c"]


# --- the catalog


def test_every_provider_that_offers_the_model_is_a_route_in_the_order_of_today():
    catalog = a_catalog(worker("openai", "m", "n"), worker("kimi", "m"), worker("azure", "m", draining=True))
    assert routes(catalog, "m") == ["kimi/m", "openai/m", "azure/m"]
    assert routes(catalog, "n") == ["openai/n"]
    assert routes(catalog, "openai/m") == ["openai/m"], "a provider's name pins"
    assert catalog.resolve("m").provider == "kimi"


def test_the_settings_say_otherwise():
    plans = ROUTES.read("m=openai,fast=kimi/k>openai/m>gone/x")
    catalog = a_catalog(worker("openai", "m"), worker("kimi", "m", "k"), routes=plans, aliases={"quick": "fast"})
    assert routes(catalog, "m") == ["openai/m"]
    assert routes(catalog, "fast") == routes(catalog, "quick") == ["kimi/k", "openai/m"]
    assert routes(catalog, "kimi/m") == ["kimi/m"]
    assert [model.id for model in catalog.models()] == ["fast", "k", "m", "quick"]
    assert catalog.model("fast").owned_by == "kimi"
    assert [route.asked_model for route in catalog.routes("quick")] == ["quick", "quick"]


def test_routes_of_the_settings_whose_workers_are_away_are_unavailable_and_not_unknown():
    catalog = a_catalog(worker("echo", "echo"), routes=ROUTES.read("fast=openai/m"))
    with pytest.raises(GatewayError) as refused:
        catalog.routes("fast")
    assert refused.value.failure.kind == "provider_unavailable"
    assert [model.id for model in catalog.models()] == ["echo"]


def test_a_provider_that_takes_any_model_may_be_named_in_the_settings():
    catalog = a_catalog(worker("openai", accepts_any_model=True), routes=ROUTES.read("fast=openai/unlisted"))
    assert routes(catalog, "fast") == ["openai/unlisted"]


def test_what_a_caller_may_not_use_is_no_route():
    catalog = a_catalog(worker("openai", "m"), worker("kimi", "m"))
    assert routes(catalog, "m", allow=lambda route: route.provider == "openai") == ["openai/m"]
    with pytest.raises(GatewayError) as refused:
        catalog.routes("m", allow=lambda route: False)
    assert (refused.value.failure.kind, refused.value.failure.param) == ("model_not_found", "model")


def test_a_callers_own_upstream_key_has_one_route():
    """Nobody's key goes to another upstream than it was meant for."""
    catalog = a_catalog(
        worker("ours", "m"), worker("theirs", "m", caller_credentials=True), worker("z", "m", caller_credentials=True)
    )
    stranger = Caller("00000000", False, "sk-their-own", CallerKey(FOREIGN))
    known = Caller("11111111", True, "", CallerKey(MASTER))
    assert [route.provider for route in _open_to(stranger, catalog.routes("m"))] == ["theirs"]
    assert [route.provider for route in _open_to(known, catalog.routes("m"))] == ["ours", "theirs", "z"]
    open_door = Caller("22222222", True, "sk-their-own", CallerKey(ANYBODY))
    assert [route.provider for route in _open_to(open_door, catalog.routes("m"))] == ["ours", "theirs", "z"]
    assert [route.provider for route in _open_to(open_door, catalog.routes("theirs/m"))] == ["theirs"]
