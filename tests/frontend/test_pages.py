"""Pages and reference without a browser: what is served how, and that the reference knows everything there is."""

import re
from pathlib import Path

import httpx2
import pytest

from frontend.api.advice import explained
from frontend.api.headers import ANSWER_HEADERS, REQUEST_HEADERS
from frontend.api.meanings import MEANINGS
from frontend.api.operations import OPERATIONS
from frontend.api.reference import openapi
from frontend.api.reference_page import anchor, page
from frontend.api.samples import ORIGIN, samples
from frontend.edge import EXPOSED
from frontend.key_requests import shown
from shared.errors import KINDS
from shared.schema.caller import CallerKey
from tests.end_to_end.conftest import house, upstream_port
from tests.end_to_end.gateway import Gateway, gateway
from tests.redis_server import RedisServer

__all__ = ["house", "upstream_port"]

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "frontend" / "pages").iterdir())
PAGES = ("dashboard", "playground", "docs")


def routes() -> set[tuple[str, str]]:
    """Every endpoint of the API in the source, with the path as OpenAPI writes it."""
    found = set()
    for module in (ROOT / "frontend" / "api").glob("*.py"):
        if module.stem == "pages":
            continue
        for method, path in re.findall(r'@routes\.(\w+)\("([^"]+)"\)', module.read_text(encoding="utf-8")):
            found.add((method, re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", path).replace("{name}", "{id}")))
    return found


def test_the_reference_knows_every_route_and_no_other():
    assert {(one.method, one.path) for one in OPERATIONS} == routes()


def test_every_operation_is_in_the_document_and_on_the_page():
    document, text = openapi("1"), page("1")
    for operation in OPERATIONS:
        described = document["paths"][operation.path][operation.method]
        assert described["summary"] == operation.summary
        assert [one["lang"] for one in described["x-codeSamples"]] == ["curl", "Python", "JavaScript"]
        assert f'id="{anchor(operation)}"' in text
    assert len({anchor(operation) for operation in OPERATIONS}) == len(OPERATIONS)


def test_every_reference_in_the_document_leads_somewhere():
    document = openapi("1")
    schemas = document["components"]["schemas"]
    assert "Overview" in schemas and "KeyRequest" in schemas
    found = re.findall(r"'#/components/schemas/(\w+)'", str(document))
    assert found and set(found) <= set(schemas)


def test_every_field_has_a_meaning_and_every_error_an_advice():
    fields = {name for one in OPERATIONS if one.asks for name in one.asks.__struct_fields__}
    assert fields == set(MEANINGS)
    assert {code for code, told in explained().items() if not told["advice"]} == set()
    assert explained().keys() == {kind.code or kind.name for kind in KINDS.values()}


def test_every_header_that_is_read_or_sent_has_a_meaning():
    assert set(re.split(r", *", EXPOSED.decode())) <= set(ANSWER_HEADERS)
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "frontend").rglob("*.py"))
    named = set(re.findall(r'"(x-sluice-[a-z-]+)"', sources))
    assert named and named <= {*REQUEST_HEADERS, *ANSWER_HEADERS}
    for name in (*REQUEST_HEADERS, *ANSWER_HEADERS):
        assert f"<code>{name}</code>" in page("1")


def test_examples_are_what_the_gateway_takes_and_gives():
    record = set(shown(CallerKey("00000000"), 0.0))
    for operation in OPERATIONS:
        if operation.asks is not None:
            assert set(operation.example) <= set(operation.asks.__struct_fields__)
        answer = operation.example_answer
        if operation.path.startswith("/admin/keys") and "data" not in answer:
            assert set(answer) - {"key"} == record
        for language, program in samples(operation).items():
            if language == "Python":
                compile(program, operation.path, "exec")
            assert ORIGIN in program and "sk-" not in program


def test_the_page_is_safe_where_texts_hold_markup():
    assert "<key>" not in page("1") and "&lt;key&gt;" in page("1")
    assert "<script>" not in page("<script>")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_files_name_nothing_from_elsewhere(path: Path):
    text = path.read_text(encoding="utf-8")
    addresses = set(re.findall(r"https?://[^\s\"'`)<]+", text))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://127.0.0.1:8088"}
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|@import|javascript:", text)
    assert len(text.splitlines()) <= 400


@pytest.mark.parametrize("name", PAGES)
async def test_pages_are_closed_to_everything_foreign(house: Gateway, name: str):
    async with httpx2.AsyncClient() as client:
        answer = await client.get(f"{house.origin}/{name}")
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        policy = dict(one.strip().partition(" ")[::2] for one in answer.headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'" and policy["frame-ancestors"] == "'none'"
        assert {policy[kind] for kind in ("script-src", "style-src", "connect-src")} == {"'self'"}
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert not re.search(r"<script(?![^>]* src=)|<style|\son\w+=|\sstyle=", answer.text)
        for part in re.findall(r'(?:src|href)="(/pages/[^"]+)"', answer.text):
            found = await client.get(house.origin + part)
            assert found.status_code == 200, part
            again = await client.get(house.origin + part, headers={"if-none-match": found.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")
            assert again.headers["etag"] == found.headers["etag"]


@pytest.mark.parametrize(
    "path",
    ["/pages/", "/pages/..%2fapp.py", "/pages/../app.py", "/pages/dashboard.html", "/pages/style.css/", "/dashboard/", "/Docs",
     "/pages/style.css%00", "/pages/.", "/pages/%2e%2e%2fservices.py"],
)  # fmt: skip
async def test_other_spellings_lead_nowhere(house: Gateway, path: str):
    async with httpx2.AsyncClient() as client:
        answer = await client.get(house.origin + path)
    assert answer.status_code in (400, 404)
    assert answer.json()["error"]["code"] in ("unknown_url", "invalid_request")


async def test_pages_are_only_read(house: Gateway):
    async with httpx2.AsyncClient() as client:
        for name in PAGES:
            assert (await client.post(f"{house.origin}/{name}")).status_code == 405
        assert (await client.head(f"{house.origin}/docs")).headers["etag"]


@pytest.mark.parametrize("path", ["/admin/overview", "/admin/live"])
@pytest.mark.parametrize(
    "headers", [{}, {"authorization": "Bearer sk-no"}, {"cookie": "key=x"}], ids=["none", "wrong", "cookie"]
)
async def test_nothing_is_told_without_a_key(house: Gateway, path: str, headers: dict[str, str]):
    async with httpx2.AsyncClient(headers=headers) as client:
        answer = await client.get(house.origin + path)
    assert answer.status_code == 401
    assert "worker" not in answer.text


def test_pages_can_be_left_out(redis_server: RedisServer):
    with gateway(redis_server, SLUICE_PAGES="off") as running:
        running.frontend()
        running.wait_ready()
        for name in (*PAGES, "pages/style.css"):
            assert httpx2.get(f"{running.origin}/{name}").status_code == 404
        assert httpx2.get(f"{running.origin}/openapi.json").status_code == 200
