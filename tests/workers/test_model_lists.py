"""What lists of models say, and what is made of lists that say nothing."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.schema.advertisement import MOST_MODELS, Model
from tests.workers.recordings import body
from workers.dialects.model_lists import listed_models


def a_list(*entries: object) -> bytes:
    return json.dumps({"object": "list", "data": entries}).encode()


def test_openais_list() -> None:
    models = listed_models(body("openai_models.json"))
    entries = json.loads(body("openai_models.json"))["data"]
    assert models == [Model(entry["id"], entry["created"], entry["owned_by"]) for entry in entries]


def test_hugging_faces_models_can_be_asked_for_at_each_live_provider() -> None:
    assert listed_models(body("hf_models.json")) == [
        Model("openai/gpt-oss-120b", 1754349600, "openai"),
        Model("openai/gpt-oss-120b:fireworks-ai", 1754349600, "openai", 131072),
        Model("openai/gpt-oss-120b:cerebras", 1754349600, "openai", 131072),
        Model("Qwen/Qwen3-32B", 1745715600, "Qwen"),
        Model("Qwen/Qwen3-32B:groq", 1745715600, "Qwen", 131072),
    ]


@pytest.mark.parametrize("name", ["context_length", "context_window", "max_model_len"])
def test_the_length_of_the_context(name: str) -> None:
    assert listed_models(a_list({"id": "a", name: 4096})) == [Model("a", context_tokens=4096)]
    assert listed_models(a_list({"id": "a", name: "4096"}, {"id": "b", name: -1})) == [Model("a"), Model("b")]


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"{}", b"null", b"<html>", b'{"data":5}', b'{"data":[5]}', b'{"data":[[]]}']
)
def test_what_is_no_list(text: bytes) -> None:
    assert listed_models(text) is None


def test_names_that_are_none_are_left_out_and_no_list_is_endless() -> None:
    odd = [{"id": name} for name in ("", "two words", "x" * 257, "line\nend", "twice", "twice")]
    assert listed_models(a_list(*odd, {"id": "good"})) == [Model("twice"), Model("good")]
    many = listed_models(a_list(*({"id": f"m{number}"} for number in range(MOST_MODELS + 10))))
    assert many is not None and len(many) == MOST_MODELS


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "providers", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(
    st.lists(
        st.dictionaries(st.sampled_from(["id", "created", "owned_by", "providers", "context_length"]), json_values)
    )
)
def test_any_list_is_read_or_refused(entries: list[object]) -> None:
    for model in listed_models(a_list(*entries)) or ():
        assert model.id and " " not in model.id
