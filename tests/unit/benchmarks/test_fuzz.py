"""The driver of damaged inputs: seeds repeat, and each way to fail is told apart."""

import importlib
import inspect
import random
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT))

from benchmarks.fuzz import __main__ as fuzz  # noqa: E402
from benchmarks.fuzz import child, driver, mutate  # noqa: E402
from benchmarks.fuzz.kinds import KINDS, shares  # noqa: E402

from outrider.errors import CheckpointError  # noqa: E402

OBJECT = {"a": [1, 2, {"b": "text"}], "c": None, "d": 0.5}


def test_a_seed_gives_the_same_input_again() -> None:
    for seed in range(200):
        first, again = (mutate.json_text(mutate.mutate_json(OBJECT, rng), rng) for rng in _twins(seed))
        assert first == again
        first, again = (mutate.mutate_bytes(b"0123456789" * 9, rng) for rng in _twins(seed))
        assert first == again
    assert OBJECT == {"a": [1, 2, {"b": "text"}], "c": None, "d": 0.5}


def _twins(seed: int) -> tuple[random.Random, random.Random]:
    return driver.rng_of("config", seed), driver.rng_of("config", seed)


def test_outcomes() -> None:
    def refuse(message: str) -> child.Use:
        def kind(rng: random.Random, directory: Path) -> None:
            raise CheckpointError(message)

        return kind

    def crash(rng: random.Random, directory: Path) -> None:
        raise KeyError("x")

    rng = random.Random(0)
    assert child.attempt(lambda rng, directory: None, rng) == "taken"
    assert child.attempt(refuse("config.json is damaged; download it again"), rng) == "refused"
    assert child.attempt(crash, rng).startswith("KeyError \"'x'\" at test_fuzz.py:")
    assert "not printable" in child.attempt(refuse("config.json holds \x1b[31m"), rng)
    assert "a message of 2 characters" in child.attempt(refuse("no"), rng)


def test_a_process_that_dies_or_hangs_is_a_failure_of_its_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "child.py"
    script.write_text(
        "import os, sys, time\n"
        "first, num = int(sys.argv[-2]), int(sys.argv[-1])\n"
        "print('ready', flush=True)\n"
        "for seed in range(first, first + num):\n"
        "    if seed == 2: os._exit(9)\n"
        "    if seed == 4: time.sleep(600)\n"
        "    print('taken' if seed % 2 else 'refused', flush=True)\n"
    )
    popen = subprocess.Popen
    monkeypatch.setattr(
        driver.subprocess, "Popen", lambda command, **rest: popen([sys.executable, script, *command[3:]], **rest)
    )
    tally = driver.run_kind("config", range(6), timeout=12.0)
    assert (tally.accepted, tally.refused) == (3, 1)
    assert [(failure.seed, failure.reason) for failure in tally.failures] == [
        (2, "died: status 9"),
        (4, "no answer within 12 s"),
    ]


def test_memory_beyond_the_bound_is_a_failure_and_another_process_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "child.py"
    script.write_text(
        "import sys\n"
        "first, num = int(sys.argv[-2]), int(sys.argv[-1])\n"
        "data = b'x' * (200 << 20 if first <= 1 else 1)\n"
        "print('ready', flush=True)\n"
        "for seed in range(first, first + num):\n"
        "    print('taken' if seed != 1 else 'peak memory 9 MiB (taken)', flush=True)\n"
        "    if seed == 1: break\n"
    )
    popen = subprocess.Popen
    monkeypatch.setattr(
        driver.subprocess, "Popen", lambda command, **rest: popen([sys.executable, script, *command[3:]], **rest)
    )
    tally = driver.run_kind("config", range(4), timeout=60.0)
    assert (tally.accepted, [failure.seed for failure in tally.failures]) == (3, [1])
    assert tally.peak_bytes > 200 << 20  # Linux counts what the process was forked from


def test_all_inputs_are_shared_out() -> None:
    for num in (1, 37, 10_000):
        found = shares(num, sorted(KINDS))
        assert sum(found.values()) == num
        assert found.keys() == KINDS.keys()
    weights = {name: kind.weight for name, kind in KINDS.items()}
    assert all(
        abs(shares(10_000, sorted(KINDS))[name] - 1e4 * w / sum(weights.values())) < 1 for name, w in weights.items()
    )
    assert shares(7, ["config"]) == {"config": 7}


def test_a_record_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, range]] = []

    def run(kind: str, seeds: range, timeout: float) -> driver.Tally:
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append((kind, seeds))
        return driver.Tally(
            kind, accepted=len(seeds) - 1, failures=[driver.Failure(seeds[0], "it failed")], seconds=1.0
        )

    monkeypatch.setattr(fuzz, "run_kind", run)
    monkeypatch.setattr(fuzz, "PART", 3)
    words = ["fuzz", "--kinds", "config", "--num", "8", "--record", str(tmp_path / "record.jsonl")]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(KeyboardInterrupt):
        fuzz.main()
    assert asked == [("config", range(3)), ("config", range(3, 6))]
    asked.clear()
    assert fuzz.main() == 1
    assert asked == [("config", range(6, 8))]
    monkeypatch.setattr(sys, "argv", [*words, "--seed", "1"])
    with pytest.raises(SystemExit, match="give another --record"):
        fuzz.main()


def test_every_kind_is_a_function() -> None:
    for kind in KINDS.values():
        module, _, name = kind.place.partition(":")
        function = getattr(importlib.import_module(module), name)
        assert [*inspect.signature(function).parameters] == ["rng", "directory"], kind.place
