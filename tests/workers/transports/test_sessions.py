"""Sessions that jobs share, against the simulated langfast: real Socket.IO, and runs pushed to all sockets of an account."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio

from shared.sansio.socketio import SocketEvent
from tests.simulators.langfast import Langfast
from tests.simulators.langfast_client import sign_up, start
from tests.waiting import until
from tests.workers.transports.upstream import authority
from workers.exchange import ConnectFailed, Disconnected, Overflow, SocketRefused, TransportError, TransportTimeout
from workers.provider import Belonging, SocketIOSession
from workers.transports import seats
from workers.transports import sessions as module
from workers.transports.dial import Dialer
from workers.transports.seats import Seat
from workers.transports.sessions import Sessions


def owner(event: SocketEvent) -> Belonging | None:
    if event.name not in ("execution:chunk", "completion_finished"):
        return None
    payload = event.arguments[0]
    execution = payload.get("executionId") if isinstance(payload, dict) else None
    return Belonging(execution, event.name == "completion_finished")


@pytest.fixture
async def upstream(nothing_left: None) -> AsyncIterator[Langfast]:
    with trio.fail_after(15):
        async with Langfast(signups_per_hour=1000).running() as simulator:
            yield simulator


@pytest.fixture
async def sessions(upstream: Langfast) -> AsyncIterator[Sessions]:
    made = Sessions(Dialer(authority().client(), 5.0))
    async with trio.open_nursery() as nursery:
        await nursery.start(made.run)
        yield made
        await made.aclose()
        assert made.open == 0
        nursery.cancel_scope.cancel()


class Account:
    """A user of the simulator, who takes seats and starts runs."""

    def __init__(self, upstream: Langfast, session: Any) -> None:
        self.upstream = upstream
        self.session = session
        self.wanted = SocketIOSession(upstream.socket_url, session["user"]["id"], {"token": session["access_token"]})

    async def start(self, seat: Seat, words: str, *, claim: bool = True) -> str:
        seat.began = True
        status, answer = await start(self.upstream, self.session, words)
        assert status == 200
        execution: str = answer["jobs"][0]["job_id"]
        if claim:
            seat.claim(execution)
        return execution


async def account(upstream: Langfast) -> Account:
    return Account(upstream, (await sign_up(upstream))[1])


async def heard(seat: Seat) -> list[Any]:
    """The payloads of a run's events until its last one."""
    payloads: list[Any] = []
    with trio.fail_after(5):
        while events := await seat.receive():
            payloads += [event.arguments[0] for event in events]
            if events[-1].name == "completion_finished":
                break
    return payloads


async def said(seat: Seat) -> str:
    """The last text of a run."""
    return str([payload["content"] for payload in await heard(seat) if "content" in payload][-1])


def sockets(upstream: Langfast) -> list[Any]:
    return upstream.ledger.by_path("/socket.io/")


async def test_runs_of_one_account_follow_each_other_on_one_session(upstream: Langfast, sessions: Sessions) -> None:
    user = await account(upstream)
    for words in ("one two", "three", "four"):
        with await sessions.seat(user.wanted, owner) as seat:
            await user.start(seat, words)
            assert await said(seat) == words
    assert len(sockets(upstream)) == 1


async def test_runs_at_the_same_time_are_told_apart(upstream: Langfast, sessions: Sessions) -> None:
    users = [await account(upstream) for _ in range(2)]
    texts = {}

    async def job(number: int) -> None:
        user = users[number % 2]
        with await sessions.seat(user.wanted, owner) as seat:
            await user.start(seat, f"job{number} sim:chunks=20 sim:gap=0.002 sim:foreign=3 sim:duplicate=1")
            texts[number] = await said(seat)

    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(job, number)
    assert texts == {number: " ".join(f"job{number}.{k}" for k in range(20)) for number in range(8)}
    assert len(sockets(upstream)) == 2


async def test_what_comes_before_the_name_waits_for_it(upstream: Langfast, sessions: Sessions) -> None:
    user = await account(upstream)
    with await sessions.seat(user.wanted, owner) as seat, await sessions.seat(user.wanted, owner) as other:
        name = await user.start(seat, "a b c sim:early=3", claim=False)
        await upstream.ledger.wait_for(lambda _: upstream.runs[0].ended)
        await user.start(other, "x y")
        assert await said(other) == "x y"
        seat.claim(name)
        contents = [payload["content"] for payload in await heard(seat) if "content" in payload]
        assert contents == ["a", "a b", "a b c", "a b c"]


async def test_what_names_no_run_is_for_one_that_is_alone(upstream: Langfast, sessions: Sessions) -> None:
    user = await account(upstream)
    with await sessions.seat(user.wanted, owner) as seat:
        await user.start(seat, "alone sim:no_id=1 sim:early=1")
        assert await said(seat) == "alone"
        with await sessions.seat(user.wanted, owner) as other:
            await user.start(seat, "which of us sim:no_id=1")
            await user.start(other, "named")
            assert await said(other) == "named"
        with trio.move_on_after(0.05):
            assert not await seat.receive(), "it was said to nobody"


async def test_a_run_that_was_left_speaks_to_nobody(upstream: Langfast, sessions: Sessions) -> None:
    user = await account(upstream)
    with await sessions.seat(user.wanted, owner) as leaving:
        await user.start(leaving, "secret words sim:chunks=100 sim:gap=0.002 sim:no_id=1")
        await leaving.receive()
    with await sessions.seat(user.wanted, owner) as seat:
        await user.start(seat, "mine")
        assert await said(seat) == "mine"
        await upstream.ledger.wait_for(lambda _: all(run.ended for run in upstream.runs))
        with trio.move_on_after(0.05):
            assert not await seat.receive()


async def test_a_run_that_was_left_and_has_ended_is_forgotten(upstream: Langfast, sessions: Sessions) -> None:
    user = await account(upstream)
    with await sessions.seat(user.wanted, owner) as leaving:
        await user.start(leaving, "one sim:chunks=5 sim:gap=0.005")
        await leaving.receive()
    await upstream.ledger.wait_for(lambda _: upstream.runs[0].ended)
    with await sessions.seat(user.wanted, owner) as seat:
        await user.start(seat, "in order")  # what was pushed before this run has been heard when it is over
        assert await said(seat) == "in order"
    with await sessions.seat(user.wanted, owner) as seat:
        await user.start(seat, "alone again sim:no_id=1")
        assert await said(seat) == "alone again"


async def test_one_who_does_not_keep_up_loses_only_its_own(
    upstream: Langfast, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seats, "EVENTS", 10)
    user = await account(upstream)
    with await sessions.seat(user.wanted, owner) as slow, await sessions.seat(user.wanted, owner) as quick:
        await user.start(slow, "slow sim:chunks=30")
        await upstream.ledger.wait_for(lambda _: upstream.runs[0].ended)
        await user.start(quick, "quick sim:chunks=5")
        assert await said(quick) == "quick.0 quick.1 quick.2 quick.3 quick.4"
        with pytest.raises(Overflow):
            await slow.receive()
    assert len(sockets(upstream)) == 1


@pytest.mark.parametrize("fault", ["drop_mid", "reset_mid_chunk"])
async def test_a_lost_connection_ends_its_runs_and_is_made_again(
    upstream: Langfast, sessions: Sessions, fault: str
) -> None:
    user = await account(upstream)
    with await sessions.seat(user.wanted, owner) as seat, await sessions.seat(user.wanted, owner) as bystander:
        await user.start(bystander, "wait sim:fault=hang_mid")
        await user.start(seat, f"a b c d sim:fault={fault}")
        for each in (seat, bystander):
            with pytest.raises(Disconnected), trio.fail_after(5):
                while await each.receive():
                    pass
    with await sessions.seat(user.wanted, owner) as seat:
        await user.start(seat, "again")
        assert await said(seat) == "again"
    assert len(sockets(upstream)) == 2


async def test_a_goodbye_of_the_server_is_no_failure_of_the_connection(upstream: Langfast, sessions: Sessions) -> None:
    user = await account(upstream)
    with await sessions.seat(user.wanted, owner) as seat:
        await user.start(seat, "a b c d sim:fault=truncate sim:at=2")
        assert [payload["content"] for payload in await heard(seat)] == ["a", "a b"]
        assert await seat.receive() == []


async def test_a_refused_token_is_not_tried_again_but_a_new_one_is(upstream: Langfast, sessions: Sessions) -> None:
    upstream.signup.next(token_seconds=-1)
    user = await account(upstream)
    with pytest.raises(SocketRefused) as caught:
        await sessions.seat(user.wanted, owner)
    assert caught.value.reply.body == b'{"message":"Authentication error"}'
    assert len(sockets(upstream)) == 1

    fresh = upstream.accounts.sign_up()
    renewed = SocketIOSession(user.wanted.url, user.wanted.account, {"token": fresh["access_token"]})
    with await sessions.seat(renewed, owner):
        assert len(sockets(upstream)) == 2


async def test_a_server_that_is_away_is_tried_again_with_patience(
    upstream: Langfast, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE_SECONDS", 0.01)
    user = await account(upstream)
    for _ in range(3):
        upstream.sockets.next(fault="close_before_headers")
    upstream.sockets.next(status=503)
    with await sessions.seat(user.wanted, owner) as seat:
        await user.start(seat, "at last")
        assert await said(seat) == "at last"
    assert len(sockets(upstream)) == 5

    monkeypatch.setattr(module, "RETRY_SECONDS", 0.05)
    upstream.sockets.always(status=503)
    stranger = await account(upstream)
    with pytest.raises(SocketRefused) as caught:
        await sessions.seat(stranger.wanted, owner)
    assert caught.value.reply.status == 503


async def test_pauses_double_and_are_drawn_from_their_whole_length(
    upstream: Langfast, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[tuple[float, float]] = []

    def no_pause(least: float, most: float) -> float:
        pauses.append((least, most))
        return 0.0

    monkeypatch.setattr(module.random, "uniform", no_pause)
    user = await account(upstream)
    for _ in range(7):
        upstream.sockets.next(status=503)
    with await sessions.seat(user.wanted, owner) as seat:
        assert pauses == [(0, most) for most in (0.5, 1, 2, 4, 8, 10, 10)]
        await user.start(seat, "a b c d sim:fault=drop_mid")
        with pytest.raises(Disconnected):
            while await seat.receive():
                pass
    with await sessions.seat(user.wanted, owner):
        assert pauses[7:] == [(0, 0.5)], "a session that was of use begins anew, but not all sessions at once"


async def test_an_address_where_nobody_is(
    upstream: Langfast, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.05)
    with pytest.raises(ConnectFailed):
        await sessions.seat(SocketIOSession("ws://127.0.0.1:1", "nobody"), owner)
    for address in ("ftp://localhost", "localhost", "ws://", "ws://localhost:port"):
        with pytest.raises(ValueError):
            await sessions.seat(SocketIOSession(address, "nobody"), owner)


@pytest.mark.parametrize("fault", ["ignore_connect", "no_open", "hang_before_headers"])
async def test_a_server_that_does_not_let_us_in(
    upstream: Langfast, sessions: Sessions, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(module, "OPENING_SECONDS", 0.1)
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.0)
    user = await account(upstream)
    upstream.sockets.always(fault=fault)
    with pytest.raises(TransportTimeout):
        await sessions.seat(user.wanted, owner)
    await upstream.ledger.wait_until_idle()


@pytest.mark.parametrize("fault", ["html", "empty", "bad_status_line", "endless"])
async def test_a_server_that_speaks_something_else(
    upstream: Langfast, sessions: Sessions, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.0)
    user = await account(upstream)
    upstream.sockets.always(**({"status": 200} if fault == "endless" else {"fault": fault}))
    with pytest.raises(TransportError):
        await sessions.seat(user.wanted, owner)


async def test_a_session_that_nobody_needs_is_closed(upstream: Langfast) -> None:
    sessions = Sessions(Dialer(authority().client(), 5.0), idle_seconds=0.05)
    user = await account(upstream)
    async with trio.open_nursery() as nursery:
        await nursery.start(sessions.run)
        with await sessions.seat(user.wanted, owner) as seat:
            await trio.sleep(0.1)
            await user.start(seat, "still here")
            assert await said(seat) == "still here"
        call = sockets(upstream)[0]
        await upstream.ledger.wait_closed(call)
        assert call.closed_by == "client"
        assert call.notes["socket"].odd_frames == []
        with await sessions.seat(user.wanted, owner) as seat:
            await user.start(seat, "back")
            assert await said(seat) == "back"
        await until(lambda: not sessions.open)
        nursery.cancel_scope.cancel()


async def test_waiting_for_a_seat_can_be_given_up(upstream: Langfast, sessions: Sessions) -> None:
    user = await account(upstream)
    upstream.sockets.next(fault="ignore_connect")
    with trio.move_on_after(0.05) as patience:
        await sessions.seat(user.wanted, owner)
    assert patience.cancelled_caught


async def test_pings_are_answered_for_as_long_as_a_session_lives(nothing_left: None) -> None:
    async with Langfast(ping_interval=0.02, ping_timeout=0.5).running() as upstream:
        sessions = Sessions(Dialer(authority().client(), 5.0))
        user = await account(upstream)
        async with trio.open_nursery() as nursery:
            await nursery.start(sessions.run)
            with trio.fail_after(5), await sessions.seat(user.wanted, owner):
                socket = sockets(upstream)[0].notes["socket"]
                await upstream.ledger.wait_for(lambda _: socket.pongs >= 5)
            await sessions.aclose()
            await upstream.ledger.wait_closed(sockets(upstream)[0])
            nursery.cancel_scope.cancel()


async def test_a_silent_server_is_left_when_its_ping_is_overdue(nothing_left: None) -> None:
    async with Langfast(ping_interval=0.05, ping_timeout=0.05).running() as upstream:
        upstream.sockets.next(fault="silent")
        sessions = Sessions(Dialer(authority().client(), 5.0))
        user = await account(upstream)
        async with trio.open_nursery() as nursery:
            await nursery.start(sessions.run)
            with trio.fail_after(5), await sessions.seat(user.wanted, owner) as seat, pytest.raises(Disconnected):
                await seat.receive()
            nursery.cancel_scope.cancel()


async def test_a_provider_that_does_not_understand_an_event_costs_this_event(
    upstream: Langfast, sessions: Sessions, caplog: pytest.LogCaptureFixture
) -> None:
    def defective(event: SocketEvent) -> Belonging | None:
        return owner(event) if event.arguments[0]["content"] != "a b" else Belonging(*event.arguments[99])

    user = await account(upstream)
    with await sessions.seat(user.wanted, defective) as seat:
        await user.start(seat, "a b c d sim:fault=truncate sim:at=3")
        assert [payload["content"] for payload in await heard(seat)] == ["a", "a b c"]
    assert "an event was not understood" in caplog.text
