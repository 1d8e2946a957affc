"""The body of `/docs`, made of the table that `/openapi.json` is made of; everything in it is escaped here."""

import json
from html import escape
from typing import Any, Final

from frontend.api.advice import ADVICE
from frontend.api.headers import ANSWER_HEADERS, REQUEST_HEADERS
from frontend.api.operations import OPERATIONS, Operation
from frontend.api.reference import openapi, statuses
from frontend.api.samples import ORIGIN, samples
from shared.errors import KINDS

_ACCESS: Final = {"key": "any key", "master": "master key", "open": "no key"}
_TYPES: Final = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false"}


def page(version: str) -> str:
    """Navigation and sections, as HTML."""
    document = openapi(version)
    groups = dict.fromkeys(operation.group for operation in OPERATIONS)
    sections = [_start(version)]
    for group in groups:
        members = [operation for operation in OPERATIONS if operation.group == group]
        parts = "".join(_operation(operation, document) for operation in members)
        sections.append(
            f'<section aria-labelledby="{_slug(group)}"><h2 id="{_slug(group)}">{escape(group)}</h2>{parts}</section>'
        )
    return _navigation(list(groups)) + f'<div class="reference">{"".join(sections)}{_headers()}{_errors()}</div>'


def anchor(operation: Operation) -> str:
    """The fragment that leads to an operation: `post-v1-chat-completions`."""
    return _slug(f"{operation.method} {operation.path}")


def _slug(text: str) -> str:
    return "-".join("".join(sign if sign.isalnum() else " " for sign in text.lower()).split())


def _text(markdown: str) -> str:
    """Backticks become code; nothing else means anything."""
    parts = escape(markdown, quote=False).split("`")
    return "".join(f"<code>{part}</code>" if position % 2 else part for position, part in enumerate(parts))


def _method(operation: Operation) -> str:
    return f'<span class="method {operation.method}">{operation.method.upper()}</span>'


def _navigation(groups: list[str]) -> str:
    blocks = []
    for group in groups:
        links = "".join(
            f'<li><a href="#{anchor(one)}">{_method(one)}<span class="path">{_path(one.path)}</span></a></li>'
            for one in OPERATIONS
            if one.group == group
        )
        blocks.append(f"<h2>{escape(group)}</h2><ul>{links}</ul>")
    return (
        '<details class="contents" id="contents" open><summary>Contents</summary><nav aria-label="Contents">'
        '<ul><li><a href="#start">Start</a></li><li><a href="#headers">Headers</a></li>'
        f'<li><a href="#errors">Errors</a></li></ul>{"".join(blocks)}</nav></details>'
    )


def _path(path: str) -> str:
    """With places where a line may break."""
    return escape(path).replace("/", "/<wbr>")


def _start(version: str) -> str:
    first = next(operation for operation in OPERATIONS if operation.sdk)
    return (
        '<section aria-labelledby="start"><h1 id="start">API reference</h1><div class="operation"><div class="told">'
        "<p>Whatever speaks OpenAI's API works here: change the base URL and the key, nothing else.</p>"
        f'<dl class="where"><dt>Base URL</dt><dd><code class="origin">{ORIGIN}/v1</code></dd>'
        "<dt>Key</dt><dd><code>Authorization: Bearer &lt;key&gt;</code></dd>"
        f"<dt>Version</dt><dd>{escape(version)}</dd></dl>"
        "<p><b>Any key</b>: one of this gateway. <b>Master key</b>: one of its settings, <code>SLUICE_API_KEY</code>. "
        'For programs, the same is <a href="/openapi.json">an OpenAPI document</a>; to try a model, there is '
        '<a href="/playground">the playground</a>.</p></div>'
        f'<div class="shown">{_code("start", samples(first))}</div></div></section>'
    )


def _operation(operation: Operation, document: dict[str, Any]) -> str:
    name = anchor(operation)
    described = document["paths"][operation.path][operation.method]
    told = [
        f'<p class="summary">{_text(operation.summary)} <span class="pill plain">{_ACCESS[operation.access]}</span></p>'
    ]
    if operation.detail:
        told.append(f"<p>{_text(operation.detail)}</p>")
    if operation.parameters:
        rows = [(one.name, "text", one.meaning, one.where == "path") for one in operation.parameters]
        told.append(_fields("In the address", rows))
    if operation.asks is not None:
        schema = document["components"]["schemas"][operation.asks.__name__]
        required = schema.get("required", [])
        rows = [
            (field, _type(shape, document), shape["description"], field in required)
            for field, shape in schema["properties"].items()
        ]
        told.append(_fields("Body, as JSON", rows))
    told.append(f"<h4>Answer</h4><p>{_text(operation.answers)}</p>")
    if wanted := statuses(operation):
        codes = "; ".join(f"<b>{status}</b> {_codes(described['responses'][status])}" for status in wanted)
        told.append(f'<details class="refusals"><summary>Errors</summary><p class="small">{codes}</p></details>')
    shown = _code(name, samples(operation)) + _example(operation)
    return (
        f'<article class="operation" aria-labelledby="{name}"><h3 id="{name}">{_method(operation)}'
        f'<span class="path">{_path(operation.path)}</span></h3>'
        f'<div class="told">{"".join(told)}</div><div class="shown">{shown}</div></article>'
    )


def _codes(response: dict[str, Any]) -> str:
    return ", ".join(f"<code>{escape(code)}</code>" for code in response["description"].split(", "))


def _fields(title: str, rows: list[tuple[str, str, str, bool]]) -> str:
    items = "".join(
        f"<div><dt><code>{escape(name)}</code>{' <em>required</em>' if required else ''}"
        f'<span class="kind">{escape(kind)}</span></dt><dd>{_text(meaning)}</dd></div>'
        for name, kind, meaning, required in rows
    )
    return f'<h4>{title}</h4><dl class="fields">{items}</dl>'


def _type(schema: dict[str, Any], document: dict[str, Any]) -> str:
    """A JSON schema in a few words, with its limits."""
    if "anyOf" in schema:
        return " or ".join(_type(one, document) for one in schema["anyOf"] if one.get("type") != "null")
    if "enum" in schema:
        return " or ".join(str(value) for value in schema["enum"] if value is not None)
    if "$ref" in schema or schema.get("type") == "object":
        return "object"
    if schema.get("type") == "array":
        items = _type(schema["items"], document) if schema.get("items") else ""
        plural = {"text": " of texts", "object": " of objects"}.get(items, "")
        return f"list{plural}" + _limits(schema, "minItems", "maxItems")
    words = _TYPES.get(schema.get("type", ""), "anything")
    if "maxLength" in schema:
        return f"{words}, at most {schema['maxLength']} characters"
    return words + _limits(schema, "minimum", "maximum")


def _limits(schema: dict[str, Any], least: str, most: str) -> str:
    low, high = schema.get(least), schema.get(most)
    if low is not None and high is not None and high < 10**9:
        return f", {low:,} to {high:,}"
    if low is not None:
        return f", {low:,} or more"
    return f", at most {high:,}" if high is not None else ""


def _code(name: str, programs: dict[str, str]) -> str:
    tabs, panels = [], []
    for position, (language, text) in enumerate(programs.items()):
        tab, panel = f"{name}-{language}".lower(), f"{name}-{language}-panel".lower()
        chosen = position == 0
        tabs.append(
            f'<button type="button" role="tab" id="{tab}" aria-controls="{panel}" aria-selected="{str(chosen).lower()}"'
            f' data-language="{language}"{"" if chosen else " tabindex=-1"}>{language}</button>'
        )
        panels.append(
            f'<div role="tabpanel" id="{panel}" aria-labelledby="{tab}"{"" if chosen else " hidden"}>'
            f'<pre class="origin" tabindex="0">{escape(text, quote=False)}</pre></div>'
        )
    return (
        f'<div class="code"><div class="code-head"><div class="tabs" role="tablist" aria-label="Language">{"".join(tabs)}</div>'
        f'<button class="button quiet little copy" type="button">Copy</button></div>{"".join(panels)}</div>'
    )


def _example(operation: Operation) -> str:
    if operation.example_answer is None:
        return ""
    text = operation.example_answer
    if not isinstance(text, str):
        text = json.dumps(text, indent=2, ensure_ascii=False)
    return (
        '<div class="code answer"><div class="code-head"><span class="soft small">Answer</span></div>'
        f'<pre tabindex="0">{escape(text, quote=False)}</pre></div>'
    )


def _headers() -> str:
    tables = "".join(
        f'<h3>{title}</h3><dl class="fields card">'
        + "".join(
            f"<div><dt><code>{name}</code></dt><dd>{_text(meaning)}</dd></div>" for name, meaning in headers.items()
        )
        + "</dl>"
        for title, headers in (("Of requests to models", REQUEST_HEADERS), ("Of answers", ANSWER_HEADERS))
    )
    return f'<section aria-labelledby="headers"><h2 id="headers">Headers</h2>{tables}</section>'


def _errors() -> str:
    rows = "".join(
        f'<div><dt><b class="status">{kind.status}</b> <code>{escape(kind.code or kind.name)}</code>'
        f'<span class="kind">{escape(kind.type)}</span></dt>'
        f'<dd>{escape(kind.meaning)} <span class="soft">{_text(ADVICE.get(kind.code or kind.name, ""))}</span></dd></div>'
        for kind in sorted(KINDS.values(), key=lambda kind: (kind.status, kind.code or kind.name))
    )
    return (
        '<section aria-labelledby="errors"><h2 id="errors">Errors</h2><p class="lead">Before the first byte an error is an '
        'HTTP status with <code>{"error": {"message", "type", "param", "code"}}</code>. After it, one event '
        '<code>data: {"error": '
        "…}</code> ends the stream, without a finish reason and without <code>[DONE]</code>; OpenAI's clients raise it.</p>"
        f'<dl class="fields errors card">{rows}</dl></section>'
    )
