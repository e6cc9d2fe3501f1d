"""Counters of serving engines in the Prometheus text format.

    # TYPE vllm:spec_decode_num_drafts counter
    vllm:spec_decode_num_drafts_total{engine="0",model_name="m"} 41.0
    vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="m",position="0"} 33.0
    llamacpp:spec_decode_num_drafts_total 41

A server with several engines has a line for each; they are added. A counter that is not there is 0: a server without
speculation has none of its counters. A page on which a counter is no count (NaN, negative, without its position) is
damaged, and none of its counters are taken.

SGLang counts the tokens that it wrote; of its speculation it shows gauges, the mean over its last steps. Where these
show any, its page has no counters to take, and only the answers do.
"""

import re
from collections import defaultdict
from collections.abc import Mapping

from outrider.results.counters import Counters

__all__ = ["counters_in"]

SAMPLE = re.compile(
    r"^(?P<engine>vllm|sglang|llamacpp):(?P<name>\w+)(?:\{(?P<labels>.*)\})?\s+(?P<value>\S+)(?:\s+-?\d+)?\s*$"
)
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
WRITTEN = {"vllm": "generation_tokens", "sglang": "generation_tokens", "llamacpp": "tokens_predicted"}
"""Prefix of an engine's names -> its counter of written tokens."""
TOTALS = ("spec_decode_num_drafts", "spec_decode_num_draft_tokens", "spec_decode_num_accepted_tokens")
GAUGE = "spec_accept_length"
MOST_POSITIONS, LARGEST_COUNT, LONGEST_LINE = 4096, 2.0**62, 65_536
PER_POSITION = "spec_decode_num_accepted_tokens_per_pos"


def counters_in(text: str) -> Counters | None:
    """Return the counters of a `/metrics` page; None if it is damaged, or has none that can be taken."""
    totals: dict[str, int] = defaultdict(int)
    per_pos: dict[int, int] = defaultdict(int)
    samples = [match for line in text.split("\n") if (match := _sample(line))]
    written = {WRITTEN[match["engine"]] for match in samples}
    for match in samples:
        name = match["name"].removesuffix("_total")
        if name == GAUGE and match["value"] not in ("0", "0.0"):
            return None
        if name not in (*written, *TOTALS, PER_POSITION):
            continue
        count = _count(match["value"])
        if count is None:
            return None
        if name == PER_POSITION:
            position = _position(match["labels"] or "")
            if position is None:
                return None
            per_pos[position] += count
        else:
            totals[name] += count
    shown = [totals[name] for name in written if name in totals]
    return _counters(shown[0], totals, per_pos) if len(shown) == 1 else None


def _sample(line: str) -> re.Match[str] | None:
    """Return the parts of a line with a sample of an engine that we know."""
    return SAMPLE.match(line) if len(line) <= LONGEST_LINE else None


def _count(text: str) -> int | None:
    """Return a whole number that is not negative; None for anything else."""
    try:
        value = float(text)
    except ValueError:
        return None
    return round(value) if 0 <= value <= LARGEST_COUNT else None


def _position(labels: str) -> int | None:
    found = dict(LABEL.findall(labels)).get("position", "")
    is_number = found.isascii() and found.isdigit() and len(found) < 8
    return int(found) if is_number and int(found) < MOST_POSITIONS else None


def _counters(written: int, totals: Mapping[str, int], per_pos: Mapping[int, int]) -> Counters:
    drafts, drafted, accepted = (totals.get(name, 0) for name in TOTALS)
    return Counters(
        num_generation_tokens=written,
        num_drafts=drafts,
        num_draft_tokens=drafted,
        num_accepted_tokens=accepted,
        num_accepted_tokens_per_pos=tuple(per_pos.get(at, 0) for at in range(max(per_pos, default=-1) + 1)),
    )
