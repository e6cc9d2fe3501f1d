"""vLLM's counters in the Prometheus text format.

    # TYPE vllm:spec_decode_num_drafts counter
    vllm:spec_decode_num_drafts_total{engine="0",model_name="m"} 41.0
    vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="m",position="0"} 33.0

A server with several engines has a line for each; they are added. A counter that is not there is 0: a server without
speculation has none of its counters.
"""

import re
from collections import defaultdict
from collections.abc import Mapping

from outrider.bench.counters import Counters

__all__ = ["counters_in"]

SAMPLE = re.compile(r"^(?P<name>[A-Za-z_:][\w:]*)(?:\{(?P<labels>.*)\})?\s+(?P<value>\S+)(?:\s+-?\d+)?$")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
PREFIX = "vllm:"
PER_POSITION = "spec_decode_num_accepted_tokens_per_pos"


def counters_in(text: str) -> Counters | None:
    """The counters of a `/metrics` page; None if it is no page of vLLM's."""
    totals: dict[str, float] = defaultdict(float)
    per_pos: dict[int, float] = defaultdict(float)
    for match in filter(None, map(SAMPLE.match, text.splitlines())):
        name = match["name"].removeprefix(PREFIX).removesuffix("_total")
        if name == PER_POSITION:
            labels = dict(LABEL.findall(match["labels"] or ""))
            per_pos[int(labels["position"])] += float(match["value"])
        elif match["name"].startswith(PREFIX):
            totals[name] += float(match["value"])
    return _counters(totals, per_pos) if "generation_tokens" in totals else None


def _counters(totals: Mapping[str, float], per_pos: Mapping[int, float]) -> Counters:
    return Counters(
        num_generation_tokens=round(totals["generation_tokens"]),
        num_drafts=round(totals.get("spec_decode_num_drafts", 0)),
        num_draft_tokens=round(totals.get("spec_decode_num_draft_tokens", 0)),
        num_accepted_tokens=round(totals.get("spec_decode_num_accepted_tokens", 0)),
        num_accepted_tokens_per_pos=tuple(round(per_pos.get(at, 0)) for at in range(max(per_pos, default=-1) + 1)),
    )
