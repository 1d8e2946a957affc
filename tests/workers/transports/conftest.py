"""Every test gets a transport that trusts the tests' authority, and must leave no socket and no task behind."""

import os
import warnings
from collections.abc import AsyncIterator

import pytest
import trio

from tests.workers.transports.upstream import authority
from workers.transports.ears import open_ears
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


@pytest.fixture(params=["ears", "trio"])
async def transport(nothing_left: None, request: pytest.FixtureRequest) -> AsyncIterator[HttpTransport]:
    """Every test runs twice: reads that wait in our epoll, and reads that wait in trio."""
    with open_ears() as ears:
        transport = HttpTransport(
            connect_seconds=5, idle_connections=20, idle_seconds=30, authorities=authority().client(),
            ears=ears if request.param == "ears" else None,
        )  # fmt: skip
        async with trio.open_nursery() as nursery:
            assert ears is not None
            nursery.start_soon(ears.run)
            with trio.fail_after(20):
                yield transport
            nursery.cancel_scope.cancel()
        await transport.aclose()
        statistics = transport.statistics()
        assert (statistics.open, statistics.idle) == (0, 0)
        assert not ears._ears
