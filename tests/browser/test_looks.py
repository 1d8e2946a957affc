"""Every page on a phone and on a desk, in the light and in the dark: nothing sticks out, nothing comes from elsewhere, all
controls have names, and text can be read. `SLUICE_SCREENSHOTS=directory` keeps the pictures."""

import os
from pathlib import Path

import pytest
import trio

from tests.browser.conftest import sign_in
from tests.browser.devtools import Browser, Page
from tests.browser.eyes import CONTRAST, NAMELESS, STICKING_OUT
from tests.end_to_end.gateway import Gateway

SIZES = {"phone": (390, 844), "desktop": (1360, 900)}
LOOKS = [(size, dark) for size in SIZES for dark in (False, True)]


async def gate(page: Page, house: Gateway) -> None:
    await page.open(f"{house.origin}/dashboard")
    await page.until("document.activeElement?.id === 'key'")


async def dashboard(page: Page, house: Gateway) -> None:
    await sign_in(page, house)
    await page.until("document.querySelectorAll('.provider').length >= 2")


async def playground(page: Page, house: Gateway) -> None:
    await sign_in(page, house, "/playground")
    await page.until("!document.getElementById('play').hidden")
    await page.type("#model", "echo-think")
    await page.type("#message", "Why is the sky blue? " + "a-very-long-word" * 20)
    await page.press("Enter")
    await page.until("document.querySelector('.message.assistant') && !document.querySelector('.live')")


async def docs(page: Page, house: Gateway) -> None:
    await page.open(f"{house.origin}/docs")


@pytest.mark.slow
@pytest.mark.parametrize(("size", "dark"), LOOKS, ids=[f"{size}-{'dark' if dark else 'light'}" for size, dark in LOOKS])
@pytest.mark.parametrize("show", [gate, dashboard, playground, docs], ids=lambda show: show.__name__)
async def test_looks(house: Gateway, browser: Browser, show, size: str, dark: bool, tmp_path: Path):
    width, height = SIZES[size]
    async with browser.page(width=width, height=height, dark=dark) as page:
        await show(page, house)
        assert await page.run("document.documentElement.scrollWidth") == width, await page.run(STICKING_OUT)
        assert await page.run(NAMELESS) == []
        assert await page.run(CONTRAST) == []
        background = await page.run("getComputedStyle(document.body).backgroundColor.match(/[0-9.]+/g).map(Number)")
        assert (max(background[:3]) < 60) is dark
        assert page.hosts == {house.origin.removeprefix("http://")}
        assert page.complaints == []
        kept = Path(os.environ.get("SLUICE_SCREENSHOTS", tmp_path))
        picture = await page.screenshot(kept / f"{show.__name__}-{size}-{'dark' if dark else 'light'}.png")
        assert picture.startswith(b"\x89PNG") and len(picture) > 5_000


async def test_the_switch_between_light_and_dark_is_remembered(house: Gateway, browser: Browser):
    async with browser.page(dark=False) as page:
        await page.open(f"{house.origin}/docs")
        light = await page.run("getComputedStyle(document.body).backgroundColor")
        await page.click("#theme")
        dark = await page.until(
            "getComputedStyle(document.body).backgroundColor !== was && getComputedStyle(document.body).backgroundColor",
            was=light,
        )
        await page.open(f"{house.origin}/playground")
        assert await page.run("getComputedStyle(document.body).backgroundColor") == dark
        await page.click("#theme")
        await page.until("getComputedStyle(document.body).backgroundColor === light", light=light)


async def test_a_page_can_be_used_with_the_keyboard_alone(house: Gateway, page: Page):
    await page.open(f"{house.origin}/docs")
    await page.press("Tab")
    assert await page.run("document.activeElement.className") == "skip"
    seen = []
    for _ in range(6):
        await page.press("Tab")
        await trio.lowlevel.checkpoint()
        seen.append(await page.run("document.activeElement.textContent.trim() || document.activeElement.ariaLabel"))
    assert seen[:5] == ["Sluice", "Dashboard", "Playground", "API", "Light or dark"]
    assert await page.run("document.activeElement.matches(':focus-visible')")
