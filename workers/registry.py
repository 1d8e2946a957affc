"""Finds providers by name: the modules in `workers/providers/`, other people's packages, and rows from the settings.

A provider's module offers `PROVIDERS`, factories by provider name. An installed package offers factories through the
entry-point group `sluice.providers`, one entry for each provider, whose name is the provider's. What neither knows is an
OpenAI-compatible upstream that the settings alone describe.
"""

import hashlib
import importlib
import pkgutil
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Final

from shared.settings import ProviderSettings, WorkerSettings
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
    options = {"bill_to": settings.hf_bill_to} if settings.hf_bill_to else {}
    upstream = _upstream(settings.provider, options)
    return factories().get(upstream.name, row)(upstream)


def _upstream(settings: ProviderSettings, options: Mapping[str, str]) -> Upstream:
    deadlines = settings.deadlines
    return Upstream(
        settings.name,
        settings.base_url,
        [Credential(_fingerprint(key.reveal()), key.reveal()) for key in settings.keys],
        settings.models,
        Timeouts(
            deadlines.connect_seconds,
            deadlines.first_token_seconds,
            deadlines.silence_seconds,
            deadlines.total_seconds,
        ),
        options,
        f"sluice/{VERSION}",
    )


def _fingerprint(secret: str) -> str:
    """A name for a key that may be logged: the same in every worker, and of no use to find the key."""
    return hashlib.sha256(secret.encode()).hexdigest()[:8]
