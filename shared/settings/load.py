"""From the environment to the settings of one process, or to one error that lists everything that is wrong.

1. read every setting of every process (a typo is told wherever it is found first);
2. check what concerns two settings at once;
3. only if all is well: complete what Sluice makes itself (keys in the state directory).
"""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from shared.redis.address import Address
from shared.settings import state
from shared.settings.kinds import SOCKET_URL, Listen, is_loopback
from shared.settings.model import FrontendSettings, ProviderSettings, SharedSettings, WorkerSettings
from shared.settings.problems import Problem, SettingsError, shown
from shared.settings.providers import CUSTOM_DEADLINES, KEYLESS, KNOWN, Deadlines, KnownProvider, canonical
from shared.settings.row import Row
from shared.settings.secret import Secret
from shared.settings.source import (
    DOTENV,
    Source,
    custom_provider_rows,
    forget_secrets,
    known_provider_rows,
    process_environment,
)

LOCAL_REDIS = "redis://127.0.0.1:6379/0"
SHORTEST_OPEN_API_KEY = 16
"""Characters; shorter keys are accepted only where nobody but this machine can connect."""


@dataclass(frozen=True, kw_only=True)
class UpSettings:
    """What the supervisor needs: the frontend's settings, every configured provider, whether Redis is given, and where the
    first worker's metrics are."""

    frontend: FrontendSettings
    providers: tuple[ProviderSettings, ...]
    redis_is_given: bool
    worker_metrics_listen: Listen | None = None


def load_frontend(environ: Mapping[str, str] | None = None, dotenv: Path | None = DOTENV) -> FrontendSettings:
    """The settings of a frontend; without `environ` those of this process, whose secrets then leave `os.environ`.

    Raises:
        SettingsError: with every problem at once.
    """
    found = _Everything(environ, dotenv)
    found.check_callers(generate=False)
    found.refuse()
    settings = found.frontend(generate=False)
    if environ is None:
        forget_secrets()
    return settings


def load_worker(
    provider: str, environ: Mapping[str, str] | None = None, dotenv: Path | None = DOTENV
) -> WorkerSettings:
    """The settings of a worker of `provider` (any spelling, aliases too); otherwise as `load_frontend`.

    Raises:
        SettingsError: with every problem at once, also if the provider is unknown or has no key.
    """
    found = _Everything(environ, dotenv)
    upstream = found.provider(provider)
    found.refuse()
    settings = WorkerSettings(**found.completed(WorkerSettings), provider=upstream)
    if environ is None:
        forget_secrets()
    return settings


def check(environ: Mapping[str, str] | None = None, dotenv: Path | None = DOTENV) -> list[Problem]:
    """What would keep a gateway from starting on this machine; makes nothing."""
    found = _Everything(environ, dotenv)
    found.report_unfinished()
    found.check_callers(generate=True)
    return found.problems


def load_up(environ: Mapping[str, str] | None = None, dotenv: Path | None = DOTENV) -> UpSettings:
    """The settings of a whole gateway on this machine; an API key is made if there is none. Leaves `os.environ` alone.

    Raises:
        SettingsError: with every problem at once.
    """
    found = _Everything(environ, dotenv)
    found.report_unfinished()
    found.check_callers(generate=True)
    found.refuse()
    return UpSettings(
        frontend=found.frontend(generate=True),
        providers=tuple(found.configured.values()) or (found.keyless(),),
        redis_is_given=found.redis_is_given,
        worker_metrics_listen=found.values[WorkerSettings]["metrics_listen"],
    )


def configured_providers(environ: Mapping[str, str] | None = None, dotenv: Path | None = DOTENV) -> list[str]:
    """Names of the providers that have a key, then of those that SLUICE_PROVIDER_… define; `["echo"]` if there are none.

    Raises:
        SettingsError: with every problem at once.
    """
    found = _Everything(environ, dotenv)
    found.report_unfinished()
    found.refuse()
    return list(found.configured) or [KEYLESS]


class _Everything:
    """All settings of all processes, read and checked; `refuse()` raises if any of it is wrong."""

    def __init__(self, environ: Mapping[str, str] | None, dotenv: Path | None) -> None:
        self.source = Source(process_environment() if environ is None else environ, dotenv)
        self.problems = self.source.problems
        self.values: dict[type, dict[str, Any]] = {
            settings_class: self.source.values(settings_class) for settings_class in (FrontendSettings, WorkerSettings)
        }
        # Fields that both classes have were read twice; each of their problems is told once.
        self.problems[:] = dict.fromkeys(self.problems)
        self.state = state.StateDir(self.values[FrontendSettings]["state_dir"])
        self.redis_is_given = self.values[FrontendSettings]["redis_url"] is not None
        self.known_rows = {known.name: known_provider_rows(known) for known in KNOWN.values()}
        self.custom_rows = {
            name: custom_provider_rows(prefix, name) for name, prefix in self.source.custom_providers().items()
        }
        self.known: dict[str, ProviderSettings] = {}
        self.unfinished: dict[str, Sequence[str]] = {}
        self.configured = self._read_providers()
        self.problems.extend(self.source.unknown_names())
        self._check_redis()
        for provider in self.configured.values():
            self._check_addresses(provider)

    def problem(self, name: str, sentence: str) -> None:
        self.problems.append(Problem(name, sentence))

    def refuse(self) -> None:
        if self.problems:
            raise SettingsError(self.problems)

    # Providers

    def _read_providers(self) -> dict[str, ProviderSettings]:
        configured: dict[str, ProviderSettings] = {}
        for name, known in KNOWN.items():
            provider = self.known[name] = self._read_known(known)
            missing = [field for field in known.required if self.source.find(self.known_rows[name][field]) is None]
            complete = provider.keys or (known.required and not missing)
            if known.required and missing and len(missing) < len(known.required):
                self.unfinished[name] = missing
            if complete or (provider.takes_callers_keys and provider.options["caller_keys"]):
                self._check_known(known, provider)
                configured[name] = provider
        for name, named_rows in self.custom_rows.items():
            values = {field: self.source.value(row) for field, row in named_rows.items()}
            if not values["base_url"] and self.source.find(named_rows["base_url"]) is None:
                self.problem(named_rows["base_url"].name, "expected the server's address, got nothing")
            values["calls_per_credential"] = values["calls_per_credential"] or 0
            chosen = bool(values["models"])
            configured[name] = ProviderSettings(
                name=name, deadlines=self._patience(CUSTOM_DEADLINES), chosen_models=chosen, **values
            )
        return configured

    def _read_known(self, known: KnownProvider) -> ProviderSettings:
        values = {field: self.source.value(row) for field, row in self.known_rows[known.name].items()}
        options = {field: values.pop(field) for field in known.options}
        values.setdefault("keys", ())
        chosen = bool(values["models"])
        values["base_url"] = known.complete(values["base_url"] or known.base_url)
        values["models"] = values["models"] or known.models
        if values["calls_per_credential"] is None:
            values["calls_per_credential"] = known.calls_per_credential
        switch = options.get("caller_keys")
        return ProviderSettings(
            name=known.name,
            deadlines=self._patience(known.deadlines),
            chosen_models=chosen,
            options=options,
            takes_callers_keys=known.takes_callers_keys and (not values["keys"] if switch is None else switch),
            **values,
        )

    def _check_known(self, known: KnownProvider, provider: ProviderSettings) -> None:
        """What this upstream needs beside a key."""
        named_rows = self.known_rows[known.name]
        if not provider.base_url and self.source.find(named_rows["base_url"]) is None:
            self.problem(named_rows["base_url"].name, "expected the server's address, got nothing")
        least, most = (provider.options.get(f"{end}_credentials", 0) for end in ("min", "max"))
        if least > most:
            name = named_rows["min_credentials"].name
            self.problem(name, f"expected {named_rows['max_credentials'].name}={most} at most, got {least}")
        for field in known.one_per_key:
            count, wanted = len(provider.options[field]), len(provider.keys)
            if count != wanted and not any(problem.name == named_rows[field].name for problem in self.problems):
                got = f"{count} of them" if count else "nothing"
                each = "one value" if wanted == 1 else f"{wanted} values, as many as there are"
                self.problem(named_rows[field].name, f"expected {each} for {known.key_name}, got {got}")

    def report_unfinished(self) -> None:
        """Complain about upstreams that some settings are for and some are missing: for who sees all, not for a process that
        was started without the secrets that are none of its business."""
        for name, missing in self.unfinished.items():
            self._report_missing(name, missing)

    def _report_missing(self, name: str, missing: Iterable[str]) -> None:
        for row in map(self.known_rows[name].__getitem__, missing):
            self.problem(row.name, f"expected {row.kind.expects}, got nothing")

    def _patience(self, usual: Deadlines) -> Deadlines:
        given = self.values[WorkerSettings]
        wanted = {name: given[name] for name in ("first_token_seconds", "silence_seconds", "total_seconds")}
        return dataclasses.replace(usual, **{name: value for name, value in wanted.items() if value is not None})

    def keyless(self) -> ProviderSettings:
        return ProviderSettings(
            name=KEYLESS,
            keys=(),
            base_url="",
            models=(),
            calls_per_credential=0,
            deadlines=self._patience(CUSTOM_DEADLINES),
        )

    def provider(self, spelled: str) -> ProviderSettings:
        name = canonical(spelled)
        if name in self.configured:
            return self.configured[name]
        if name in KNOWN and self.known[name].takes_callers_keys:
            self._check_addresses(self.known[name])
            return self.known[name]
        if name in KNOWN and KNOWN[name].required:
            self._report_missing(name, self.unfinished.get(name, KNOWN[name].required))
        elif name in KNOWN:
            self.problem(KNOWN[name].key_name, f"expected a key, got nothing (a worker of {name} was asked for)")
        elif name != KEYLESS:
            names = [*KNOWN, KEYLESS, *self.custom_rows]
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]}?" if near else "SLUICE_PROVIDER_<NAME>_BASE_URL defines another"
            self.problem("provider", f"expected one of {', '.join(names)}, got {shown(spelled, False)}; {hint}")
        return self.keyless()

    # Checks of two settings at once

    def _check_redis(self) -> None:
        values = self.values[FrontendSettings]
        if not self.redis_is_given:
            return
        address = Address.parse(values["redis_url"].reveal())
        if address.path is not None or is_loopback(address.host):
            return
        if not address.password and not values["allow_open_redis"]:
            self.problem(
                "REDIS_URL", "expected a password for a Redis on another machine, or SLUICE_ALLOW_OPEN_REDIS=on"
            )
        if not values["secret_keys"] and not any(problem.name == "SLUICE_SECRET_KEY" for problem in self.problems):
            self.problem(
                "SLUICE_SECRET_KEY",
                "expected one key for all machines, since Redis is not on this one; `openssl rand -hex 32` makes one",
            )

    def _check_addresses(self, provider: ProviderSettings) -> None:
        named_rows = self.known_rows.get(provider.name) or self.custom_rows[provider.name]
        self._check_address(named_rows["base_url"], provider.base_url)
        for field, value in provider.options.items():
            if named_rows[field].kind is SOCKET_URL:
                self._check_address(named_rows[field], value)

    def _check_address(self, row: Row, address: str) -> None:
        url = urlsplit(address)
        local = is_loopback(url.hostname or "")
        safe = {"http": "https", "ws": "wss"}.get(url.scheme)
        if safe and not local and not self.values[WorkerSettings]["allow_http_upstreams"]:
            self.problem(
                row.name, f"expected {safe}:// (or SLUICE_ALLOW_HTTP_UPSTREAMS=on), got {shown(address, False)}"
            )
        if local and url.port == self.values[FrontendSettings]["port"]:
            self.problem(row.name, f"expected an upstream, got {shown(address, False)}, which is this gateway itself")

    def check_callers(self, *, generate: bool) -> None:
        """Nobody is let in by accident: `generate` says whether a missing key will be made."""
        values = self.values[FrontendSettings]
        local = is_loopback(values["host"])
        told = any(problem.name == "SLUICE_API_KEY" for problem in self.problems)
        if values["auth"] == "off":
            if not local:
                self.problem(
                    "SLUICE_AUTH",
                    f"expected on, because SLUICE_HOST={values['host']} lets other machines connect, got 'off'",
                )
        elif values["api_keys"]:
            if not local and any(len(key) < SHORTEST_OPEN_API_KEY for key in values["api_keys"]):
                self.problem(
                    "SLUICE_API_KEY",
                    f"expected {SHORTEST_OPEN_API_KEY} characters or more, because other machines can connect, got ***",
                )
        elif not generate and not told and not self.passes_through and self._stored(state.API_KEY) is None:
            self.problem(
                "SLUICE_API_KEY",
                "expected the key that callers present, got nothing; set it, or let `sluice up` or `sluice keys` make one",
            )

    @property
    def passes_through(self) -> bool:
        """Whether callers can only use keys of their own: there is nothing that a key of this gateway would open."""
        return bool(self.configured) and all(
            provider.takes_callers_keys and not provider.keys for provider in self.configured.values()
        )

    # What Sluice makes itself

    def _stored(self, name: str) -> str | None:
        try:
            return self.state.read(name)
        except state.StateError as error:
            self.problem("SLUICE_STATE_DIR", str(error))
            return ""

    def completed(self, settings_class: type[SharedSettings]) -> dict[str, Any]:
        """The values of a class with Redis and the secret key filled in."""
        values = dict(self.values[settings_class])
        try:
            if values["redis_url"] is None:
                values["redis_url"] = Secret(self.state.read(state.REDIS_URL) or LOCAL_REDIS)
            if not values["secret_keys"]:
                made, _ = self.state.read_or_create(state.SECRET_KEY, state.new_secret_key)
                values["secret_keys"] = (Secret(made),)
        except state.StateError as error:
            raise SettingsError([Problem("SLUICE_STATE_DIR", str(error))]) from error
        return values

    def frontend(self, *, generate: bool) -> FrontendSettings:
        values = self.completed(FrontendSettings)
        origin = "SLUICE_API_KEY"
        if values["auth"] == "off":
            values["api_keys"], origin = (), "SLUICE_AUTH=off"
        elif not values["api_keys"]:
            values["api_keys"], origin = self._kept_key()
        return FrontendSettings(**values, api_key_origin=origin)

    def _kept_key(self) -> tuple[tuple[Secret, ...], str]:
        """The key of the state directory, made now if it is needed, and where it comes from in words."""
        try:
            if self.passes_through and self.state.read(state.API_KEY) is None:
                return (), "this gateway has none itself"
            text, made = self.state.read_or_create(state.API_KEY, state.new_api_key)
        except state.StateError as error:
            raise SettingsError([Problem("SLUICE_STATE_DIR", str(error))]) from error
        return (Secret(text),), f"{'made now, kept' if made else 'kept'} in {self.state.path / state.API_KEY}"
