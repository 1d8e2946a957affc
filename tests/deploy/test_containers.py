"""The container files: valid, hardened, without secrets, and in step with the settings and providers of the code."""

import fnmatch
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from shared.settings.providers import KEYLESS, KNOWN
from shared.settings.source import every_row, known_provider_rows

ROOT = Path(__file__).parents[2]
REQUIRED = {
    "REDIS_PASSWORD": "pw",
    "SLUICE_SECRET_KEY": "0123456789abcdef" * 4,
    "SLUICE_API_KEY": "sk-sluice-0123456789",
}

SERVICE_KEYS = (
    {"image", "build", "command", "user", "environment", "healthcheck", "depends_on", "networks", "ports", "volumes"}
    | {"cap_drop", "read_only", "security_opt", "tmpfs", "restart", "stop_grace_period", "deploy", "profiles", "logging"}
)  # fmt: skip
_VARIABLE = re.compile(r"\$\$|\$\{(\w+)(?::(-|\?)([^}]*))?\}")


class Missing(Exception):
    """A variable that the file requires is not set."""


def interpolate(value: Any, variables: dict[str, str]) -> Any:
    """What compose does with `${NAME}`, `${NAME:-default}`, `${NAME:?message}` and `$$`."""

    def replaced(match: re.Match[str]) -> str:
        name, kind, rest = match.groups()
        if name is None:
            return "$"
        if variables.get(name):
            return variables[name]
        if kind == "?":
            raise Missing(name)
        return rest or ""

    if isinstance(value, dict):
        return {key: interpolate(item, variables) for key, item in value.items()}
    if isinstance(value, list):
        return [interpolate(item, variables) for item in value]
    return _VARIABLE.sub(replaced, value) if isinstance(value, str) else value


def compose(variables: dict[str, str] = REQUIRED) -> dict[str, Any]:
    return interpolate(yaml.safe_load((ROOT / "docker-compose.yml").read_text()), variables)


SERVICES = compose()["services"]


def compose_command() -> list[str] | None:
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]) and subprocess.run([*command, "version"], capture_output=True).returncode == 0:
            return command
    return None


def test_the_real_validator_accepts_the_file_where_there_is_one():
    command = compose_command()
    if command is None:
        pytest.skip("no docker compose on this machine; the tests below check the structure")
    environ = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", **REQUIRED, "COMPOSE_PROFILES": "openai,echo"}
    result = subprocess.run([*command, "config", "--quiet"], cwd=ROOT, env=environ, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_every_reference_leads_somewhere():
    file = compose()
    assert {key for key in file if not key.startswith("x-")} == {"services", "networks", "volumes"}
    for name, service in file["services"].items():
        assert set(service) <= SERVICE_KEYS, name
        assert {"image"} <= set(service), name
        assert set(service.get("depends_on", ())) <= set(file["services"]), name
        assert service["networks"] and set(service["networks"]) <= set(file["networks"]), name
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert source in file["volumes"] or (ROOT / source).is_file(), volume
        for dependency, condition in service.get("depends_on", {}).items():
            assert condition == {"condition": "service_healthy"}
            assert has_health_check(dependency), f"{name} waits for the health of {dependency}"


def has_health_check(name: str) -> bool:
    uses_our_image = SERVICES[name]["image"] == "sluice"
    return "healthcheck" in SERVICES[name] or uses_our_image


@pytest.mark.parametrize("name", SERVICES)
@pytest.mark.fault("S20")
def test_every_service_is_hardened(name):
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "unless-stopped"
    assert has_health_check(name)
    assert service["image"] == "sluice" or not service["user"].startswith(("0", "root"))


def test_only_nginx_is_reachable_and_only_from_this_machine_unless_asked():
    assert {name for name, service in SERVICES.items() if "ports" in service} == {"nginx"}
    assert SERVICES["nginx"]["ports"] == ["127.0.0.1:8088:8080"]
    assert compose()["networks"]["inside"] == {"internal": True}
    assert {name for name, service in SERVICES.items() if service["networks"] == ["inside"]} == {"redis", "frontend"}


@pytest.mark.parametrize("name", REQUIRED)
def test_nothing_starts_without_its_secrets(name):
    with pytest.raises(Missing, match=name):
        compose({key: value for key, value in REQUIRED.items() if key != name})


def test_there_is_one_scalable_worker_service_for_each_provider():
    for name in (*KNOWN, KEYLESS):
        service = SERVICES[name]
        assert service["command"] == ["sluice", "worker", name]
        assert service["profiles"] == [name]
        assert service["healthcheck"]["test"][-1] == name
        assert service["deploy"] == {"replicas": "1"}
    assert SERVICES["frontend"]["deploy"] == {"replicas": "2"}
    scaled = compose(REQUIRED | {"KIMI_WORKERS": "5", "FRONTENDS": "3"})["services"]
    assert (scaled["kimi"]["deploy"], scaled["frontend"]["deploy"]) == ({"replicas": "5"}, {"replicas": "3"})


def test_services_get_settings_that_exist_and_only_their_own_secrets():
    known = {row.name for row in every_row()}
    for name, service in SERVICES.items():
        if service["image"] != "sluice":
            continue
        assert set(service["environment"]) <= known, name
        keys = {row.name for row in every_row() if row.secret and row.name not in ("REDIS_URL", "SLUICE_SECRET_KEY")}
        own = {"SLUICE_API_KEY"} if name == "frontend" else set()
        if name in KNOWN:
            rows = known_provider_rows(KNOWN[name]).values()
            own = {row.name for row in rows if row.secret}
            assert {row.name for row in rows} <= set(service["environment"])
        assert set(service["environment"]) & keys == own, name


def test_redis_loses_nothing_and_asks_for_a_password():
    command = SERVICES["redis"]["command"][-1]
    for needed in (
        "--requirepass",
        "--maxmemory-policy noeviction",
        "--maxmemory 512mb",
        "--appendonly yes",
        "--dir /data",
    ):
        assert needed in command
    assert SERVICES["redis"]["volumes"] == ["redis:/data"]


@pytest.mark.fault("S20")
def test_the_image_runs_as_nobody_and_holds_no_secret():
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    final = lines[max(number for number, line in enumerate(lines) if line.startswith("FROM")) :]
    assert "USER 10001:10001" in final
    assert any(line.startswith("HEALTHCHECK") for line in final)
    assert "--require-hashes" in "\n".join(lines)
    secret = {row.name for row in every_row() if row.secret}
    assert not [line for line in lines if any(name in line for name in secret)]


def test_what_the_image_copies_exists_and_nothing_else_is_sent():
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in ignore if line and not line.startswith("#")]
    assert rules[0] == "*", "everything is left out unless it is named"
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    copied = set()
    for line in (ROOT / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            copied |= {word.removeprefix("./") for word in line.split()[1:-1]}
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)
    for private in (".env", ".sluice/api-key", ".git/config", ".venv/bin/python"):
        assert not any(fnmatch.fnmatch(private.split("/")[0], name) for name in allowed)


def test_the_procfile_has_a_frontend_and_every_provider():
    lines = dict(line.split(": ", 1) for line in (ROOT / "Procfile").read_text().splitlines())
    assert lines.pop("frontend") == "python -m frontend"
    assert lines == {name: f"python -m workers {name}" for name in KNOWN}


def test_nginx_passes_tokens_on_as_they_come():
    text = (ROOT / "deploy" / "nginx.conf").read_text()
    code = "\n".join(line.split("#")[0] for line in text.splitlines())
    assert code.count("{") == code.count("}")
    directives = {line.strip().rstrip(";") for line in code.splitlines()}
    assert {"proxy_buffering off", "proxy_request_buffering off", "proxy_http_version 1.1", "gzip off"} <= directives
    read_timeout = next(line for line in directives if line.startswith("proxy_read_timeout"))
    longest = max(known.deadlines.total_seconds for known in KNOWN.values())
    assert int(re.findall(r"\d+", read_timeout)[0]) > longest
    assert "Upgrade" not in code


def test_nginx_accepts_its_file_where_there_is_one():
    if not shutil.which("nginx"):
        pytest.skip("no nginx on this machine; the test above checks the structure")
    result = subprocess.run(
        ["nginx", "-t", "-c", str(ROOT / "deploy" / "nginx.conf")], capture_output=True, text=True, timeout=20
    )
    assert result.returncode == 0, result.stderr
