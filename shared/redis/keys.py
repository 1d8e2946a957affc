"""The schema of everything that Sluice keeps in Redis. Nothing else may build a key.

| key | type | life | meaning |
|---|---|---|---|
| `sluice:jobs:{provider}` | stream, group `workers` | until claimed | sealed jobs that are next; those below come after them |
| `sluice:waiting:{provider}` | sorted set, arrival and name → turn | while somebody waits | jobs that are not next yet |
| `…:low` | sorted set, the same | same | those of low priority |
| `…:sealed` | hash, name → sealed | same | these jobs themselves |
| `…:places` | hash, name → where | until claimed | where each queued job stands: in a line or in the stream |
| `…:turns` | hash, caller → number | while the caller waits | each caller's last turn and number of waiting jobs |
| `sluice:pace:{provider}` | hash | 10 min after somebody waited | the turn that was served last; how fast jobs are claimed |
| `sluice:circuit:{provider}` | hash, model → JSON | 10 min after it opened | circuits that are not closed |
| `…:calls` | hash, model → JSON | 10 min after the last call | how the calls of the last seconds went |
| `sluice:frontend:{id}` | channel | – | parcels for one frontend process: frames of all its jobs |
| `sluice:frontend:{id}:own` | channel | – | a frontend's own voice: what it publishes to see whether it would hear others |
| `sluice:worker:{id}` | channel | – | orders for one worker process: cancel, resend, consumed, finished |
| `sluice:alive` | set | members are removed when their key is gone | `kind:id` of every process that may be alive |
| `sluice:alive:{kind}:{id}` | string, JSON | 5 s, refreshed every second | the process's advertisement |
| `sluice:models:{provider}` | string, JSON | twelve intervals | models that the upstream lists |
| `…:asked` | string | an interval | a worker has asked, or is about to |
| `sluice:credentials:{provider}` | hash, id → JSON | until removed | the provider's pool: state of each credential |
| `…:secrets` | hash, id → sealed | same | what opens the upstream |
| `…:order` | sorted set, id → load, last use | same | the credentials that may be leased, the least busy first |
| `…:timers` | sorted set, member → its end | until its end | leases, rests, set-asides, vouchers of settings |
| `…:tasks` | sorted set, task → when it is due | until done | what a keeper must do |
| `…:pool` | hash | – | calls per credential, sign-up under way, until when somebody waits |
| `…:signups` | sorted set, token → time | 1 h each | sign-ups of the last hour |
| `…:news` | channel | – | an empty message whenever a look at the pool is worth while |
| `sluice:answers:{all}` | hash, name → sealed | as long as the last of them | answers that are kept for identical requests |
| `…:ends` | sorted set, name → when it ends | same | the same answers, the next to go first |
| `…:bytes` | string, number | same | their size together |
| `sluice:callers` | hash, id → JSON | for ever, also when revoked | callers' keys: what each may do, and digests of it |
| `sluice:callers:revisions` | hash, id → number | same | counts the changes of each; negative when it was revoked |
| `sluice:callers:news` | channel | – | the id of a caller's key that has changed |
| `sluice:slots` | sorted set, job and caller → end | 10 s each | slots of jobs, renewed by their owners |
| `sluice:slots:pulse` | hash | 1 h | when slots were last renewed by anybody, and until when none of them is given up |
| `sluice:settled:{job}` | string | 2 min, or 1 h | the mark of a settlement: no other of this job counts |
| `sluice:caller:{id}:window` | hash, second → what was granted | 61 s | requests and tokens of the last minute |
| `sluice:caller:{id}:reserved` | hash, job → reservation | until settled | what was charged for running jobs, one a slot |
| `sluice:caller:{id}:tokens` | hash, day or month → number | 32 days | what counts against daily and monthly quotas |
| `sluice:dead` | list of JSON | 30 days after the last | jobs that several workers died of: no content, the latest hundred |
| `sluice:usage:{day}` | hash, row → counts | 400 days | what each caller used of each model, for good |

`{…}` around a provider is literal: it is the hash tag that keeps one provider's keys on one node of a Redis Cluster.
All members of the group read under one consumer name: an entry is acknowledged and deleted the moment it is read, so it
stays pending only when its reader died in between, and then anybody may take it over.
"""

from typing import Final

GROUP: Final = b"workers"
CONSUMER: Final = b"worker"
_WAITING_PARTS: Final = (b":low", b":sealed", b":places", b":turns")
_POOL_PARTS: Final = (b"secrets", b"order", b"timers", b"tasks", b"pool", b"signups")

ANSWERS: Final = (b"sluice:answers:{all}", b"sluice:answers:{all}:ends", b"sluice:answers:{all}:bytes")

CALLERS: Final = b"sluice:callers"
CALLER_REVISIONS: Final = b"sluice:callers:revisions"
CALLERS_NEWS: Final = b"sluice:callers:news"

SLOTS: Final = b"sluice:slots"
SLOTS_PULSE: Final = b"sluice:slots:pulse"
SETTLED: Final = b"sluice:settled:"
CALLER: Final = b"sluice:caller:"
USAGE: Final = b"sluice:usage:"
"""How the names of these keys begin; scripts finish them, since they settle jobs of callers that nobody knows beforehand."""

DEAD: Final = b"sluice:dead"

ALIVE: Final = b"sluice:alive"
ALIVE_SECONDS: Final = 5
REFRESH_SECONDS: Final = 1.0


def jobs(provider: str) -> bytes:
    return b"sluice:jobs:{%b}" % provider.encode()


def queue(provider: str) -> list[bytes]:
    """The keys of a provider's queue, in the order of the table: those that each of its scripts declares."""
    tag = b"{%b}" % provider.encode()
    waiting = b"sluice:waiting:" + tag
    return [jobs(provider), waiting, *(waiting + part for part in _WAITING_PARTS), b"sluice:pace:" + tag]


def places(provider: str) -> bytes:
    return b"sluice:waiting:{%b}:places" % provider.encode()


def circuits(provider: str) -> list[bytes]:
    circuit = b"sluice:circuit:{%b}" % provider.encode()
    return [circuit, circuit + b":calls"]


def frontend_channel(frontend_id: str) -> bytes:
    return b"sluice:frontend:%b" % frontend_id.encode()


def own_voice_channel(frontend_id: str) -> bytes:
    return frontend_channel(frontend_id) + b":own"


def worker_channel(worker_id: str) -> bytes:
    return b"sluice:worker:%b" % worker_id.encode()


def alive(kind: str, process_id: str) -> bytes:
    """`kind` is `frontend` or `worker`."""
    return b"sluice:alive:%b:%b" % (kind.encode(), process_id.encode())


def models(provider: str) -> bytes:
    return b"sluice:models:{%b}" % provider.encode()


def models_asked(provider: str) -> bytes:
    return models(provider) + b":asked"


def pool(provider: str) -> tuple[bytes, ...]:
    """The keys of a provider's credential pool, in the order of the table: those that each of its scripts declares."""
    root = b"sluice:credentials:{%b}" % provider.encode()
    return (root, *(b"%b:%b" % (root, part) for part in _POOL_PARTS))


def usage(day: str) -> bytes:
    """`day`: `YYYY-MM-DD`."""
    return USAGE + day.encode()


def pool_news(provider: str) -> bytes:
    return b"sluice:credentials:{%b}:news" % provider.encode()
