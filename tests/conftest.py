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
    parser.addoption("--row", action="append", help="only the tests of this row of docs/reliability.md, such as A4 or P9")


def _thorough(config: pytest.Config) -> bool:
    return bool(config.getoption("--slow")) or os.environ.get("CI") == "true"


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("thorough" if _thorough(config) else "quick")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if wanted := set(config.getoption("--row") or ()):
        others = [item for item in items if not wanted & _rows(item)]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if wanted & _rows(item)]
    if _thorough(config):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if not item.get_closest_marker("slow")]


def _rows(item: pytest.Item) -> set[object]:
    return {row for name in ("fault", "promise") for mark in item.iter_markers(name) for row in mark.args}
