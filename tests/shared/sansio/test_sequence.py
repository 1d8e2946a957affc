"""Numbered frames: the receiver hands out each once and in order, the sender keeps each until it was consumed."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shared.sansio.sequence import HELD_FRAMES, Receiver, Sender


@pytest.mark.parametrize(
    ("arrivals", "handed_out"),
    [
        ([0, 1, 2], [[0], [1], [2]]),
        ([0, 0, 1, 0], [[0], [], [1], []]),
        ([1, 0], [[], [0, 1]]),
        ([2, 1, 0], [[], [], [0, 1, 2]]),
        ([1, 3, 0, 2], [[], [], [0, 1], [2, 3]]),
        ([1, 1, 0, 1], [[], [], [0, 1], []]),
        ([5], [[]]),
    ],
)
def test_frames_come_out_once_and_in_order(arrivals, handed_out):
    receiver = Receiver()
    assert [receiver.accept(seq, seq) for seq in arrivals] == handed_out
    assert receiver.next == sum(map(len, handed_out))
    assert receiver.has_hole == any(seq > receiver.next for seq in arrivals)


def test_each_hole_is_asked_about_once():
    receiver = Receiver()
    assert receiver.question() is None
    receiver.accept(1, "b")
    assert receiver.question() == 0
    receiver.accept(3, "d")
    assert receiver.question() is None, "still the same hole"
    assert receiver.accept(0, "a") == ["a", "b"]
    assert receiver.question() == 2, "the next hole"
    assert receiver.question() is None
    assert receiver.accept(2, "c") == ["c", "d"]
    assert receiver.question() is None


def test_a_report_asks_again_and_shows_a_lost_tail():
    receiver = Receiver()
    receiver.accept(0, "a")
    assert receiver.reported(1) is None
    assert receiver.reported(0) is None, "a report that is older than what has come"
    assert receiver.reported(3) == 1, "the tail is missing"
    assert receiver.reported(3) == 1, "and still: a question or its answer may be lost"
    receiver.accept(2, "c")
    assert receiver.question() is None, "the report has asked about this hole already"


def test_a_hole_does_not_hold_any_number_of_frames():
    receiver = Receiver()
    for seq in range(1, 3 * HELD_FRAMES):
        receiver.accept(seq, seq)
    assert receiver.accept(0, 0) == list(range(HELD_FRAMES + 1))
    assert not receiver.has_hole
    assert receiver.reported(3 * HELD_FRAMES) == HELD_FRAMES + 1, "what was dropped is asked for again"


def sender_of(*frames):
    sender = Sender()
    for frame in frames:
        sender.keep(frame, len(frame))
    return sender


def test_a_sender_numbers_from_nought():
    sender = Sender()
    assert sender.next == 0
    sender.keep("a", 1)
    assert sender.next == 1


@pytest.mark.parametrize(
    ("seq", "frames"),
    [(0, ["a", "bb", "ccc"]), (1, ["bb", "ccc"]), (2, ["ccc"]), (3, []), (99, [])],
)
def test_since(seq, frames):
    assert sender_of("a", "bb", "ccc").since(seq) == frames


@pytest.mark.parametrize(
    ("below", "left", "retained_bytes"),
    [
        (0, ["a", "bb", "ccc"], 6),
        (1, ["bb", "ccc"], 5),
        (3, [], 0),
        (4, ["a", "bb", "ccc"], 6),
        (-1, ["a", "bb", "ccc"], 6),
    ],
)
def test_consumed(below, left, retained_bytes):
    sender = sender_of("a", "bb", "ccc")
    sender.consumed(below)
    assert sender.since(0) == left
    assert sender.retained_bytes == retained_bytes
    assert sender.next == 3


def test_what_was_consumed_is_not_sent_again():
    """An order to send again may be overtaken by the news that its frames have arrived after all."""
    sender = sender_of("a", "b", "c", "d")
    sender.consumed(2)
    assert sender.since(1) == ["c", "d"]
    assert sender.since(3) == ["d"]
    sender.consumed(1)
    assert sender.since(0) == ["c", "d"], "stale"
    sender.consumed(4)
    assert sender.since(0) == []
    sender.keep("e", 1)
    assert sender.since(4) == ["e"]


class BothEnds(RuleBasedStateMachine):
    """A sender and a receiver with a road between them that hypothesis chooses to be as bad as it likes."""

    def __init__(self):
        super().__init__()
        self.sender = Sender()
        self.receiver = Receiver()
        self.road = []
        self.orders = []
        self.got = []

    @rule(count=st.integers(1, 4))
    def send(self, count):
        for _ in range(count):
            frame = (self.sender.next, f"frame {self.sender.next}")
            self.sender.keep(frame, 1)
            self.road.append(frame)

    @precondition(lambda self: self.road)
    @rule(data=st.data(), stays=st.booleans())
    def deliver_any(self, data, stays):
        position = data.draw(st.integers(0, len(self.road) - 1))
        seq, frame = self.road[position] if stays else self.road.pop(position)
        self.got += self.receiver.accept(seq, frame)
        self.orders.append(self.receiver.question())

    @precondition(lambda self: self.road)
    @rule()
    def lose_everything_under_way(self):
        self.road.clear()

    @rule(late=st.integers(0, 3))
    def report(self, late):
        self.orders.append(self.receiver.reported(max(0, self.sender.next - late)))

    @precondition(lambda self: self.orders)
    @rule(data=st.data())
    def obey_some_order(self, data):
        order = self.orders.pop(data.draw(st.integers(0, len(self.orders) - 1)))
        if order is not None:
            self.road += self.sender.since(order)

    @rule(data=st.data())
    def consume(self, data):
        self.sender.consumed(data.draw(st.integers(0, self.receiver.next)))

    @invariant()
    def a_prefix_has_come(self):
        assert self.got == [f"frame {number}" for number in range(len(self.got))]
        assert self.receiver.next == len(self.got) <= self.sender.next

    @invariant()
    def nothing_that_is_missing_is_forgotten(self):
        missing = [seq for seq, _ in self.sender.since(self.receiver.next)]
        assert missing == list(range(self.receiver.next, self.sender.next))
        assert self.sender.retained_bytes == len(self.sender.since(0))

    def teardown(self):
        """One report and one resend over a road that works make up for everything."""
        order = self.receiver.reported(self.sender.next)
        if order is not None:
            for seq, frame in self.sender.since(order):
                self.got += self.receiver.accept(seq, frame)
        assert len(self.got) == self.sender.next
        assert not self.receiver.has_hole


TestBothEnds = BothEnds.TestCase
TestBothEnds.settings = settings(max_examples=50, stateful_step_count=30)


@given(st.permutations(range(12)), st.lists(st.integers(0, 11)))
def test_any_order_gives_the_same(order, more):
    receiver = Receiver()
    handed_out = [frame for seq in [*more, *order] for frame in receiver.accept(seq, seq)]
    assert handed_out == list(range(12))
