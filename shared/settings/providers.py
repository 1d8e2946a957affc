"""What settings know of each upstream: the names of its variables, where it lives, its usual models, its patience.

Everything here is a default that a variable replaces. Addresses and model names are those of the vendors' own
documentation; model names move, and one that is not listed is still passed on when it is asked for as `provider/model`.
How an upstream differs on the wire is not said here but in the workers' providers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from shared.settings.kinds import (
    API_KEY,
    API_KEYS,
    BASE_URL,
    MODEL,
    SOCKET_URL,
    SWITCH_IF_SET,
    TEXT,
    TOKENS,
    WORDS,
    template,
    whole,
)
from shared.settings.row import Kind, Row


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long to wait for an upstream, in seconds: for a connection, a first token, between bytes, in total."""

    connect_seconds: float = 10.0
    first_token_seconds: float = 300.0
    silence_seconds: float = 120.0
    total_seconds: float = 600.0


@dataclass(frozen=True, slots=True)
class KnownProvider:
    """One upstream that works as soon as its key is set, or (without a `key_name`: it makes its own credentials) all that is
    `required`, by field.

    `prefix` begins the names of its variables, `key_name` is the variable of its key, of kind `key_kind`. `models` are texts as
    in its setting: `name`, or `name=the upstream's own name`. `path` is what follows the host in a complete base URL, for
    upstreams whose address people give as a bare host or with one of the `other_paths`. `calls_per_credential`: how many one
    credential serves at once, 0 for any number. `names`: its names for settings that most upstreams have, by field.

    `models_note`: what else there is to say of its models. `options`: settings that only this upstream has, by the name under
    which its provider gets the value. `one_per_key`: those that hold as many values as there are keys. `takes_callers_keys`:
    callers may bring their own key, as the option `caller_keys` says, so that it also runs without one. `speaks_openai`: it has
    OpenAI's endpoints, `/models` among them.
    """

    name: str
    prefix: str
    key_name: str
    base_url: str
    models: tuple[str, ...]
    deadlines: Deadlines
    path: str = ""
    other_paths: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    calls_per_credential: int = 0
    models_note: str = ""
    key_kind: Kind = API_KEYS
    options: Mapping[str, Row] = field(default_factory=dict)
    one_per_key: tuple[str, ...] = ()
    takes_callers_keys: bool = False
    speaks_openai: bool = True
    names: Mapping[str, str] = field(default_factory=dict)
    required: tuple[str, ...] = ()

    def complete(self, base_url: str) -> str:
        """`base_url` with the path that the upstream's API has, if only a host (or its other API) was given."""
        given = urlsplit(base_url).path.rstrip("/")
        if self.path and given in ("", *self.other_paths):
            return base_url.rstrip("/").removesuffix(given) + self.path
        return base_url


_COMPATIBLE, _NATIVE = "/compatible-mode/v1", "/api/v1"

KNOWN: dict[str, KnownProvider] = {
    row.name: row
    for row in (
        KnownProvider(
            name="openai",
            prefix="OPENAI",
            key_name="OPENAI_API_KEY",
            base_url="https://api.openai.com/v1",
            models=("gpt-4o", "gpt-4o-mini", "gpt-4-turbo", "gpt-3.5-turbo"),
            deadlines=Deadlines(5, 300, 120, 600),  # reasoning models are silent first
        ),
        KnownProvider(
            name="deepseek",
            prefix="DEEPSEEK",
            key_name="DEEPSEEK_API_KEY",
            base_url="https://api.deepseek.com/v1",
            models=("deepseek-flash", "deepseek-v4-pro", "deepseek-chat", "deepseek-coder", "deepseek-reasoner"),
            deadlines=Deadlines(10, 630, 60, 1800),  # queues callers for up to ten minutes
            models_note="`:thinking` or `:no-thinking` behind its name decides about that, so old names can live on:"
            " `deepseek-chat=deepseek-flash:no-thinking,deepseek-reasoner=deepseek-flash:thinking`.",
        ),
        KnownProvider(
            name="cerebras",
            prefix="CEREBRAS",
            key_name="CEREBRAS_API_KEY",
            base_url="https://api.cerebras.ai/v1",
            models=(
                *("gpt-oss-120b", "zai-glm-4.7", "gemma-4-31b", "qwen-3.8-27b"),
                *("llama-3.3-70b", "llama-3.1-70b", "llama-3.1-8b", "llama-3.2-1b", "llama-3.2-3b"),
                *("qwen-2.5-coder-14b", "qwen-2.5-coder-32b", "qwen-2.5-coder-7b", "qwen-2.5-14b", "qwen-2.5-7b"),
            ),
            deadlines=Deadlines(5, 60, 30, 120),
        ),
        KnownProvider(
            name="kimi",
            prefix="KIMI",
            key_name="KIMI_API_KEY",
            base_url="https://api.moonshot.ai/v1",
            models=(
                *("kimi-k3", "kimi-k2.7-code", "kimi-k2.7-code-highspeed", "kimi-k2.6"),
                *("kimi-k2-0905-preview", "kimi-k2-turbo-preview", "kimi-k2-thinking", "kimi-k2-thinking-turbo"),
                *("moonshot-v1-8k", "moonshot-v1-32k", "moonshot-v1-128k"),
            ),
            deadlines=Deadlines(10, 120, 120, 900),
        ),
        KnownProvider(
            name="dashscope",
            prefix="DASHSCOPE",
            key_name="DASHSCOPE_API_KEY",
            base_url="https://dashscope.aliyuncs.com/compatible-mode/v1",
            models=(
                *("qwen-max", "qwen-plus", "qwen-turbo", "qwen-long", "qwen3-max", "qwen3-235b-a22b-thinking-2507"),
                *("qwen3-32b", "qwen3-14b", "qwen2.5-coder-32b-instruct"),
                # Spelled as callers of older gateways do; the provider knows the vendor's spelling of those that exist.
                *("qwen-3-235b-a22b-thinking-2507", "qwen-3-350b", "qwen-3-32b", "qwen-3-14b", "qwen-3-7b"),
                "qwen-2.5-coder-32b-instruct",
            ),
            deadlines=Deadlines(10, 180, 120, 1800),
            path=_COMPATIBLE,
            other_paths=(_NATIVE,),
        ),
        KnownProvider(
            name="huggingface",
            prefix="HF",
            key_name="HF_TOKEN",
            base_url="https://router.huggingface.co/v1",
            models=("openai/gpt-oss-120b", "openai/gpt-oss-120b:fireworks-ai"),
            deadlines=Deadlines(10, 300, 120, 300),
            aliases=("hf",),
            options={
                "bill_to": Row(
                    "SLUICE_HF_BILL_TO",
                    TEXT,
                    "Hugging Face organisation that is billed (`X-HF-Bill-To`).",
                    example="my-organisation",
                ),
            },
        ),
        KnownProvider(
            name="dashscope-native",
            prefix="DASHSCOPE_NATIVE",
            key_name="DASHSCOPE_NATIVE_API_KEY",
            base_url="https://dashscope.aliyuncs.com/api/v1",
            models=("farui-plus",),
            deadlines=Deadlines(10, 180, 120, 1800),
            path=_NATIVE,
            other_paths=(_COMPATIBLE,),
            options={
                "caller_keys": Row(
                    "DASHSCOPE_NATIVE_CALLER_KEYS",
                    SWITCH_IF_SET,
                    "Whether callers without a key of this gateway may use their own DashScope key as their API key. Empty: on,"
                    " unless DASHSCOPE_NATIVE_API_KEY is set. A frontend by itself needs it to start without SLUICE_API_KEY.",
                    example="on",
                ),
                "cumulative_models": Row(
                    "DASHSCOPE_NATIVE_CUMULATIVE_MODELS",
                    WORDS,
                    "Models that repeat the whole text with every event instead of sending what is new.",
                    example="farui-plus",
                ),
                "multimodal_models": Row(
                    "DASHSCOPE_NATIVE_MULTIMODAL_MODELS",
                    WORDS,
                    "Models that are served under `multimodal-generation`; `*` stands for any letters.",
                    default="qwen-vl-*,qwen2.5-vl-*,qwen3-vl-*,qvq-*",
                ),
            },
            takes_callers_keys=True,
            speaks_openai=False,
        ),
        KnownProvider(
            name="flowgpt",
            prefix="FLOWGPT",
            key_name="FLOWGPT_BEARER_TOKEN",
            key_kind=TOKENS,
            base_url="",
            models=("gpt-4-free", "chatgpt-5-pro", "claude-instant"),
            models_note="`b` is the id of a prompt there; the usual names are no ids, so they must be given theirs.",
            deadlines=Deadlines(10, 60, 60, 180),
            options={
                "device_ids": Row(
                    "FLOWGPT_DEVICE_ID",
                    TOKENS,
                    "Device id that belongs to each token of FLOWGPT_BEARER_TOKEN, in the same order.",
                    secret=True,
                ),
                "signature_template": Row(
                    "FLOWGPT_SIGNATURE_TEMPLATE",
                    template("timestamp", "nonce", "device_id", "authorization"),
                    "Text whose MD5 signs a call, of `{timestamp}`, `{nonce}`, `{device_id}` and `{authorization}`.",
                    default="{timestamp}{nonce}{device_id}",
                ),
                "text_events": Row(
                    "FLOWGPT_TEXT_EVENTS", WORDS, "Events of the answer's stream that hold text.", default="text"
                ),
                "engine": Row(
                    "FLOWGPT_ENGINE", TEXT, "What the field `model` of every call says.", default="FlowGPT-Ares"
                ),
                "origin": Row(
                    "FLOWGPT_ORIGIN", BASE_URL, "Site that the calls come from.", default="https://flowgpt.com"
                ),
            },
            one_per_key=("device_ids",),
            speaks_openai=False,
        ),
        KnownProvider(
            name="langfast",
            prefix="LANGFAST",
            key_name="",
            base_url="",
            names={"base_url": "LANGFAST_SUPABASE_URL", "calls_per_credential": "LANGFAST_RUNS_PER_CREDENTIAL"},
            models=(
                *("gpt-5", "gpt-5-mini", "gpt-5-nano", "gpt-4.5-preview", "gpt-4.1", "gpt-4.1-mini", "gpt-4.1-nano"),
                *("gpt-4o", "gpt-4o-mini", "o1", "o1-mini", "o3", "o3-mini", "o4-mini"),
                *("gpt-4-turbo", "gpt-4", "gpt-3.5-turbo"),
            ),
            models_note="A model `langfast` stands for the default one.",
            deadlines=Deadlines(10, 60, 60, 300),
            calls_per_credential=1,
            options={
                "anon_key": Row(
                    "LANGFAST_SUPABASE_ANON_KEY", API_KEY, "Public key of langfast's Supabase project.", secret=True
                ),
                "socket_url": Row(
                    "LANGFAST_SOCKET_URL", SOCKET_URL, "Host that runs langfast's prompts, where answers are pushed."
                ),
                "prompt_id": Row("LANGFAST_PROMPT_ID", TEXT, "Prompt at langfast that runs are attached to."),
                "default_model": Row(
                    "LANGFAST_DEFAULT_MODEL", MODEL, "The model behind the name `langfast`.", default="gpt-4o-mini"
                ),
                "min_credentials": Row(
                    "LANGFAST_MIN_CREDENTIALS",
                    whole(0, 1000),
                    "Anonymous accounts that are kept ready, over all workers.",
                    default="3",
                ),
                "max_credentials": Row(
                    "LANGFAST_MAX_CREDENTIALS", whole(1, 1000), "Accounts at most, over all workers.", default="10"
                ),
                "signups_per_hour": Row(
                    "LANGFAST_SIGNUPS_PER_HOUR",
                    whole(1, 1000),
                    "Accounts that may be made in an hour, over all workers; the upstream allows an address about thirty.",
                    default="30",
                ),
            },
            required=("base_url", "anon_key", "socket_url", "prompt_id"),
            speaks_openai=False,
        ),
    )
}

KEYLESS = "echo"
"""The provider that needs neither key nor network; it runs when nothing else is configured."""

CUSTOM_PREFIX = "SLUICE_PROVIDER_"
"""Begins the variables of a further OpenAI-compatible server: SLUICE_PROVIDER_<NAME>_BASE_URL and so on."""

CUSTOM_DEADLINES = Deadlines()

_BY_ANY_NAME = {alias: row.name for row in KNOWN.values() for alias in (row.name, *row.aliases)} | {KEYLESS: KEYLESS}


def canonical(name: str) -> str:
    """The provider's own name for whatever a person typed: case folded, `_` as `-`, aliases resolved."""
    plain = name.strip().lower().replace("_", "-")
    return _BY_ANY_NAME.get(plain, plain)
