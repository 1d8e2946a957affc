"""A simulator of langfast: Supabase over HTTP, and Socket.IO over WebSocket, on one port.

    async with Langfast(ping_interval=0.05, ping_timeout=0.05).running() as upstream:
        upstream.origin, upstream.socket_url, upstream.anon_key, upstream.prompt_id     # the settings
        upstream.signup.next(status=429)                 # the next sign-up
        upstream.sockets.next(fault="refuse")            # the next socket
        upstream.control.next(fault="truncate", at=2)    # the next run; also by words of the last user message

Three controls, since three things can fail. `signup` takes the options of `script` as for any JSON answer, and
`token_seconds=S` (negative: expired at birth). `sockets` takes `status` (the upgrade is answered with it), `delay` and the
faults of `SOCKET_FAULTS`; `play=FILE` and `scene=N` play a recorded conversation to the socket, and the run that is
started then is given the recorded execution. `control` is for runs: faults that need no socket (`hang_before_headers`,
`html`, ...), `status`, `error` and `delay` apply to the answer of the HTTP request; the others to the chunks:

=====================  =============================================================================================
`truncate`             leaves the namespace (`41`) and closes (`1`) after `at` pieces
`drop_mid`             closes the socket without a word after `at` pieces; `reset_mid_chunk` resets it
`hang_mid`             no chunk after `at` pieces; `hang_after_headers`: no chunk at all
`error_mid`            a chunk with `status` `failed` and an `error` after `at` pieces
`no_done`              no `completion_finished`; the last chunk says `completed`
`no_finish`            no chunk says `completed`; `completion_finished` alone ends the run
`endless`              pieces for ever
`revised`              the last chunk changes what was said before
=====================  =============================================================================================

Options of runs: `foreign=N` chunks of another execution in between, `strings=1` payloads as JSON strings, `plain=1` payloads
as plain text, `duplicate=1` every chunk twice, `no_id=1` chunks without `executionId`, `other=1` events of other names,
`early=N` pieces before the HTTP answer names the execution.

As at the real service, chunks for a user whose socket is not connected are lost (`run.lost` counts them); with
`unconnected="refuse"` such a run is refused with 400 instead.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any, Literal

import trio

from tests.simulators.http_server import Answer, Simulator
from tests.simulators.langfast_run import RUN_VOCABULARY, Run, perform_run
from tests.simulators.langfast_scene import RECORDED_JOB_ID
from tests.simulators.langfast_socket import SOCKET_VOCABULARY, Clients, converse
from tests.simulators.ledger import Call
from tests.simulators.limits import TokenBucket
from tests.simulators.playback import FAULTS_WITHOUT_BODY, Material, halves, perform
from tests.simulators.recordings import error_recording
from tests.simulators.script import Control, Script, ScriptError, Vocabulary, last_user_text
from tests.simulators.speech import encode
from tests.simulators.supabase import Accounts

HOUR = 3600.0
JSON_TYPE = ("content-type", "application/json")
SIGNUP_VOCABULARY = Vocabulary(options=frozenset({"token_seconds"}))
UNSAMPLED = ("o1", "o3", "o4", "gpt-5")
SAMPLING = ("temperature", "top_p", "frequency_penalty", "presence_penalty")


class Langfast(Simulator):
    """`clock` gives Unix time for tokens; pings are in seconds here and in milliseconds on the wire."""

    name = "langfast"

    def __init__(
        self,
        *,
        anon_key: str = "simulated-anon-key",
        prompt_id: str = "00000000-0000-4000-8000-0000000000f0",
        clock: Callable[[], float] = time.time,
        token_seconds: float = HOUR,
        signups_per_hour: int = 30,
        ping_interval: float = 25.0,
        ping_timeout: float = 20.0,
        unconnected: Literal["drop", "refuse"] = "drop",
    ) -> None:
        super().__init__()
        self.anon_key = anon_key
        self.prompt_ids = {prompt_id}
        self.prompt_id = prompt_id
        self.accounts = Accounts(clock, token_seconds)
        self.bucket = TokenBucket(signups_per_hour, HOUR / signups_per_hour)
        self.unconnected = unconnected
        self.signup = Control()
        self.sockets = Control()
        self.clients = Clients(self.accounts, self.ledger, ping_interval, ping_timeout)
        self.runs: list[Run] = []
        self._runs_nursery: trio.Nursery | None = None

    @property
    def socket_url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    @property
    def settings(self) -> dict[str, str]:
        return {
            "LANGFAST_SUPABASE_URL": self.base_url,
            "LANGFAST_SUPABASE_ANON_KEY": self.anon_key,
            "LANGFAST_SOCKET_URL": self.socket_url,
            "LANGFAST_PROMPT_ID": self.prompt_id,
        }

    async def background(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Runs go on when the HTTP request that started them is over."""
        async with trio.open_nursery() as nursery:
            self._runs_nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    async def respond(self, call: Call, answer: Answer) -> None:
        """Route the call."""
        try:
            if call.path == "/socket.io/":
                await self._open_socket(call, answer)
            elif (refusal := self._wrong_api_key(call)) is not None:
                call.notes["refused"] = "apikey"
                await answer.send(401, [JSON_TYPE], refusal)
            elif call.path == "/auth/v1/signup":
                await self._sign_up(answer)
            elif call.path == "/auth/v1/token":
                await self._refresh(call, answer)
            elif call.path == "/auth/v1/user":
                await self._user(call, answer)
            elif call.path == "/functions/v1/initiate-prompt-run":
                await self._run(call, answer)
            elif call.path == "/rest/v1/rpc/create_prompt":
                await self._create_prompt(answer)
            else:
                await answer.send(404, [JSON_TYPE], encode({"code": 404, "message": "no route"}))
        except ScriptError as problem:
            await answer.misused(problem)

    def _wrong_api_key(self, call: Call) -> bytes | None:
        given = call.header("apikey")
        if given is None:
            hint = "No `apikey` request header or url param was found."
            return encode({"message": "No API key found in request", "hint": hint})
        return None if given == self.anon_key else error_recording("langfast_signup_401_apikey").body

    async def _sign_up(self, answer: Answer) -> None:
        script = self.signup.script("", "", "", SIGNUP_VOCABULARY)
        if not self.bucket.take("", trio.current_time()):
            answer.call.notes["refused"] = "rate"
            found = error_recording("langfast_signup_429")
            await answer.send(found.status, found.headers, found.body)
            return
        await perform(answer, script, _json_material(encode(self.accounts.sign_up(_token_seconds(script)))))

    async def _refresh(self, call: Call, answer: Answer) -> None:
        script = self.signup.script("", "", "", SIGNUP_VOCABULARY)
        token = call.json().get("refresh_token", "")
        known = call.query.get("grant_type") == "refresh_token"
        session = self.accounts.refresh(token, _token_seconds(script)) if known else None
        if session is None:
            call.notes["refused"] = "refresh token"
            why = {"code": 400, "error_code": "refresh_token_not_found", "msg": "Invalid Refresh Token"}
            await answer.send(400, [JSON_TYPE], encode(why))
        else:
            await perform(answer, script, _json_material(encode(session)))

    async def _user(self, call: Call, answer: Answer) -> None:
        sub = self.accounts.subject(call.key)
        if sub is None:
            call.notes["refused"] = "token"
            why = {"code": 403, "error_code": "bad_jwt", "msg": "invalid JWT: token is expired"}
            await answer.send(403, [JSON_TYPE], encode(why))
        else:
            await answer.send(200, [JSON_TYPE], encode({"id": sub, "aud": "authenticated", "is_anonymous": True}))

    async def _create_prompt(self, answer: Answer) -> None:
        prompt_id = str(uuid.uuid4())
        self.prompt_ids.add(prompt_id)
        await answer.send(200, [JSON_TYPE], encode(prompt_id))

    async def _open_socket(self, call: Call, answer: Answer) -> None:
        script = self.sockets.script("", "", "", SOCKET_VOCABULARY)
        if script.status is not None or script.fault in FAULTS_WITHOUT_BODY:
            await perform(answer, script, _json_material(b"{}"))
        elif not {("EIO", "4"), ("transport", "websocket")} <= set(call.query.items()):
            await answer.send(400, [JSON_TYPE], b'{"code":0,"message":"Transport unknown"}')
        else:
            await converse(self.clients, answer, script)

    # Runs

    async def _run(self, call: Call, answer: Answer) -> None:
        sub = self.accounts.subject(call.key)
        if sub is None:
            call.notes["refused"] = "token"
            found = error_recording("langfast_run_401_jwt")
            await answer.send(found.status, found.headers, found.body)
            return
        body = call.json()
        meta = body.get("prompt_meta") or {}
        message = last_user_text(meta.get("messages"))
        script = self.control.script(call.key, str(meta.get("model")), message, RUN_VOCABULARY)
        refusal = self._refused_run(body, meta, sub)
        if refusal is not None:
            call.notes["refused"] = "run"
            await answer.send(400, [JSON_TYPE], refusal)
            return
        scripted = any(socket.scripted for socket in self.clients.of(sub))
        run = Run(sub, message, script, *([RECORDED_JOB_ID] if scripted else ()))
        material = _json_material(encode({"run_id": body["run_id"], "jobs": [{"job_id": run.job_id}]}))
        material.text = run.text
        failing = script.status is not None or script.error is not None or script.fault in FAULTS_WITHOUT_BODY
        if failing:
            await perform(answer, script, material)
            return
        self.runs.append(run)
        assert self._runs_nursery is not None
        if not scripted:
            self._runs_nursery.start_soon(perform_run, self.clients, run)
            await run.early.wait()
        await perform(answer, Script(delay=script.delay), material)
        run.answered.set()
        for socket in self.clients.of(sub):
            socket.run_started.set()

    def _refused_run(self, body: dict[str, Any], meta: dict[str, Any], sub: str) -> bytes | None:
        model = str(meta.get("model"))
        if model.startswith(UNSAMPLED) and any(name in meta for name in SAMPLING):
            return error_recording("langfast_run_400_parameter").body
        roles = {message.get("role") for message in meta.get("messages") or ()}
        if model.startswith(UNSAMPLED) and "system" in roles:
            return encode({"error": "Unsupported value: 'messages[0].role' does not support 'system' with this model."})
        wrong = [
            name
            for name, good in (
                ("run_id", _is_uuid4(body.get("run_id"))),
                ("prompt_id", body.get("prompt_id") in self.prompt_ids),
                ("created_by", body.get("created_by") == sub),
                ("test_cases", isinstance(body.get("test_cases"), list)),
                ("prompt_meta.messages", bool(meta.get("messages"))),
                ("prompt_meta.stream", meta.get("stream") is True),
            )
            if not good
        ]
        if wrong:
            return encode({"error": f"Invalid request: {', '.join(wrong)}"})
        if self.unconnected == "refuse" and not self.clients.of(sub):
            return encode({"error": "No active connection"})
        return None


def _json_material(payload: bytes) -> Material:
    return Material(
        headers=[JSON_TYPE],
        frames=halves(payload),
        error=lambda status: encode({"code": status, "message": f"simulated error {status}"}),
        error_event=lambda status, error, number: encode(error),
        length=len(payload),
    )


def _token_seconds(script: Script) -> float | None:
    given = script.extra.get("token_seconds")
    return None if given is None else float(given)


def _is_uuid4(value: Any) -> bool:
    try:
        return uuid.UUID(str(value)).version == 4
    except ValueError:
        return False
