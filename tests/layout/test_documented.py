"""What the code offers stands in the documents, and the generated parts are as the code would write them now."""

import re
import subprocess
from pathlib import Path

import pytest
import typer

from cli.__main__ import app
from cli.docs import documents
from shared.errors import KINDS
from shared.settings.source import every_row

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = typer.main.get_command(app).commands


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_generated_text_is_current(path):
    assert path.read_text(encoding="utf-8") == documents()[path], "run `make docs`"


def test_every_setting_is_in_the_readme():
    assert not [row.name for row in every_row() if f"| `{row.name}`" not in README]


def test_every_command_is_in_the_readme_and_teaches_with_an_example():
    for name, command in COMMANDS.items():
        assert f"| `sluice {name}" in README, name
        assert "Example" in command.help, name
        assert re.search(rf"\n +.*sluice {name}", command.help), f"{name}: the example shows the command itself"


def test_every_make_target_has_a_line_and_is_no_file():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.M))
    described = set(re.findall(r"^([a-z][a-z-]*):.*  ## ", makefile, re.M))
    phony = set(re.search(r"^\.PHONY: (.*)$", makefile, re.M)[1].split())
    assert targets == described == phony
    listed = subprocess.run(["make", "-C", str(ROOT)], capture_output=True, text=True, check=True).stdout
    assert all(f"make {target} " in listed for target in targets)


def test_links_in_documents_lead_somewhere():
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        text = document.read_text(encoding="utf-8")
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", text):
            there = (document.parent / target) if target else document
            assert there.exists(), f"{document.name}: {target}"
            if anchor:
                headings = re.findall(r"^#+ (.+)$", there.read_text(encoding="utf-8"), re.M)
                names = {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}
                assert anchor in names, f"{document.name}: {target}#{anchor}"


def test_every_file_that_the_architecture_names_is_there():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for named in re.findall(r"`((?:frontend|workers|shared|cli|tests|bench|deploy)/[\w./]*)`", text):
        assert (ROOT / named).exists(), named


def test_ci_runs_the_command_that_the_readme_names():
    assert "`make test` runs the tests" in README
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == "exec make test"


def test_lock_files_hold_hashes_and_no_addresses():
    for name in ("requirements.lock", "requirements-otel.lock", "requirements-dev.lock"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert "://" not in text
        pinned = re.findall(r"^[a-z0-9_.-]+==.*\\\n    --hash=sha256:", text, re.M)
        assert len(pinned) == len(re.findall(r"^[a-z]", text, re.M)), "each line is pinned and hashed"
        assert re.search(r"^setuptools==\S+ \\$", text, re.M), "builds the project on every platform"


API = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")


def test_every_endpoint_is_documented():
    for module in (ROOT / "frontend" / "api").glob("*.py"):
        for method, path in re.findall(
            r'@routes\.(get|post|patch|delete)\("([^"]+)"\)', module.read_text(encoding="utf-8")
        ):
            assert f"| `{method.upper()} {path}` |" in API, path


def test_every_error_is_documented():
    rows = set(re.findall(r"^\| (\d+) \| `([^`]+)` \| `([^`]+)` \| ([^|]+) \| (yes|no) \|$", API, re.M))
    assert rows == {
        (str(kind.status), kind.code or kind.name, kind.type, kind.meaning, "yes" if kind.again else "no")
        for kind in KINDS.values()
    }
