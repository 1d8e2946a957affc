"""The banner of `sluice up`: printed once the gateway answers, with a line to paste."""

import json
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import httpx2
import trio
from rich.console import Console
from rich.text import Text

from cli.gateway import Gateway, of_settings
from cli.supervisor import Output
from shared.settings import FrontendSettings

ASK_AGAIN_SECONDS = 0.1
SETTLED_SECONDS = 0.4
LATE_SECONDS = 10.0
_SHOWN_MODELS = 8


async def announce(settings: FrontendSettings, port: int, redis: str, output: Output) -> None:
    """Wait until the gateway is ready and its workers have told their models, then print the banner.

    `redis`: which one it uses, in words.
    """
    gateway = of_settings(settings, port)
    async with httpx2.AsyncClient(trust_env=False, timeout=2.0) as client:
        await _ready(client, gateway, output)
        models = [] if _callers_bring_theirs(settings) else await _models(client, gateway)
    show(settings, gateway, models, redis, Console(file=sys.stdout))


async def _ready(client: httpx2.AsyncClient, gateway: Gateway, output: Output) -> None:
    late_at = trio.current_time() + LATE_SECONDS
    while True:
        problems = await _problems(client, gateway)
        if not problems:
            return
        if trio.current_time() > late_at:
            late_at += LATE_SECONDS
            output.say(f"not ready yet: {problems}; `sluice doctor` looks closer")
        await trio.sleep(ASK_AGAIN_SECONDS)


async def _problems(client: httpx2.AsyncClient, gateway: Gateway) -> str:
    """What keeps the gateway from serving; empty when it is ready."""
    try:
        answer = await client.get(f"{gateway.url}/health/ready")
        return "" if answer.status_code == 200 else "; ".join(answer.json()["problems"])
    except (httpx2.HTTPError, ValueError, KeyError, TypeError):
        return "no frontend answers"


async def _models(client: httpx2.AsyncClient, gateway: Gateway) -> list[str]:
    """The models, asked for until two answers are alike: workers come up one after the other. Empty after a while."""
    before: list[str] = []
    give_up_at = trio.current_time() + LATE_SECONDS
    while trio.current_time() < give_up_at:
        try:
            answer = await client.get(f"{gateway.base_url}/models", headers=gateway.headers())
            models = [str(model["id"]) for model in answer.json()["data"]] if answer.status_code == 200 else []
        except (httpx2.HTTPError, ValueError, KeyError, TypeError):
            models = []
        if models and models == before:
            return models
        before = models
        await trio.sleep(SETTLED_SECONDS)
    return before


def show(settings: FrontendSettings, gateway: Gateway, models: Sequence[str], redis: str, console: Console) -> None:
    """Print the banner.

    The key is shown where only a person reads it, or where nobody could know it otherwise; a key that somebody set does not
    go into a log file.
    """
    line = partial(console.print, soft_wrap=True, highlight=False)
    key_is_ours = "kept" in settings.api_key_origin
    reveal = gateway.key is not None and (key_is_ours or console.is_terminal)
    more = f" and {len(models) - _SHOWN_MODELS} more" if len(models) > _SHOWN_MODELS else ""
    rows = {
        "Base URL": gateway.base_url,
        "API key": f"{gateway.key.reveal() if reveal and gateway.key else _instead(settings)}  ({settings.api_key_origin})",
        "Models": ", ".join(models[:_SHOWN_MODELS]) + more or "none listed; ask for one as PROVIDER/MODEL",
        "Redis": redis,
    }
    if settings.pages and settings.admin and settings.api_keys:
        rows["Dashboard"] = f"{gateway.url}/dashboard  (sign in with the API key)"
    line()
    line(Text("Sluice is ready.", style="bold green"))
    line()
    for title, text in rows.items():
        line(Text.assemble("  ", (f"{title:<10}", "bold"), text))
    line()
    line(Text.assemble("  ", ("Try it:", "bold")))
    line()
    model = settings.default_model or (models[0] if models else "PROVIDER/MODEL")
    line(Text(curl(gateway, model, reveal=reveal, keyless=settings.auth == "off")))
    line()
    line(Text(f"  `{_us()} chat` talks to it, `{_us()} doctor` checks it, Ctrl-C stops it.", style="dim"))
    line()


def _us() -> str:
    """How this person calls us: `sluice` where the shell finds it, else the path from here."""
    if shutil.which("sluice") or Path(sys.argv[0]).name != "sluice":
        return "sluice"
    return os.path.relpath(sys.argv[0])


def _callers_bring_theirs(settings: FrontendSettings) -> bool:
    return settings.auth == "on" and not settings.api_keys


def _instead(settings: FrontendSettings) -> str:
    if _callers_bring_theirs(settings):
        return "your own upstream key"
    return "***" if settings.api_keys else "none needed"


def curl(gateway: Gateway, model: str, *, reveal: bool, keyless: bool) -> str:
    """One line for a shell that streams an answer; without `reveal` the key comes from a variable of the shell."""
    body = {"model": model, "stream": True, "messages": [{"role": "user", "content": "Say hello!"}]}
    words = ["curl", "-N", f"{gateway.base_url}/chat/completions"]
    if not keyless:
        header = "Authorization: Bearer "
        key = gateway.key.reveal() if gateway.key is not None and reveal else None
        variable = "SLUICE_API_KEY" if gateway.key is not None else "YOUR_KEY"
        words += ["-H", shlex.quote(header + key) if key else f'"{header}${variable}"']
    quoted = [*words, "-H", "'Content-Type: application/json'", "-d", shlex.quote(json.dumps(body))]
    return " ".join(quoted)
