"""The embedded target, really run: every method gives the text of plain decoding, in bf16, greedy and sampled."""

from dataclasses import replace
from pathlib import Path

import pytest

from outrider import Engine, SamplingParams, load_proposer, load_target
from outrider.metrics import PrefillRecord, StepRecord, summarize
from outrider.proposers.none import NoProposer
from outrider.target import Target

pytestmark = pytest.mark.model

LETTER = (
    "Repeat this list exactly, three times: apples, pears, plums, cherries, apricots, quinces, medlars, figs. "
    "apples, pears, plums, cherries, apricots, quinces, medlars, figs. apples, pears, plums,"
)
PROMPTS = ["Why is the sky blue?", LETTER]
METHODS = {
    "ngram": {},
    "ngram-tree": {"num_candidates": 3, "num_nodes": 12},
    "suffix": {"min_token_prob": 0.0, "factor": 2.0},
    "suffix-tree": {"mode": "tree"},
    "draft_model": {"layers": "0,1,28,29"},
    "draft_model-tree": {"layers": "0,29", "width": 2, "num_nodes": 4},
    "draft_model-sampled": {"layers": "0,29", "sampled": True, "num_nodes": 2},
}


@pytest.fixture(scope="module")
def target(smollm2_dir: Path) -> Target:
    return load_target(str(smollm2_dir))


@pytest.fixture(scope="module")
def plain(target: Target) -> dict[float, list[tuple[int, ...]]]:
    return {temperature: texts(target, "none", {}, temperature, max_batch=1) for temperature in (0.0, 1.0)}


def texts(
    target: Target, method: str, settings: dict[str, object], temperature: float, max_batch: int
) -> list[tuple[int, ...]]:
    proposer = load_proposer(method, target, **settings)
    engine = Engine(target, proposer, max_batch=max_batch, max_len=256)
    sampling = SamplingParams(temperature=temperature, seed=7)
    return [answer.tokens for answer in engine.generate(PROMPTS, replace(sampling, max_tokens=20))]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("label", METHODS)
def test_c7_the_text_is_that_of_plain_decoding_bit_for_bit(
    target: Target, plain: dict[float, list[tuple[int, ...]]], label: str, temperature: float
) -> None:
    assert target.spec.batch_invariant
    method = label.partition("-")[0]
    assert texts(target, method, METHODS[label], temperature, max_batch=2) == plain[temperature]


def test_copying_is_drafted(target: Target) -> None:
    records: list[StepRecord | PrefillRecord] = []
    engine = Engine(target, load_proposer("ngram", target), max_len=256, record=records.append)
    engine.generate([LETTER], SamplingParams(max_tokens=24))
    tau = summarize([record for record in records if isinstance(record, StepRecord)]).tokens_per_target_forward
    assert tau is not None
    assert tau > 1.5


def test_text_streams_as_it_is_decided(target: Target) -> None:
    engine = Engine(target, NoProposer(), max_len=128)
    pieces = [event.text for event in engine.stream(["What is the capital of France?"], SamplingParams(max_tokens=12))]
    assert "".join(pieces) == "The capital of France is Paris."
    answer = engine.generate(
        ["What is the capital of France?"], SamplingParams(max_tokens=12, stop=["France", "zebra"])
    )[0]
    assert (answer.text, answer.finished) == ("The capital of ", "stop")
