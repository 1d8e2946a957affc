"""One job, one upstream call: drives the provider's plan, renders its events, puts frames into the outbox.

    STARTED -> (owner heard it) -> plan -> upstream accepts: ACCEPTED -> CHUNK … -> DONE
                                                   \\______ any failure ______/-> FAILED

An attempt ends by itself, by its owner (cancel: nothing more is sent, the upstream is closed), by a deadline (FAILED
`timeout`), or by the worker's drain (FAILED `shutting_down`). Deadlines are watched from outside, by one task for all
attempts (`expire`), because a timer around each read costs more than the read.
"""

import logging
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from shared.errors import Failure, GatewayError
from shared.redis.link import Link
from shared.schema.job import Accepted, FrameKind, Job, Outcome
from workers.answer import ANSWER_BYTES, Answer
from workers.asking import ask
from workers.circuits import Circuits
from workers.credentials import Credentials, callers_own
from workers.exchange import TransportError
from workers.observe import Observer
from workers.orphans import settle_orphan
from workers.outbox import Outbox, Retained
from workers.provider import Call, Credential, Decoder, Exchange, HttpStream, Provider, ScriptedStream, SocketIOStream
from workers.runs import start_run
from workers.transports.http import HttpExchange, HttpTransport
from workers.transports.seats import Seat

if TYPE_CHECKING:
    from workers.transports.sessions import Sessions

_log = logging.getLogger(__name__)
_encode = msgspec.msgpack.Encoder().encode
_body = msgspec.json.Decoder(dict[str, msgspec.Raw])

MOST_SHOWN: Final = 40
"""Of what an upstream makes up: letters, and things."""
ERROR_BODY_BYTES: Final = 256 * 1024
TAIL_SECONDS: Final = 0.1
"""How long a finished exchange may take to end its body, so that the connection can serve again."""


@dataclass(frozen=True)
class Limits:
    """Seconds: to the first delta, between two deltas, in total. Calls: with one credential at once, 0 for any number.
    Bytes: of an answer that is not streamed on. `circuit`: leave an upstream alone that fails again and again."""

    first_token: float
    silence: float
    total: float
    calls_per_credential: int = 0
    answer_bytes: int = ANSWER_BYTES
    circuit: bool = True


@dataclass(frozen=True)
class Transports:
    """The ways to the upstream. `sessions`: if the provider uses any."""

    http: HttpTransport
    sessions: "Sessions | None" = None


@dataclass(frozen=True)
class Means:
    """What all attempts of one worker process share."""

    provider: Provider
    credentials: Credentials
    transports: Transports
    outbox: Outbox
    limits: Limits
    link: Link
    observer: Observer
    circuits: Circuits


class Attempt:
    """One attempt at one job. `run` never raises except when the whole worker is cancelled. `probe`: an open circuit waits for
    what becomes of it. `asked`: the upstream has been, or is about to be, asked."""

    def __init__(self, job: Job, means: Means, *, probe: bool = False) -> None:
        self.job = job
        self._means = means
        self._scope = trio.CancelScope()
        self._retained: Retained | None = None
        self._verdict: Failure | None = None
        self._unwanted = False
        self.asked = False
        self._accepted = False
        self._told = False
        self._prompt_bytes = 0
        self._shown: Answer | None = None
        self._story = means.observer.begin(job)
        self._last_sign = self._story.began
        self._circuit = means.circuits.begin(job, probe=probe)

    async def run(self) -> None:
        outbox = self._means.outbox
        try:
            self._retained = outbox.open(self.job, self.cancel, self._orphaned)
        except KeyError:
            return  # the same attempt was delivered twice, and it runs here already
        self._means.observer.attempt_began(self.job)
        with self._scope:
            await self._answer(self._retained, outbox.start(self._retained))
        if self._unwanted:
            outbox.drop(self._retained)
        elif self._scope.cancelled_caught:
            self._fail(self._verdict or Failure("internal", "The request was stopped."))
        self._retained = None  # it holds us: together we would outlive our job until the garbage collector comes round
        self._circuit.ended(self._story.failure, complete=self._story.outcome is not None)
        self._means.observer.attempt_ended(self._story)

    def cancel(self) -> None:
        """The owner wants no more of it: close the upstream, send nothing. Synchronous; any number of times."""
        self._unwanted = True
        self._scope.cancel()

    def _orphaned(self) -> None:
        """The owner is no more, so nobody else will say what the attempt has cost. It may have ended in the meantime."""
        used = self._shown.usage_so_far if self._shown is not None else None
        settle_orphan(self._means.link, self.job, used, failed=self._story.failure is not None)

    def stop(self, failure: Failure) -> None:
        """End the attempt with this failure."""
        if self._verdict is None:
            self._verdict = failure
            self._scope.cancel()

    def expire(self, now: float) -> None:
        """Stop the attempt if one of its deadlines has passed. `now`: `trio.current_time()`."""
        limits, began = self._means.limits, self._story.began
        total = min(limits.total, self.job.budget_seconds)
        if now - began > total:
            self.stop(Failure("deadline", f"The answer took longer than {total:g} s."))
        elif self._story.first_delta_at is None:
            if now - began > limits.first_token:
                self.stop(Failure("timeout", f"The upstream sent no token within {limits.first_token:g} s."))
        elif now - self._last_sign > limits.silence:
            self.stop(Failure("timeout", f"The upstream was silent for more than {limits.silence:g} s."))

    async def _answer(self, retained: Retained, confirmed: trio.Event) -> None:
        try:
            await self._with_some_credential(retained, confirmed)
        except GatewayError as error:
            self._fail(error.failure if self.job.credential is None else callers_own(error.failure))
        except Exception:  # noqa: BLE001 - the boundary of an attempt: one defect ends one job
            _log.exception("attempt failed", extra={"request_id": self.job.request_id})
            self._fail(Failure("internal", "The worker failed to process this request."))

    async def _with_some_credential(self, retained: Retained, confirmed: trio.Event) -> None:
        """Try one credential after the other, as long as the upstream blames the credential and nothing was accepted.

        The lease is asked for while STARTED is still on its way; the upstream only when the owner has heard that.
        """
        if self._circuit.refusal is not None:
            raise GatewayError(self._circuit.refusal)
        credentials = self._means.credentials
        refused: list[Failure] = []
        tried: set[str] = set()
        while True:
            lease = await credentials.lease(self.job, tried, refused, self._lose)
            failure: Failure | None = None
            self._story.credential = lease.credential.id if lease.credential is not None else ""
            try:
                if await self._means.outbox.heard(retained, confirmed):
                    self.asked = True
                    await self._exchange(retained, lease.credential)
                else:
                    self._unwanted = True
                return
            except GatewayError as error:
                failure = error.failure
                if self._accepted or failure.row.credential == "keep" or lease.credential is None:
                    raise
                refused.append(failure)
                tried.add(lease.credential.id)
            finally:
                credentials.give_back(lease, failure, accepted=self._accepted)

    def _lose(self) -> None:
        """By now another worker may use the credential: better an error than two calls at once where one is allowed."""
        self.stop(Failure("worker_lost", "The worker lost its hold on the upstream credential."))

    async def _exchange(self, retained: Retained, credential: Credential | None) -> None:
        body = _body.decode(self.job.body)
        self._prompt_bytes = sum(len(bytes(body.get(name, b""))) for name in ("messages", "prompt", "input"))
        call = Call(
            endpoint=self.job.endpoint,
            model=self.job.model,
            streaming=self.job.stream,
            body=body,
            credential=credential,
            now=time.time(),
            nonce=secrets.token_hex(16),
            request_id=self.job.request_id,
        )
        means = self._means
        exchange = await ask(means.provider.plan(call), means.transports.http, timeout_seconds=means.limits.first_token)
        try:
            if isinstance(exchange, ScriptedStream):
                await self._play(retained, exchange)
            elif isinstance(exchange, SocketIOStream):
                await self._listen(retained, exchange)
            else:
                await self._talk(retained, exchange)
        finally:
            self._note_oddities(exchange.decoder)

    async def _talk(self, retained: Retained, exchange: HttpStream) -> None:
        with self._means.observer.call(self._story) as call:
            try:
                with await self._means.transports.http.stream(exchange.request) as stream:
                    call.answered(stream.status, stream.headers)
                    await self._converse(retained, exchange, stream)
            except TransportError as error:
                raise GatewayError(error.failure()) from None

    async def _converse(self, retained: Retained, exchange: HttpStream, stream: HttpExchange) -> None:
        if stream.status != 200:
            reply = await stream.read(ERROR_BODY_BYTES)
            raise GatewayError(self._means.provider.refusal(reply))
        self._accept(retained, exchange.dropped)
        answer = self._an_answer(exchange)
        while not answer.over:
            piece = await stream.receive()
            self._publish(retained, answer, answer.feed(piece) if piece else answer.end())
            if retained.full and not answer.over:
                await retained.room()
        with trio.move_on_after(TAIL_SECONDS):
            while await stream.receive():
                return  # it goes on talking after its end: close instead of listening

    async def _listen(self, retained: Retained, exchange: SocketIOStream) -> None:
        means = self._means
        http, sessions = means.transports.http, means.transports.sessions
        assert sessions is not None
        with means.observer.call(self._story) as call:
            seat = await start_run(exchange, means.provider, sessions, http, timeout_seconds=means.limits.first_token)
            with seat:
                call.answered(200, {})
                await self._hear(retained, exchange, seat)

    async def _hear(self, retained: Retained, exchange: SocketIOStream, seat: Seat) -> None:
        self._accept(retained, exchange.dropped)
        answer = self._an_answer(exchange)
        while not answer.over:
            try:
                events = await seat.receive()
            except TransportError as error:
                raise GatewayError(error.failure()) from None
            self._publish(retained, answer, answer.play(*events) if events else answer.end())
            if retained.full and not answer.over:
                await retained.room()

    async def _play(self, retained: Retained, script: ScriptedStream) -> None:
        self._accept(retained)
        answer = self._an_answer(script)
        for step in script.steps:
            if step.delay_seconds:
                await trio.sleep(step.delay_seconds)
            self._publish(retained, answer, answer.play(step.frame))
            if answer.over:
                break
            if retained.full:
                await retained.room()
        if not answer.over:
            self._publish(retained, answer, answer.end())

    def _an_answer(self, exchange: Exchange) -> Answer:
        answer = Answer(self.job, exchange, self._prompt_bytes, limit_bytes=self._means.limits.answer_bytes)
        self._shown = answer
        return answer

    def _accept(self, retained: Retained, dropped: Sequence[str] = ()) -> None:
        self._accepted = True
        self._means.outbox.accept(retained, _encode(Accepted(list(dropped))) if dropped else b"")

    def _note_oddities(self, decoder: Decoder) -> None:
        """What the decoder could not make sense of, once for all: more of it than before means that an upstream has changed."""
        malformed: int = getattr(decoder, "malformed", 0)
        odd: Sequence[str] = getattr(decoder, "odd_finish_reasons", ())
        if malformed or odd:
            _log.warning(
                "%s sent %d events that made no sense, and unknown finish reasons: %s",
                self._means.provider.name, malformed, [reason[:MOST_SHOWN] for reason in odd[:MOST_SHOWN]],
                extra={"request_id": self.job.request_id},
            )  # fmt: skip

    def _publish(self, retained: Retained, answer: Answer, chunks: list[bytes]) -> None:
        if answer.progressed:
            answer.progressed = False
            now = trio.current_time()
            if self._story.first_delta_at is None:
                self._story.first_delta_at = now
                self._circuit.went_well()
            else:
                self._means.observer.gaps.observe(now - self._last_sign)
            self._last_sign = now
        if answer.failure is not None and not self._told:
            # What came with the failure was not told yet, so another attempt may still answer.
            raise GatewayError(answer.failure)
        frames = [(FrameKind.CHUNK, chunk) for chunk in chunks]
        self._told = self._told or bool(chunks)
        if answer.over and answer.failure is None:
            self._story.outcome = self._outcome(answer)
            frames.append((FrameKind.DONE, _encode(self._story.outcome)))
        self._means.outbox.put(retained, frames)
        if answer.failure is not None:
            raise GatewayError(answer.failure)

    def _outcome(self, answer: Answer) -> Outcome:
        usage, story = answer.rendering.usage, self._story
        return Outcome(
            prompt_tokens=usage.prompt_tokens if usage else 0,
            completion_tokens=usage.completion_tokens if usage else 0,
            estimated=usage.estimated if usage else False,
            first_token_seconds=None if story.first_delta_at is None else story.first_delta_at - story.began,
            upstream_request_id=story.upstream_request_id,
        )

    def _fail(self, failure: Failure) -> None:
        assert self._retained is not None
        self._story.failure = failure
        self._means.outbox.put(self._retained, [(FrameKind.FAILED, _encode(failure))])
