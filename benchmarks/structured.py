"""Steps and time with and without forced tokens, where an answer must fit a JSON schema.

    python benchmarks/structured.py                      the embedded model; none, ngram and eagle3, greedy
    python benchmarks/structured.py --parse 1000         and so many answers of a tiny model, all of which parse

Every prompt runs with every method twice, once with forced tokens and once without, one after the other, in turns; a
first round warms up. The texts of all runs of a prompt must be equal. Ratios are to the method without forced tokens
and to plain decoding without them, of the same run.
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any
from unittest.mock import patch

import outrider
from outrider.batch import Batch
from outrider.metrics import StepRecord, summarize
from outrider.testing.directory import write_tiny_model

TEXT = {"type": "string", "maxLength": 40}
PERSON = {
    "type": "object",
    "properties": {
        "full_name": TEXT,
        "role": {"enum": ["teacher", "farmer", "doctor", "clerk"]},
        "age_in_years": {"type": "integer", "minimum": 0, "maximum": 120},
        "lives_in_the_village": {"type": "boolean"},
    },
    "required": ["full_name", "role", "age_in_years", "lives_in_the_village"],
    "additionalProperties": False,
}
SCHEMA = {
    "type": "object",
    "properties": {
        "people": {"type": "array", "items": PERSON, "minItems": 2, "maxItems": 2},
        "summary_of_the_notice": TEXT,
    },
    "required": ["people", "summary_of_the_notice"],
    "additionalProperties": False,
}
NOTICES = (
    "Mara Lind, 41, teaches at the village school. Her neighbour Tom Okoro, 67, keeps sheep on the hill.",
    "Doctor Ines Vale, aged 52, visits from the town on Mondays; the clerk Paul Berg, 29, writes her letters.",
    "The farmer Otto Hahn turned 80 yesterday. His granddaughter Lena, 33, who teaches in the city, came to the feast.",
    "Two newcomers were welcomed: Sam Reed, 24, who works as a clerk, and the doctor Ada Moss, 58.",
)


def prompt_of(notice: str) -> str:
    return f"Extract the people from this notice as JSON.\n\n{notice}"


def params_of(seed: int = 0, temperature: float = 0.0, length: int = 200) -> outrider.SamplingParams:
    form = outrider.StructuredOutputs(json=SCHEMA, disable_any_whitespace=True)
    return outrider.SamplingParams(temperature=temperature, seed=seed, max_tokens=length, structured_outputs=form)


@contextmanager
def forcing(is_on: bool) -> Iterator[None]:
    """Let a batch force tokens, or keep it from it."""
    if is_on:
        yield
    else:
        with patch.object(Batch, "forced", lambda batch, most: {}):
            yield


def race(target: outrider.Target, methods: list[str], rounds: int) -> list[dict[str, Any]]:
    records: list[StepRecord] = []
    engines = {
        method: outrider.Engine(
            target,
            outrider.load_proposer(method, target),
            max_len=512,
            record=lambda record: records.append(record) if isinstance(record, StepRecord) else None,
        )
        for method in methods
    }
    seconds: dict[tuple[str, bool, int], list[float]] = defaultdict(list)
    steps: dict[tuple[str, bool, int], list[StepRecord]] = {}
    for turn in range(rounds + 1):
        for index, notice in enumerate(NOTICES):
            texts = set()
            cells = [(method, on) for method in methods for on in (False, True)]
            for method, on in cells if turn % 2 else cells[::-1]:
                engines[method].reset()
                records.clear()
                with forcing(on):
                    start = perf_counter()
                    [answer] = engines[method].generate(prompt_of(notice), params_of())
                    took = perf_counter() - start
                texts.add(answer.text)
                json.loads(answer.text)
                if turn:
                    seconds[method, on, index].append(took)
                steps[method, on, index] = list(records)
            if len(texts) != 1:
                sys.exit(f"prompt {index} has {len(texts)} texts: {texts}")
    return [row_of(method, on, seconds, steps) for method in methods for on in (False, True)]


def row_of(method: str, on: bool, seconds: Any, steps: Any) -> dict[str, Any]:
    every = range(len(NOTICES))
    summary = summarize([step for index in every for step in steps[method, on, index]])

    def ratio(base: tuple[str, bool]) -> float:
        logs = [
            math.log(statistics.median(seconds[*base, index]) / statistics.median(seconds[method, on, index]))
            for index in every
        ]
        return math.exp(statistics.fmean(logs))

    return {
        "method": method,
        "forced": on,
        "tokens": summary.num_emitted_tokens,
        "steps": summary.num_steps,
        "tau": summary.tokens_per_target_forward,
        "forced_tokens": summary.num_forced_tokens,
        "accepted_forced_tokens": summary.num_accepted_forced_tokens,
        "times_without_forced": ratio((method, False)),
        "times_plain": ratio(("none", False)),
    }


def parse_all(count: int) -> int:
    """Return how many of so many sampled answers of a tiny model with random weights fit the schema."""
    with tempfile.TemporaryDirectory() as directory:
        target = outrider.load_target(str(write_tiny_model(Path(directory), max_positions=768)), dtype="float32")
        engine = outrider.Engine(target, outrider.load_proposer("suffix", target), max_batch=16)
        params = [params_of(seed, 1.0, 600) for seed in range(count)]
        answers = engine.generate(["Who?"] * count, params)
    return sum(answer.finished == "eos" and fits(json.loads(answer.text)) for answer in answers)


def fits(found: Any) -> bool:
    people = found["people"]
    return (
        list(found) == ["people", "summary_of_the_notice"]
        and len(people) == 2
        and all(list(one) == PERSON["required"] for one in people)
        and all(0 <= one["age_in_years"] <= 120 and len(one["full_name"]) <= 40 for one in people)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="smollm2-135m")
    parser.add_argument("--methods", nargs="*", default=["none", "ngram", "eagle3"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--parse", type=int, default=0)
    given = parser.parse_args()
    if given.parse:
        print(f"{parse_all(given.parse)} of {given.parse} sampled answers fit the schema")
    if not given.methods:
        return
    rows = race(outrider.load_target(given.target), given.methods, given.rounds)
    print("| Method | Forced | Tokens | Steps | tau | Forced accepted | Times as fast as without | as plain |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        accepted = f"{row['accepted_forced_tokens']} of {row['forced_tokens']}" if row["forced"] else "-"
        print(
            f"| {row['method']} | {'yes' if row['forced'] else 'no'} | {row['tokens']} | {row['steps']} "
            f"| {row['tau']:.2f} | {accepted} | {row['times_without_forced']:.2f} | {row['times_plain']:.2f} |"
        )
    print(json.dumps({"schema": "outrider.structured/1", "target": given.target, "rows": rows}))


if __name__ == "__main__":
    main()
