"""Every setting of every process: the classes are the table, one field with one row for each setting."""

# ruff: noqa: RUF009 - `setting()` makes a dataclass field, not a value

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from shared.settings.kinds import (
    ALIASES,
    API_KEYS,
    BASE_URL,
    HOST,
    LISTEN,
    MODEL,
    MODELS,
    ORIGINS,
    PATH,
    PROXY,
    REDIS_URL,
    SECRET_KEYS,
    SWITCH,
    Listen,
    choice,
    seconds,
    whole,
)
from shared.settings.providers import Deadlines
from shared.settings.routes import ROUTES, Tiers
from shared.settings.row import setting
from shared.settings.secret import Secret


@dataclass(frozen=True, kw_only=True)
class SharedSettings:
    """What frontends and workers read alike."""

    process: ClassVar[str] = "all"

    redis_url: Secret = setting(
        "REDIS_URL",
        REDIS_URL,
        "The Redis that connects all processes. Empty: `sluice up` starts one of its own; a process started by hand joins"
        " the one that `sluice up` runs in the same directory, else looks on this machine's port 6379.",
        example="redis://:password@redis.internal:6379/0",
        secret=True,
    )
    allow_open_redis: bool = setting(
        "SLUICE_ALLOW_OPEN_REDIS", SWITCH, "Accept a Redis on another machine that asks for no password.", default="off"
    )
    secret_keys: tuple[Secret, ...] = setting(
        "SLUICE_SECRET_KEY",
        SECRET_KEYS,
        "Encrypts everything readable in Redis: 32 characters or more, the same for all processes. Several by commas: the first"
        " encrypts, all decrypt. Empty: a key is made and kept in the state directory (one machine only).",
        secret=True,
    )
    state_dir: Path = setting(
        "SLUICE_STATE_DIR",
        PATH,
        "Directory for the keys that Sluice makes itself; readable by its owner only.",
        default=".sluice",
    )
    first_token_seconds: float | None = setting(
        "SLUICE_FIRST_TOKEN_SECONDS",
        seconds(0.1),
        "Longest wait for an upstream's first token. Empty: the provider's own.",
        unit="s",
    )
    silence_seconds: float | None = setting(
        "SLUICE_SILENCE_SECONDS",
        seconds(0.1),
        "Longest pause between two pieces of an upstream's answer. Empty: the provider's own.",
        unit="s",
    )
    total_seconds: float | None = setting(
        "SLUICE_TOTAL_SECONDS", seconds(0.1), "Longest time for a whole answer. Empty: the provider's own.", unit="s"
    )
    drain_seconds: float = setting(
        "SLUICE_DRAIN_SECONDS",
        seconds(0, 3600),
        "How long a process that is asked to stop may finish the answers it has begun.",
        default="30",
        unit="s",
    )
    log_level: str = setting(
        "SLUICE_LOG_LEVEL", choice("debug", "info", "warning", "error"), "How much is logged.", default="info"
    )
    log_format: str | None = setting(
        "SLUICE_LOG_FORMAT",
        choice("json", "text"),
        "One JSON object per line, or lines for people. Empty: json; where `sluice up` runs on a terminal, text.",
    )

    otel: bool = setting(
        "SLUICE_OTEL",
        SWITCH,
        "Send traces by OpenTelemetry (OTLP over HTTP). Where to, and how many, is said by its own variables in the"
        " environment, such as OTEL_EXPORTER_OTLP_ENDPOINT. Needs the extra: `pip install 'sluice[otel]'`.",
        default="off",
    )


@dataclass(frozen=True, kw_only=True)
class FrontendSettings(SharedSettings):
    """What a frontend reads: who may call, and how it treats them.

    `api_keys` is empty exactly when `auth` is "off"; `api_key_origin` says where the keys come from.
    """

    process: ClassVar[str] = "frontend"

    host: str = setting(
        "SLUICE_HOST",
        HOST,
        "Address to listen on; 0.0.0.0 or :: for every network of the machine.",
        default="127.0.0.1",
    )
    port: int = setting("SLUICE_PORT", whole(0, 65535), "Port to listen on; 0 takes a free one.", default="8088")
    share_port: bool = setting(
        "SLUICE_SHARE_PORT",
        SWITCH,
        "Let several frontends of this user listen on the port, each getting a share of the callers. `sluice up` sets it.",
        default="off",
    )
    api_keys: tuple[Secret, ...] = setting(
        "SLUICE_API_KEY",
        API_KEYS,
        "Keys that callers present as `Authorization: Bearer …`; several by commas. 16 characters or more unless only this"
        " machine can connect. Empty: the one that `sluice up` or `sluice keys` made and keeps in the state directory.",
        secret=True,
    )
    auth: str = setting(
        "SLUICE_AUTH",
        choice("on", "off"),
        "`off` lets everybody in; only where SLUICE_HOST is this machine alone.",
        default="on",
    )
    admin: bool = setting(
        "SLUICE_ADMIN",
        SWITCH,
        "Whether holders of a key of SLUICE_API_KEY may administer over HTTP: callers' keys, usage, the dashboard.",
        default="on",
    )
    pages: bool = setting(
        "SLUICE_PAGES",
        SWITCH,
        "Whether the frontend serves pages for people: /dashboard, /playground and /docs.",
        default="on",
    )
    model_aliases: Mapping[str, str] = setting(
        "SLUICE_MODEL_ALIASES",
        ALIASES,
        "Further names for models.",
        example="fast=openai/gpt-4o-mini,deep=deepseek/deepseek-v4-pro",
    )
    routes: Mapping[str, Tiers] = setting(
        "SLUICE_ROUTES",
        ROUTES,
        "Which providers serve a model: tiers, separated by `>`, are tried in order; in a tier routes, separated by `;`, are"
        " drawn by lot, as often as their weights (`3*`) say. A model that is not named here: every provider that offers it.",
        example="gpt-4o=openai>huggingface,fast=3*openai/gpt-4o-mini;deepseek/deepseek-v4-pro",
    )
    default_model: str = setting(
        "SLUICE_DEFAULT_MODEL",
        MODEL,
        "Model of requests that name none. Empty: such a request is an error.",
        example="fast",
    )
    cors_origins: tuple[str, ...] = setting(
        "SLUICE_CORS_ORIGINS",
        ORIGINS,
        "Web pages that may call from a browser: exact origins, or * for all. Empty: none.",
        example="https://app.example,http://localhost:5173",
    )
    body_limit_bytes: int = setting(
        "SLUICE_BODY_LIMIT_BYTES", whole(1024, 1 << 30), "Largest request body.", default="10485760", unit="bytes"
    )
    max_connections: int = setting(
        "SLUICE_MAX_CONNECTIONS", whole(1), "Connections that one frontend holds at once.", default="10000"
    )
    max_connections_per_address: int = setting(
        "SLUICE_MAX_CONNECTIONS_PER_ADDRESS",
        whole(0),
        "Connections that one frontend holds from one IP address (IPv6: from one /64). 0: any number, which a proxy in front"
        " needs; set it where callers connect directly.",
        default="0",
    )
    cache_bytes: int = setting(
        "SLUICE_CACHE_BYTES",
        whole(0),
        "Room in Redis for answers that are kept for identical requests, where a key or the header `x-sluice-cache` asks for"
        " it. 0: nothing is kept.",
        default="67108864",
        unit="bytes",
    )
    queue_limit: int = setting(
        "SLUICE_QUEUE_LIMIT",
        whole(1),
        "Jobs that may wait for one provider; more are refused with 503.",
        default="1000",
    )
    queue_seconds: float = setting(
        "SLUICE_QUEUE_SECONDS", seconds(0.1), "Longest wait for a worker to take a job.", default="30", unit="s"
    )
    max_starts: int = setting(
        "SLUICE_MAX_STARTS", whole(1, 10), "How often a job may be started before a token has left.", default="2"
    )
    stall_seconds: float = setting(
        "SLUICE_STALL_SECONDS",
        seconds(0.1),
        "A caller that reads nothing for this long is dropped and its upstream call closed.",
        default="30",
        unit="s",
    )
    keepalive_comment_seconds: float = setting(
        "SLUICE_KEEPALIVE_COMMENT_SECONDS",
        seconds(0.05),
        "Silence in a stream after which a comment keeps proxies from closing it.",
        default="15",
        unit="s",
    )
    metrics_listen: Listen | None = setting(
        "SLUICE_METRICS_LISTEN",
        LISTEN,
        "Where `/metrics` and `/health/…` are served without a key, for machines that watch. Empty: `/metrics` is on the usual"
        " port and takes a key of SLUICE_API_KEY. `sluice up` gives each further frontend the next port.",
        example="127.0.0.1:9100",
    )
    api_key_origin: str


@dataclass(frozen=True, kw_only=True)
class ProviderSettings:
    """One upstream, complete: nothing is left to default except the models of a provider that knows its own.

    `models`: texts as in the setting, for `split_model`. `chosen_models`: a person has named them, rather than we.
    `options`: the values of settings that only this upstream has, by name. `takes_callers_keys`: callers may bring theirs.
    """

    name: str
    keys: tuple[Secret, ...] = setting("{KEY}", API_KEYS, "Key at {LABEL}; several by commas.", secret=True)
    base_url: str = setting("{PREFIX}_BASE_URL", BASE_URL, "Where {LABEL} is reached.")
    models: tuple[str, ...] = setting(
        "{PREFIX}_MODELS",
        MODELS,
        "Models to offer, in place of the usual ones; `a=b` offers its `b` as `a`.",
    )
    calls_per_credential: int = setting(
        "{PREFIX}_CALLS_PER_CREDENTIAL",
        whole(0),
        "Calls that one credential for {LABEL} serves at once, over all workers; 0: any number.",
    )
    deadlines: Deadlines
    chosen_models: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    takes_callers_keys: bool = False


@dataclass(frozen=True, kw_only=True)
class WorkerSettings(SharedSettings):
    """What a worker reads: how much it takes on, how it reaches the upstream, and the upstream itself."""

    process: ClassVar[str] = "worker"

    concurrency: int = setting(
        "SLUICE_WORKER_CONCURRENCY", whole(1), "Jobs that one worker process runs at once.", default="1000"
    )
    circuit: bool = setting(
        "SLUICE_CIRCUIT",
        SWITCH,
        "Leave an upstream alone for a while, model by model, when its calls fail again and again.",
        default="on",
    )
    upstream_proxy: Secret | None = setting(
        "SLUICE_UPSTREAM_PROXY",
        PROXY,
        "Proxy for calls to upstreams. The usual proxy variables are not read.",
        example="http://proxy.internal:3128",
        secret=True,
    )
    allow_http_upstreams: bool = setting(
        "SLUICE_ALLOW_HTTP_UPSTREAMS",
        SWITCH,
        "Accept http:// base URLs on other machines, where keys and prompts travel readable.",
        default="off",
    )
    discover_seconds: float = setting(
        "SLUICE_DISCOVER_SECONDS",
        seconds(0),
        "How often an upstream that lists its models is asked for them, so that they are offered beside the usual ones; not"
        " where its …_MODELS is set. 0: never.",
        default="300",
        unit="s",
    )
    unsupported_parameters: str = setting(
        "SLUICE_UNSUPPORTED_PARAMETERS",
        choice("refuse", "drop"),
        "What becomes of a parameter that an upstream cannot honour: the request is refused, or goes on without it and the"
        " answer's header `x-sluice-dropped-parameters` says so.",
        default="refuse",
    )
    answer_limit_bytes: int = setting(
        "SLUICE_ANSWER_LIMIT_BYTES",
        whole(1024, 1 << 30),
        "Largest answer that a worker gathers for a caller who does not stream; a larger one is an error.",
        default="33554432",
        unit="bytes",
    )
    metrics_listen: Listen | None = setting(
        "SLUICE_WORKER_METRICS_LISTEN",
        LISTEN,
        "Where a worker serves `/metrics` and `/health/…`, without a key; port 0 takes a free one, which the log tells. Empty:"
        " nowhere. `sluice up` gives each further worker the next port.",
        example="127.0.0.1:9200",
    )
    provider: ProviderSettings


PROCESSES: tuple[type[SharedSettings], ...] = (SharedSettings, FrontendSettings, WorkerSettings)
