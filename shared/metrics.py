"""Every metric of every process: one row for its name, type, labels and meaning, and nothing is measured that has no row.

Names follow Prometheus: `sluice_` in front, the unit at the end, `_total` behind what only grows. Labels take few values, so
that nobody's storage fills: providers and errors are ours; a model has a name only while the catalog lists it and is `other`
otherwise; callers, keys, requests and addresses are never labels. Beyond `MOST_SERIES` label sets of one metric, further ones
count as `other`.
"""

from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["counter", "gauge", "histogram"]
Process = Literal["frontend", "worker"]

MOST_SERIES: Final = 1000
OTHER: Final = "other"

SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
SHORT_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
INSTANTS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. `bounds`: upper bounds of a histogram's buckets, in the metric's unit. `of`: the processes that have it."""

    name: str
    kind: Kind
    meaning: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()
    of: tuple[Process, ...] = ("frontend", "worker")


def _counter(name: str, meaning: str, *labels: str) -> Metric:
    return Metric(f"sluice_{name}_total", "counter", meaning, labels)


def _gauge(name: str, meaning: str, *labels: str) -> Metric:
    return Metric(f"sluice_{name}", "gauge", meaning, labels)


def _histogram(name: str, bounds: tuple[float, ...], meaning: str, *labels: str) -> Metric:
    return Metric(f"sluice_{name}_seconds", "histogram", meaning, labels, bounds)


def _only(process: Process, *metrics: Metric) -> tuple[Metric, ...]:
    return tuple(Metric(one.name, one.kind, one.meaning, one.labels, one.bounds, (process,)) for one in metrics)


_EVERY: Final = (
    _gauge(
        "build_info",
        "1. Which version runs as what; `provider` is empty for frontends.",
        "process",
        "provider",
        "version",
    ),
    _histogram("event_loop_lag", INSTANTS, "How late the event loop wakes a sleeper, looked at four times a second."),
    _counter("log_lines_dropped", "Log lines that were lost because whoever takes them did not, or the disk was full."),
    _gauge(
        "redis_up",
        "1 while the connection to Redis answers. `link`: `commands`, or `channel` for what is heard.",
        "link",
    ),
    _counter(
        "redis_connects", "Connections to Redis that came about; each one after the first is a reconnect.", "link"
    ),
    _counter("redis_commands", "Commands sent to Redis."),
    _counter(
        "redis_commands_turned_away", "Commands that were never sent: the connection was down, or too much waited."
    ),
    _gauge("redis_commands_outstanding", "Commands that wait for Redis' reply."),
    _counter(
        "redis_sends", "System calls that sent commands; commands divided by sends is how many went out together."
    ),
    _counter("redis_sent_bytes", "Bytes of commands sent to Redis."),
    _counter("redis_received_bytes", "Bytes of replies received from Redis."),
    _histogram("redis_round_trip", INSTANTS, "From a command to its reply; the first reply of each read is looked at."),
    _gauge(
        "redis_channel_round_trip_seconds",
        "Of the last ping on the connection that hears the channels; it queues behind messages.",
    ),
    _counter("callback_errors", "Defects: exceptions in what is called with a reply or a message. Each is in the log."),
)

_FRONTEND: Final = _only(
    "frontend",
    _counter(
        "http_requests",
        "HTTP requests that ended, by path and status; 499: the caller left before the head.",
        "endpoint",
        "status",
    ),
    _counter(
        "requests_refused",
        "Requests that got an error before a job of theirs was accepted, by the error's kind.",
        "reason",
    ),
    _counter(
        "jobs_accepted",
        "Jobs that Redis took or a worker began. Always the sum of those that ended and those that are open.",
        "endpoint",
        "provider",
    ),
    _counter(
        "jobs_ended",
        "Accepted jobs that ended. `outcome`: `done`, `failed` or `cancelled` (the caller left); `error`: of the failed.",
        "endpoint",
        "provider",
        "outcome",
        "error",
    ),
    _gauge(
        "jobs_open",
        "Accepted jobs that have not ended. `state`: `waiting` for a worker, or `running`.",
        "provider",
        "state",
    ),
    _gauge("streams_open", "Callers that are being answered with a stream now.", "provider"),
    _counter("attempts_started", "Attempts that workers began for jobs that have ended.", "provider"),
    _counter(
        "retries",
        "Attempts after the first, for jobs that have ended, by what had become of the one before.",
        "provider",
        "reason",
    ),
    _counter("jobs_resubmitted", "Jobs that were put on a queue once more."),
    _histogram(
        "queue_wait",
        SHORT_SECONDS,
        "From the moment a job was put on the queue to the word that a worker has it.",
        "provider",
    ),
    _gauge(
        "queue_depth",
        "Jobs that wait on the provider's queue, over all frontends; asked of Redis at each scrape.",
        "provider",
    ),
    _gauge(
        "circuits",
        "Models whose upstream failed again and again. `state`: `open` (left alone), or `half_open` (a probe is under way)."
        " Asked of Redis at each scrape.",
        "provider",
        "state",
    ),
    _histogram(
        "first_token", SECONDS, "From the request, checked and routed, to the first token of a stream.", "provider"
    ),
    _histogram(
        "token_gap",
        SHORT_SECONDS,
        "Between two pieces of a stream as its caller gets them; tokens that come together are one piece.",
        "provider",
    ),
    _histogram(
        "job", SECONDS, "From the request, checked and routed, to its end, whatever the outcome.", "provider", "outcome"
    ),
    _counter(
        "tokens",
        "Tokens of answers that are done, as the upstream counted them. `kind`: `prompt` or `completion`.",
        "provider",
        "model",
        "kind",
    ),
    _counter(
        "answers_from_memory",
        "Requests whose caller asked for an answer from memory. `result`: `hit`, or `miss` if a job was needed.",
        "result",
    ),
    _counter("parcels_received", "Messages from workers on the frontend's channel."),
    _counter("parcels_refused", "Messages on the frontend's channel that were damaged or sealed by somebody else."),
    _counter("frames_received", "Frames in those messages, about one for each token."),
    _counter("resends_asked", "Gaps: how often a worker was asked to send again what did not arrive."),
    _gauge("workers", "Live workers that this frontend knows.", "provider"),
)

_WORKER: Final = _only(
    "worker",
    _gauge("worker_running", "Jobs that the worker has claimed and not finished.", "provider"),
    _gauge("worker_room", "Jobs that it would take now; 0 while it drains or waits for credentials.", "provider"),
    _counter("jobs_claimed", "Jobs taken off the queue.", "provider"),
    _counter(
        "entries_refused",
        "Entries of the queue that could not be read: damaged, of another version, or sealed by somebody else.",
        "provider",
    ),
    _counter("entries_taken_over", "Entries of the queue whose reader had died.", "provider"),
    _counter(
        "attempts_ended",
        "Attempts that ended. `outcome`: `done`, `failed` or `cancelled` (by its owner); `error`: of the failed.",
        "provider",
        "outcome",
        "error",
    ),
    _counter(
        "upstream_calls_opened", "Calls to the upstream that were begun, each of which may cost something.", "provider"
    ),
    _gauge("upstream_calls_open", "Calls to the upstream that are open now.", "provider"),
    _counter(
        "upstream_calls_ended",
        "Calls to the upstream that ended. `outcome`: `complete`, `refused`, `broken` or `cancelled` (by the owner, or a"
        " deadline); `status`: of its HTTP answer, empty if there was none.",
        "provider",
        "outcome",
        "status",
    ),
    _histogram(
        "upstream_head",
        SECONDS,
        "From the beginning of a call to the head of its answer, connecting included.",
        "provider",
    ),
    _histogram("upstream_first_token", SECONDS, "From the beginning of a call to its first token.", "provider"),
    _histogram(
        "upstream_token_gap",
        SHORT_SECONDS,
        "Between two tokens, or groups of them that come together, as the upstream sends them.",
        "provider",
    ),
    _gauge("upstream_connections", "HTTP connections to the upstream. `state`: `busy` or `idle`.", "provider", "state"),
    _counter("upstream_connections_opened", "HTTP connections that came about.", "provider"),
    _counter("upstream_connections_reused", "Calls that found an open HTTP connection.", "provider"),
    _gauge("frames_retained_bytes", "What is kept in memory of answers until their frontends have it.", "provider"),
    _counter("frames_resent", "Frames that a frontend had to be sent again.", "provider"),
    _counter("frontends_lost", "Frontends that this worker gave up while it ran jobs for them.", "provider"),
    _gauge(
        "credentials",
        "Credentials of the provider's pool, the same for all its workers. `state`: `usable`, `busy`, `resting`, "
        "`probation`, `retired`, `suspended`, `expired`.",
        "provider",
        "state",
    ),
    _gauge("credential_waiters", "Jobs that wait for a credential.", "provider"),
    _counter(
        "credential_verdicts",
        "What calls said of their credentials: `ok`, `rest`, `retire`, `suspend`, or `none`.",
        "provider",
        "verdict",
    ),
)

METRICS: Final = {metric.name: metric for metric in (*_EVERY, *_FRONTEND, *_WORKER)}
"""The table, by name."""
