"""The setting that says which providers serve a model, in which order and in which proportion.

    fast = 3*openai/gpt-4o-mini ; deepseek/deepseek-chat > kimi/kimi-k2 , gpt-4o = openai > huggingface

Tiers are separated by `>` and tried in this order. Within a tier the routes, separated by `;`, are drawn by lot, each as often
as its weight says (`3*`; one without). A route is `provider/model`, or a provider alone for a model of the same name.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from shared.settings.row import Expected, Kind

HEAVIEST: Final = 1000
MOST_ROUTES: Final = 16
"""Of one model."""

_ROUTE = re.compile(r"(?:(?P<weight>[0-9]+)\s*\*\s*)?(?P<provider>[a-z0-9][a-z0-9-]*)(?:/(?P<model>[^\s;>,*=]+))?")


class RoutePlan(NamedTuple):
    """One way to serve a model. `model`: the provider's own name for it."""

    provider: str
    model: str
    weight: int = 1


Tiers = tuple[tuple[RoutePlan, ...], ...]


def _read_routes(text: str) -> Mapping[str, Tiers]:
    routes: dict[str, Tiers] = {}
    for piece in filter(None, (part.strip() for part in text.split(","))):
        name, equals, plan = (part.strip() for part in piece.partition("="))
        if not equals or not name or not plan or not name.isprintable() or " " in name or len(name) > 128:
            raise Expected(ROUTES.expects)
        if name in routes:
            raise Expected(f"each model once ({name} is given twice)")
        routes[name] = _read_tiers(name, plan)
    if not routes:
        raise Expected(ROUTES.expects)
    return MappingProxyType(routes)


def _read_tiers(name: str, plan: str) -> Tiers:
    tiers = tuple(tuple(_read_route(name, route.strip()) for route in tier.split(";")) for tier in plan.split(">"))
    places = [(route.provider, route.model) for tier in tiers for route in tier]
    if len(set(places)) != len(places):
        raise Expected(f"each route of {name} once")
    if len(places) > MOST_ROUTES:
        raise Expected(f"at most {MOST_ROUTES} routes for {name}")
    return tiers


def _read_route(name: str, text: str) -> RoutePlan:
    found = _ROUTE.fullmatch(text)
    if not found:
        raise Expected(f"a provider or provider/model, perhaps with a weight such as 3*, for {name} (not {text!r})")
    weight = int(found["weight"] or 1)
    if not 1 <= weight <= HEAVIEST:
        raise Expected(f"weights from 1 to {HEAVIEST} (not {weight}, for {name})")
    return RoutePlan(found["provider"], found["model"] or name, weight)


ROUTES = Kind(
    "routes such as fast=3*openai/gpt-4o-mini;deepseek/deepseek-chat>kimi", _read_routes, empty=MappingProxyType({})
)
