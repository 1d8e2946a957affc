"""The settings of an upstream that makes its own credentials: what it cannot do without, and what is checked."""

import pytest

from shared.settings import (
    SettingsError,
    child_environment,
    configured_providers,
    load_frontend,
    load_up,
    load_worker,
)

NEEDED = {
    "LANGFAST_SUPABASE_URL": "https://project.example/",
    "LANGFAST_SUPABASE_ANON_KEY": "anon-key",
    "LANGFAST_SOCKET_URL": "wss://runner.example",
    "LANGFAST_PROMPT_ID": "a-prompt",
}


def refusals(load, *arguments) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load(*arguments, None)
    return [str(problem) for problem in caught.value.problems]


def test_what_it_needs_is_told_all_at_once():
    missing = [
        "LANGFAST_SUPABASE_URL: expected an http:// or https:// address without query or password, got nothing",
        "LANGFAST_SUPABASE_ANON_KEY: expected a key of printable ASCII characters without spaces, got nothing",
        "LANGFAST_SOCKET_URL: expected a wss:// or https:// address without query or password, got nothing",
        "LANGFAST_PROMPT_ID: expected a text, got nothing",
    ]
    assert refusals(load_worker, "langfast", {}) == missing
    assert refusals(load_up, {"LANGFAST_PROMPT_ID": "x"}) == missing[:3]
    assert configured_providers({}, None) == ["echo"]
    assert configured_providers(NEEDED, None) == ["langfast"]


def test_other_processes_do_without_its_secrets(tmp_path):
    everything = NEEDED | {"SLUICE_STATE_DIR": str(tmp_path), "OPENAI_API_KEY": "sk-one", "SLUICE_API_KEY": "sk-two"}
    assert "LANGFAST_SUPABASE_ANON_KEY" not in child_environment(everything, provider=None)
    load_frontend(child_environment(everything, provider=None), None)
    load_worker("openai", child_environment(everything, provider="openai"), None)
    load_worker("langfast", child_environment(everything, provider="langfast"), None)


def test_usual_and_chosen_values(tmp_path):
    state = {"SLUICE_STATE_DIR": str(tmp_path)}
    usual = load_worker("langfast", NEEDED | state, None).provider
    assert (usual.base_url, usual.keys, usual.calls_per_credential) == ("https://project.example", (), 1)
    assert len(usual.models) == 17
    assert usual.options["anon_key"].reveal() == "anon-key"
    assert {name: value for name, value in usual.options.items() if name != "anon_key"} == {
        "socket_url": "wss://runner.example",
        "prompt_id": "a-prompt",
        "default_model": "gpt-4o-mini",
        "min_credentials": 3,
        "max_credentials": 10,
        "signups_per_hour": 30,
    }
    chosen = {"LANGFAST_RUNS_PER_CREDENTIAL": "4", "LANGFAST_MODELS": "gpt-4o,o3", "LANGFAST_DEFAULT_MODEL": "o3"}
    found = load_worker("langfast", NEEDED | chosen | state, None).provider
    assert (found.calls_per_credential, found.models, found.options["default_model"]) == (4, ("gpt-4o", "o3"), "o3")


CLEAR = "(or SLUICE_ALLOW_HTTP_UPSTREAMS=on), got"


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("LANGFAST_SOCKET_URL", "ws://runner.example", f"expected wss:// {CLEAR} 'ws://runner.example'"),
        ("LANGFAST_SOCKET_URL", "http://runner.example", f"expected https:// {CLEAR} 'http://runner.example'"),
        (
            "LANGFAST_SOCKET_URL",
            "wss://user@runner.example",
            "expected a wss:// or https:// address without query or password, got 'wss://user@runner.example'",
        ),
        ("LANGFAST_SUPABASE_URL", "http://project.example", f"expected https:// {CLEAR} 'http://project.example'"),
        ("LANGFAST_SUPABASE_ANON_KEY", "your-key", "expected a real key, not a placeholder, got ***"),
        ("LANGFAST_MIN_CREDENTIALS", "11", "expected LANGFAST_MAX_CREDENTIALS=10 at most, got 11"),
    ],
)
def test_wrong_values(name, text, sentence):
    assert refusals(load_worker, "langfast", NEEDED | {name: text}) == [f"{name}: {sentence}"]
    if CLEAR in sentence:
        allowed = NEEDED | {name: text, "SLUICE_ALLOW_HTTP_UPSTREAMS": "on"}
        assert configured_providers(allowed, None) == ["langfast"]
