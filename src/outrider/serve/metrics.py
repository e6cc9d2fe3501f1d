"""Counters in Prometheus' format, under vLLM's names, so that dashboards and `outrider bench --endpoint` read them.

They are counted from the records of the engines, before the tokens of a step are sent: who has read an answer to its
end finds all of it in the counters.

Example: `vllm:spec_decode_num_accepted_tokens_total{engine="0",model_name="smollm2-135m"} 41.0`.
"""

from collections.abc import Callable
from typing import Final, final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from outrider.metrics import PrefillRecord, StepRecord

__all__ = ["Metrics"]

LABELS: Final = ("engine", "model_name")
COUNTERS: Final = {
    "prompt_tokens": "Tokens of prompts.",
    "prefix_cache_queries": "Prompt tokens that were looked up among kept texts.",
    "prefix_cache_hits": "Prompt tokens that an earlier text had made known.",
    "generation_tokens": "Tokens written.",
    "spec_decode_num_drafts": "Steps of a request that had a draft.",
    "spec_decode_num_draft_tokens": "Drafted tokens.",
    "spec_decode_num_accepted_tokens": "Accepted tokens.",
}
SECONDS: Final = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
TIMES: Final = {
    "time_to_first_token_seconds": "Time to the first token.",
    "e2e_request_latency_seconds": "Time of a whole request.",
}


@final
class Metrics:
    """The counters of one server.

    Args:
        running, waiting: functions that count requests.
    """

    def __init__(self, model: str, running: Callable[[], int], waiting: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        self._labels = ("0", model)
        self._counts = {
            name: Counter(f"vllm:{name}", help, LABELS, registry=self.registry).labels(*self._labels)
            for name, help in COUNTERS.items()
        }
        self._times = {
            name: Histogram(f"vllm:{name}", help, LABELS, buckets=SECONDS, registry=self.registry).labels(*self._labels)
            for name, help in TIMES.items()
        }
        self._per_pos = Counter(
            "vllm:spec_decode_num_accepted_tokens_per_pos",
            "Accepted tokens by their place in the draft.",
            (*LABELS, "position"),
            registry=self.registry,
        )
        self._ended = Counter(
            "vllm:request_success", "Finished requests.", (*LABELS, "finished_reason"), registry=self.registry
        )
        for name, count in (("running", running), ("waiting", waiting)):
            gauge = Gauge(f"vllm:num_requests_{name}", f"Requests that are {name}.", LABELS, registry=self.registry)
            gauge.labels(*self._labels).set_function(count)

    def record(self, record: StepRecord | PrefillRecord) -> None:
        """Count a step, or a chunk of prompts."""
        if isinstance(record, PrefillRecord):
            num_cached = sum(record.cached_tokens)
            num_tokens = record.num_tokens + num_cached + len(record.started)  # the root is read by the first step
            self._counts["prefix_cache_queries"].inc(num_tokens)
            self._counts["prefix_cache_hits"].inc(num_cached)
            return
        for slot in record.slots:
            self._counts["generation_tokens"].inc(slot.num_emitted)
            if slot.num_nodes:
                self._counts["spec_decode_num_drafts"].inc()
                self._counts["spec_decode_num_draft_tokens"].inc(slot.num_nodes)
                self._counts["spec_decode_num_accepted_tokens"].inc(slot.num_accepted)
            for place in range(slot.num_accepted):
                self._per_pos.labels(*self._labels, str(place)).inc()

    def taken(self, num_tokens: int) -> None:
        """Count the prompt tokens of a request that the engines have taken."""
        self._counts["prompt_tokens"].inc(num_tokens)

    def ended(self, reason: str) -> None:
        """Count a finished request."""
        self._ended.labels(*self._labels, reason).inc()

    def observe(self, name: str, seconds: float) -> None:
        """Add a duration to its histogram."""
        self._times[name].observe(seconds)

    @property
    def page(self) -> bytes:
        """The page that Prometheus reads."""
        return generate_latest(self.registry)
