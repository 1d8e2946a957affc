"""What settings know of each upstream: the names of its variables, where it lives, its usual models, its patience.

Everything here is a default that a variable replaces. Addresses and model names are those of the vendors' own
documentation; model names move, and one that is not listed is still passed on when it is asked for as `provider/model`.
How an upstream differs on the wire is not said here but in the workers' providers.
"""

from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long to wait for an upstream, in seconds: for a connection, a first token, between bytes, in total."""

    connect_seconds: float = 10.0
    first_token_seconds: float = 300.0
    silence_seconds: float = 120.0
    total_seconds: float = 600.0


@dataclass(frozen=True, slots=True)
class KnownProvider:
    """One upstream that works as soon as its key is set.

    `prefix` begins the names of its variables, `key_name` is the variable of its key; `path` is what follows the host in
    a complete base URL, for upstreams whose address people give as a bare host. `calls_per_credential`: how many one
    credential serves at once, 0 for any number.
    """

    name: str
    prefix: str
    key_name: str
    base_url: str
    models: tuple[str, ...]
    deadlines: Deadlines
    path: str = ""
    aliases: tuple[str, ...] = ()
    calls_per_credential: int = 0

    def complete(self, base_url: str) -> str:
        """`base_url` with the path that the upstream's compatible API has, if only a host (or its other API) was given."""
        if self.path and urlsplit(base_url).path.rstrip("/") in ("", "/api/v1"):
            return base_url.removesuffix("/api/v1") + self.path
        return base_url


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
            models=("deepseek-flash", "deepseek-v4-pro"),
            deadlines=Deadlines(10, 630, 60, 1800),  # queues callers for up to ten minutes
        ),
        KnownProvider(
            name="cerebras",
            prefix="CEREBRAS",
            key_name="CEREBRAS_API_KEY",
            base_url="https://api.cerebras.ai/v1",
            models=("gpt-oss-120b", "zai-glm-4.7", "gemma-4-31b", "qwen-3.8-27b"),
            deadlines=Deadlines(5, 60, 30, 120),
        ),
        KnownProvider(
            name="kimi",
            prefix="KIMI",
            key_name="KIMI_API_KEY",
            base_url="https://api.moonshot.ai/v1",
            models=("kimi-k3", "kimi-k2.7-code", "kimi-k2.7-code-highspeed", "kimi-k2.6"),
            deadlines=Deadlines(10, 120, 120, 900),
        ),
        KnownProvider(
            name="dashscope",
            prefix="DASHSCOPE",
            key_name="DASHSCOPE_API_KEY",
            base_url="https://dashscope.aliyuncs.com/compatible-mode/v1",
            models=(
                "qwen-max",
                "qwen-plus",
                "qwen-turbo",
                "qwen-long",
                "qwen3-max",
                "qwen3-235b-a22b-thinking-2507",
                "qwen3-32b",
                "qwen3-14b",
                "qwen2.5-coder-32b-instruct",
            ),
            deadlines=Deadlines(10, 180, 120, 1800),
            path="/compatible-mode/v1",
        ),
        KnownProvider(
            name="huggingface",
            prefix="HF",
            key_name="HF_TOKEN",
            base_url="https://router.huggingface.co/v1",
            models=("openai/gpt-oss-120b", "openai/gpt-oss-120b:fireworks-ai"),
            deadlines=Deadlines(10, 300, 120, 300),
            aliases=("hf",),
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
