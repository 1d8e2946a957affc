"""Who may import whom, and the other rules of the layout, read from the source with `ast`.

The first matching row of `LAYERS` speaks for a module. `may`: prefixes of our own modules that it may import.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = ("frontend", "workers", "shared", "cli")
LONGEST_FILE = 400

LAYERS: list[tuple[str, tuple[str, ...]]] = [
    ("shared.errors", ()),
    ("shared.version", ()),
    ("shared.schema", ("shared.errors", "shared.schema")),
    ("shared.sansio", ("shared.errors", "shared.schema", "shared.sansio")),
    ("shared.sealing", ("shared.errors",)),
    ("shared.redis.address", ()),
    ("shared.settings", ("shared.errors", "shared.settings", "shared.redis.address")),
    ("shared.log_sink", ()),
    ("shared.telemetry", ("shared.errors", "shared.log_sink")),
    ("shared.metrics", ()),
    ("shared.measuring", ("shared.metrics",)),
    ("shared", ("shared",)),
    ("workers.exchange", ("shared.errors", "shared.schema", "shared.sansio")),
    ("workers.provider", ("shared.errors", "shared.schema", "shared.sansio", "workers.exchange")),
    (
        "workers.dialects",
        ("shared.errors", "shared.schema", "shared.sansio", "workers.exchange", "workers.provider", "workers.dialects"),
    ),
    (
        "workers.providers",
        ("shared.errors", "shared.schema", "shared.sansio", "workers.exchange", "workers.provider", "workers.dialects"),
    ),
    (
        "workers.transports",
        (
            "shared.errors", "shared.schema", "shared.sansio", "shared.telemetry",
            "workers.exchange", "workers.provider", "workers.transports",
        ),
    ),
    ("workers", ("shared", "workers")),
    ("frontend", ("shared", "frontend")),
    ("cli", ("shared", "cli")),
]  # fmt: skip

ONLY_IMPORTERS: dict[str, tuple[str, ...]] = {
    "hiredis": ("shared.redis",),
    "redis": ("cli",),
    "cryptography": ("shared.sealing",),
    "httpx2": ("workers.transports", "cli"),
    "httptools": ("workers.transports",),
    "trio_websocket": ("workers.transports",),
    "socketio": ("workers.transports",),
    "engineio": ("workers.transports",),
    "quart": ("frontend",),
    "quart_trio": ("frontend",),
    "werkzeug": ("frontend",),
    "hypercorn": ("frontend",),
    "h11": ("frontend.server", "workers.transports.socketio", "shared.exposition"),
    "prometheus_client": ("shared.measuring",),
    "opentelemetry": ("shared.otel",),
    "typer": ("cli",),
    "rich": ("cli",),
    "logging.config": ("shared.telemetry",),
    "logging.handlers": ("shared.telemetry",),
}

IMPURE = (
    {"trio", "socket", "ssl", "select", "selectors", "asyncio", "threading", "subprocess", "signal", "os", "pathlib"}
    | {"io", "shutil", "tempfile", "time", "datetime", "random", "secrets", "uuid", "logging"}
)  # fmt: skip
PURE = (
    "shared.sansio",
    "shared.schema",
    "shared.errors",
    "workers.exchange",
    "workers.provider",
    "workers.dialects",
    "workers.providers",
)


def modules() -> dict[str, ast.Module]:
    found = {}
    for top in OURS:
        for path in sorted((ROOT / top).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            found[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return found


MODULES = modules()


def below(name: str, *prefixes: str) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def imports(tree: ast.AST) -> Iterator[str]:
    """Every module that is imported, anywhere in the file; `from package import module` gives the module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                longer = f"{node.module}.{alias.name}"
                yield longer if longer in MODULES else node.module


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_what_its_layer_may(name):
    layer, may = next((layer, may) for layer, may in LAYERS if below(name, layer))
    for other in imports(MODULES[name]):
        if other.split(".")[0] in OURS:
            assert below(other, *may), f"{layer} may not import {other}"
        for library, importers in ONLY_IMPORTERS.items():
            assert not below(other, library) or below(name, *importers), f"only {importers} may import {library}"


def test_only_the_registry_knows_providers_and_they_do_not_know_each_other():
    for name, tree in MODULES.items():
        known = {other for other in imports(tree) if below(other, "workers.providers")}
        assert not known or name == "workers.registry", f"{name} imports {known}"


def test_dialects_belong_to_providers():
    for name, tree in MODULES.items():
        known = {other for other in imports(tree) if below(other, "workers.dialects")}
        assert not known or below(name, "workers.providers", "workers.dialects"), f"{name} imports {known}"


@pytest.mark.parametrize("name", [name for name in MODULES if below(name, *PURE)])
def test_pure_modules_do_no_io_read_no_clock_and_never_wait(name):
    foreign = {other.split(".")[0] for other in imports(MODULES[name])} & IMPURE
    assert not foreign
    waits = (ast.AsyncFunctionDef, ast.Await, ast.AsyncFor, ast.AsyncWith)
    assert not [node.lineno for node in ast.walk(MODULES[name]) if isinstance(node, waits)]


@pytest.mark.parametrize("name", MODULES)
def test_style_that_a_linter_does_not_see(name):
    tree = MODULES[name]
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    inside = {id(node) for function in functions for node in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            assert getattr(node, "level", 0) == 0, f"line {node.lineno}: relative import"
            assert id(node) not in inside or below(name, "cli.__main__"), f"line {node.lineno}: import in a function"
        assert not isinstance(node, ast.Global), f"line {node.lineno}: global"
        assert not reads_environment(node) or below(name, "shared.settings"), f"line {node.lineno}: only settings may"
    assert ast.get_docstring(tree), "a module says in a sentence what it is"


def reads_environment(node: ast.AST) -> bool:
    """`os.environ`, `os.getenv`, or one of them imported by name."""
    if isinstance(node, ast.ImportFrom):
        return node.module == "os" and bool({alias.name for alias in node.names} & {"environ", "getenv"})
    is_member = isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv")
    return is_member and isinstance(node.value, ast.Name) and node.value.id == "os"


def test_there_are_no_import_cycles():
    edges = {name: {other for other in imports(tree) if other in MODULES} for name, tree in MODULES.items()}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for other in sorted(edges[name]):
                visit(other, (*path, name))
            done.add(name)

    for name in edges:
        visit(name, ())


@pytest.mark.parametrize("top", [*OURS, "bench", "tests"])
def test_no_file_is_too_long(top):
    long = {
        str(path.relative_to(ROOT)): lines
        for path in (ROOT / top).rglob("*.py")
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > LONGEST_FILE
    }
    assert not long


def test_the_table_names_only_what_exists():
    installed = {name.partition(".")[0] for tree in MODULES.values() for name in imports(tree)}
    assert {layer.split(".")[0] for layer, _ in LAYERS} == set(OURS)
    assert "hiredis" in installed and "quart" in installed, "the scan found nothing"
    assert not set(OURS) & set(sys.stdlib_module_names)
