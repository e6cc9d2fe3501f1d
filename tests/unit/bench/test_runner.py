"""The runner with contenders that only note what is asked of them: order, state, resuming, and failing disks."""

import errno
import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, final

import pytest

from outrider.bench.cells import Cell, Group, cells_of
from outrider.bench.config import BenchConfig
from outrider.bench.contender import Contender, Name
from outrider.bench.runner import Runner
from outrider.data.dialogue import Rules
from outrider.data.workloads import Conversation
from outrider.errors import RunError
from outrider.records.progress import Progress
from outrider.records.provenance import Manifest, collect_manifest
from outrider.results.store import RunStore
from outrider.results.unit import Answer, UnitResult
from outrider.target import Target
from outrider.targets import load_target
from outrider.testing.directory import write_tiny_model

CONFIG = BenchConfig(num_prompts=2, batches=(1, 2), temperatures=(0.0, 1.0), repeats=2)
WORKLOAD = {
    category: [Conversation(id=f"{category}-{index}", category=category, turns=("hello",)) for index in range(4)]
    for category in ("alpha", "beta")
}


class Call(NamedTuple):
    contender: Name
    verb: str
    group: str = ""


@final
class Noting(Contender):
    """Answers with fixed tokens and keeps a diary; stops the run at the call number `stop_at`."""

    def __init__(self, name: Name, diary: list[Call], *, learns: bool = False, stop_at: int | None = None) -> None:
        self._name = name
        self._learns = learns
        self.diary = diary
        self.stop_at = stop_at
        self.tokens = (1, 2, 3)

    @property
    def name(self) -> Name:
        return self._name

    @property
    def learns(self) -> bool:
        return self._learns

    def takes(self, cell: Cell, index: int) -> bool:
        return True

    def open(self, batch: int) -> None:
        self.diary.append(Call(self.name, "open"))

    def close(self) -> None:
        self.diary.append(Call(self.name, "close"))

    def leave(self) -> None:
        self.diary.append(Call(self.name, "leave"))

    def reset(self) -> None:
        self.diary.append(Call(self.name, "reset"))

    def measure(self, cell: Cell, group: Group, rules: Rules) -> UnitResult:
        if self.stop_at is not None and sum(call.verb == "measure" for call in self.diary) == self.stop_at:
            raise KeyboardInterrupt
        self.diary.append(Call(self.name, "measure", self.name.unit(cell, group)))
        return UnitResult(
            unit=self.name.unit(cell, group),
            engine=self.name.engine,
            method=self.name.method,
            category=cell.category,
            batch=cell.batch,
            temperature=cell.temperature,
            repeat=cell.repeat,
            conversations=tuple(conversation.id for conversation in group),
            answers=tuple(
                Answer(conversation=one.id, turn=0, request=1, seed=0, num_prompt_tokens=5, tokens=self.tokens)
                for one in group
            ),
            wall_s=1.0,
            state=self.name.state,
        )


PLAIN, LEARNER, WARM = (
    Name("outrider", "none"),
    Name("outrider", "learner"),
    Name("outrider", "learner", "warm"),
)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    return load_target(str(write_tiny_model(tmp_path_factory.mktemp("tiny"))), dtype="float64")


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return collect_manifest(seed=0, settings={"repeats": 2}, workload_hash="0" * 64)


def rules_of(cell: Cell) -> Rules:
    return Rules(
        temperature=cell.temperature, repeat=cell.repeat, seed=0, max_new_tokens=4, max_len=100, ignore_eos=False
    )


def runner(
    target: Target, store: RunStore, contenders: Sequence[Contender], seen: list[Progress] | None = None
) -> Runner:
    return Runner(
        target=target,
        contender_groups=[contenders],
        cells=list(cells_of(CONFIG, WORKLOAD)),
        rules_of=rules_of,
        verified=lambda temperature: True,
        store=store,
        listen=(lambda progress: None) if seen is None else seen.append,
    )


def three(diary: list[Call], stop_at: int | None = None) -> list[Contender]:
    learns = {PLAIN: False, LEARNER: True, WARM: True}
    return [Noting(name, diary, learns=learned, stop_at=stop_at) for name, learned in learns.items()]


def measured(diary: list[Call]) -> list[str]:
    return [call.group for call in diary if call.verb == "measure"]


def test_contenders_take_turns_forwards_and_backwards(target: Target, manifest: Manifest, tmp_path: Path) -> None:
    diary: list[Call] = []
    seen: list[Progress] = []
    contenders = [Noting(Name("outrider", method), diary) for method in ("none", "b", "c")]
    with RunStore(tmp_path, manifest) as store:
        runner(target, store, contenders, seen).run()
    order = [call.contender.method for call in diary if call.verb == "measure"]
    groups = [order[start : start + 3] for start in range(0, len(order), 3)]
    assert len(groups) == 2 * 2 * 2 * (2 + 1)  # repeats, temperatures, categories, groups at batch 1 and at batch 2
    assert all(group in (["none", "b", "c"], ["c", "b", "none"]) for group in groups)
    assert all(one != other for one, other in pairwise(groups[:8])), "neighbours differ"
    assert all(one != other for one, other in zip(groups[:8], groups[8:16], strict=True)), "repeats differ"
    assert [progress.done for progress in seen] == list(range(len(order)))
    assert {progress.total for progress in seen} == {len(order)}


def test_engines_of_one_batch_size_are_open_at_a_time(target: Target, manifest: Manifest, tmp_path: Path) -> None:
    diary: list[Call] = []
    with RunStore(tmp_path, manifest) as store:
        runner(target, store, three(diary)).run()
    verbs = [call.verb for call in diary if call.verb in ("open", "close")]
    assert verbs == (["open"] * 3 + ["close"] * 3) * 2


def test_what_learns_forgets_before_each_cell_and_warm_rows_read_other_prompts_first(
    target: Target, manifest: Manifest, tmp_path: Path
) -> None:
    diary: list[Call] = []
    with RunStore(tmp_path, manifest) as store:
        runner(target, store, three(diary)).run()
        kept = set(store.units)
    num_cells = 2 * 2 * 2 * 2
    for name in (PLAIN, LEARNER, WARM):
        own = [call for call in diary if call.contender == name]
        assert sum(call.verb == "reset" for call in own) == num_cells
    learner = [call.group for call in diary if call.contender == LEARNER and call.verb == "measure"]
    warm = [call.group for call in diary if call.contender == WARM and call.verb == "measure"]
    assert len(learner) == len(set(learner))
    taught = [unit for unit in warm if unit not in kept]
    assert len(taught) == len(warm) // 2
    assert all(unit.endswith(("-2", "-3")) for unit in taught)


@pytest.mark.parametrize("stop_at", [0, 1, 2, 3, 4, 5, 11, 30, 71])
def test_a_run_stopped_anywhere_goes_on_and_keeps_every_unit_once(
    stop_at: int, target: Target, manifest: Manifest, tmp_path: Path
) -> None:
    first: list[Call] = []
    with RunStore(tmp_path, manifest) as store, pytest.raises(KeyboardInterrupt):
        runner(target, store, three(first, stop_at)).run()
    with RunStore(tmp_path, manifest) as store:
        before = set(store.units)
        second: list[Call] = []
        runner(target, store, three(second)).run()
        lines = (tmp_path / "units.jsonl").read_text().splitlines()
        assert len(lines) == len(store.units) == runner(target, store, three([])).num_units
    again = [unit for unit in measured(second) if unit in before]
    assert not [unit for unit in again if unit.startswith("none/")], "what does not learn is never run again"
    whole: list[Call] = []
    with RunStore(tmp_path / "whole", manifest) as store:
        runner(target, store, three(whole)).run()
    for name in (LEARNER, WARM):
        assert histories(first + second, name) == histories(whole, name), "state at each unit is that of one run"


def histories(diary: list[Call], name: Name) -> dict[str, list[str]]:
    """For each measured unit, what the contender had read since its last reset."""
    found: dict[str, list[str]] = {}
    since: list[str] = []
    for call in diary:
        if call.contender == name and call.verb in ("reset", "open"):
            since = []
        elif call.contender == name and call.verb == "measure":
            found[call.group] = list(since)
            since.append(call.group)
    return found


def test_a_torn_last_line_is_measured_again(target: Target, manifest: Manifest, tmp_path: Path) -> None:
    with RunStore(tmp_path, manifest) as store:
        runner(target, store, three([])).run()
    path = tmp_path / "units.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][: len(lines[-1]) // 2])
    (tmp_path / "verdicts.jsonl").write_bytes(b"")
    diary: list[Call] = []
    with RunStore(tmp_path, manifest) as store:
        assert len(store.units) == len(lines) - 1
        runner(target, store, [Noting(name, diary) for name in (PLAIN, LEARNER, WARM)]).run()
        assert len(measured(diary)) == 1
        assert all(answer.verdict for unit in store.units.values() if unit.method != "none" for answer in unit.answers)
    assert path.read_bytes().count(b"\n") == len(lines)


def test_a_full_disk_keeps_what_is_finished(
    target: Target, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync
    with RunStore(tmp_path, manifest) as store:
        syncs = 0

        def full(descriptor: int) -> None:
            nonlocal syncs
            syncs += 1
            if syncs > 7:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(descriptor)

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(RunError, match=r"No space left on device.*run the same command again"):
            runner(target, store, three([])).run()
        monkeypatch.setattr(os, "fsync", real)
    finished = (tmp_path / "units.jsonl").read_text().splitlines()
    assert 0 < len(finished) <= 7
    diary: list[Call] = []
    with RunStore(tmp_path, manifest) as store:
        assert len(store.units) == len(finished)
        runner(target, store, three(diary)).run()
    assert len((tmp_path / "units.jsonl").read_text().splitlines()) == 72


def test_texts_that_differ_from_plain_decoding_are_violations(
    target: Target, manifest: Manifest, tmp_path: Path
) -> None:
    right, wrong = Noting(Name("outrider", "right"), []), Noting(Name("outrider", "wrong"), [])
    wrong.tokens = (1, 2, 4)
    with RunStore(tmp_path, manifest) as store:
        runner(target, store, [Noting(PLAIN, []), right, wrong]).run()
        kinds = {
            unit.method: {answer.verdict.kind for answer in unit.answers if answer.verdict}
            for unit in store.units.values()
        }
    assert kinds == {"none": set(), "right": {"exact"}, "wrong": {"violation"}}
    with RunStore(tmp_path, manifest) as store:
        assert all(answer.verdict for unit in store.units.values() if unit.method == "wrong" for answer in unit.answers)


def test_casts_follow_each_other_and_every_contender_leaves(target: Target, manifest: Manifest, tmp_path: Path) -> None:
    diary: list[Call] = []
    first, second = (Noting(Name("outrider", method), diary) for method in ("none", "b"))
    with RunStore(tmp_path, manifest) as store:
        runner(target, store, [first]).run()
        contender_groups = runner(target, store, [first])
        contender_groups.contender_groups = [[first], [second]]
        contender_groups.run()
    leaves = [at for at, call in enumerate(diary) if call.verb == "leave"]
    assert [diary[at].contender.method for at in leaves] == ["none", "none", "b"]
    assert all(call.contender.method == "none" for call in diary[: leaves[1]])
    assert not [call for call in diary[leaves[0] + 1 : leaves[1]] if call.verb in ("open", "measure")]


def test_contenders_leave_when_a_run_is_cut_short(target: Target, manifest: Manifest, tmp_path: Path) -> None:
    diary: list[Call] = []
    with RunStore(tmp_path, manifest) as store, pytest.raises(KeyboardInterrupt):
        runner(target, store, three(diary, stop_at=4)).run()
    assert {call.contender for call in diary if call.verb == "leave"} == {PLAIN, LEARNER, WARM}
