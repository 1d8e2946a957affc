"""The reference: every endpoint stands there, it can be read and used without anything else."""

from frontend.api.operations import OPERATIONS
from frontend.api.reference_page import anchor
from shared.errors import KINDS
from tests.browser.devtools import Page
from tests.end_to_end.gateway import Gateway


async def test_every_endpoint_and_error_is_seen(house: Gateway, page: Page):
    await page.open(f"{house.origin}/docs")
    seen = await page.text("main")
    for operation in OPERATIONS:
        assert operation.path in seen.replace("\u200b", ""), operation.path
        assert await page.run("document.getElementById(id).checkVisibility()", id=anchor(operation)), anchor(operation)
    for kind in KINDS.values():
        assert (kind.code or kind.name) in seen and kind.meaning in seen


async def test_examples_carry_this_gateway_s_address_and_change_together(house: Gateway, page: Page):
    await page.open(f"{house.origin}/docs")
    assert f"{house.origin}/v1/chat/completions" in await page.text("#post-v1-chat-completions-curl-panel")
    await page.click("#post-v1-chat-completions-python")
    assert "from openai import OpenAI" in await page.text("#post-v1-chat-completions-python-panel")
    assert await page.run("document.getElementById('get-v1-models-curl-panel').hidden")
    await page.press("ArrowRight")
    assert "import OpenAI" in await page.text("#post-v1-chat-completions-javascript-panel")


async def test_contents_lead_there(house: Gateway, page: Page):
    await page.open(f"{house.origin}/docs")
    await page.click("a[href='#get-admin-live']")
    await page.until("document.querySelector('.contents a.here')?.hash === '#get-admin-live'")
    top = await page.run("document.getElementById('get-admin-live').getBoundingClientRect().top")
    assert 56 <= top <= 200
