"""Settings that only some upstreams have: other names for models, values for each key, keys that callers bring."""

from pathlib import Path

import pytest

from shared.settings import configured_providers, load_frontend, load_up, load_worker
from tests.shared.settings.test_load import refusals


@pytest.fixture(autouse=True)
def in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_models_by_other_names_and_settings_that_only_one_upstream_has():
    environ = {
        "FLOWGPT_BEARER_TOKEN": "Bearer t1, t2",
        "FLOWGPT_DEVICE_ID": "d1, d2",
        "FLOWGPT_BASE_URL": "https://x.example/",
        "FLOWGPT_MODELS": "gpt-4-free = prompt-1, b",
    }
    provider = load_worker("flowgpt", environ).provider
    assert [key.reveal() for key in provider.keys] == ["t1", "t2"]
    assert [key.reveal() for key in provider.options["device_ids"]] == ["d1", "d2"]
    assert (provider.models, provider.chosen_models) == (("gpt-4-free=prompt-1", "b"), True)
    assert provider.options["signature_template"] == "{timestamp}{nonce}{device_id}"
    assert provider.options["text_events"] == ("text",)
    assert "d1" not in repr(provider) and "t1" not in repr(provider)
    assert not load_worker("openai", {"OPENAI_API_KEY": "k"}).provider.chosen_models


@pytest.mark.parametrize(
    ("environ", "takes", "configured"),
    [
        ({}, True, []),
        ({"DASHSCOPE_NATIVE_CALLER_KEYS": "on"}, True, ["dashscope-native"]),
        ({"DASHSCOPE_NATIVE_API_KEY": "k"}, False, ["dashscope-native"]),
        ({"DASHSCOPE_NATIVE_API_KEY": "k", "DASHSCOPE_NATIVE_CALLER_KEYS": "on"}, True, ["dashscope-native"]),
    ],
)
def test_who_may_bring_a_key(environ, takes, configured):
    provider = load_worker("dashscope-native", environ).provider
    assert provider.takes_callers_keys is takes
    assert provider.base_url == "https://dashscope.aliyuncs.com/api/v1"
    assert configured_providers(environ) == (configured or ["echo"])
    assert not load_worker("echo", environ).provider.takes_callers_keys


def test_without_keys_and_without_callers_keys_there_is_no_worker():
    assert refusals(load_worker, "dashscope-native", {"DASHSCOPE_NATIVE_CALLER_KEYS": "off"}) == [
        "DASHSCOPE_NATIVE_API_KEY: expected a key, got nothing (a worker of dashscope-native was asked for)"
    ]


def test_the_native_address_may_be_a_bare_host_or_that_of_the_compatible_mode():
    for given in ("https://h.example", "https://h.example/", "https://h.example/compatible-mode/v1"):
        worker = load_worker("dashscope-native", {"DASHSCOPE_NATIVE_BASE_URL": given})
        assert worker.provider.base_url == "https://h.example/api/v1"


def test_where_all_callers_bring_their_own_key_the_gateway_needs_none():
    through = {"DASHSCOPE_NATIVE_CALLER_KEYS": "on"}
    for settings in (load_frontend(through), load_up(through).frontend):
        assert settings.api_keys == ()
        assert settings.api_key_origin == "this gateway has none itself"
        assert settings.auth == "on"
    for more in ({"OPENAI_API_KEY": "k"}, {"DASHSCOPE_NATIVE_API_KEY": "k"}):
        assert refusals(load_frontend, through | more)[0].startswith("SLUICE_API_KEY: expected the key")
    made = load_up(through | {"OPENAI_API_KEY": "k"}).frontend.api_keys
    assert load_frontend(through).api_keys == made, "a frontend that `up` starts does not see the other keys"
