"""Where memory ends, one sentence says what was asked, what is free and what fits; that setting then works."""

import os
import pickle
import re
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.engine import Engine
from outrider.errors import CapacityError
from outrider.loop import memory
from outrider.loop.free_memory import allocating, cgroup_left, free_bytes
from outrider.loop.memory import MemoryPlan, check_fits
from outrider.params import SamplingParams
from outrider.proposers.none import NoProposer
from outrider.targets import load_target
from outrider.testing import tiny_target
from outrider.testing.directory import write_tiny_model

CPU = torch.device("cpu")
MIB = 2**20


def below_limit(num_bytes: int, work: Callable[[], Any]) -> Any:
    """What a function returns, or the sentence of its CapacityError, in a process that may take so many bytes more."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            limit = psutil.Process().memory_info().data + num_bytes
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
            try:
                found = work()
            except BaseException as error:
                found = f"{type(error).__name__}: {error}"
            with os.fdopen(writer, "wb") as pipe:
                pickle.dump(found, pipe)
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        data = pipe.read()
    os.waitpid(child, 0)
    return pickle.loads(data)


def settings_in(sentence: str) -> list[dict[str, int]]:
    """The alternatives that a sentence says would fit, as arguments of an engine."""
    remedy = sentence.rpartition("; ")[2]
    kept = {"prefix_cache_bytes": 0} if "with prefix_cache_bytes=0" in remedy else {}
    found = [re.findall(r"(max_batch|max_len|prefix_cache_bytes)=(\d+)", part) for part in remedy.split(" or ")]
    return [{name: int(number) for name, number in pairs} | kept for pairs in found if pairs]


@settings(max_examples=50, deadline=None)
@given(
    slots=st.integers(1, 40), length=st.integers(2, 96), share=st.floats(0.0, 0.999), kept=st.sampled_from([0, 5000])
)
def test_every_setting_that_is_said_to_fit_does_and_a_larger_one_does_not(
    slots: int, length: int, share: float, kept: int
) -> None:
    target = tiny_target(dtype=torch.float32)
    asked = {"max_batch": slots, "max_len": length, "prefix_cache_bytes": kept}

    def needed(**settings: int) -> int:
        given = asked | settings
        return MemoryPlan.of(
            target, NoProposer(), given["max_batch"], given["max_len"], None, given["prefix_cache_bytes"]
        ).new_bytes

    free = int(share * needed())
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(memory, "free_bytes", lambda device: free)
        with pytest.raises(CapacityError) as refused:
            check_fits(MemoryPlan.of(target, NoProposer(), slots, length, None, kept), CPU)
    said = str(refused.value)
    for one in settings_in(said):
        assert needed(**one) <= free
        for name, number in one.items():
            alone = [other for other in one if other != "prefix_cache_bytes"] or [*one]
            if number < asked[name] and alone == [name]:
                assert needed(**one | {name: number + 1}) > free
    if not settings_in(said):
        assert needed(max_batch=1, max_len=2, prefix_cache_bytes=0) > free
        assert "no setting fits beside the weights" in said


def test_an_engine_below_a_real_limit_names_what_fits_and_that_decodes() -> None:
    target = tiny_target(dtype=torch.float32, max_positions=4096)

    def opened(**settings: int) -> str:
        engine = Engine(target, NoProposer(), **{"max_batch": 256, "prefix_cache_bytes": 0} | settings)
        [answer] = engine.generate([5, 6, 7], SamplingParams(max_tokens=3, ignore_eos=True))
        return str(answer.tokens)

    wanted = opened(max_batch=1)
    said = below_limit(80 * MIB, opened)
    assert said.startswith("CapacityError: max_batch=256 with max_len=4096 needs ")
    alternatives = settings_in(said)
    assert [[*one] for one in alternatives] == [["max_batch"], ["max_len"]]
    for one in alternatives:
        # what is free was told before this process allocated anything else
        less = {name: number * 9 // 10 for name, number in one.items()}
        assert below_limit(80 * MIB, lambda less=less: opened(**less)) == wanted


def test_a_target_below_a_real_limit_names_the_weights_that_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_tiny_model(
        tmp_path / "m", dtype=torch.float32, hidden_size=512, intermediate_size=2048, num_layers=6, head_dim=32
    )

    def loaded(weights: str, dtype: str) -> str:
        return load_target(str(model), weights=weights, dtype=dtype).spec.weights  # type: ignore[arg-type]

    monkeypatch.setenv("OUTRIDER_CACHE", str(tmp_path / "cache"))
    loaded("int4", "bfloat16")  # kernels are compiled and imported before memory is short
    said = below_limit(190 * MIB, lambda: loaded("bf16", "float32"))
    assert re.match(rf"CapacityError: loading {model} with weights='bf16' in float32 needs more memory than the ", said)
    assert "; use weights='int4' and dtype='bfloat16'" in said
    assert not below_limit(190 * MIB, lambda: loaded("int4", "bfloat16")).startswith("CapacityError")


def test_limits_of_containers_and_services_count(tmp_path: Path) -> None:
    def group(path: str, **files: str) -> None:
        (tmp_path / path).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (tmp_path / path / name.replace("__", ".")).write_text(text)

    member = tmp_path / "cgroup"
    member.write_text("0::/a.slice/b\n")
    assert cgroup_left(tmp_path, member) is None
    group("a.slice", memory__max="5000\n", memory__current="3000\n", memory__stat="anon 1\ninactive_file 500\n")
    group("a.slice/b", memory__max="max\n", memory__current="9\n", memory__stat="inactive_file 0\n")
    assert cgroup_left(tmp_path, member) == 2500
    group(".", memory__max="1000\n", memory__current="400\n", memory__stat="inactive_file 0\n")
    assert cgroup_left(tmp_path, member) == 600  # a container sees its own group as the root
    old = tmp_path / "v1"
    (old / "memory" / "x").mkdir(parents=True)
    for name, text in (("limit_in_bytes", "800"), ("usage_in_bytes", "700"), ("stat", "total_inactive_file 50")):
        (old / "memory" / "x" / f"memory.{name}").write_text(text)
    member.write_text("5:cpu:/y\n4:memory:/x\n")
    assert cgroup_left(old, member) == 150


def test_limits_of_the_process_count() -> None:
    assert free_bytes(CPU) > 200 * MIB
    assert below_limit(100 * MIB, lambda: free_bytes(CPU)) <= 100 * MIB


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        OSError(12, "x"),
    ],
)
def test_an_allocation_that_fails_in_spite_of_the_plan_is_one_sentence(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tiny_target(dtype=torch.float32)

    def full(*args: object) -> None:
        raise error

    monkeypatch.setattr(type(target), "open", full)
    said = r"an engine \(target weights .* needs more memory than the .* are free .*; use max_batch=2 or max_len=48"
    with pytest.raises(CapacityError, match=said):
        Engine(target, NoProposer(), max_batch=4, prefix_cache_bytes=0)
    with pytest.raises(ValueError, match="else"), allocating("x", "y", CPU):
        raise ValueError("something else")
