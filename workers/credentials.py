"""Which credential an attempt uses, and what its outcome says about the credential.

One process's view: the keys from the settings, least used first, resting after a 429, set aside after a 401 or an unpaid bill.
"""

from dataclasses import dataclass, field
from typing import Final

import trio

from shared.errors import Failure, GatewayError, fail
from shared.schema.job import Job
from workers.provider import Credential, Provider

REST_SECONDS: Final = 5.0
LONGEST_REST_SECONDS: Final = 3600.0
SUSPEND_SECONDS: Final = 600.0
RETIRE_SECONDS: Final = 3600.0


@dataclass
class Lease:
    """Permission to use a credential for one call. `credential` is None where the upstream needs none."""

    credential: Credential | None
    entry: "_Entry | None" = None


@dataclass
class _Entry:
    credential: Credential
    in_use: int = 0
    uses: int = 0
    resting_until: float = 0.0
    reasons: dict[str, float] = field(default_factory=dict)


class Credentials:
    """The provider's credentials in this process."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self._entries = [_Entry(credential) for credential in provider.credentials]

    async def lease(self, job: Job, tried: set[str], refused: list[Failure]) -> Lease:
        """The least busy credential that was not tried for this job and does not rest.

        Raises `GatewayError`: the last refusal in the caller's terms when the walk is over, `no_credential` when all rest.
        """
        if job.credential is not None:
            if tried:
                raise GatewayError(_callers_own(refused[-1]))
            return Lease(Credential("caller", job.credential))
        if self._provider.caller_credentials and not self._entries:
            raise fail("invalid_api_key", "This provider takes your own upstream key as the API key.")
        if not self._entries:
            return Lease(None)
        now = trio.current_time()
        usable = [entry for entry in self._entries if entry.credential.id not in tried and entry.resting_until <= now]
        if not usable:
            raise GatewayError(self._exhausted(refused, now))
        entry = min(usable, key=lambda entry: (entry.in_use, entry.uses))
        entry.in_use += 1
        entry.uses += 1
        return Lease(entry.credential, entry)

    def give_back(self, lease: Lease, failure: Failure | None) -> None:
        entry = lease.entry
        if entry is None:
            return
        entry.in_use -= 1
        if failure is None or failure.row.credential == "keep":
            return
        rest = {
            "cool_down": min(failure.retry_after_seconds or REST_SECONDS, LONGEST_REST_SECONDS),
            "suspend": SUSPEND_SECONDS,
            "retire": RETIRE_SECONDS,
        }[failure.row.credential]
        # A second hint only ever lengthens the rest.
        entry.resting_until = max(entry.resting_until, trio.current_time() + rest)

    def _exhausted(self, refused: list[Failure], now: float) -> Failure:
        wait = max(1.0, min(entry.resting_until for entry in self._entries) - now)
        if refused and refused[-1].kind == "rate_limit":
            return Failure("rate_limit", refused[-1].message, None, None, refused[-1].retry_after_seconds or wait)
        if refused:
            return Failure(refused[-1].kind, "The upstream refused every credential that this gateway has.")
        return Failure("no_credential", "All upstream credentials are resting; try again later.", None, None, wait)


def _callers_own(failure: Failure) -> Failure:
    """The upstream refused the key that the caller brought: this time it is the caller's business."""
    kind = {"credential_invalid": "invalid_api_key", "billing": "insufficient_quota"}.get(failure.kind, failure.kind)
    return Failure(
        kind, failure.message, failure.param, failure.code, failure.retry_after_seconds, failure.upstream_status
    )
