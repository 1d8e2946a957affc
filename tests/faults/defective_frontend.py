"""A frontend with two planted defects: words in a request make its answer raise, before the first byte or in mid-stream."""

import sys

from frontend import __main__ as process
from frontend.api import answering
from frontend.cache import Memory
from frontend.open_job import OpenJob

STREAMED = 5
"""Frames, before the second defect shows."""

whole, take = answering.whole, OpenJob.take


async def whole_or_not(job: OpenJob, memory: Memory | None) -> bytes:
    if b"defect-in-request" in job.submission.body:
        raise LookupError("planted")
    return await whole(job, memory)


def take_or_not(job: OpenJob) -> list[bytes]:
    if b"defect-in-stream" in job.submission.body and job.ownership.received.next > STREAMED:
        raise LookupError("planted")
    return take(job)


if __name__ == "__main__":
    answering.whole = whole_or_not
    OpenJob.take = take_or_not
    sys.exit(process.main())
