"""A trace against the engine's own records, its plain text, and the target's own distributions."""

import json

import pytest
import torch

from outrider import Engine, SamplingParams, load_proposer, load_target
from outrider.errors import RequestError
from outrider.metrics import StepRecord, summarize
from outrider.params import StructuredOutputs
from outrider.target import Target
from outrider.testing.directory import write_tiny_model
from outrider.traces.html import Ribbon, fragment
from outrider.traces.record import MOST_STEPS, record_trace
from outrider.traces.trace import Trace

PROMPT = "ab ab ab"


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    return load_target(str(write_tiny_model(tmp_path_factory.mktemp("traced") / "tiny")), dtype="float64")


class Recorded:
    """An engine and the records of its steps."""

    def __init__(self, target: Target, method: str, **settings: object) -> None:
        self.steps: list[StepRecord] = []
        proposer = load_proposer(method, target, **settings)
        self.engine = Engine(target, proposer, max_batch=2, record=self._keep)

    def _keep(self, record: object) -> None:
        if isinstance(record, StepRecord):
            self.steps.append(record)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize(
    ("method", "settings"),
    [("none", {}), ("ngram", {}), ("draft_model", {"layers": "0", "num_nodes": 3})],
)
def test_a_trace_is_what_the_engine_did(
    target: Target, method: str, settings: dict[str, object], temperature: float
) -> None:
    params = SamplingParams(temperature=temperature, seed=3, max_tokens=40, ignore_eos=True)
    recorded = Recorded(target, method, **settings)
    trace = record_trace(recorded.engine, PROMPT, params, method=method)
    steps = list(recorded.steps)
    [answer] = Engine(target, load_proposer("none", target)).generate(PROMPT, params)
    assert trace.tokens == answer.tokens
    assert trace.text == answer.text
    assert (trace.finished, trace.num_prompt_tokens) == (answer.finished, len(answer.prompt))
    slots = [step.slots[0] for step in steps]
    assert [step.step for step in trace.steps] == [step.step for step in steps]
    assert [len(step.draft.ids) for step in trace.steps] == [slot.num_nodes for slot in slots]
    assert [len(step.draft.accepted) for step in trace.steps] == [slot.num_accepted for slot in slots]
    by = [token.by for step in trace.steps for token in step.tokens]
    assert by.count("draft") == summarize(steps).num_accepted_tokens
    assert trace.total_ms == pytest.approx(1000 * summarize(steps).decode_s, abs=0.001 * len(steps))


def test_probabilities_are_the_targets_own(target: Target) -> None:
    recorded = Recorded(target, "ngram")
    trace = record_trace(recorded.engine, PROMPT, SamplingParams(max_tokens=24, ignore_eos=True))
    plain = Engine(target, load_proposer("none", target))
    written = list(plain.generate(PROMPT, SamplingParams(max_tokens=1))[0].prompt)
    for step in trace.steps:
        for token in step.tokens:
            asked = SamplingParams(max_tokens=1, ignore_eos=True, logprobs=2)
            [found] = plain.generate([written], asked)[0].logprobs
            assert token.id == found.token
            assert token.prob == pytest.approx(torch.tensor(found.logprob).exp().item(), abs=2e-6)
            assert [one.prob for one in token.top[:2]] == pytest.approx(
                [torch.tensor(logprob).exp().item() for _, logprob in found.top], abs=1e-4
            )
            written.append(token.id)
        kept = [step.draft.probs[node] for node in step.draft.accepted]
        assert kept == [token.prob for token in step.tokens[: len(kept)]]


def test_other_requests_go_on_beside_it(target: Target) -> None:
    params = SamplingParams(max_tokens=12, ignore_eos=True)
    alone = record_trace(Recorded(target, "ngram").engine, PROMPT, params)
    recorded = Recorded(target, "ngram")
    engine = recorded.engine
    verifier, record = engine.verifier, engine.record
    other = engine.add("xy xy", params)
    trace = record_trace(engine, [{"role": "user", "content": PROMPT}], params)
    assert (trace.tokens, trace.prompt) == (alone.tokens, PROMPT)
    assert [step.draft.ids for step in trace.steps] == [step.draft.ids for step in alone.steps]
    assert sum(len(event.tokens) for event in engine.run() if event.request == other) == 12
    assert (engine.verifier, engine.record) == (verifier, record)


def test_a_long_answer_is_cut_and_a_refused_one_leaves_the_engine_as_it_was(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MOST_STEPS == 512
    monkeypatch.setattr("outrider.traces.record.MOST_STEPS", 5)
    engine = Recorded(target, "none").engine
    before = engine.verifier
    trace = record_trace(engine, PROMPT, SamplingParams(max_tokens=40, ignore_eos=True))
    assert (len(trace.steps), trace.finished) == (5, None)
    assert not engine.busy
    with pytest.raises(RequestError, match="empty"):
        record_trace(engine, "")
    assert engine.verifier is before


def test_a_method_of_parts_says_which_one_drafted(target: Target) -> None:
    engine = Recorded(target, "hybrid", drafter="ngram").engine
    asked: list[str] = []
    propose = engine.session.propose

    def noting(*given: object) -> object:
        draft = propose(*given)  # type: ignore[arg-type]
        asked.append(engine.session.part(0) if draft.num_nodes[0] else "")
        return draft

    engine.session.propose = noting  # type: ignore[method-assign, assignment]
    trace = record_trace(engine, PROMPT, SamplingParams(max_tokens=40, ignore_eos=True))
    assert [step.draft.part for step in trace.steps] == asked
    assert set(asked) - {""} <= {"look-up", "ngram"}
    assert set(asked) != {""}
    plain = record_trace(Recorded(target, "ngram").engine, PROMPT, SamplingParams(max_tokens=8))
    assert {step.draft.part for step in plain.steps} == {""}


def test_forced_tokens_are_named(target: Target) -> None:
    schema = {
        "type": "object",
        "properties": {"answer": {"const": "yes"}},
        "required": ["answer"],
        "additionalProperties": False,
    }
    recorded = Recorded(target, "ngram")
    params = SamplingParams(
        max_tokens=60, structured_outputs=StructuredOutputs(json=schema, disable_any_whitespace=True)
    )
    trace = record_trace(recorded.engine, PROMPT, params)
    forced = [token.text for step in trace.steps for token in step.tokens if token.by == "forced"]
    assert json.loads(trace.text) == {"answer": "yes"}
    assert len(forced) == summarize(recorded.steps).num_accepted_forced_tokens > 0


def test_a_notebook_shows_traces(target: Target) -> None:
    trace = record_trace(Recorded(target, "ngram").engine, PROMPT, SamplingParams(max_tokens=8), said="shown")
    assert trace.prompt == "shown"
    assert Ribbon([trace], "A note.")._repr_html_() == fragment([trace], "A note.")
    assert Trace.from_json(trace.to_json()) == trace
