"""What was counted is what Prometheus reads, and no label makes it grow without end."""

import math

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open
from prometheus_client.parser import text_string_to_metric_families as parse

from shared.measuring import Measures
from shared.metrics import METRICS, MOST_SERIES


@pytest.fixture
def measures():
    return Measures("frontend", "1.2.3")


def samples(measures, accept=""):
    """(name, labels) → value, as a Prometheus server would read it."""
    content_type, text = measures.exposition(accept)
    families = (parse_open if "openmetrics" in content_type else parse)(text.decode())
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value for family in families for sample in family.samples
    }


def test_counters(measures):
    refused = measures.counter("sluice_requests_refused_total")
    refused.add("rate_limit")
    refused.add("rate_limit", by=2)
    refused.add('odd "\\\n name')
    found = samples(measures)
    assert found["sluice_requests_refused_total", ("reason", "rate_limit")] == 3
    assert found["sluice_requests_refused_total", ("reason", 'odd "\\\n name')] == 1


def test_a_counter_without_labels_is_there_before_it_counts(measures):
    measures.histogram("sluice_event_loop_lag_seconds")
    found = samples(measures)
    assert found["sluice_event_loop_lag_seconds_count",] == 0


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text; version=1.0.0", "text/html, */*"])
def test_a_value_on_a_bound_lies_below_it(measures, accept):
    lag = measures.histogram("sluice_event_loop_lag_seconds").of()
    bounds = METRICS["sluice_event_loop_lag_seconds"].bounds
    for value in (bounds[0], math.nextafter(bounds[0], 1), 0.0, 1000.0):
        lag.observe(value)
    found = samples(measures, accept)
    below = [found["sluice_event_loop_lag_seconds_bucket", ("le", str(bound))] for bound in bounds]
    assert below == [2.0] + [3.0] * (len(bounds) - 1)
    assert found["sluice_event_loop_lag_seconds_bucket", ("le", "+Inf")] == 4
    assert found["sluice_event_loop_lag_seconds_count",] == 4
    assert found["sluice_event_loop_lag_seconds_sum",] == pytest.approx(1000, abs=0.01)


def test_what_is_read_is_read_at_each_scrape(measures):
    depth = {("openai",): 3, ("kimi",): 1}
    measures.read("sluice_queue_depth", lambda: depth)
    assert samples(measures)["sluice_queue_depth", ("provider", "openai")] == 3
    del depth["openai",]
    found = samples(measures)
    assert [name for name in found if name[0] == "sluice_queue_depth"] == [("sluice_queue_depth", ("provider", "kimi"))]


async def test_who_must_ask_first_is_asked_before_the_text_is_made(measures):
    depth = {}

    async def look():
        depth["openai",] = 7

    measures.before.append(look)
    measures.read("sluice_queue_depth", lambda: depth)
    _, text = await measures.scrape()
    assert b'sluice_queue_depth{provider="openai"} 7.0' in text


def test_label_sets_beyond_the_limit_count_as_other(measures):
    tokens = measures.counter("sluice_tokens_total")
    for number in range(MOST_SERIES + 10):
        tokens.add("openai", f"model-{number}", "prompt", by=5)
    gaps = measures.histogram("sluice_token_gap_seconds")
    for number in range(MOST_SERIES + 10):
        gaps.of(f"provider-{number}").observe(0.1)
    found = samples(measures)
    assert found["sluice_tokens_total", ("kind", "other"), ("model", "other"), ("provider", "other")] == 50
    assert found["sluice_token_gap_seconds_count", ("provider", "other")] == 10
    assert len([name for name in found if name[0] == "sluice_tokens_total"]) == MOST_SERIES + 1
    tokens.add("openai", "model-0", "prompt", by=5)
    assert (
        samples(measures)["sluice_tokens_total", ("kind", "prompt"), ("model", "model-0"), ("provider", "openai")] == 10
    )


def test_mistakes_show_at_once(measures):
    with pytest.raises(KeyError):
        measures.counter("sluice_nothing_total")
    with pytest.raises(ValueError, match="is a histogram"):
        measures.counter("sluice_job_seconds")
    with pytest.raises(ValueError, match="worker"):
        measures.read("sluice_worker_room", lambda: 1)
    with pytest.raises(ValueError, match="has the labels"):
        measures.counter("sluice_requests_refused_total").add("one", "two")


def test_the_table_follows_the_conventions():
    for metric in METRICS.values():
        assert metric.name.startswith("sluice_")
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        assert (metric.kind == "histogram") == bool(metric.bounds), metric.name
        assert list(metric.bounds) == sorted(set(metric.bounds))
        assert metric.kind != "histogram" or metric.name.endswith("_seconds")
        assert metric.meaning[0].isupper() or metric.meaning[0].isdigit()
        assert metric.meaning.endswith(".")


def test_the_process_itself_is_told(measures):
    found = samples(measures)
    assert found["process_resident_memory_bytes",] > 1_000_000
    assert found["sluice_build_info", ("process", "frontend"), ("provider", ""), ("version", "1.2.3")] == 1
