"""Fixtures for all tests, each defined beside what it makes, and the rule for slow ones: CI runs them, people when they ask."""

import os

import pytest
from hypothesis import settings

from tests.redis_server import redis_server

__all__ = ["redis_server"]

# A deadline would measure how busy the machine is.
settings.register_profile("quick", max_examples=40, deadline=None)
settings.register_profile("thorough", max_examples=200, deadline=None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow (CI always does)")
    parser.addoption(
        "--row", action="append", help="only the tests of this row of docs/reliability.md, such as A4 or P9"
    )


def _thorough(config: pytest.Config) -> bool:
    return bool(config.getoption("--slow")) or os.environ.get("CI") == "true"


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("thorough" if _thorough(config) else "quick")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if wanted := set(config.getoption("--row") or ()):
        others = [item for item in items if not wanted & _rows(item)]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if wanted & _rows(item)]
    slow = [item for item in items if item.get_closest_marker("slow")]
    quick = [item for item in items if not item.get_closest_marker("slow")]
    if _thorough(config):
        items[:] = _shared_out(slow, quick, getattr(config, "workerinput", {}).get("workercount", 1))
    else:
        config.hook.pytest_deselected(items=slow)
        items[:] = quick


def _shared_out(slow: list[pytest.Item], quick: list[pytest.Item], processes: int) -> list[pytest.Item]:
    """Each process begins with its part of the slow tests, so that no long one is left over when all else is done.

    Test processes get equal parts of the list, and who has nothing left takes from the end of another's. Neighbours stay
    together, because some share what is costly to start.
    """
    mixed: list[pytest.Item] = []
    for process in range(processes):
        for tests in (slow, quick):
            mixed += tests[len(tests) * process // processes : len(tests) * (process + 1) // processes]
    return mixed


def _rows(item: pytest.Item) -> set[object]:
    return {row for name in ("fault", "promise") for mark in item.iter_markers(name) for row in mark.args}
