"""The examples for systemd and Kubernetes: valid, hardened, without secrets, and in step with the settings of the code."""

import configparser
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from shared.settings.model import SharedSettings
from shared.settings.row import rows
from shared.settings.source import every_row

ROOT = Path(__file__).parents[2]
UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))
OBJECTS: list[dict[str, Any]] = list(yaml.safe_load_all((ROOT / "deploy" / "kubernetes.yaml").read_text()))
PODS = {item["metadata"]["name"]: item["spec"]["template"] for item in OBJECTS if "template" in item["spec"]}
DRAIN_SECONDS = float(rows(SharedSettings)["drain_seconds"].default or 0)


def unit(path: Path) -> configparser.ConfigParser:
    parsed = configparser.ConfigParser(interpolation=None, strict=True, delimiters=("=",))
    parsed.optionxform = str  # type: ignore[assignment,method-assign]
    parsed.read_string(path.read_text())
    return parsed


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_a_unit_drains_and_has_no_rights(path: Path) -> None:
    service = unit(path)["Service"]
    assert float(service["TimeoutStopSec"]) > DRAIN_SECONDS
    assert service["EnvironmentFile"] == "/etc/sluice/sluice.env"
    assert (service["NoNewPrivileges"], service["ProtectSystem"], service["DynamicUser"]) == ("yes", "strict", "yes")
    assert service["CapabilityBoundingSet"] == ""
    named = {pair.partition("=")[0] for pair in service["Environment"].split()}
    assert named <= {row.name for row in every_row()}
    assert not named & {row.name for row in every_row() if row.secret}


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_systemd_accepts_the_unit_where_there_is_one(path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("no systemd on this machine; the test above checks the structure")
    result = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True, timeout=20)
    complaints = [line for line in result.stderr.splitlines() if path.name in line and "not executable" not in line]
    assert not complaints


def test_a_numbered_worker_runs_its_provider() -> None:
    command = unit(ROOT / "deploy" / "systemd" / "sluice-worker@.service")["Service"]["ExecStart"]
    script = command.split("'")[1].replace("$$", "$").replace("%%", "%")
    script = script.replace("exec /opt/sluice/.venv/bin/sluice", "echo")
    for instance, provider in (("openai", "openai"), ("dashscope-native.2", "dashscope-native")):
        said = subprocess.run(["/bin/sh", "-c", script, instance], capture_output=True, text=True, check=True).stdout
        assert said == f"worker {provider}\n"


def test_every_part_is_selected_by_its_own_labels() -> None:
    for item in OBJECTS:
        if "template" in item["spec"]:
            assert item["spec"]["selector"]["matchLabels"] == item["spec"]["template"]["metadata"]["labels"]
        elif item["kind"] == "Service":
            assert item["spec"]["selector"] in [pod["metadata"]["labels"] for pod in PODS.values()]


@pytest.mark.parametrize("name", PODS)
def test_every_pod_is_hardened_and_its_probes_lead_to_its_ports(name: str) -> None:
    spec = PODS[name]["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    (container,) = spec["containers"]
    hardened = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    assert container["securityContext"] == hardened
    assert container["resources"]["limits"]["memory"]
    ports = {port["name"] for port in container["ports"]}
    for probe in ("readinessProbe", "livenessProbe"):
        if "httpGet" in container.get(probe, {}):
            assert container[probe]["httpGet"]["port"] in ports
            assert container[probe]["httpGet"]["path"] in ("/health/ready", "/health/live")


@pytest.mark.parametrize("name", [name for name in PODS if name != "sluice-redis"])
def test_our_pods_drain_and_get_settings_that_exist_with_secrets_by_reference(name: str) -> None:
    spec = PODS[name]["spec"]
    assert spec["terminationGracePeriodSeconds"] > DRAIN_SECONDS
    settings = {row.name: row for row in every_row()}
    for variable in spec["containers"][0]["env"]:
        row = settings[variable["name"]]
        assert ("valueFrom" in variable) == row.secret
