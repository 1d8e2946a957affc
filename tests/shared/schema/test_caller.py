"""What a caller's key allows."""

import pytest

from shared.schema.caller import CallerKey


@pytest.mark.parametrize(
    ("models", "providers", "asked", "allowed"),
    [
        ((), (), ("openai", "gpt-4o"), True),
        (("gpt-4o",), (), ("openai", "gpt-4o"), True),
        (("gpt-4o",), (), ("openai", "gpt-4o-mini"), False),
        (("gpt-4o*",), (), ("openai", "gpt-4o-mini"), True),
        (("gpt-4o",), (), ("openai", "own-name", "gpt-4o"), True),
        (("*mini",), (), ("openai", "gpt-4o-mini"), True),
        (("*mini",), (), ("openai", "gpt-4o-mini-2"), False),
        (("a*c*e",), (), ("x", "abcde"), True),
        (("openai/*",), (), ("openai", "gpt-4o"), True),
        (("openai/*",), (), ("kimi", "gpt-4o"), False),
        (("huggingface/openai/gpt-oss-120b",), (), ("huggingface", "openai/gpt-oss-120b"), True),
        (("gpt.4o",), (), ("openai", "gpt-4o"), False),
        (("[a-z]*", "a|b", "(x)"), (), ("openai", "abc"), False),
        (("(x)",), (), ("openai", "(x)"), True),
        (("kimi-k3", "gpt-4o"), (), ("openai", "gpt-4o"), True),
        (("*",), (), ("openai", "any\nthing"), True),
        (("GPT-4o",), (), ("openai", "gpt-4o"), False),
        ((), ("openai",), ("openai", "gpt-4o"), True),
        ((), ("openai",), ("kimi", "gpt-4o"), False),
        ((), ("dash*",), ("dashscope-native", "farui-plus"), True),
        (("gpt-4o",), ("kimi",), ("openai", "gpt-4o"), False),
        (("gpt-4o",), ("openai",), ("openai", "o3"), False),
        (("gpt-4o",), (), ("openai",), False),
    ],
)
def test_models_and_providers_by_name_or_pattern(models, providers, asked, allowed):
    assert CallerKey("0", models=models, providers=providers).allows(*asked) is allowed


def test_a_key_ends_with_its_last_second():
    key = CallerKey("0", expires_at=100.0)
    assert [key.has_expired(now) for now in (99.9, 100.0, 101.0)] == [False, True, True]
    assert not CallerKey("0").has_expired(1e12)
