"""Settles jobs whose owners are gone: the worker that ran the attempt alone knows what it has cost."""

from shared.redis.link import Link
from shared.redis.submission.settlement import OVERTAKEN_SECONDS, Settlement, settle
from shared.redis.usage import row_name
from shared.schema.events import Usage
from shared.schema.job import Job


def settle_orphan(link: Link, job: Job, used: Usage | None, *, failed: bool = False) -> None:
    """Post it; synchronous. `used`: None if the upstream did nothing for the job.

    If this worker is wrong and the owner lives, the owner's own settlement comes too late and does not count. If Redis does not
    get it, the job's slot expires, and it is settled at its estimate.
    """
    end = Settlement(
        job=job.id.hex(),
        caller=job.caller,
        outcome="failed" if failed else "cancelled",
        prompt_tokens=used.prompt_tokens if used else 0,
        completion_tokens=used.completion_tokens if used else 0,
        estimated=used.estimated if used else False,
        row=row_name(job.caller, job.provider, job.model),
        mark_seconds=OVERTAKEN_SECONDS,
    )
    link.post_script(*settle([end]))
