"""Providers are found by name: ours, other people's, and those that only the settings know."""

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from shared.settings import load_worker
from shared.settings.providers import KEYLESS, KNOWN
from shared.version import VERSION
from workers import registry
from workers.provider import Call, Provider, Upstream
from workers.providers.echo import Echo


def build(name: str, **environment: str) -> Provider:
    return registry.build(load_worker(name, environment))


@pytest.fixture(autouse=True)
def _nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No `.env` and no state directory of the developer's."""
    monkeypatch.chdir(tmp_path)


def test_whatever_the_settings_know_is_there() -> None:
    assert {KEYLESS, *KNOWN} <= set(registry.factories())


def test_settings_become_a_provider() -> None:
    made = build("openai", OPENAI_API_KEY="sk-one-1234567890,sk-two-1234567890", OPENAI_MODELS="m1,m2")
    assert made.name == "openai"
    assert [model.id for model in made.models] == ["m1", "m2"]
    assert [credential.secret for credential in made.credentials] == ["sk-one-1234567890", "sk-two-1234567890"]
    assert made.timeouts.connect == 5 and made.timeouts.first_token == 300


def test_a_credentials_name_says_nothing_about_the_key() -> None:
    """The names under which workers share them are the pool's, made with the gateway's own secret."""
    made = build("openai", OPENAI_API_KEY="sk-b-1234567890,sk-a-1234567890").credentials
    assert [credential.id for credential in made] == ["0", "1"]
    assert "1234567890" not in repr(made)


def test_echo_needs_nothing() -> None:
    made = build("echo")
    assert isinstance(made, Echo) and not made.credentials


def test_an_upstream_that_only_the_settings_know() -> None:
    made = build(
        "my-vllm",
        SLUICE_PROVIDER_MY_VLLM_BASE_URL="http://127.0.0.1:9/v1",
        SLUICE_PROVIDER_MY_VLLM_MODELS="llama",
    )
    assert (made.name, [model.id for model in made.models]) == ("my-vllm", ["llama"])


def test_hugging_faces_bill_goes_where_the_settings_say() -> None:
    made = build("huggingface", HF_TOKEN="hf_1234567890", SLUICE_HF_BILL_TO="my-org")
    with pytest.raises(StopIteration) as done:
        next(made.plan(Call("chat", "m", True, {}, None, 0.0, "0")))
    headers = dict(done.value.value.request.headers)
    assert headers["x-hf-bill-to"] == "my-org"
    assert headers["user-agent"] == f"sluice/{VERSION}"


class Foreign(Echo):
    """Somebody else's provider."""

    def __init__(self, upstream: Upstream) -> None:
        super().__init__(upstream.timeouts)
        self.name = upstream.name


def test_an_installed_package_brings_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("openai", f"{__name__}:Foreign", registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry] if group == registry.GROUP else [])
    assert isinstance(build("openai", OPENAI_API_KEY="sk-a-1234567890"), Foreign)
