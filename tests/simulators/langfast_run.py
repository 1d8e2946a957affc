"""One run of the langfast simulator: chunks with everything said so far, pushed to the sockets of the user."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any

import trio

from tests.simulators.langfast_socket import Clients
from tests.simulators.script import Script, Vocabulary, answer_pieces
from tests.simulators.speech import encode

RUN_VOCABULARY = Vocabulary(
    options=frozenset({"foreign", "strings", "plain", "duplicate", "no_id", "other", "early"}),
    faults=frozenset({"revised"}),
)
CHUNK = "execution:chunk"
STRIKING = ("truncate", "drop_mid", "reset_mid_chunk", "hang_mid", "error_mid")
FOREIGN_TEXT = "Another user's text"


@dataclass(eq=False, slots=True)
class Run:
    """What one run said, and to how many sockets."""

    sub: str
    message: str
    script: Script
    job_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    pieces_sent: int = 0
    delivered: int = 0
    lost: int = 0
    ended: bool = False
    early: trio.Event = field(default_factory=trio.Event)
    """The pieces that come before the HTTP answer are out."""
    answered: trio.Event = field(default_factory=trio.Event)
    """The HTTP answer has named the execution."""
    pieces: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.pieces = answer_pieces(self.message, self.script)

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def option(self, name: str) -> int:
        return int(self.script.extra.get(name, "0"))


async def perform_run(clients: Clients, run: Run) -> None:
    """Send the chunks of the run as its script wants them."""
    try:
        if not run.option("early"):
            run.early.set()
            await run.answered.wait()
        if run.script.fault != "hang_after_headers":
            await _speak(clients, run)
    finally:
        run.early.set()
        run.ended = True
        clients.ledger.changed()


async def _speak(clients: Clients, run: Run) -> None:
    script, pieces = run.script, run.pieces
    await trio.sleep(script.first)
    cut = script.cut_at(len(pieces)) if script.fault in STRIKING else None
    so_far, position = "", 0
    while position < len(pieces) or script.fault == "endless":
        if position == cut:
            break
        if position == run.option("early") and not run.answered.is_set():
            run.early.set()
            await run.answered.wait()
        await trio.sleep(script.gap if position else 0)
        so_far += pieces[position % len(pieces)]
        position += 1
        await _push_piece(clients, run, so_far, position)
    run.early.set()
    if cut is not None:
        await _strike(clients, run, so_far)
    else:
        await _finish(clients, run, so_far)


async def _push_piece(clients: Clients, run: Run, so_far: str, position: int) -> None:
    last = run.script.fault == "no_finish" and position == len(run.pieces)
    finish = run.script.finish if last else None
    for _ in range(1 + run.option("duplicate")):
        await _push(clients, run, CHUNK, chunk(run, so_far, "in_progress", finish))
    run.pieces_sent = position
    if position <= run.option("foreign"):
        foreign = {**chunk(run, FOREIGN_TEXT, "in_progress"), "executionId": str(uuid.uuid4())}
        await _push(clients, run, CHUNK, foreign, counted=False)
    if run.option("other"):
        await _push(clients, run, "execution:progress", {"executionId": run.job_id, "pct": 50}, counted=False)
    clients.ledger.changed()


def chunk(run: Run, content: str, status: str, finish: str | None = None, **extra: Any) -> dict[str, Any]:
    """The payload of one `execution:chunk`."""
    identity = {} if run.option("no_id") else {"executionId": run.job_id}
    return {**identity, "status": status, "finish_reason": finish, "content": content, **extra}


async def _finish(clients: Clients, run: Run, said: str) -> None:
    finish = run.script.finish or "stop"
    if run.script.fault == "revised":
        said = "No, " + said[1:]
    if run.script.fault != "no_finish":
        await _push(clients, run, CHUNK, chunk(run, said, "completed", finish))
    if run.script.fault != "no_done":
        identity = {} if run.option("no_id") else {"executionId": run.job_id}
        await _push(clients, run, "completion_finished", identity, counted=False)


async def _strike(clients: Clients, run: Run, said: str) -> None:
    if run.script.fault == "hang_mid":
        return
    if run.script.fault == "error_mid":
        await _push(clients, run, CHUNK, chunk(run, said, "failed", error="The model failed. Please try again."))
        return
    for socket in clients.of(run.sub):
        if run.script.fault == "truncate":
            await _tell(socket.leave())
        else:
            socket.websocket.drop(reset=run.script.fault == "reset_mid_chunk")


async def _push(clients: Clients, run: Run, event: str, payload: dict[str, Any], *, counted: bool = True) -> None:
    """To every connected socket of the user; lost if there is none."""
    sockets = clients.of(run.sub)
    shaped: Any = payload
    if event == CHUNK and run.option("plain"):
        shaped = payload["content"]
    elif event == CHUNK and run.option("strings"):
        shaped = encode(payload).decode()
    delivered = [await _tell(socket.emit(event, shaped)) for socket in sockets]
    if counted and any(delivered):
        run.delivered += 1
    elif counted:
        run.lost += 1


async def _tell(sending: Any) -> bool:
    """Whether what was to be sent could be sent: a client that has gone is no reason to end the run."""
    try:
        await sending
    except (OSError, trio.ClosedResourceError):
        return False
    return True
