"""Recording of traces: one request through an engine, with every step kept.

    trace = record_trace(engine, "Why is the sky blue?", SamplingParams(max_tokens=64))
    trace.text, trace.steps[0].draft.texts

The steps are the engine's own, and so are their times; what a trace needs beyond them is computed between steps.
`outrider.traces.html` shows traces.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final

from outrider.engine import Engine
from outrider.requests.events import Event
from outrider.requests.prompts import Prompt, as_prompt
from outrider.requests.text import encode
from outrider.sampling import SamplingParams
from outrider.traces.trace import StepTrace, Texts, Trace, step_trace
from outrider.traces.watch import watching

__all__ = ["record_trace", "traced_events"]

MOST_STEPS: Final = 512
MOST_CHARS: Final = 2000
SUFFIX: Final = "Proposer"


def record_trace(
    engine: Engine,
    prompt: Prompt,
    params: SamplingParams | None = None,
    *,
    method: str | None = None,
    category: str = "",
    prompt_id: str = "",
    said: str | None = None,
) -> Trace:
    """Decode one prompt and return the trace of its answer, of at most 512 steps.

    Args:
        prompt: text (one user turn of a chat), a list of messages, or token ids.
        params: sampling and stop settings; by default greedy, with at most 128 tokens.
        method: label of the method; by default the name of the engine's proposer.
        category, prompt_id: place of the prompt in a benchmark.
        said: text to show as the prompt; by default the user's last message.

    Raises:
        RequestError: for a prompt or settings that the engine refuses, and if no token can be chosen.
    """
    found = as_prompt(prompt)
    tokens = encode(engine.tokenizer, found)
    steps, finished = list[StepTrace](), None
    for event in traced_events(engine, tokens, params, steps):  # dropped before its end, it cancels the request
        event.raise_for_error()
        finished = event.finished
        if len(steps) == MOST_STEPS:
            break
    return Trace(
        target=engine.spec.name,
        method=type(engine.proposer).__name__.removesuffix(SUFFIX).lower() if method is None else method,
        category=category,
        prompt_id=prompt_id,
        prompt=_shortened(_message(found, tokens, engine.tokenizer) if said is None else said),
        temperature=0.0 if params is None else params.temperature,
        num_prompt_tokens=len(tokens),
        finished=finished,
        steps=tuple(steps),
    )


def traced_events(
    engine: Engine, tokens: Sequence[int], params: SamplingParams | None, steps: list[StepTrace]
) -> Iterator[Event]:
    """Decode one prompt of token ids as `Engine.stream` does, and append the trace of each step to `steps`."""
    texts = Texts(engine.tokenizer)
    with watching(engine) as watch:
        request = engine.num_requests + 1  # the id that the engine gives next
        watch.traced.add(request)
        for event in engine.stream([tokens], params):
            if (step := watch.step_of(event, request)) is not None:
                steps.append(step_trace(step, event, texts))
            yield event


def _message(prompt: str | list[int] | list[dict[str, Any]], tokens: list[int], tokenizer: Any) -> str:
    """Return the text of the user's last message."""
    if isinstance(prompt, str):
        return prompt
    last = prompt[-1]
    if isinstance(last, dict):
        return str(last.get("content") or "")
    return "" if tokenizer is None else str(tokenizer.decode(tokens, skip_special_tokens=True))


def _shortened(text: str) -> str:
    return text if len(text) <= MOST_CHARS else text[: MOST_CHARS - 1] + "\u2026"
