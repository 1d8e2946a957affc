"""The table of settings for people: in the README, as `.env.example`, and as it stands right now (`sluice settings`)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from shared.settings.dotenv import quoted
from shared.settings.model import PROCESSES
from shared.settings.providers import CUSTOM_PREFIX, KNOWN
from shared.settings.row import Row, rows
from shared.settings.secret import MASK
from shared.settings.source import DOTENV, Source, custom_provider_rows, known_provider_rows, process_environment

_TITLES = {"all": "Every process", "frontend": "Frontend", "worker": "Workers"}
_CUSTOM = f"{CUSTOM_PREFIX}<NAME>"


@dataclass(frozen=True, slots=True)
class Section:
    """Settings that belong together, as (row, usual value in words) pairs."""

    title: str
    entries: tuple[tuple[Row, str], ...]


def sections() -> list[Section]:
    """The whole table: what all processes read, what each kind reads, and the upstreams."""
    told: set[str] = set()
    found: list[Section] = []
    for settings_class in PROCESSES:
        fresh = [row for row in rows(settings_class).values() if row.name not in told]
        told.update(row.name for row in fresh)
        found.append(Section(_TITLES[settings_class.process], tuple((row, row.default) for row in fresh)))
    upstreams: list[tuple[Row, str]] = []
    for known in KNOWN.values():
        usual = {
            "base_url": known.base_url,
            "models": ",".join(known.models),
            "calls_per_credential": str(known.calls_per_credential),
            "keys": "",
        }
        upstreams += [(row, usual.get(field, row.default)) for field, row in known_provider_rows(known).items()]
    custom = custom_provider_rows(_CUSTOM, "any further OpenAI-compatible server")
    upstreams += [(row, "0" if field == "calls_per_credential" else "") for field, row in custom.items()]
    return [*found, Section("Upstreams", tuple(upstreams))]


def markdown() -> str:
    """The table of the README: one Markdown table a section."""
    return "\n".join(_markdown_lines())


def _markdown_lines() -> Iterator[str]:
    for section in sections():
        yield f"**{section.title}**\n"
        yield "| Setting | Default | Meaning |\n|---|---|---|"
        for row, usual in section.entries:
            name = f"`{row.name}`" + ("\N{NO-BREAK SPACE}🔑" if row.secret else "")
            unit = f" {row.unit}" if usual and row.unit else ""
            default = f"`{usual.replace(',', ', ')}`{unit}" if usual else "-"
            yield f"| {name} | {default} | {row.meaning.replace('|', chr(92) + '|')} |"
        yield ""


def dotenv_example() -> str:
    """`.env.example`: every setting, commented out, with its default or an example."""
    lines = [
        "# Copy to .env and take away the # where you want something else. The environment wins over this file.",
        "# Every secret can also be given as <NAME>_FILE, the path of a file that holds it.",
    ]
    for section in sections():
        lines += ["", f"# --- {section.title}"]
        for row, usual in section.entries:
            value = usual or row.example
            lines += ["", f"# {row.meaning}", f"# {row.name}={quoted(value)}"]
    return "\n".join(lines) + "\n"


@dataclass(frozen=True, slots=True)
class Standing:
    """One setting as it stands: secrets masked; `origin` is "default", "environment", ".env line 3" or a file."""

    name: str
    value: str
    origin: str
    meaning: str


def standing(environ: Mapping[str, str] | None = None, dotenv: Path | None = DOTENV) -> list[Standing]:
    """Every setting as this process would read it; also while some of them are wrong."""
    source = Source(process_environment() if environ is None else environ, dotenv)
    table = [entry for section in sections() for entry in section.entries if "<NAME>" not in entry[0].name]
    for name, prefix in source.custom_providers().items():
        table += [(row, "") for row in custom_provider_rows(prefix, name).values()]
    found: list[Standing] = []
    for row, usual in table:
        text = source.find(row)
        value = (MASK if row.secret else text.text) if text else usual
        found.append(Standing(row.name, value, text.origin if text else "default", row.meaning))
    return found
