"""Counting, and telling what was counted: the numbers of one process on their way to `/metrics`.

What happens often is counted in plain dicts and lists, without locks, since one thread does everything; what lies in somebody's
attributes already is read when it is asked for. Only then does prometheus-client see any of it and turn it into text.

    measures = Measures("frontend", "0.1.0")
    refused = measures.counter("sluice_requests_refused_total")
    refused.add("rate_limit")
    measures.read("sluice_queue_depth", lambda: {("openai",): 3})
    content_type, text = measures.exposition("")

Measured on Python 3.11: `Counter.add` 0.3 µs, `Distribution.observe` 0.2 µs; prometheus-client's own take 2.1 and 1.3 µs.
"""

from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from shared.metrics import METRICS, MOST_SERIES, OTHER, Kind, Metric, Process

Labels = tuple[str, ...]
Numbers = Mapping[Labels, float]
Read = Callable[[], float | Numbers]
"""What a gauge, or a counter that somebody else keeps, is now: one number, or one for each label set."""


class Counter:
    """What only grows."""

    __slots__ = ("_values", "metric")

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self._values: dict[Labels, float] = {} if metric.labels else {(): 0}

    def add(self, *labels: str, by: float = 1) -> None:
        """Count, under the values of the metric's labels."""
        values = self._values
        if labels in values:
            values[labels] += by
        else:
            labels = _admitted(self.metric, values, labels)
            values[labels] = values.get(labels, 0) + by

    def numbers(self) -> Numbers:
        return self._values


class Distribution:
    """How values are spread over the buckets of a histogram, for one label set."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """By bucket, not added up; the last one is for what exceeds all bounds."""
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value


class Histogram:
    """Distributions by label set. Whoever observes often keeps the one that `of` gives."""

    __slots__ = ("_spread", "metric")

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self._spread: dict[Labels, Distribution] = {}
        if not metric.labels:
            self.of()

    def of(self, *labels: str) -> Distribution:
        found = self._spread.get(labels)
        if found is None:
            labels = _admitted(self.metric, self._spread, labels)
            found = self._spread.setdefault(labels, Distribution(self.metric.bounds))
        return found

    def spread(self) -> Mapping[Labels, Distribution]:
        return self._spread


def _admitted(metric: Metric, known: Mapping[Labels, object], labels: Labels) -> Labels:
    """The label set under which to count a new one."""
    if len(labels) != len(metric.labels):
        raise ValueError(f"{metric.name} has the labels {metric.labels}")
    return labels if len(known) < MOST_SERIES else (OTHER,) * len(labels)


class Measures(Collector):
    """All that one process measures. Each metric of the table is counted here or read somewhere, in one place each."""

    def __init__(self, process: Process, version: str, provider: str = "") -> None:
        self.process = process
        self.before: list[Callable[[], Awaitable[object]]] = []
        """Awaited before each scrape, in turn: what has to ask somebody first. Must end within a second, and not raise."""
        self._counters: dict[str, Counter] = {}
        self._histograms: dict[str, Histogram] = {}
        self._reads: dict[str, Read] = {}
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        self.read("sluice_build_info", lambda: {(process, provider, version): 1})

    def counter(self, name: str) -> Counter:
        return self._counters.setdefault(name, Counter(self._metric(name, "counter")))

    def histogram(self, name: str) -> Histogram:
        return self._histograms.setdefault(name, Histogram(self._metric(name, "histogram")))

    def take(self, name: str, distribution: Distribution) -> None:
        """Tell of a distribution that somebody else observes; the metric has no labels."""
        self.histogram(name)._spread[()] = distribution

    def read(self, name: str, read: Read) -> None:
        """Ask `read` at each scrape. Label sets that it no longer names are no longer told."""
        self._metric(name, "counter", "gauge")
        self._reads[name] = read

    def missing(self) -> set[str]:
        """Metrics of the table that nobody measures here."""
        mine = {metric.name for metric in METRICS.values() if self.process in metric.of}
        return mine - self._counters.keys() - self._histograms.keys() - self._reads.keys()

    async def scrape(self, accept: str = "") -> tuple[str, bytes]:
        """Content type and text of `/metrics`, in the form that the `Accept` header asks for."""
        for look in self.before:
            await look()
        return self.exposition(accept)

    def exposition(self, accept: str = "") -> tuple[str, bytes]:
        """The same with what is known now."""
        encode, content_type = choose_encoder(accept)
        return content_type, encode(self._registry)

    def collect(self) -> Iterator[Family]:
        for name, metric in METRICS.items():
            if name in self._reads:
                yield _family(metric, self._reads[name]())
            elif name in self._counters:
                yield _family(metric, self._counters[name].numbers())
            elif name in self._histograms:
                yield _spread_family(metric, self._histograms[name].spread())

    def _metric(self, name: str, *kinds: Kind) -> Metric:
        metric = METRICS[name]
        if metric.kind not in kinds or self.process not in metric.of:
            raise ValueError(f"{name} is a {metric.kind} of {metric.of}")
        return metric


def _family(metric: Metric, numbers: float | Numbers) -> Family:
    make = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = make(metric.name, metric.meaning, labels=metric.labels)
    for labels, number in numbers.items() if isinstance(numbers, Mapping) else [((), numbers)]:
        family.add_metric(labels, number)
    return family


def _spread_family(metric: Metric, spread: Mapping[Labels, Distribution]) -> Family:
    family = HistogramMetricFamily(metric.name, metric.meaning, labels=metric.labels)
    for labels, distribution in spread.items():
        below, buckets = 0, []
        for bound, count in zip((*map(str, metric.bounds), "+Inf"), distribution.counts, strict=True):
            below += count
            buckets.append((bound, below))
        family.add_metric(labels, buckets, distribution.total)
    return family
