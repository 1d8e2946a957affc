"""How the command line asks the admin API of a running gateway."""

from collections.abc import Mapping
from typing import Any, Final

import httpx2

from cli.gateway import CONNECT_SECONDS, GatewayTrouble, find, refusal

ADMIN_SECONDS: Final = 10.0


def ask(
    url: str | None, key: str | None, method: str, path: str, body: Mapping[str, Any] | None = None, /, **query: str
) -> Any:
    """The answer's JSON. `url`, `key`: as for `cli.gateway.find`.

    Raises:
        GatewayTrouble: it does not answer or says no; the text says why.
        SettingsError: the settings do not say enough.
    """
    gateway = find(url, key)
    timeout = httpx2.Timeout(ADMIN_SECONDS, connect=CONNECT_SECONDS)
    with httpx2.Client(timeout=timeout, trust_env=False, headers=gateway.headers()) as client:
        try:
            answer = client.request(method, f"{gateway.url}{path}", json=body, params=query)
        except httpx2.HTTPError as error:
            raise gateway.explain(error) from error
    if answer.status_code == 404 and b"unknown_url" in answer.content:
        raise GatewayTrouble(f"{gateway.url} cannot be administered: it runs with SLUICE_ADMIN=off, or is no Sluice.")
    if answer.status_code != 200:
        raise refusal(answer.status_code, answer.content)
    return answer.json()
