"""Fault tests are slow, each with a house of its own that is audited at the end; `make faults` ends with a table of them."""

from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.faults.audit import audit
from tests.faults.house import House, empty_house
from tests.redis_server import RedisServer

HERE = Path(__file__).parent
LAST_WORDS = pytest.StashKey[str]()


@pytest.fixture
async def house(redis_server: RedisServer, request: pytest.FixtureRequest) -> AsyncIterator[House]:
    """No process yet: `await house.open(...)`. When the test has passed, the audit; see `audit`."""
    async with empty_house(redis_server) as made:
        try:
            yield made
            if not request.node.get_closest_marker("unaudited"):
                await audit(made)
        finally:
            request.node.stash[LAST_WORDS] = made.last_words()


@pytest.fixture
async def audited(house: House) -> House:
    """The usual house: one frontend, two workers of one OpenAI upstream."""
    await house.open()
    return house


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.slow)
            rows = [str(row) for name in ("fault", "promise") for mark in item.iter_markers(name) for row in mark.args]
            injected = (getattr(item.function, "__doc__", None) or item.originalname).strip().partition("\n")[0]
            item.user_properties.append(("fault", [rows, injected]))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> object:
    report = yield
    if report.failed and LAST_WORDS in item.stash:
        report.sections.append(("the processes' last words", item.stash[LAST_WORDS]))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line for each row: what was injected, and what came of it."""
    lines: dict[tuple[str, str], list[str]] = defaultdict(list)
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            for rows, injected in [value for name, value in report.user_properties if name == "fault"]:
                if report.when == "call" or outcome != "passed":
                    lines[" ".join(rows), injected].append(outcome)
    if lines:
        terminalreporter.section("faults")
    for (rows, injected), outcomes in sorted(
        lines.items(), key=lambda line: [_order(row) for row in line[0][0].split()]
    ):
        counts = ", ".join(f"{outcomes.count(one)} {one}" for one in dict.fromkeys(outcomes))
        terminalreporter.write_line(f"{rows:14} {injected[:92]:92} {counts if len(outcomes) > 1 else outcomes[0]}")


def _order(row: str) -> tuple[str, int]:
    return row[:1], int(row[1:]) if row[1:].isdigit() else 0
