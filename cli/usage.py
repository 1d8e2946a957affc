"""`sluice usage`: what callers have used, as the gateway counts it, in the rows that a person asks for."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rich.box import SIMPLE
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from cli.administration import ask
from cli.callers import key_id
from shared.spreadsheet import table

COUNTS: Final = ("requests", "done", "failed", "cancelled", "prompt_tokens", "completion_tokens", "total_tokens")
"""Columns of numbers; `failed` also counts what nobody lived to tell the end of."""
NOBODYS: Final = ("master", "anybody", "foreign")
"""Callers without a record: holders of a master key, of none, of an upstream's key."""
_HEADINGS: Final = {"prompt_tokens": "Prompt", "completion_tokens": "Answer", "total_tokens": "Tokens"}
"""Short enough for a terminal of 80 columns."""
_WIDEST: Final = 1000
_NARROWEST: Final = {"key": 8, "day": 10}
ROWS: Final = {"key": ("key", "name"), "model": ("model",), "provider": ("provider",), "day": ("day",)}
"""What `--by` may say, and the columns that it means."""


class UsageTrouble(RuntimeError):
    """What was asked for cannot be meant; the text says what can."""


@dataclass(frozen=True, slots=True)
class Report:
    """`asked`: parameters of `/admin/usage`. `by`: what each row is for."""

    url: str | None
    key: str | None
    asked: Mapping[str, str]
    by: Sequence[str]

    def show(self, as_csv: bool, as_json: bool) -> None:
        """Print it. Raises `GatewayTrouble`, `UsageTrouble`."""
        unknown = [name for name in self.by if name not in ROWS]
        if unknown:
            raise UsageTrouble(f"--by {unknown[0]}: expected one of {', '.join(ROWS)}.")
        report = ask(self.url, self.key, "GET", "/admin/usage", **self._asked())
        names = list(dict.fromkeys(name for one in self.by for name in ROWS[one]))
        rows = grouped(report["data"], names)
        if as_json:
            print(json.dumps({"from": report["from"], "to": report["to"], "data": rows}, indent=2, ensure_ascii=False))
        elif as_csv:
            columns = [*names, *COUNTS]
            print(table(columns, [[row[column] for column in columns] for row in rows]), end="")
        else:
            _print(_shown(report, rows, names))

    def _asked(self) -> dict[str, str]:
        """What the admin API is asked; it knows keys by their ids only."""
        caller = self.asked.get("key")
        if not caller or caller in NOBODYS:
            return dict(self.asked)
        return {**self.asked, "key": key_id(self.url, self.key, caller)}


def grouped(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """The sums of all rows that have these names in common, those of days in their order, else the largest first."""
    sums: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in rows:
        same = tuple(row[name] for name in names)
        total = sums.setdefault(same, dict(zip(names, same, strict=True)) | dict.fromkeys(COUNTS, 0))
        for count in COUNTS:
            total[count] += row[count] + (row["unsettled"] if count == "failed" else 0)
    return sorted(sums.values(), key=lambda row: (row.get("day", ""), -row["total_tokens"], -row["requests"]))


def _print(shown: Table) -> None:
    """No number is cut: a table that does not fit is wider than the terminal."""
    console = Console()
    needed = Measurement.get(console, console.options.update(width=_WIDEST), shown).minimum
    console.width = max(console.width, needed)
    console.print(shown)


def _shown(report: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Table:
    title = f"Usage from {report['from']} to {report['to']} (UTC)"
    shown = Table(title=title, title_justify="left", show_footer=True, box=SIMPLE, padding=(0, 1, 0, 0))
    for place, name in enumerate(names):
        shown.add_column(
            name.capitalize(), footer="" if place else "all", min_width=_NARROWEST.get(name, 8), overflow="fold"
        )
    for count in COUNTS:
        heading = _HEADINGS.get(count, count.capitalize())
        total = _number(sum(row[count] for row in rows))
        shown.add_column(heading, footer=total, justify="right", min_width=max(len(heading), len(total)), no_wrap=True)
    for row in rows:
        shown.add_row(*(Text(row[name]) for name in names), *(_number(row[count]) for count in COUNTS))
    return shown


def _number(count: int) -> str:
    return f"{count:,}".replace(",", " ")
