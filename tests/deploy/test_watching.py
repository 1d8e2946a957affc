"""The dashboard, the scrape configuration and the alarms speak of metrics and processes that exist."""

import json
import re
from pathlib import Path

import pytest
import yaml

from cli import plan
from cli.supervisor import ChildPlan
from shared.metrics import METRICS
from shared.settings.kinds import Listen

ROOT = Path(__file__).parents[2]
DASHBOARD = json.loads((ROOT / "deploy" / "grafana.json").read_text(encoding="utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
TEXT, _, _ = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8").partition("<!-- metrics")
ALARMS = re.findall(r"^\| `([^`]+)` \| ", TEXT, re.M)
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]] + ALARMS
OF_THE_LIBRARY = {"process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds"}
ADDED_BY_PROMETHEUS = {"job", "instance", "le"}


def metric(name):
    """The table's row, also for the series that a histogram is made of."""
    return METRICS.get(name) or METRICS[re.sub(r"_(bucket|count|sum)$", "", name)]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_expression_names_metrics_and_labels_that_exist(expression):
    text = re.sub(r'"[^"]*"', '""', expression)
    assert text.count("(") == text.count(")") and text.count("{") == text.count("}")
    names = set(re.findall(r"\b((?:sluice|process)_[a-z_]+)", text)) - OF_THE_LIBRARY
    known = [metric(name) for name in names]
    assert all(name.endswith("_bucket") for name in names if metric(name).kind == "histogram")
    assert all(re.search(rf"rate\({one.name}\b", text) for one in known if one.kind == "counter" and "rate(" in text)
    labels = {label for one in known for label in one.labels} | ADDED_BY_PROMETHEUS
    used = set(re.findall(r"(\w+)\s*(?:=~|!=|=)\s*\"", text))
    for group in re.findall(r"\bby \(([^)]*)\)", text):
        used |= {label.strip() for label in group.split(",")}
    assert used <= labels, used - labels


def test_the_alarms_were_found():
    assert len(ALARMS) >= 8


def test_no_series_is_selected_by_a_label_that_it_does_not_have():
    for expression in EXPRESSIONS:
        for name, selector in re.findall(r"\b(sluice_[a-z_]+)\{([^}]*)\}", expression):
            assert set(re.findall(r"(\w+)\s*=", selector)) <= {*metric(name).labels, "le"}, expression


def test_legends_name_labels_that_are_left_after_adding_up():
    for panel in PANELS:
        for target in panel["targets"]:
            groups = re.findall(r"\bby \(([^)]*)\)", target["expr"])
            left = {label.strip() for group in groups for label in group.split(",")} | {"instance"}
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= left, panel["title"]


def test_panels_are_apart_and_explained():
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    taken = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["type"] == "row" or panel["description"].endswith(".")


def test_most_metrics_are_on_the_dashboard():
    shown = " ".join(EXPRESSIONS)
    hidden = [name for name in METRICS if name not in shown]
    assert len(hidden) < len(METRICS) / 3, hidden


def test_prometheus_looks_for_every_service_of_ours_on_the_port_that_they_serve():
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    ours = {name for name, service in compose["services"].items() if service.get("image") == "sluice"}
    (job,) = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text(encoding="utf-8"))["scrape_configs"]
    (lookup,) = job["dns_sd_configs"]
    assert job["job_name"] == "sluice"
    assert set(lookup["names"]) == ours
    for service in (compose["services"][name] for name in ours):
        environment = service["environment"]
        assert environment["SLUICE_METRICS_LISTEN"] == f"0.0.0.0:{lookup['port']}"
        assert environment["SLUICE_WORKER_METRICS_LISTEN"] == f"0.0.0.0:{lookup['port']}"


def test_processes_of_one_machine_take_one_port_after_the_other():
    plans = [ChildPlan(f"openai.{number}", ("python",), {"A": "b"}) for number in range(3)]

    def ports(first):
        return [one.environ.get("PORT") for one in plan.on_ports(plans, "PORT", first)]

    assert ports(Listen("127.0.0.1", 9200)) == ["127.0.0.1:9200", "127.0.0.1:9201", "127.0.0.1:9202"]
    assert ports(Listen("::1", 9200))[:2] == ["[::1]:9200", "[::1]:9201"]
    assert ports(Listen("127.0.0.1", 0)) == ports(None) == [None, None, None]
