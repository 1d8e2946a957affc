"""Finds providers by name: the modules in `workers/providers/`, other people's packages, and rows from the settings.

A provider's module offers `PROVIDERS`, factories by provider name. An installed package offers factories through the
entry-point group `sluice.providers`, one entry for each provider, whose name is the provider's. What neither knows is an
OpenAI-compatible upstream that the settings alone describe.
"""

import importlib
import pkgutil
from importlib.metadata import entry_points
from typing import Any, Final

from shared.settings import ProviderSettings, Secret, WorkerSettings, split_model
from shared.version import VERSION
from workers import providers
from workers.provider import Credential, Factory, Provider, Timeouts, Upstream
from workers.providers.openai_compatible import row

GROUP: Final = "sluice.providers"


def factories() -> dict[str, Factory]:
    """All known providers by name. A package may replace one of ours."""
    found: dict[str, Factory] = {}
    for module in pkgutil.iter_modules(providers.__path__):
        found |= importlib.import_module(f"{providers.__name__}.{module.name}").PROVIDERS
    for entry in entry_points(group=GROUP):
        found[entry.name] = entry.load()
    return found


def build(settings: WorkerSettings) -> Provider:
    """The provider that the settings describe, with its keys, models and patience."""
    upstream = _upstream(settings.provider, drops_unsupported=settings.unsupported_parameters == "drop")
    return factories().get(upstream.name, row)(upstream)


def _upstream(settings: ProviderSettings, *, drops_unsupported: bool) -> Upstream:
    deadlines = settings.deadlines
    models = [split_model(text) for text in settings.models]
    return Upstream(
        settings.name,
        settings.base_url,
        [Credential(str(position), key.reveal()) for position, key in enumerate(settings.keys)],
        [public for public, _ in models],
        Timeouts(
            deadlines.connect_seconds,
            deadlines.first_token_seconds,
            deadlines.silence_seconds,
            deadlines.total_seconds,
        ),
        {name: _revealed(value) for name, value in settings.options.items()},
        f"sluice/{VERSION}",
        {public: own for public, own in models if own != public},
        drops_unsupported,
        settings.takes_callers_keys,
        settings.calls_per_credential,
    )


def _revealed(value: Any) -> Any:
    """The value of an option, without the wrapping of secrets."""
    if isinstance(value, Secret):
        return value.reveal()
    return tuple(map(_revealed, value)) if isinstance(value, tuple) else value
