"""What a simulator in a process of its own offers under `/_simulator`: its ledger, and its controls. Not in the ledger.

=======  ========================  ================================================================================
GET      /_simulator/ledger        counts, and all calls, as JSON; times are the simulator's `now`
POST     /_simulator/control       `{"always": {...}, "next": [{...}, ...], "for_key": {"sk-1": {...}}}`, all optional;
                                   `"control": "signup"` chooses another control than that of the answers
POST     /_simulator/clear         forget the calls that are closed
=======  ========================  ================================================================================
"""

from __future__ import annotations

import json
from typing import Any

import trio

from tests.simulators.ledger import Call, Ledger
from tests.simulators.script import Control

PREFIX = "/_simulator/"


def administer(simulator: Any, method: str, target: str, body: bytes) -> tuple[int, dict[str, Any]]:
    """Status and JSON object that answer such a request."""
    match method, target.removeprefix(PREFIX):
        case "GET", "ledger":
            return 200, describe(simulator.ledger)
        case "POST", "clear":
            simulator.ledger.clear()
            return 200, {}
        case "POST", "control":
            return _set(simulator, body)
    return 404, {"error": f"{method} {target} does not exist"}


def _set(simulator: Any, body: bytes) -> tuple[int, dict[str, Any]]:
    wanted = json.loads(body)
    control = getattr(simulator, wanted.get("control", "control"), None)
    if not isinstance(control, Control):
        return 400, {"error": f"no control {wanted['control']!r}"}
    if "always" in wanted:
        control.always(**wanted["always"])
    for options in wanted.get("next", ()):
        control.next(**options)
    for key, options in wanted.get("for_key", {}).items():
        control.for_key(key, **options)
    return 200, {}


def describe(ledger: Ledger) -> dict[str, Any]:
    """The ledger as JSON values."""
    return {
        "now": trio.current_time(),
        "connections_open": ledger.connections_open,
        "connections_opened": ledger.connections_opened,
        "calls_seen": ledger.calls_seen,
        "peak_by_key": dict(ledger.peak_by_key),
        "calls": [_describe_call(call) for call in ledger.calls],
    }


def _describe_call(call: Call) -> dict[str, Any]:
    return {
        "number": call.number,
        "connection": call.connection,
        "method": call.method,
        "target": call.target,
        "headers": call.headers,
        "body": call.body.decode("utf-8", "replace"),
        "key": call.key,
        "status": call.status,
        "started": call.started,
        "head_at": call.head_at,
        "last_byte_at": call.last_byte_at,
        "closed_at": call.closed_at,
        "closed_by": call.closed_by,
        "finished": call.finished,
        "bytes_sent": call.bytes_sent,
        "frames_sent": call.frames_sent,
        "text": call.text,
        "notes": {name: str(value) for name, value in call.notes.items()},
    }
