"""When a worker settles a job in its owner's place: only if the owner is gone, and with what it knows."""

import msgspec
import trio

from shared.redis.submission.settlement import OVERTAKEN_SECONDS, SETTLE, Settlement
from shared.schema.events import Usage
from tests.workers.outbox_paper import CHUNK, a_job, an_outbox
from workers.orphans import settle_orphan
from workers.outbox import PATIENCE_SECONDS


class Told:
    """What the attempt of a retained job is told, in order."""

    def __init__(self):
        self.words = []

    def gone(self):
        self.words.append("gone")

    def orphaned(self):
        self.words.append("orphaned")


async def test_an_attempt_learns_first_that_its_owner_is_no_more(autojump_clock, nursery):
    _paper, outbox = an_outbox(answer=0)
    told = Told()
    outbox.put(outbox.open(a_job(), told.gone, told.orphaned), [(CHUNK, b"a")])
    nursery.start_soon(outbox.run)
    await trio.sleep(PATIENCE_SECONDS + 2)
    assert told.words == ["orphaned", "gone"]


async def test_a_redis_that_is_away_says_nothing_about_owners(autojump_clock):
    _paper, outbox = an_outbox(answer=0)
    told = Told()
    outbox.put(outbox.open(a_job(), told.gone, told.orphaned), [(CHUNK, b"a")])
    outbox.abandon_all()
    assert told.words == ["gone"], "the owner may live, and settles"


class Paper:
    """A link that writes one script down."""

    def post_script(self, script, keys, arguments, on_reply=None):
        assert script is SETTLE
        (self.settlement,) = msgspec.msgpack.decode(arguments[0], type=list[Settlement])


def test_what_is_settled():
    paper, job = Paper(), a_job()
    settle_orphan(paper, job, Usage(10, 20, 30, estimated=True))
    assert paper.settlement == Settlement(
        job.id.hex(), job.caller, "cancelled", 10, 20, True, '["master","echo","echo"]', mark_seconds=OVERTAKEN_SECONDS
    )
    settle_orphan(paper, job, None, failed=True)
    assert (paper.settlement.outcome, paper.settlement.prompt_tokens) == ("failed", 0)
