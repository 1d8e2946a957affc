"""How the command line speaks to a running gateway: where it is, with which key, and what went wrong."""

import json
from dataclasses import dataclass
from typing import Any

import httpx2

from cli.ports import reachable
from shared.settings import FrontendSettings, Secret, SettingsError, load_frontend, process_environment

CONNECT_SECONDS = 2.0


class GatewayTrouble(RuntimeError):
    """The gateway does not answer, or says no; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Gateway:
    """Where a gateway is (`http://127.0.0.1:8088`), the key for it, if it wants one, and the model to talk to, if known."""

    url: str
    key: Secret | None
    default_model: str = ""

    @property
    def base_url(self) -> str:
        """What an OpenAI client takes as `base_url`."""
        return f"{self.url}/v1"

    def headers(self) -> dict[str, str]:
        """The headers that identify us."""
        return {"authorization": f"Bearer {self.key.reveal()}"} if self.key else {}

    def explain(self, error: httpx2.HTTPError) -> GatewayTrouble:
        """`error` as a sentence that says what to do."""
        if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
            return GatewayTrouble(
                f"No gateway answers at {self.url}. Start one with `sluice up`, or name another with --url."
            )
        return GatewayTrouble(f"The connection to {self.url} failed: {error or type(error).__name__}.")


def of_settings(settings: FrontendSettings, port: int | None = None) -> Gateway:
    """The gateway that these settings make."""
    key = settings.api_keys[0] if settings.api_keys else None
    return Gateway(f"http://{reachable(settings.host)}:{port or settings.port}", key, settings.default_model)


def find(url: str | None, key: str | None) -> Gateway:
    """The gateway that a person means: `url` and `key` if given, else that of the settings in this directory.

    The key of this directory goes to no other address than that of its own gateway.

    Raises:
        SettingsError: the settings do not say enough.
    """
    given = Secret(key) if key else None
    if url is None:
        own = of_settings(load_frontend(process_environment()))
        return Gateway(own.url, given or own.key, own.default_model)
    root = url.rstrip("/").removesuffix("/v1")
    try:
        own = of_settings(load_frontend(process_environment()))
    except SettingsError:
        return Gateway(root, given)
    return Gateway(own.url, given or own.key, own.default_model) if own.url == root else Gateway(root, given)


def refusal(status: int, body: bytes) -> GatewayTrouble:
    """An error answer of the gateway, in one sentence."""
    message = error_text(body) or f"HTTP status {status}"
    hint = (
        " `sluice keys` shows the key of the gateway in this directory; --key takes another." if status == 401 else ""
    )
    return GatewayTrouble(f"The gateway says: {message}{hint}")


def error_text(body: bytes) -> str | None:
    """The message of OpenAI's error envelope; None if `body` is something else."""
    try:
        error: Any = json.loads(body)["error"]
        return str(error["message"])
    except (ValueError, KeyError, TypeError):
        return None


def model_ids(gateway: Gateway, client: httpx2.Client) -> list[str]:
    """The models that the gateway offers to this key.

    Raises:
        GatewayTrouble: it does not answer or says no.
    """
    try:
        answer = client.get(f"{gateway.base_url}/models", headers=gateway.headers())
    except httpx2.HTTPError as error:
        raise gateway.explain(error) from error
    if answer.status_code != 200:
        raise refusal(answer.status_code, answer.content)
    return [str(model["id"]) for model in answer.json()["data"]]


def client() -> httpx2.Client:
    """A client that waits for tokens as long as they take, and goes through no proxy."""
    return httpx2.Client(timeout=httpx2.Timeout(None, connect=CONNECT_SECONDS), trust_env=False)
