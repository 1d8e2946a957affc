"""What a process that starts others hands on to each: everything except the secrets that are none of its business."""

from collections.abc import Mapping

from shared.settings.model import FrontendSettings, SharedSettings, WorkerSettings
from shared.settings.providers import KNOWN
from shared.settings.row import rows
from shared.settings.source import custom_provider_names, every_secret, known_provider_rows


def child_environment(environ: Mapping[str, str], *, provider: str | None) -> dict[str, str]:
    """`environ` for a worker of `provider`, or (None) for a frontend, without the secrets of all others."""
    process: type[SharedSettings] = FrontendSettings if provider is None else WorkerSettings
    needed = {row.name for row in rows(process).values()}
    if provider in KNOWN:
        needed |= {row.name for row in known_provider_rows(KNOWN[provider]).values()}
    customs = custom_provider_names(environ)
    needed |= {name for name, owner in customs.items() if owner == provider}
    withheld = every_secret(environ) - needed
    return {name: text for name, text in environ.items() if name not in withheld}
