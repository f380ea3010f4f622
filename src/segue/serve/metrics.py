"""What the server counts, under the names that dashboards of vLLM know, with a prefix of our own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from segue.types import Usage

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 150, 300)


class Metrics:
    """Counters of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.first_text = self._seconds("time_to_first_token", "From a request to the first event of its answer.")
        self.whole = self._seconds("e2e_request_latency", "From a request to the end of its answer.")
        self.queued = self._seconds("request_queue_time", "From a request to when it is taken up.")
        self.prompt = Counter("segue_prompt_tokens", "Tokens of prompts.", registry=self._registry)
        self.said = Counter("segue_generation_tokens", "Tokens of answers.", registry=self._registry)
        self.frames = Counter(
            "segue_encoded_frames", "Frames that went through the mask encoder.", registry=self._registry
        )
        self.gave_up = Counter(
            "segue_requests_not_answered", "Requests without an answer.", ["reason"], registry=self._registry
        )

    def watch(self, name: str, what: str, current: Callable[[], int]) -> None:
        """Report also a number that is asked for when somebody looks."""
        Gauge(f"segue_{name}", what, registry=self._registry).set_function(current)

    def count(self, usage: Usage, seconds: float) -> None:
        """Count an answer."""
        self.whole.observe(seconds)
        self.prompt.inc(usage.prompt_tokens)
        self.said.inc(usage.answer_tokens)
        self.frames.inc(usage.encoded_frames)

    def text(self) -> bytes:
        """All of it in Prometheus' text form."""
        return generate_latest(self._registry)

    def _seconds(self, name: str, what: str) -> Histogram:
        return Histogram(f"segue_{name}_seconds", what, buckets=SECONDS, registry=self._registry)


class _Merged(Collector):
    def __init__(self, families: Iterable[Metric]):
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families


def merged(counted: Iterable[tuple[str, str]]) -> bytes:
    """What several servers have counted, in Prometheus' text form: the name of each, and its own text."""
    families: dict[str, Metric] = {}
    for name, text in counted:
        for one in text_string_to_metric_families(text):
            family = families.setdefault(one.name, Metric(one.name, one.documentation, one.type))
            family.samples += [sample._replace(labels=sample.labels | {"replica": name}) for sample in one.samples]
    return generate_latest(_Merged(families.values()))
