"""What crosses Redis: the same on both sides, readable by the next version, and typed, whoever wrote it."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.schema.job import PROTOCOL, FrameKind, Job, OrderKind, Orders, Outcome, Parcel

IDS = st.binary(min_size=16, max_size=16)
COUNTS = st.integers(0, 2**63 - 1)
SECONDS = st.floats(0, 1e6)
TEXT = st.text(max_size=5)
FRAMES = st.lists(st.tuples(IDS, COUNTS, COUNTS, st.integers(0, 4), st.binary(max_size=20)), max_size=3)
RUNNING = st.none() | st.lists(st.tuples(IDS, COUNTS, COUNTS), max_size=2)
ORDERS = st.lists(st.tuples(st.integers(0, 3), IDS, COUNTS, COUNTS), max_size=3)

MESSAGES = {
    Job: st.builds(
        Job, COUNTS, IDS, COUNTS, TEXT, TEXT, TEXT, TEXT, TEXT, st.booleans(), st.booleans(), SECONDS, st.binary(max_size=20),
        TEXT, st.none() | TEXT,
    ),
    Parcel: st.builds(Parcel, TEXT, FRAMES, RUNNING),
    Outcome: st.builds(Outcome, COUNTS, COUNTS, st.booleans(), st.none() | SECONDS, st.none() | TEXT),
    Orders: st.builds(Orders, TEXT, ORDERS),
}  # fmt: skip


def pack(message):
    return msgspec.msgpack.encode(message)


@pytest.mark.parametrize("kind", MESSAGES)
@given(data=st.data())
def test_round_trip(kind, data):
    message = data.draw(MESSAGES[kind])
    assert msgspec.msgpack.decode(pack(message), type=kind) == message


@pytest.mark.parametrize("kind", MESSAGES)
@given(garbage=st.binary(max_size=60))
def test_garbage_is_refused(kind, garbage):
    try:
        message = msgspec.msgpack.decode(garbage, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return
    assert type(message) is kind


def test_a_job_begins_with_its_protocol():
    """So that a version that understands nothing else can still tell why."""
    job = Job(PROTOCOL, b"i" * 16, 1, "f", "chat", "echo", "m", "m", True, False, 5.0, b"{}", "r")
    assert msgspec.msgpack.decode(pack(job))[0] == PROTOCOL
    assert job.credential is None


@pytest.mark.parametrize(
    ("kind", "shortest"),
    [
        (Parcel, ["w", []]),
        (Orders, ["f", []]),
        (Outcome, []),
        (Job, [PROTOCOL, b"i", 1, "f", "chat", "echo", "m", "m", True, False, 5.0, b"{}", "r"]),
    ],
)
def test_later_versions_may_add_fields_at_the_end(kind, shortest):
    message = msgspec.msgpack.decode(pack(shortest), type=kind)
    fields = len(kind.__struct_fields__)
    longer = [*msgspec.to_builtins(message, builtin_types=(bytes,)), "new", {"newer": 1}]
    assert len(longer) == fields + 2
    assert msgspec.msgpack.decode(pack(longer), type=kind) == message


@pytest.mark.parametrize(
    "wrong",
    [
        ["w", [[b"job", 1, 0, 2]]],
        ["w", [["job", 1, 0, 2, b""]]],
        ["w", [[b"job", "1", 0, 2, b""]]],
        ["w", [[b"job", 1, 0, 2, "text"]]],
        ["w", [[b"job", 1, 0.5, 2, b""]]],
        ["w", [], [[b"job", 1]]],
        ["w"],
        {"worker": "w"},
    ],
)
def test_a_parcel_of_another_shape_is_refused(wrong):
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(pack(wrong), type=Parcel)


def test_the_last_two_kinds_of_frame_are_ends():
    """`kind >= FrameKind.DONE` is how both sides ask whether a frame is the last."""
    kinds = [FrameKind.STARTED, FrameKind.ACCEPTED, FrameKind.CHUNK, FrameKind.DONE, FrameKind.FAILED]
    assert kinds == sorted(set(kinds))
    orders = [OrderKind.CANCEL, OrderKind.RESEND, OrderKind.CONSUMED, OrderKind.FINISHED]
    assert len(set(orders)) == 4


def test_a_frame_is_small():
    """What it costs on top of its payload, in company; a message of Redis adds about forty bytes to all of them."""
    frames = [(b"i" * 16, 1, seq, FrameKind.CHUNK, b"") for seq in range(100)]
    assert len(pack(Parcel("w-0123456789abcdef", frames))) < 100 * 24 + 30
