"""`sluice chat`: a conversation with a running gateway, token by token.

Ctrl-C while an answer comes closes the connection, and with it the upstream call; what had come stays in the conversation.
"""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx2
from rich.console import Console
from rich.text import Text

from cli.gateway import Gateway, GatewayTrouble, client, error_text, model_ids, refusal
from shared.sansio.sse import Splitter

HELP = """\
/model NAME  talk to another model; /model alone lists them
/system TEXT set the instructions; /system alone removes them
/new         forget the conversation
/quit        leave (so does Ctrl-D)
Ctrl-C       stop an answer"""


@dataclass
class _Conversation:
    model: str
    system: str | None
    turns: list[dict[str, str]] = field(default_factory=list)

    def request(self) -> dict[str, Any]:
        head = [{"role": "system", "content": self.system}] if self.system else []
        return {
            "model": self.model,
            "messages": [*head, *self.turns],
            "stream": True,
            "stream_options": {"include_usage": True},
        }


@dataclass
class _Answer:
    """What has come so far. Times in seconds since the question was sent."""

    text: str = ""
    first_token_seconds: float | None = None
    seconds: float = 0.0
    tokens: int | None = None
    stopped: bool = False


def chat(gateway: Gateway, *, message: str, model: str | None, system: str | None) -> int:
    """Talk until the person leaves, or say `message` and print the answer; the exit status.

    Text that is piped in stands behind `message`.

    Raises:
        GatewayTrouble: the gateway does not answer or refuses.
    """
    piped = "" if sys.stdin.isatty() else sys.stdin.read().strip()
    message = "\n\n".join(part for part in (message, piped) if part)
    with client() as http:
        conversation = _Conversation(model or gateway.default_model or _first_model(gateway, http), system)
        if message:
            return _once(gateway, http, conversation, message)
        return _converse(gateway, http, conversation)


def _first_model(gateway: Gateway, http: httpx2.Client) -> str:
    models = model_ids(gateway, http)
    if not models:
        raise GatewayTrouble("The gateway lists no models; name one with --model PROVIDER/MODEL.")
    return models[0]


def _once(gateway: Gateway, http: httpx2.Client, conversation: _Conversation, message: str) -> int:
    conversation.turns.append({"role": "user", "content": message})
    console = Console(soft_wrap=True, highlight=False)
    answer = _ask(gateway, http, conversation, console, thinking=False)
    console.print()
    return 130 if answer.stopped else 0


def _converse(gateway: Gateway, http: httpx2.Client, conversation: _Conversation) -> int:
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"{conversation.model} at {gateway.url}. /help for help, Ctrl-D to leave.", style="dim", markup=False)
    while True:
        try:
            said = console.input("\n[bold cyan]you>[/] ").strip()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return 0
        if not said:
            continue
        if said.startswith("/"):
            if not _command(said, gateway, http, conversation, console):
                return 0
            continue
        conversation.turns.append({"role": "user", "content": said})
        try:
            answer = _ask(gateway, http, conversation, console, thinking=True)
        except GatewayTrouble as trouble:
            conversation.turns.pop()  # the next question shall not carry one that was never answered
            console.print(f"\n{trouble}", style="red", markup=False)
            continue
        conversation.turns.append({"role": "assistant", "content": answer.text})
        console.print(_summary(conversation.model, answer), style="dim", markup=False)


def _command(said: str, gateway: Gateway, http: httpx2.Client, conversation: _Conversation, console: Console) -> bool:
    """Carry out what begins with a slash; False to leave."""
    word, _, rest = said.partition(" ")
    rest = rest.strip()
    match word:
        case "/quit" | "/exit":
            return False
        case "/new":
            conversation.turns.clear()
            console.print("A new conversation.", style="dim")
        case "/system":
            conversation.system = rest or None
            console.print("Instructions set." if rest else "No instructions.", style="dim")
        case "/model" if rest:
            conversation.model = rest
            console.print(f"Now {rest}.", style="dim", markup=False)
        case "/model":
            try:
                console.print("\n".join(model_ids(gateway, http)), markup=False)
            except GatewayTrouble as trouble:
                console.print(str(trouble), style="red", markup=False)
        case _:
            console.print(HELP, markup=False)
    return True


def _ask(
    gateway: Gateway, http: httpx2.Client, conversation: _Conversation, console: Console, *, thinking: bool
) -> _Answer:
    """Send the conversation and print the answer as it comes. Ctrl-C ends it early.

    Raises:
        GatewayTrouble: the gateway refuses, or the answer ends with an error.
    """
    answer = _Answer()
    began = time.monotonic()
    try:
        for chunk in _chunks(gateway, http, conversation.request()):
            usage = chunk.get("usage") or {}
            answer.tokens = usage.get("completion_tokens", answer.tokens)
            for choice in chunk.get("choices") or ():
                delta = choice.get("delta") or {}
                thought, text = delta.get("reasoning_content") or "", delta.get("content") or ""
                if answer.first_token_seconds is None and (thought or text):
                    answer.first_token_seconds = time.monotonic() - began
                if thought and thinking:
                    console.print(Text(thought, style="dim italic"), end="")
                if text:
                    answer.text += text
                    console.print(Text(text), end="")
    except KeyboardInterrupt:
        answer.stopped = True
    except GatewayTrouble:
        if answer.first_token_seconds is not None:
            console.print()
        raise
    answer.seconds = time.monotonic() - began
    return answer


def _chunks(gateway: Gateway, http: httpx2.Client, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The chunks of one streamed answer; the connection is closed when the iteration ends, however it ends."""
    try:
        with http.stream(
            "POST", f"{gateway.base_url}/chat/completions", json=request, headers=gateway.headers()
        ) as response:
            if response.status_code != 200:
                raise refusal(response.status_code, response.read())
            splitter = Splitter()
            for piece in response.iter_raw():
                for event in splitter.feed(piece):
                    data = event if isinstance(event, bytes) else event.data
                    if data == b"[DONE]":
                        return
                    if message := error_text(data):
                        raise GatewayTrouble(f"The answer broke off: {message}")
                    yield json.loads(data)
    except httpx2.HTTPError as error:
        raise gateway.explain(error) from error
    raise GatewayTrouble("The answer broke off: the connection ended before the answer did.")


def _summary(model: str, answer: _Answer) -> str:
    """`fast, 12 tokens, first after 0.3 s, all after 1.2 s`"""
    parts = [model]
    if answer.tokens is not None:
        parts.append(f"{answer.tokens} tokens")
    if answer.first_token_seconds is not None:
        parts.append(f"first after {answer.first_token_seconds:.2f} s")
    parts.append(f"{'stopped' if answer.stopped else 'all'} after {answer.seconds:.2f} s")
    return "\n" + ", ".join(parts)
