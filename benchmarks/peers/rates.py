"""Prompts of 512 tokens and tokens one by one: `llama-bench` beside Outrider on the same file.

    pp512   a prompt of 512 tokens; tokens per second
    tg64    64 tokens one by one, from an empty context; tokens per second

`llama-bench` needs no server and reads no text, so its figure stands where a server crashes. Rounds alternate: each
build of llama.cpp, then Outrider, and backwards. Outrider's prompt ends with its first token. The rates of a file are
kept in `OUTPUT/FILE/rates.json`, and are not measured again.

Example: `{"llama.cpp": {"pp512": [602.1, 598.4], "tg64": [97.3, 98.0]}, "outrider": {"pp512": [811.0, 820.5]}}`.
"""

import json
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter, sleep

from figures import OURS
from race import PAUSE_S

import outrider
from outrider.errors import RunError
from outrider.proposers.method_spec import load_method, method_specs
from outrider.records.files import write_text
from outrider.sampling import SamplingParams

PROMPT_TOKENS, NEW_TOKENS = 512, 64
PROMPT, TOKENS = f"pp{PROMPT_TOKENS}", f"tg{NEW_TOKENS}"
TIMEOUT_S = 300.0

Rates = dict[str, dict[str, list[float] | str]]


def rates_of(path: Path) -> Rates:
    """Return the rates of a file by engine and test, or why there is none; empty before they are measured."""
    found: Rates = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def measure_rates(output: Path, programs: Mapping[str, Path], file: Path, threads: int, rounds: int) -> Rates:
    """Measure every engine in turn, `rounds` times; keep the result in a folder.

    Args:
        programs: engine -> its `llama-bench`.
    """
    path = output / "rates.json"
    if path.exists():
        return rates_of(path)
    ours = prompt_rate(file)
    ours()  # warm-up
    tests: list[tuple[str, str, Callable[[], float]]] = [(OURS, PROMPT, ours)]
    for name, binary in programs.items():
        for test in (PROMPT, TOKENS):
            tests.append((name, test, lambda binary=binary, test=test: bench(binary, file, test, threads)))
    found = _rounds(tests, rounds)
    write_text(path, json.dumps(found) + "\n")
    return found


def prompt_rate(file: Path) -> Callable[[], float]:
    """Return a function that reads a prompt, and returns Outrider's tokens per second."""
    target = outrider.load_target(str(file))
    engine = outrider.Engine(target, load_method(method_specs(["none"])[0], target), max_len=2 * PROMPT_TOKENS)
    prompt = [token + 100 for token in range(PROMPT_TOKENS)]

    def measure() -> float:
        engine.reset()
        sleep(PAUSE_S)
        start = perf_counter()
        engine.generate([prompt], SamplingParams(max_tokens=1, ignore_eos=True))
        return PROMPT_TOKENS / (perf_counter() - start)

    return measure


def bench(binary: Path, file: Path, test: str, threads: int) -> float:
    """Return the tokens per second of one run of `llama-bench`.

    Raises:
        RunError: if it crashes.
    """
    sizes = ["-p", str(PROMPT_TOKENS), "-n", "0"] if test == PROMPT else ["-p", "0", "-n", str(NEW_TOKENS)]
    command = [str(binary), "-m", str(file), "-t", str(threads), *sizes, "-r", "1", "-o", "json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RunError(f"llama-bench did not run: {error}") from None
    if done.returncode:
        raise RunError(f"crashed: llama-bench ended with {done.returncode}")
    return float(json.loads(done.stdout)[0]["avg_ts"])


def _rounds(tests: list[tuple[str, str, Callable[[], float]]], rounds: int) -> Rates:
    found: Rates = {}
    for number in range(rounds):
        for engine, test, measure in tests if number % 2 == 0 else reversed(tests):
            sofar = found.setdefault(engine, {}).setdefault(test, [])
            if isinstance(sofar, str):
                continue  # it crashed before
            try:
                sofar.append(measure())
            except RunError as error:
                found[engine][test] = str(error)
    return found
