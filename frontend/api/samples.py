"""How an operation is called from a shell, from Python and from JavaScript, as texts that can be pasted and run."""

import json
from typing import Any, Final

from frontend.api.operations import EVENTS, Operation

ORIGIN: Final = "http://127.0.0.1:8088"
"""Stands for the gateway's address; the page puts its own in its place."""
SHORT_CHARACTERS: Final = 76
_VARIABLE: Final = "SLUICE_API_KEY"


def samples(operation: Operation) -> dict[str, str]:
    """Language → program."""
    path = operation.path
    for parameter in operation.parameters:
        if parameter.where == "path":
            path = path.replace(f"{{{parameter.name}}}", parameter.example)
    query = "&".join(
        f"{one.name}={one.example}" for one in operation.parameters if one.where == "query" and one.example
    )
    url = ORIGIN + path + (f"?{query}" if query else "")
    if operation.sdk:
        return {"curl": _curl(operation, url), "Python": _openai_python(operation), "JavaScript": _openai_js(operation)}
    return {"curl": _curl(operation, url), "Python": _python(operation, url), "JavaScript": _js(operation, url)}


def _streams(operation: Operation) -> bool:
    return operation.types == (EVENTS,) or bool(operation.example and operation.example.get("stream"))


def _curl(operation: Operation, url: str) -> str:
    method = operation.method.upper()
    words = ["curl"] + (["-N"] if _streams(operation) else [])
    words += ["-X", method] if method not in ("GET", "POST") or (method == "POST" and not operation.example) else []
    lines = [" ".join([*words, f"'{url}'" if "?" in url else url])]
    if operation.access != "open":
        lines.append(f'  -H "Authorization: Bearer ${_VARIABLE}"')
    if operation.example is not None:
        lines.append("  -H 'Content-Type: application/json'")
        body = json.dumps(operation.example)
        if len(body) > SHORT_CHARACTERS:
            body = json.dumps(operation.example, indent=2).replace("\n", "\n  ")
        lines.append(f"  -d '{body}'")
    return " \\\n".join(lines)


def _openai_python(operation: Operation) -> str:
    arguments = [f"{name}={_python_value(value)}" for name, value in _arguments(operation)]
    call = _wrapped(f"client.{operation.sdk}(", arguments, ")", "    ")
    head = (
        "import os\nfrom openai import OpenAI\n\n"
        f'client = OpenAI(base_url="{ORIGIN}/v1", api_key=os.environ["SLUICE_API_KEY"])\n'
    )
    if _streams(operation):
        return (
            f"{head}stream = {call}\nfor chunk in stream:\n    if chunk.choices:\n"
            '        print(chunk.choices[0].delta.content or "", end="", flush=True)'
        )
    return f"{head}answer = {call}\nprint(answer)"


def _openai_js(operation: Operation) -> str:
    if operation.asks is None:
        call = f"client.{operation.sdk}({', '.join(json.dumps(value) for _, value in _arguments(operation))})"
    else:
        fields = [f"{name}: {_js_value(value)}" for name, value in _arguments(operation)]
        call = _wrapped(f"client.{operation.sdk}({{", fields, "})", "  ", inside=" ")
    head = (
        'import OpenAI from "openai";\n\n'
        f'const client = new OpenAI({{ baseURL: "{ORIGIN}/v1", apiKey: process.env.SLUICE_API_KEY }});\n'
    )
    if _streams(operation):
        return (
            f"{head}const stream = await {call};\nfor await (const chunk of stream) "
            'process.stdout.write(chunk.choices[0]?.delta?.content ?? "");'
        )
    return f"{head}const answer = await {call};\nconsole.log(answer);"


def _arguments(operation: Operation) -> list[tuple[str, Any]]:
    if operation.example is not None:
        return list(operation.example.items())
    return [("model", parameter.example) for parameter in operation.parameters]


def _python(operation: Operation, url: str) -> str:
    arguments = [f'"{url}"']
    imports = "import httpx\n"
    if operation.access != "open":
        imports = "import os\nimport httpx\n"
        arguments.append(f'headers={{"Authorization": "Bearer " + os.environ["{_VARIABLE}"]}}')
    if operation.example is not None:
        arguments.append(f"json={_python_value(operation.example)}")
    if _streams(operation):
        arguments = ['"GET"', *arguments, "timeout=None"]
        call = _wrapped("with httpx.stream(", arguments, ") as answer:", "    ")
        return f"{imports}\n{call}\n    for line in answer.iter_lines():\n        print(line)"
    call = _wrapped(f"answer = httpx.{operation.method}(", arguments, ")", "    ")
    shown = "answer.json()" if "application/json" in operation.types else "answer.text"
    return f"{imports}\n{call}\nprint({shown})"


def _js(operation: Operation, url: str) -> str:
    options = [f'method: "{operation.method.upper()}"'] if operation.method != "get" else []
    headers = []
    if operation.access != "open":
        headers.append(f"authorization: `Bearer ${{process.env.{_VARIABLE}}}`")
    if operation.example is not None:
        headers.append('"content-type": "application/json"')
    if headers:
        options.append(f"headers: {{ {', '.join(headers)} }}")
    if operation.example is not None:
        options.append(f"body: JSON.stringify({_js_value(operation.example)})")
    call = _wrapped(f'const answer = await fetch("{url}", {{', options, "});", "  ", inside=" ")
    if not options:
        call = f'const answer = await fetch("{url}");'
    if _streams(operation):
        return f"{call}\nfor await (const piece of answer.body) process.stdout.write(piece);"
    shown = "answer.json()" if "application/json" in operation.types else "answer.text()"
    return f"{call}\nconsole.log(await {shown});"


def _wrapped(head: str, items: list[str], tail: str, indent: str, *, inside: str = "") -> str:
    """On one line if that is short, else an item a line."""
    one_line = f"{head}{inside}{', '.join(items)}{inside}{tail}" if items else head + tail
    if len(one_line) <= SHORT_CHARACTERS:
        return one_line
    return head + "".join(f"\n{indent}{item}," for item in items) + f"\n{tail}"


def _python_value(value: Any) -> str:
    """As JSON, but for the three words that Python spells differently."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(name)}: {_python_value(one)}" for name, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_python_value(one) for one in value) + "]"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _js_value(value: Any) -> str:
    """JSON, with names unquoted as people write them."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name}: {_js_value(one)}" for name, one in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(_js_value(one) for one in value) + "]"
    return json.dumps(value, ensure_ascii=False)
