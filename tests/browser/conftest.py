"""One gateway and one browser for all tests of the pages; each test has a page with a storage of its own."""

import os
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.browser.devtools import Browser, Page, connected, find_chromium, launched
from tests.end_to_end.conftest import house, upstream, upstream_port
from tests.end_to_end.gateway import API_KEY, Gateway

__all__ = ["house", "upstream", "upstream_port"]

NO_BROWSER = "there is no Chromium on this machine; on Debian: apt-get install chromium"


@pytest.fixture(scope="session")
def browser_address() -> Iterator[str]:
    executable = find_chromium()
    if executable is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(NO_BROWSER)
    with launched(executable) as address:
        yield address


@pytest.fixture
async def browser(browser_address: str) -> AsyncIterator[Browser]:
    async with connected(browser_address) as running:
        yield running


@pytest.fixture
async def page(browser: Browser) -> AsyncIterator[Page]:
    """A page that has asked nobody but the gateway, and had nothing to complain of that the test did not take out."""
    async with browser.page() as opened:
        yield opened
        assert opened.complaints == []
        assert len(opened.hosts) <= 1


async def sign_in(page: Page, house: Gateway, path: str = "/dashboard", key: str = API_KEY) -> None:
    """Open a page and sign in to it, by keyboard."""
    await page.open(house.origin + path)
    await page.until("document.activeElement?.id === 'key'")
    await page.type("#key", key)
    await page.press("Enter")
