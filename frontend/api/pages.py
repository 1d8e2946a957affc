"""`/dashboard`, `/playground`, `/docs` and what they are made of under `/pages/`: files of our own, nothing from elsewhere."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
from quart import Blueprint, Response, request

from frontend.api.advice import explained
from frontend.api.reference_page import page
from frontend.services import Services
from shared.errors import fail

_FILES: Final = Path(__file__).parents[1] / "pages"
_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
}

_HEADERS: Final = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "x-frame-options": "DENY",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    # Kept, but asked about each time: after an upgrade a page never meets the scripts of another version.
    "cache-control": "no-cache",
}


@dataclass(frozen=True)
class Asset:
    """A file as it is served."""

    body: bytes
    content_type: str
    etag: str

    @classmethod
    def of(cls, name: str, body: bytes) -> "Asset":
        return cls(body, _TYPES[Path(name).suffix], hashlib.sha256(body).hexdigest()[:20])


def blueprint(services: Services) -> Blueprint:
    routes = Blueprint("pages", "sluice.pages")
    if not services.settings.pages:
        return routes
    pages, parts = _read(services)

    @routes.get("/dashboard")
    async def dashboard() -> Response:
        return _answer(pages["dashboard.html"])

    @routes.get("/playground")
    async def playground() -> Response:
        return _answer(pages["playground.html"])

    @routes.get("/docs")
    async def docs() -> Response:
        return _answer(pages["docs.html"])

    @routes.get("/pages/<name>")
    async def part(name: str) -> Response:
        asset = parts.get(name)  # a name, never a path: only what was read at the start can be had
        if asset is None:
            raise fail("unknown_url", f"Invalid URL (GET /pages/{name[:100]})")
        return _answer(asset)

    return routes


def _read(services: Services) -> tuple[dict[str, Asset], dict[str, Asset]]:
    """Pages and parts, by file name."""
    bodies = {path.name: path.read_bytes() for path in _FILES.iterdir() if path.suffix in _TYPES}
    bodies["docs.html"] = bodies["docs.html"].replace(b"<!-- reference -->", page(services.version).encode())
    if services.settings.auth == "off":
        bodies = {name: body.replace(b'data-door="closed"', b'data-door="open"') for name, body in bodies.items()}
    bodies["errors.json"] = msgspec.json.encode(explained())
    assets = {name: Asset.of(name, body) for name, body in bodies.items()}
    pages = {name: asset for name, asset in assets.items() if name.endswith(".html")}
    return pages, {name: asset for name, asset in assets.items() if name not in pages}


def _answer(asset: Asset) -> Response:
    headers = _HEADERS | {"etag": f'"{asset.etag}"'}
    if request.if_none_match.contains_weak(asset.etag):
        return Response(b"", status=304, headers=headers)
    return Response(asset.body, headers=headers, content_type=asset.content_type)
