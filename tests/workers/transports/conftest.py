"""Every test gets a transport that trusts the tests' authority, and must leave no socket and no task behind."""

import os
import warnings
from collections.abc import AsyncIterator

import pytest
import trio

from tests.workers.transports.upstream import authority
from workers.transports.http import HttpTransport


def living_tasks() -> set[trio.lowlevel.Task]:
    found = set()
    waiting = [trio.lowlevel.current_root_task()]
    while waiting:
        task = waiting.pop()
        assert task is not None
        found.add(task)
        waiting += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return found


@pytest.fixture
async def nothing_left() -> AsyncIterator[None]:
    """After the test: as many descriptors as before it, each closed on purpose, and no task that was not there."""
    authority()  # made at first use; leaves nothing open, but must not be counted
    descriptors = len(os.listdir("/dev/fd"))
    tasks = living_tasks()
    with warnings.catch_warnings(record=True, action="always", category=ResourceWarning) as forgotten:
        yield
    assert not [str(warning.message) for warning in forgotten if "unclosed" in str(warning.message)]
    assert len(os.listdir("/dev/fd")) == descriptors
    assert not living_tasks() - tasks


@pytest.fixture
async def transport(nothing_left: None) -> AsyncIterator[HttpTransport]:
    transport = HttpTransport(connect_seconds=5, idle_connections=20, idle_seconds=30, authorities=authority().client())
    with trio.fail_after(20):
        yield transport
    await transport.aclose()
    statistics = transport.statistics()
    assert (statistics.open, statistics.idle) == (0, 0)
