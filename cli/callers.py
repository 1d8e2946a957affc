"""What `sluice keys` does: asks the admin API of a running gateway, and shows what it says."""

import json
import math
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cli.administration import ask

LIMITS: Final = (
    "requests_per_minute", "tokens_per_minute", "concurrent_requests", "daily_tokens", "monthly_tokens",
)  # fmt: skip
NONE: Final = "none"

_ID: Final = re.compile(r"[0-9a-f]{8}")
_NUMBER: Final = re.compile(r"(?P<digits>[0-9][0-9_]*)(?P<unit>[kMG]?)")
_UNITS: Final = {"": 1, "k": 1_000, "M": 1_000_000, "G": 1_000_000_000}
_DURATION: Final = re.compile(r"(?P<digits>[0-9]+(?:\.[0-9]+)?)(?P<unit>[smhd]?)")
_SECONDS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}


class CallersTrouble(RuntimeError):
    """What was asked for cannot be meant; the text says what can."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Name, permissions and limits as they were typed; None for what was not. `limits`: in the order of `LIMITS`."""

    name: str | None
    limits: Sequence[str | None]
    models: Sequence[str] | None
    providers: Sequence[str] | None
    expires: str | None
    priority: str | None
    cache: str | None

    def fields(self, now: float) -> dict[str, Any]:
        """What the admin API takes. `now`: Unix seconds. Raises `CallersTrouble`."""
        typed: dict[str, tuple[Any, Callable[[Any], Any]]] = {
            "name": (self.name, str),
            **{name: (text, number) for name, text in zip(LIMITS, self.limits, strict=True)},
            "models": (self.models or None, _patterns),
            "providers": (self.providers or None, _patterns),
            "expires_at": (self.expires, lambda text: moment(text, now)),
            "priority": (self.priority, str),
            "cache_seconds": (self.cache, lambda text: 0.0 if text == NONE else duration(text)),
        }
        return {name: read(value) for name, (value, read) in typed.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Place:
    """A gateway to administer, and whether its answers are shown as they are. Every method raises `GatewayTrouble`."""

    url: str | None
    key: str | None
    as_json: bool

    def create(self, wanted: Wanted) -> None:
        self._hand_over(self._ask("POST", "", wanted.fields(time.time())), "is shown this once")

    def rotate(self, which: str, grace: str) -> None:
        seconds = duration(grace)
        rotated = self._ask("POST", f"/{self._id(which)}/rotate", {"grace_seconds": seconds})
        before = f"the one before ends in {grace}" if seconds else "the one before has ended"
        self._hand_over(rotated, f"is shown this once; {before}")

    def list(self) -> None:
        found = self._ask("GET", "")
        if self.as_json:
            _print_json(found)
        elif not found["data"]:
            print("There are no keys for callers yet; `sluice keys create NAME` makes one.", file=sys.stderr)
        else:
            Console().print(_overview(found["data"]))

    def show(self, which: str) -> None:
        self._show(self._ask("GET", f"/{self._id(which)}"))

    def update(self, which: str, wanted: Wanted) -> None:
        fields = wanted.fields(time.time())
        if not fields:
            raise CallersTrouble("Nothing to change: `sluice keys update --help` tells what can be.")
        self._show(self._ask("PATCH", f"/{self._id(which)}", fields))

    def revoke(self, which: str) -> None:
        self._show(self._ask("DELETE", f"/{self._id(which)}"))

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        return ask(self.url, self.key, method, f"/admin/keys{path}", body)

    def _id(self, which: str) -> str:
        return key_id(self.url, self.key, which)

    def _hand_over(self, answer: dict[str, Any], remark: str) -> None:
        """The key alone on standard output, and what there is to know of it beside that."""
        if self.as_json:
            _print_json(answer)
            return
        key = answer.pop("key")
        console = Console(stderr=True)
        console.print(_details(answer))
        console.print(f"The key {remark}:", highlight=False)
        sys.stderr.flush()
        print(key)

    def _show(self, record: dict[str, Any]) -> None:
        if self.as_json:
            _print_json(record)
        else:
            Console().print(_details(record))


def key_id(url: str | None, key: str | None, which: str) -> str:
    """The id of the key that a person means by its id or its name. Those that were revoked have lost their name.

    Raises `CallersTrouble`, and `GatewayTrouble` of `ask`.
    """
    if _ID.fullmatch(which):
        return which
    found = ask(url, key, "GET", "/admin/keys")["data"]
    named = [one["id"] for one in found if one["name"] == which and one["status"] != "revoked"]
    if len(named) == 1:
        return str(named[0])
    if named:
        raise CallersTrouble(f"Several keys have the name {which!r}: {', '.join(named)}. Name one by its id.")
    raise CallersTrouble(f"No key has the id or the name {which!r}; `sluice keys list` shows all.")


def number(text: str) -> int | None:
    """`1500`, `1_500`, `50k`, `2M`; None for `none`. Raises `CallersTrouble`."""
    found = _NUMBER.fullmatch(text)
    if found:
        return int(found["digits"].replace("_", "")) * _UNITS[found["unit"]]
    if text == NONE:
        return None
    raise CallersTrouble(f"Expected a number such as 60, 50k or 2M, or `none`; got {text!r}.")


def duration(text: str) -> float:
    """Seconds of `90`, `90s`, `15m`, `12h`, `30d`. Raises `CallersTrouble`."""
    found = _DURATION.fullmatch(text)
    if found is None:
        raise CallersTrouble(f"Expected a duration such as 90s, 15m, 12h or 30d; got {text!r}.")
    return float(found["digits"]) * _SECONDS[found["unit"]]


def moment(text: str, now: float) -> float | str | None:
    """A duration from `now` on as Unix seconds; a time as it was written, for the gateway to read; None for `none`."""
    if text == NONE:
        return None
    found = _DURATION.fullmatch(text)
    if found and found["unit"]:
        return math.ceil(now + duration(text))
    return int(text) if text.isdecimal() else text


def _patterns(texts: Sequence[str]) -> list[str] | None:
    return None if list(texts) == [NONE] else [part for text in texts for part in text.split(",") if part]


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


_STYLES: Final = {"active": "green", "expired": "yellow", "revoked": "red"}
_TITLES: Final = {
    "requests_per_minute": "Requests/min", "tokens_per_minute": "Tokens/min", "concurrent_requests": "At once",
    "daily_tokens": "Tokens/day", "monthly_tokens": "Tokens/month",
}  # fmt: skip
_UNITS_OF_LIMITS: Final = {
    "requests_per_minute": "/min", "tokens_per_minute": " tokens/min", "concurrent_requests": " at once",
    "daily_tokens": " tokens/day", "monthly_tokens": " tokens/month",
}  # fmt: skip


def _overview(keys: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=SIMPLE)
    for title in ("Id", "Name", "Status", "Limits", "May use", "Expires"):
        table.add_column(title, no_wrap=title in ("Id", "Status", "Expires"))
    for key in keys:
        table.add_row(
            key["id"],
            Text(key["name"]),
            Text(key["status"], style=_STYLES.get(key["status"], "")),
            _limits(key),
            Text("\n".join([*key["models"], *(f"{provider}/*" for provider in key["providers"])]) or "all"),
            _time(key["expires_at"]).partition(" ")[0],
        )
    return table


def _limits(key: Mapping[str, Any]) -> str:
    """One limit a line, and low priority, which is one too."""
    limits = [_count(key[name]) + unit for name, unit in _UNITS_OF_LIMITS.items() if key[name] is not None]
    return "\n".join(limits + ["low priority"] * (key["priority"] == "low")) or "–"


def _details(key: Mapping[str, Any]) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("Id", key["id"])
    table.add_row("Name", Text(key["name"]))
    table.add_row("Status", Text(key["status"], style=_STYLES.get(key["status"], "")))
    table.add_row("Made", _time(key["created_at"]))
    if key["revoked_at"] is not None:
        table.add_row("Revoked", _time(key["revoked_at"]))
    table.add_row("Expires", _time(key["expires_at"], "never"))
    table.add_row("Models", Text(" ".join(key["models"]) or "all"))
    table.add_row("Providers", Text(" ".join(key["providers"]) or "all"))
    for limit, title in _TITLES.items():
        table.add_row(title, _count(key[limit], "any number"))
    table.add_row("Priority", key["priority"])
    table.add_row("Cache", f"{key['cache_seconds']:g} s" if key["cache_seconds"] else "off")
    return table


def _count(limit: int | None, otherwise: str = "–") -> str:
    return otherwise if limit is None else f"{limit:,}".replace(",", " ")


def _time(seconds: float | None, otherwise: str = "–") -> str:
    return otherwise if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"
