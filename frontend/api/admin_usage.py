"""`GET /admin/usage`: what each caller's key has used of each model on each day, as JSON or CSV, for holders of a master key.

Days are days of UTC. Numbers of the current day move; a request counts when it has ended.
"""

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final, Literal

import msgspec
from quart import Blueprint, Response, request
from werkzeug.datastructures import MultiDict

from frontend.api.admin import admit, carried_out, unstored
from frontend.services import Services
from shared.errors import GatewayError, fail
from shared.redis.usage import COUNTS, MOST_DAYS, UsageRow, read_usage
from shared.schema.caller import ANYBODY, FOREIGN, MASTER
from shared.spreadsheet import table

USUAL_DAYS: Final = 30
COLUMNS: Final = ("day", "key", "name", "provider", "model", *COUNTS, "total_tokens")
NAMES: Final = {MASTER: "master key", ANYBODY: "anybody", FOREIGN: "callers with an upstream key of their own"}
"""Of those who are counted without a record."""

_UNIX: Final = re.compile(r"[0-9]{1,11}")


class Question(msgspec.Struct, frozen=True):
    """What is asked for: days, both included, and exact values, None for any."""

    first: date
    last: date
    key: str | None = None
    model: str | None = None
    provider: str | None = None
    form: Literal["json", "csv"] = "json"

    def wants(self, row: UsageRow) -> bool:
        wanted = ((self.key, row.caller), (self.model, row.model), (self.provider, row.provider))
        return all(want is None or want == value for want, value in wanted)


def blueprint(services: Services) -> Blueprint:
    routes = Blueprint("admin_usage", "sluice.admin_usage")
    store, link = services.admission.store, services.jobs.link

    @routes.get("/admin/usage")
    async def usage() -> Response:
        await admit(services)
        asked = read_question(request.args, datetime.now(UTC).date())
        rows = await carried_out(read_usage(link, asked.first, asked.last))
        names = NAMES | {key.id: key.name for key in await carried_out(store.all())}
        report = [_shown(row, names) for row in rows if asked.wants(row)]
        if asked.form == "csv":
            return _table(report, f"usage-{asked.first}-{asked.last}.csv")
        total = {name: sum(row[name] for row in report) for name in (*COUNTS, "total_tokens")}
        days = {"from": asked.first.isoformat(), "to": asked.last.isoformat()}
        return unstored({"object": "list", **days, "data": report, "total": total})

    return routes


def read_question(given: "MultiDict[str, str]", today: date) -> Question:
    """Raises `GatewayError` `invalid_request`, with `param`."""
    known = ("from", "to", "key", "model", "provider", "format")
    for name, values in given.lists():
        if name not in known:
            raise fail(
                "invalid_request", f"Unknown parameter: '{name[:100]}'.", param=name[:100], code="unknown_parameter"
            )
        if len(values) > 1:
            raise _refused(name, "expected it once")
    last = _day("to", given["to"]) if "to" in given else today
    usual = last - timedelta(days=USUAL_DAYS - 1) if last.toordinal() >= USUAL_DAYS else date.min
    first = _day("from", given["from"]) if "from" in given else usual
    if not 0 <= (last - first).days < MOST_DAYS:
        raise _refused("from", f"expected a day before `to`, by {MOST_DAYS - 1} days at most")
    form = given.get("format", "json")
    if form not in ("json", "csv"):
        raise _refused("format", "expected json or csv")
    return Question(
        first, last, given.get("key"), given.get("model"), given.get("provider"),
        "csv" if form == "csv" else "json",
    )  # fmt: skip


def _day(name: str, text: str) -> date:
    try:
        if _UNIX.fullmatch(text):
            return datetime.fromtimestamp(int(text), UTC).date()
        moment = datetime.fromisoformat(text)
        return (moment.astimezone(UTC) if moment.tzinfo else moment).date()
    except (ValueError, OverflowError, OSError):
        raise _refused(name, "expected a day such as 2030-01-31, or a time as Unix seconds or ISO 8601") from None


def _refused(name: str, reason: str) -> GatewayError:
    return fail("invalid_request", f"Invalid value for '{name}': {reason}.", param=name, code="invalid_value")


def _shown(row: UsageRow, names: Mapping[str, str]) -> dict[str, Any]:
    counts = {name: getattr(row, name) for name in COUNTS}
    return {
        "day": row.day,
        "key": row.caller,
        "name": names.get(row.caller, ""),
        "provider": row.provider,
        "model": row.model,
        **counts,
        "total_tokens": row.prompt_tokens + row.completion_tokens,
    }


def _table(report: Iterable[Mapping[str, Any]], file_name: str) -> Response:
    text = table(COLUMNS, [[row[column] for column in COLUMNS] for row in report])
    headers = {"cache-control": "no-store", "content-disposition": f'attachment; filename="{file_name}"'}
    return Response(text, content_type="text/csv; charset=utf-8", headers=headers)
