"""What is accepted, what is refused, and with which words."""

import os
from pathlib import Path

import pytest

from shared.settings import (
    Secret,
    SettingsError,
    configured_providers,
    load_frontend,
    load_up,
    load_worker,
)
from shared.settings.load import LOCAL_REDIS
from shared.settings.state import REDIS_URL, StateDir

KEY = "sk-sluice-0123456789abcdef"
RING = "0123456789abcdef0123456789abcdef"
FAR = "redis://:pw@redis.internal:6379/0"


@pytest.fixture(autouse=True)
def in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusals(load, *arguments) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load(*arguments)
    return [str(problem) for problem in caught.value.problems]


BAD = [
    ({"SLUICE_PORT": "eighty"}, "SLUICE_PORT: expected a whole number from 0 to 65535, got 'eighty'"),
    ({"SLUICE_PORT": "65536"}, "SLUICE_PORT: expected a whole number from 0 to 65535, got '65536'"),
    ({"SLUICE_PORT": "8_8.0"}, "SLUICE_PORT: expected a whole number from 0 to 65535, got '8_8.0'"),
    ({"SLUICE_QUEUE_LIMIT": "0"}, "SLUICE_QUEUE_LIMIT: expected a whole number, 1 or more, got '0'"),
    (
        {"SLUICE_TOTAL_SECONDS": "inf"},
        "SLUICE_TOTAL_SECONDS: expected seconds, a number from 0.1 to 86400, got 'inf'",
    ),
    (
        {"SLUICE_DRAIN_SECONDS": "-1"},
        "SLUICE_DRAIN_SECONDS: expected seconds, a number from 0 to 3600, got '-1'",
    ),
    ({"SLUICE_HOST": "not a host"}, "SLUICE_HOST: expected an IP address or a host name, got 'not a host'"),
    ({"SLUICE_LOG_LEVEL": "loud"}, "SLUICE_LOG_LEVEL: expected debug, info, warning or error, got 'loud'"),
    ({"SLUICE_ALLOW_OPEN_REDIS": "maybe"}, "SLUICE_ALLOW_OPEN_REDIS: expected on or off, got 'maybe'"),
    ({"SLUICE_AUTH": "none"}, "SLUICE_AUTH: expected on or off, got 'none'"),
    (
        {"SLUICE_AUTH": "off", "SLUICE_HOST": "0.0.0.0"},
        "SLUICE_AUTH: expected on, because SLUICE_HOST=0.0.0.0 lets other machines connect, got 'off'",
    ),
    (
        {"SLUICE_HOST": "::", "SLUICE_API_KEY": f"{KEY},short"},
        "SLUICE_API_KEY: expected 16 characters or more, because other machines can connect, got ***",
    ),
    ({"SLUICE_API_KEY": "changeme"}, "SLUICE_API_KEY: expected a real key, not a placeholder, got ***"),
    (
        {"SLUICE_API_KEY": "<your key>"},
        "SLUICE_API_KEY: expected keys of printable ASCII characters without spaces, got ***",
    ),
    (
        {"SLUICE_API_KEY": f"{KEY},{KEY}"},
        "SLUICE_API_KEY: expected one or more keys, separated by commas, each once, got ***",
    ),
    ({"SLUICE_API_KEY": ","}, "SLUICE_API_KEY: expected one or more keys, separated by commas, got ***"),
    (
        {"SLUICE_SECRET_KEY": "short"},
        "SLUICE_SECRET_KEY: expected keys of 32 random characters or more (`openssl rand -hex 32`), got ***",
    ),
    (
        {"SLUICE_SECRET_KEY": "a" * 64},
        "SLUICE_SECRET_KEY: expected keys of 32 random characters or more (`openssl rand -hex 32`), got ***",
    ),
    (
        {"REDIS_URL": "http://localhost"},
        "REDIS_URL: expected an address such as redis://:password@host:6379/0, rediss://… or unix:///path"
        " (a Redis URL begins with redis://, rediss:// or unix://), got ***",
    ),
    (
        {"REDIS_URL": "redis://127.0.0.1/one"},
        "REDIS_URL: expected an address such as redis://:password@host:6379/0, rediss://… or unix:///path"
        " (the database of a Redis URL is a number; write '/' in a password as %2F), got ***",
    ),
    (
        {"REDIS_URL": "redis://redis.internal/0", "SLUICE_SECRET_KEY": RING},
        "REDIS_URL: expected a password for a Redis on another machine, or SLUICE_ALLOW_OPEN_REDIS=on",
    ),
    (
        {"REDIS_URL": FAR},
        "SLUICE_SECRET_KEY: expected one key for all machines, since Redis is not on this one;"
        " `openssl rand -hex 32` makes one",
    ),
    (
        {"SLUICE_CORS_ORIGINS": "https://app.example/path"},
        "SLUICE_CORS_ORIGINS: expected origins such as https://app.example (scheme, host, port; no path), or *,"
        " got 'https://app.example/path'",
    ),
    (
        {"SLUICE_MODEL_ALIASES": "fast"},
        "SLUICE_MODEL_ALIASES: expected alias=model pairs such as fast=openai/gpt-4o-mini, got 'fast'",
    ),
    (
        {"SLUICE_MODEL_ALIASES": "a=b,b=c"},
        "SLUICE_MODEL_ALIASES: expected aliases of models, not of aliases (a -> b), got 'a=b,b=c'",
    ),
    (
        {"SLUICE_MODEL_ALIASES": "a=b,a=c"},
        "SLUICE_MODEL_ALIASES: expected each alias once (a is given twice), got 'a=b,a=c'",
    ),
    (
        {"OPENAI_BASE_URL": "api.openai.com"},
        "OPENAI_BASE_URL: expected an http:// or https:// address without query or password, got 'api.openai.com'",
    ),
    (
        {"OPENAI_BASE_URL": "https://u:p@host/v1?x=1"},
        "OPENAI_BASE_URL: expected an http:// or https:// address without query or password, got 'https://u:p@host/v1?x=1'",
    ),
    (
        {"KIMI_API_KEY": "k1", "KIMI_BASE_URL": "http://models.internal/v1"},
        "KIMI_BASE_URL: expected https:// (or SLUICE_ALLOW_HTTP_UPSTREAMS=on), got 'http://models.internal/v1'",
    ),
    (
        {"OPENAI_API_KEY": "k1", "OPENAI_BASE_URL": "http://localhost:8088/v1"},
        "OPENAI_BASE_URL: expected an upstream, got 'http://localhost:8088/v1', which is this gateway itself",
    ),
    (
        {"OPENAI_API_KEY": "k1,k1"},
        "OPENAI_API_KEY: expected one or more keys, separated by commas, each once, got ***",
    ),
    (
        {"OPENAI_MODELS": "two words"},
        "OPENAI_MODELS: expected model names without spaces, at most 128 characters each, got 'two words'",
    ),
    ({"SLUICE_PROT": "1"}, "SLUICE_PROT: is not a setting; did you mean SLUICE_PORT?"),
    ({"SLUICE_ZZZZ_QQQQ": "1"}, "SLUICE_ZZZZ_QQQQ: is not a setting; `sluice settings` lists them all"),
    ({"SLUICE_PORT_FILE": "x"}, "SLUICE_PORT_FILE: is not a setting; did you mean SLUICE_PORT?"),
    (
        {"SLUICE_PROVIDER_BOX_MODELS": "a"},
        "SLUICE_PROVIDER_BOX_BASE_URL: expected the server's address, got nothing",
    ),
    (
        {"SLUICE_PROVIDER_HF_BASE_URL": "https://x.example"},
        "SLUICE_PROVIDER_HF_BASE_URL: expected a name of its own, but huggingface ships with Sluice",
    ),
    (
        {"OPENAI_MODELS": "a=b,a"},
        "OPENAI_MODELS: expected model names without spaces, at most 128 characters each, each once, got 'a=b,a'",
    ),
    (
        {"OPENAI_MODELS": "a="},
        "OPENAI_MODELS: expected model names without spaces, at most 128 characters each, got 'a='",
    ),
    (
        {"FLOWGPT_BEARER_TOKEN": "t1", "FLOWGPT_DEVICE_ID": "d1"},
        "FLOWGPT_BASE_URL: expected the server's address, got nothing",
    ),
    (
        {"FLOWGPT_BEARER_TOKEN": "t1", "FLOWGPT_BASE_URL": "https://x.example"},
        "FLOWGPT_DEVICE_ID: expected one value for FLOWGPT_BEARER_TOKEN, got nothing",
    ),
    (
        {"FLOWGPT_BEARER_TOKEN": "t1,t2", "FLOWGPT_DEVICE_ID": "d1", "FLOWGPT_BASE_URL": "https://x.example"},
        "FLOWGPT_DEVICE_ID: expected 2 values, as many as there are for FLOWGPT_BEARER_TOKEN, got 1 of them",
    ),
    (
        {"FLOWGPT_SIGNATURE_TEMPLATE": "{timestamp!r}"},
        "FLOWGPT_SIGNATURE_TEMPLATE: expected a text with some of {timestamp}, {nonce}, {device_id}, {authorization},"
        " got '{timestamp!r}'",
    ),
    (
        {"DASHSCOPE_NATIVE_CALLER_KEYS": "on", "DASHSCOPE_NATIVE_BASE_URL": "http://far.example"},
        "DASHSCOPE_NATIVE_BASE_URL: expected https:// (or SLUICE_ALLOW_HTTP_UPSTREAMS=on), got 'http://far.example/api/v1'",
    ),
    ({"HF_TOKEN_FILE": "nowhere"}, "HF_TOKEN_FILE: expected a readable file, got 'nowhere'"),
]


@pytest.mark.fault("S1")
@pytest.mark.parametrize(("environ", "message"), BAD, ids=[message.split(" ")[0] + message[-12:] for _, message in BAD])
def test_each_bad_value_is_told_by_name_expectation_and_value(environ, message):
    assert refusals(load_up, environ) == [message]
    assert not Path(".sluice").exists(), "nothing is made before all is well"


@pytest.mark.fault("S1", "S6")
def test_all_problems_come_at_once_and_show_no_secret():
    environ = {
        "SLUICE_PORT": "x",
        "SLUICE_PROT": "1",
        "OPENAI_API_KEY": "sk-hidden one",
        "REDIS_URL": "nonsense-hidden",
        "SLUICE_SECRET_KEY": "hidden",
        "SLUICE_UPSTREAM_PROXY": "hidden://hidden",
    }
    found = refusals(load_up, environ)
    assert [line.split(":")[0] for line in found] == [
        "REDIS_URL",
        "SLUICE_SECRET_KEY",
        "SLUICE_PORT",
        "SLUICE_UPSTREAM_PROXY",
        "OPENAI_API_KEY",
        "SLUICE_PROT",
    ]
    assert "hidden" not in "\n".join(found)
    with pytest.raises(SettingsError, match=r"^6 problems in the settings:\n  REDIS_URL: "):
        load_up(environ)


@pytest.mark.fault("S1")
def test_a_frontend_by_hand_needs_a_key_and_says_who_makes_one():
    assert refusals(load_frontend, {}) == [
        "SLUICE_API_KEY: expected the key that callers present, got nothing;"
        " set it, or let `sluice up` or `sluice keys` make one"
    ]


def test_a_frontend_takes_the_key_that_up_made():
    made = load_up({})
    assert made.frontend.api_key_origin == "made now, kept in .sluice/api-key"
    found = load_frontend({})
    assert found.api_keys == made.frontend.api_keys
    assert found.api_key_origin == "kept in .sluice/api-key"
    assert found.secret_keys == load_worker("echo", {}).secret_keys


def test_defaults_of_a_frontend():
    settings = load_frontend({"SLUICE_API_KEY": "k-one, k-two"})
    assert [key.reveal() for key in settings.api_keys] == ["k-one", "k-two"]
    assert settings.redis_url == Secret(LOCAL_REDIS)
    assert (settings.host, settings.port, settings.auth) == ("127.0.0.1", 8088, "on")
    assert settings.body_limit_bytes == 10 * 1024 * 1024
    assert (settings.stall_seconds, settings.keepalive_comment_seconds) == (30, 15)
    assert settings.first_token_seconds is None
    assert settings.cors_origins == ()
    assert settings.model_aliases == {}


def test_auth_off_is_accepted_where_only_this_machine_connects():
    for host in ("127.0.0.1", "localhost", "::1", "[::1]", "127.3.2.1"):
        settings = load_frontend({"SLUICE_AUTH": "OFF", "SLUICE_HOST": host, "SLUICE_API_KEY": KEY})
        assert settings.api_keys == ()
        assert settings.api_key_origin == "SLUICE_AUTH=off"


def test_aliases_keep_slashes_and_colons():
    settings = load_frontend(
        {
            "SLUICE_API_KEY": KEY,
            "SLUICE_MODEL_ALIASES": "oss = huggingface/openai/gpt-oss-120b:fireworks-ai, fast=gpt-4o",
        }
    )
    assert settings.model_aliases == {"oss": "huggingface/openai/gpt-oss-120b:fireworks-ai", "fast": "gpt-4o"}


@pytest.mark.parametrize(
    ("name", "environ", "expected"),
    [
        ("openai", {"OPENAI_API_KEY": "a,b"}, ("openai", ["a", "b"], "https://api.openai.com/v1", "gpt-4o")),
        ("HF", {"HF_TOKEN": "a"}, ("huggingface", ["a"], "https://router.huggingface.co/v1", "openai/gpt-oss-120b")),
        (
            "deepseek",
            {"DEEPSEEK_API_KEY": "a", "DEEPSEEK_BASE_URL": "http://127.0.0.1:9/v1/", "DEEPSEEK_MODELS": "x, y"},
            ("deepseek", ["a"], "http://127.0.0.1:9/v1", "x"),
        ),
        (
            "dashscope",
            {"DASHSCOPE_API_KEY": "a", "DASHSCOPE_BASE_URL": "https://dashscope-intl.aliyuncs.com"},
            ("dashscope", ["a"], "https://dashscope-intl.aliyuncs.com/compatible-mode/v1", "qwen-max"),
        ),
        (
            "dashscope",
            {"DASHSCOPE_API_KEY": "a", "DASHSCOPE_BASE_URL": "https://dashscope-us.aliyuncs.com/api/v1"},
            ("dashscope", ["a"], "https://dashscope-us.aliyuncs.com/compatible-mode/v1", "qwen-max"),
        ),
        (
            "My_Box",
            {
                "SLUICE_PROVIDER_MY_BOX_BASE_URL": "http://localhost:9000/v1",
                "SLUICE_PROVIDER_MY_BOX_MODELS": "llama",
                "SLUICE_PROVIDER_MY_BOX_API_KEY": "a",
            },
            ("my-box", ["a"], "http://localhost:9000/v1", "llama"),
        ),
    ],
)
def test_a_worker_gets_its_upstream_complete(name, environ, expected):
    provider = load_worker(name, environ).provider
    assert (provider.name, [key.reveal() for key in provider.keys], provider.base_url, provider.models[0]) == expected


def test_a_worker_without_a_key_and_an_unknown_one():
    assert refusals(load_worker, "kimi", {}) == [
        "KIMI_API_KEY: expected a key, got nothing (a worker of kimi was asked for)"
    ]
    assert refusals(load_worker, "deepsek", {}) == [
        "provider: expected one of openai, deepseek, cerebras, kimi, dashscope, huggingface, dashscope-native, flowgpt,"
        " langfast, echo, got 'deepsek'; did you mean deepseek?"
    ]


def test_patience_is_the_providers_own_unless_set():
    environ = {"DEEPSEEK_API_KEY": "a"}
    assert load_worker("deepseek", environ).provider.deadlines.first_token_seconds == 630
    deadlines = load_worker("deepseek", environ | {"SLUICE_FIRST_TOKEN_SECONDS": "7.5"}).provider.deadlines
    assert (deadlines.first_token_seconds, deadlines.silence_seconds) == (7.5, 60)


def test_configured_providers():
    assert configured_providers({}) == ["echo"]
    assert configured_providers({"OPENAI_API_KEY": "", "OPENAI_BASE_URL": "https://x.example"}) == ["echo"]
    environ = {"KIMI_API_KEY": "a", "OPENAI_API_KEY": "b", "SLUICE_PROVIDER_BOX_BASE_URL": "https://box.example"}
    assert configured_providers(environ) == ["openai", "kimi", "box"]
    assert [one.name for one in load_up(environ).providers] == ["openai", "kimi", "box"]
    assert [one.name for one in load_up({}).providers] == ["echo"]


def test_the_environment_wins_over_dotenv_and_an_empty_variable_does_not():
    Path(".env").write_text("SLUICE_PORT=9001\nSLUICE_HOST=::1\nSLUICE_API_KEY=from-the-file\n")
    settings = load_frontend({"SLUICE_PORT": "9002", "SLUICE_HOST": ""})
    assert (settings.port, settings.host) == (9002, "::1")
    assert settings.api_keys == (Secret("from-the-file"),)


def test_problems_in_dotenv_carry_their_line_and_sure_typos_of_other_names_are_told():
    Path(".env").write_text("SLUICE_PORT=x\n\nDEEPSEK_API_KEY=k\nSOMETHING_ELSE=1\nOPENAI_ORG=x\nno equals sign\n")
    assert refusals(load_up, {}) == [
        ".env line 6: expected NAME=value",
        "SLUICE_PORT: expected a whole number from 0 to 65535, got 'x' (.env line 1)",
        "DEEPSEK_API_KEY: is not a setting (.env line 3); did you mean DEEPSEEK_API_KEY?",
    ]
    Path(".env").unlink()
    load_up({"DEEPSEK_API_KEY": "k"})  # the environment is full of other programs' names


def test_a_secret_from_a_file(tmp_path: Path):
    (tmp_path / "keys").write_text("k-one\nk-two\n")
    settings = load_worker("openai", {"OPENAI_API_KEY_FILE": str(tmp_path / "keys")})
    assert [key.reveal() for key in settings.provider.keys] == ["k-one", "k-two"]
    assert configured_providers(
        {"SLUICE_PROVIDER_BOX_API_KEY_FILE": "keys", "SLUICE_PROVIDER_BOX_BASE_URL": "https://x.example"}
    ) == ["box"]
    assert refusals(load_up, {"OPENAI_API_KEY_FILE": "keys", "OPENAI_API_KEY": "x"}) == [
        "OPENAI_API_KEY: expected either OPENAI_API_KEY or OPENAI_API_KEY_FILE, got both"
    ]


def test_redis_elsewhere_with_all_it_needs():
    settings = load_frontend({"REDIS_URL": FAR, "SLUICE_SECRET_KEY": f"{RING},{RING[::-1]}", "SLUICE_API_KEY": KEY})
    assert [key.reveal() for key in settings.secret_keys] == [RING, RING[::-1]]
    assert not Path(".sluice").exists()
    environ = {"REDIS_URL": "redis://r.internal", "SLUICE_ALLOW_OPEN_REDIS": "on", "SLUICE_SECRET_KEY": RING}
    assert load_up(environ).redis_is_given


def test_a_process_by_hand_joins_the_redis_of_the_gateway_that_runs_here():
    state = StateDir(Path(".sluice"))
    state.write(REDIS_URL, "unix:///tmp/somewhere/redis.sock")
    assert load_worker("echo", {}).redis_url == Secret("unix:///tmp/somewhere/redis.sock")
    state.remove(REDIS_URL, if_holds="another")
    state.remove(REDIS_URL, if_holds="unix:///tmp/somewhere/redis.sock")
    assert load_worker("echo", {}).redis_url == Secret(LOCAL_REDIS)


@pytest.mark.fault("S21")
def test_secrets_leave_the_environment_of_the_process_that_loads_them(monkeypatch):
    for name, text in {
        "OPENAI_API_KEY": "sk-1",
        "SLUICE_API_KEY": KEY,
        "SLUICE_PROVIDER_BOX_BASE_URL": "https://box.example",
        "SLUICE_PROVIDER_BOX_API_KEY": "sk-2",
        "SLUICE_PORT": "9009",
    }.items():
        monkeypatch.setenv(name, text)
    load_up()
    assert os.environ["OPENAI_API_KEY"] == "sk-1", "the supervisor hands them on"
    assert load_frontend().port == 9009
    assert not {"OPENAI_API_KEY", "SLUICE_API_KEY", "SLUICE_PROVIDER_BOX_API_KEY"} & set(os.environ)
    assert os.environ["SLUICE_PORT"] == "9009"


def test_no_settings_object_shows_a_secret():
    environ = {
        "OPENAI_API_KEY": "sk-hidden-1",
        "SLUICE_API_KEY": "sk-hidden-2",
        "REDIS_URL": "redis://:hidden@127.0.0.1/0",
    }
    text = repr(load_up(environ)) + repr(load_worker("openai", environ))
    assert "hidden" not in text
    assert "***" in text
