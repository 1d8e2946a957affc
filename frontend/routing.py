"""The order in which the routes of one request are tried: by tier, and within a tier by lot, each as its weight says."""

import random
from collections.abc import Callable, Iterable

from shared.settings.routes import RoutePlan, Tiers


def in_order(tiers: Tiers, serves: Callable[[RoutePlan], bool], chance: random.Random) -> Iterable[RoutePlan]:
    """Those routes that `serves` says yes to.

    Drawn without putting back: the second of a tier is drawn among those that are left, so each weight also says how much of
    the failing route's load a route takes over. With u uniform in (0, 1), sorting by -log(u) / weight draws exactly so, because
    the smallest of exponential variables is each one's with the probability of its share of the rates.
    """
    for tier in tiers:
        alive = [route for route in tier if serves(route)]
        yield from sorted(alive, key=lambda route: chance.expovariate(route.weight)) if len(alive) > 1 else alive
