"""Chromium without a window, driven over its DevTools protocol on trio: a test and its simulated upstream share one loop.

Actions are a person's: a click goes to the place where the element is seen, and fails if something else lies there. Every
page remembers what it asked of whom, what it complained of, and what went wrong in it.

The protocol (https://chromedevtools.github.io/devtools-protocol/) is JSON over one WebSocket; `flatten` puts all pages on it.
"""

import base64
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, open_websocket_url

START_SECONDS: Final = 30.0
PATIENCE_SECONDS: Final = 10.0
POLL_SECONDS: Final = 0.02
MESSAGE_BYTES: Final = 64 * 1024 * 1024
FLAGS: Final = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-default-apps", "--disable-extensions",
    "--disable-dev-shm-usage", "--disable-domain-reliability", "--metrics-recording-only", "--mute-audio",
    "--hide-scrollbars", "--force-color-profile=srgb", "--no-proxy-server",
    "--remote-debugging-port=0",
)  # fmt: skip
KEYS: Final = {"Enter": 13, "Tab": 9, "ArrowRight": 39, "ArrowLeft": 37, "Escape": 27}


def find_chromium() -> str | None:
    """The browser's executable; None if there is none."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((found for name in names if (found := shutil.which(name))), None)


class DevToolsError(Exception):
    """The browser refused a command, or a script in the page threw."""


class Browser:
    """One browser process; `page()` opens a page that shares nothing with any other."""

    def __init__(self, socket: WebSocketConnection) -> None:
        self._socket = socket
        self._next_id = 0
        self._replies: dict[int, trio.MemorySendChannel[dict[str, Any]]] = {}
        self._listeners: dict[str, Callable[[str, dict[str, Any]], None]] = {}

    async def read(self) -> None:
        """Hand messages to whom they concern, until the browser closes."""
        while True:
            try:
                message = json.loads(await self._socket.get_message())
            except ConnectionClosed:
                return
            if "id" in message:
                waiting = self._replies.pop(message["id"], None)
                if waiting is not None:
                    waiting.send_nowait(message)
            elif listener := self._listeners.get(message.get("sessionId", "")):
                listener(message["method"], message["params"])

    async def send(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """A command and its result. Raises `DevToolsError`."""
        self._next_id += 1
        number = self._next_id
        send, receive = trio.open_memory_channel[dict[str, Any]](1)
        self._replies[number] = send
        message = {"id": number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        await self._socket.send_message(json.dumps(message))
        with trio.fail_after(START_SECONDS):
            reply = await receive.receive()
        if "error" in reply:
            raise DevToolsError(f"{method}: {reply['error']['message']}")
        result: dict[str, Any] = reply["result"]
        return result

    @asynccontextmanager
    async def page(self, *, width: int = 1280, height: int = 900, dark: bool = False) -> "AsyncIterator[Page]":
        """An empty page with a storage of its own. `width` up to 500 pixels: a phone, with two pixels to a point."""
        context = (await self.send("Target.createBrowserContext"))["browserContextId"]
        target = (await self.send("Target.createTarget", url="about:blank", browserContextId=context))["targetId"]
        session = (await self.send("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
        page = Page(self, session)
        self._listeners[session] = page.hear
        for domain in ("Page", "Runtime", "Network", "Log"):
            await page.send(f"{domain}.enable")
        await page.resize(width, height)
        await page.prefer(dark=dark)
        try:
            yield page
        finally:
            with trio.CancelScope(shield=True):
                del self._listeners[session]
                await self.send("Target.disposeBrowserContext", browserContextId=context)


@dataclass
class Page:
    """One page. `requests`: addresses that it asked for; `complaints`: what the console said that is no mere remark."""

    browser: Browser
    session: str
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    headers: dict[str, dict[str, str]] = field(default_factory=dict)

    def hear(self, method: str, params: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Network.responseReceived":
            self.headers[params["response"]["url"]] = params["response"]["headers"]
        elif method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.complaints.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.complaints.append(str([one.get("value") for one in params["args"]]))

    @property
    def hosts(self) -> set[str]:
        """Whom the page asked for anything."""
        return {urlsplit(url).netloc for url in self.requests if not url.startswith(("data:", "about:"))}

    async def send(self, method: str, **params: Any) -> dict[str, Any]:
        return await self.browser.send(method, self.session, **params)

    async def resize(self, width: int, height: int) -> None:
        phone = width <= 500
        await self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )

    async def prefer(self, *, dark: bool) -> None:
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.send("Emulation.setEmulatedMedia", features=[feature])

    async def open(self, url: str) -> None:
        """Go there; returns when the document and its scripts are there."""
        reply = await self.send("Page.navigate", url=url)
        if "errorText" in reply:
            raise DevToolsError(f"{url}: {reply['errorText']}")
        await self.until("document.readyState === 'complete'")

    async def run(self, script: str, **values: Any) -> Any:
        """The value of an expression, awaited if it is a promise; `values` are its variables. Raises `DevToolsError`."""
        names, given = ", ".join(values), ", ".join(json.dumps(value) for value in values.values())
        reply = await self.send(
            "Runtime.evaluate",
            expression=f"(async ({names}) => ({script}))({given})",
            awaitPromise=True,
            returnByValue=True,
        )
        if "exceptionDetails" in reply:
            details = reply["exceptionDetails"]
            raise DevToolsError(details.get("exception", {}).get("description", details["text"]))
        return reply["result"].get("value")

    async def until(self, script: str, seconds: float = PATIENCE_SECONDS, **values: Any) -> Any:
        """The expression's value once it is true of the page; what is seen of the page is told if it never is."""
        with trio.move_on_after(seconds):
            while True:
                try:
                    value = await self.run(script, **values)
                    if value not in (None, False, 0, ""):  # an element comes as {}
                        return value
                except DevToolsError as error:
                    if "context" not in str(error):  # a page that is just being left has none
                        raise
                await trio.sleep(POLL_SECONDS)
        seen = await self.run("document.body.innerText")
        raise AssertionError(f"not within {seconds:g} s: {script} {values}\n{seen}\n{self.complaints}")

    async def text(self, selector: str) -> str:
        """What is seen of an element, empty if it is not seen."""
        found: str = await self.run("document.querySelector(selector)?.innerText ?? ''", selector=selector)
        return found

    async def click(self, selector: str) -> None:
        """As with a mouse, in the middle of the element."""
        spot = await self.until(
            """(() => {
              const element = document.querySelector(selector);
              if (!element || !element.checkVisibility()) return null;
              element.scrollIntoView({ block: "center", behavior: "instant" });
              const box = element.getBoundingClientRect();
              const spot = { x: box.x + box.width / 2, y: box.y + box.height / 2 };
              const hit = document.elementFromPoint(spot.x, spot.y);
              return hit && (element.contains(hit) || hit.contains(element)) ? spot : null;
            })()""",
            selector=selector,
        )
        for kind in ("mousePressed", "mouseReleased"):
            await self.send("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **spot)

    async def type(self, selector: str, text: str) -> None:
        """Click into a field and put the text in place of what is there."""
        await self.click(selector)
        await self.run("document.activeElement.select?.()")
        await self.send("Input.insertText", text=text)

    async def press(self, key: str) -> None:
        code = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key]}
        text = {"text": "\r"} if key == "Enter" else {}
        await self.send("Input.dispatchKeyEvent", type="keyDown", **code, **text)
        await self.send("Input.dispatchKeyEvent", type="keyUp", **code)

    async def screenshot(self, path: Path, *, whole: bool = False) -> bytes:
        """A PNG of what is seen, or of the whole page; also written to `path`."""
        options: dict[str, Any] = {"format": "png"}
        if whole:
            size = (await self.send("Page.getLayoutMetrics"))["cssContentSize"]
            options |= {"captureBeyondViewport": True, "clip": {**size, "x": 0, "y": 0, "scale": 1}}
        picture = base64.b64decode((await self.send("Page.captureScreenshot", **options))["data"])
        await trio.Path(path).write_bytes(picture)
        return picture


@contextmanager
def launched(executable: str) -> Iterator[str]:
    """A browser process with a profile of its own, gone afterwards; yields the address to connect to."""
    with tempfile.TemporaryDirectory(prefix="sluice-browser-", ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [executable, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            env={"PATH": os.environ.get("PATH", ""), "HOME": profile},
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        try:
            yield _address(process)
        finally:
            process.kill()
            process.wait()


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Browser]:
    """Speak to a browser that was launched."""
    async with (
        trio.open_nursery() as nursery,
        open_websocket_url(url, max_message_size=MESSAGE_BYTES, disconnect_timeout=2) as socket,
    ):
        running = Browser(socket)
        nursery.start_soon(running.read)
        yield running
        nursery.cancel_scope.cancel()


def _address(process: "subprocess.Popen[bytes]") -> str:
    """Where the browser listens; it says so on its standard error."""
    assert process.stderr is not None
    told: list[str] = []
    for line in process.stderr:
        told.append(line.decode(errors="replace"))
        if found := re.search(r"DevTools listening on (ws://\S+)", told[-1]):
            return found[1]
    raise AssertionError(f"the browser did not start\n{''.join(told[-20:])}")
