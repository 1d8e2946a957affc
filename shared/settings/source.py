"""Where settings come from: the environment, then `.env` in the working directory, then files that `*_FILE` names."""

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shared.settings import dotenv
from shared.settings.model import PROCESSES, ProviderSettings
from shared.settings.problems import Problem, shown
from shared.settings.providers import CUSTOM_PREFIX, KEYLESS, KNOWN, KnownProvider, canonical
from shared.settings.row import Expected, Row, rows

DOTENV = Path(".env")

_CUSTOM_NAME = re.compile(
    rf"{CUSTOM_PREFIX}([A-Za-z0-9_]+?)_(BASE_URL|API_KEY|API_KEY_FILE|MODELS|CALLS_PER_CREDENTIAL)"
)
_SURELY_A_TYPO = 0.9


@dataclass(frozen=True, slots=True)
class Found:
    """A text and where it stands: "environment", ".env line 3" or a file's path."""

    text: str
    origin: str


class Source:
    """All variables that a process can see, and the problems that came up while they were read."""

    def __init__(self, environ: Mapping[str, str], dotenv_path: Path | None) -> None:
        self.problems: list[Problem] = []
        self._found: dict[str, Found] = {}
        self._from_file: set[str] = set()
        if dotenv_path is not None:
            self._read_dotenv(dotenv_path)
        for name, text in environ.items():
            if text.strip():  # an empty variable says nothing; that of `.env` counts then
                self._found[name] = Found(text.strip(), "environment")
                self._from_file.discard(name)

    def _read_dotenv(self, path: Path) -> None:
        try:
            content = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return
        except (OSError, UnicodeDecodeError):
            self.problems.append(Problem(str(path), "expected a readable UTF-8 text file"))
            return
        entries, problems = dotenv.parse(content, path.name)
        self.problems += problems
        for name, entry in entries.items():
            if entry.text.strip():
                self._found[name] = Found(entry.text.strip(), f"{path.name} line {entry.line}")
                self._from_file.add(name)

    def find(self, row: Row) -> Found | None:
        """The text of one setting, None if it is not set. A secret may stand in a file that `<NAME>_FILE` names."""
        direct = self._found.get(row.name)
        named = self._found.get(row.file_name) if row.secret else None
        if named is None:
            return direct
        if direct is not None:
            self.problems.append(Problem(row.name, f"expected either {row.name} or {row.file_name}, got both"))
            return direct
        try:
            return Found(Path(named.text).read_text(encoding="utf-8").strip(), named.text)
        except (OSError, UnicodeDecodeError):
            self.problems.append(Problem(row.file_name, f"expected a readable file, got {shown(named.text, False)}"))
            return None

    def value(self, row: Row) -> Any:
        """The value of one setting; its default (and a problem) if the text does not fit."""
        found = self.find(row)
        text = found.text if found else row.default
        if text:
            try:
                return row.kind.read(text)
            except Expected as error:
                expectation = str(error)
            except ValueError:
                expectation = row.kind.expects
            origin = f" ({found.origin})" if found and found.origin != "environment" else ""
            self.problems.append(Problem(row.name, f"expected {expectation}, got {shown(text, row.secret)}{origin}"))
            return row.kind.read(row.default) if row.default else row.kind.empty
        return row.kind.empty

    def values(self, settings_class: type) -> dict[str, Any]:
        """The values of all settings of a class, by field name."""
        return {field: self.value(row) for field, row in rows(settings_class).items()}

    def custom_providers(self) -> dict[str, str]:
        """Provider name -> prefix of its variables, for the servers that SLUICE_PROVIDER_<NAME>_… define."""
        prefixes: dict[str, str] = {}
        for name in sorted(self._found):
            match = _CUSTOM_NAME.fullmatch(name)
            if match is None:
                continue
            provider = canonical(match[1])
            if provider in KNOWN or provider == KEYLESS:
                self.problems.append(Problem(name, f"expected a name of its own, but {provider} ships with Sluice"))
            else:
                prefixes[provider] = CUSTOM_PREFIX + match[1]
        return prefixes

    def unknown_names(self) -> Iterator[Problem]:
        """A problem for each SLUICE_ variable that is no setting, and for each sure typo in `.env`."""
        known = [name for row in every_row() for name in ((row.name, row.file_name) if row.secret else (row.name,))]
        for name, found in self._found.items():
            if name in known or _CUSTOM_NAME.fullmatch(name):
                continue
            ours = name.startswith("SLUICE_")
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.6 if ours else _SURELY_A_TYPO)
            if ours or (near and name in self._from_file):
                hint = f"; did you mean {near[0]}?" if near else "; `sluice settings` lists them all"
                where = f" ({found.origin})" if name in self._from_file else ""
                yield Problem(name, f"is not a setting{where}{hint}")


def provider_rows(prefix: str, key_name: str, label: str) -> dict[str, Row]:
    """The settings of one provider, by field name of `ProviderSettings`."""

    def filled(text: str) -> str:
        return text.format(PREFIX=prefix, KEY=key_name, LABEL=label)

    return {
        field: Row(name=filled(row.name), kind=row.kind, meaning=filled(row.meaning), secret=row.secret)
        for field, row in rows(ProviderSettings).items()
    }


def known_provider_rows(provider: KnownProvider) -> dict[str, Row]:
    """The settings of a provider that ships, its own ones too."""
    usual = provider_rows(provider.prefix, provider.key_name, provider.name)
    if provider.key_name:
        usual["keys"] = replace(usual["keys"], kind=provider.key_kind)
    else:
        del usual["keys"]
    for field, name in provider.names.items():
        usual[field] = replace(usual[field], name=name)
    usual["models"] = replace(usual["models"], meaning=f"{usual['models'].meaning} {provider.models_note}".strip())
    return {**usual, **provider.options}


def custom_provider_rows(prefix: str, label: str) -> dict[str, Row]:
    """The settings of a further OpenAI-compatible server."""
    return provider_rows(prefix, f"{prefix}_API_KEY", label)


def every_row() -> list[Row]:
    """Every setting with a fixed name, each once."""
    found: dict[str, Row] = {}
    for settings_class in PROCESSES:
        found |= {row.name: row for row in rows(settings_class).values()}
    for provider in KNOWN.values():
        found |= {row.name: row for row in known_provider_rows(provider).values()}
    return list(found.values())


def process_environment() -> Mapping[str, str]:
    """The environment of this process, as it is now."""
    return dict(os.environ)


def custom_provider_names(environ: Mapping[str, str]) -> dict[str, str]:
    """Variable -> provider, for all variables that belong to a provider of SLUICE_PROVIDER_<NAME>_…."""
    matches = ((name, _CUSTOM_NAME.fullmatch(name)) for name in environ)
    return {name: canonical(match[1]) for name, match in matches if match}


def every_secret(environ: Mapping[str, str]) -> set[str]:
    """The variables of `environ` that hold a secret."""
    fixed = {row.name for row in every_row() if row.secret}
    return {
        name
        for name in environ
        if name in fixed or ((custom := _CUSTOM_NAME.fullmatch(name)) and custom[2] == "API_KEY")
    }


def forget_secrets() -> None:
    """Takes the secrets out of this process's environment, so that no child and no crash report inherits them.

    The kernel's copy in /proc/<pid>/environ stays as it was at the start; `*_FILE` variables avoid that one too.
    """
    for name in every_secret(os.environ):
        del os.environ[name]
