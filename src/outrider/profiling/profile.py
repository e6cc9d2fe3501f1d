"""Measure what steps cost on this machine with this target, and keep it.

The work comes in groups, and each finished group is kept beside the output, in `<output>.unfinished`: the same command
goes on there after an interruption, and the file goes when the result is written. A group is

    bandwidth      how fast memory is read
    sweep I        a forward of every point: batch, rows, context
    LABEL B        a method's steps with B slots: all numbers of nodes, taking turns

Groups of other grids, machines or targets are not used. The result is a `CostFile`, which budgets and `outrider plan`
read; by default it lies where `outrider.costs.calibrate.costs_for` looks for it.

Example: two batches with one method and three repeats are six groups.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, NamedTuple, final

from outrider.costs.bandwidth import memory_bytes_per_s
from outrider.costs.calibrate import check_grid, sweeps
from outrider.costs.calibrate_draft import measure_draft, node_counts
from outrider.costs.identity import Identity, identity_of, profile_path
from outrider.costs.tables import (
    CostFile,
    MeasuredCosts,
    MeasuredDraftCosts,
    joined_draft_costs,
    spread,
    typical_costs,
    write_costs,
)
from outrider.env import PACKAGE
from outrider.env import version as outrider_version
from outrider.errors import RunError
from outrider.profiling.config import Grids, ProfileConfig
from outrider.proposer import Proposer
from outrider.proposers.method_spec import MethodSpec, load_method, method_specs, with_heads
from outrider.records.progress import Listener, Progress, unheard
from outrider.records.provenance import git_state
from outrider.target import Target, TargetSpec
from outrider.targets import target_of

__all__ = ["Profile", "profile"]

PART_SCHEMA: Final = "outrider.profile-part/1"


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The result and where it was written."""

    path: Path
    file: CostFile


def profile(
    config: ProfileConfig,
    listen: Listener = unheard,
    started: Callable[[Path], None] = lambda unfinished: None,
) -> Profile:
    """Measure, or go on measuring.

    Args:
        started: is told where finished groups are kept, before the first is measured.

    Raises:
        ConfigError: for an unknown method, or a point out of range.
        CapacityError: if the largest point does not fit in memory.
        RunError: if the output is another file, or cannot be written.
    """
    choices = method_specs(config.methods)
    target = target_of(config, listen)
    choices = with_heads(choices, target)
    grids, identity = config.grids(target.spec.max_positions), identity_of(target)
    path = profile_path(identity) if config.output is None else config.output
    _check_output(path, identity)
    check_grid(
        target,
        slots=grids.batches,
        rows_per_slot=grids.rows,
        contexts=grids.contexts,
        repeats=grids.repeats,
    )
    drafters = [_Drafter(choice, load_method(choice, target)) for choice in choices]
    kept = _Kept(path.with_name(f"{path.name}.unfinished"), identity, grids)
    started(kept.path)
    file = _Measuring(target, grids, drafters, kept, listen).file(identity)
    file.write(path)
    kept.path.unlink(missing_ok=True)
    return Profile(path=path, file=file)


def _check_output(path: Path, identity: Identity) -> None:
    """Refuse to replace what is not a profile of this machine and target."""
    if not path.exists():
        return
    if differs := identity.difference(CostFile.read(path).identity):
        raise RunError(f"{path} was measured with {differs}; give another --output")


class _Drafter(NamedTuple):
    choice: MethodSpec
    proposer: Proposer

    @property
    def key(self) -> str:
        return json.dumps([self.choice.name, self.choice.settings], sort_keys=True)


@final
class _Kept:
    """Finished groups on disk."""

    def __init__(self, path: Path, identity: Identity, grids: Grids) -> None:
        self.path = path
        self._head = {
            "schema": PART_SCHEMA,
            "identity": asdict(identity),
            "batches": list(grids.batches),
            "rows": list(grids.rows),
            "contexts": list(grids.contexts),
            "repeats": grids.repeats,
        }
        self.groups: dict[str, Any] = self._read()

    def _read(self) -> dict[str, Any]:
        try:
            value = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        same = isinstance(value, dict) and {name: value.get(name) for name in self._head} == self._head
        return dict(value["groups"]) if same else {}

    def keep(self, key: str, plain: Any) -> None:
        self.groups[key] = plain
        write_costs(self.path, json.dumps({**self._head, "groups": self.groups}) + "\n")


@final
class _Measuring:
    """The groups of one profile, in order."""

    def __init__(
        self,
        target: Target,
        grids: Grids,
        drafters: Sequence[_Drafter],
        kept: _Kept,
        listen: Listener,
    ) -> None:
        self._target = target
        self._grids = grids
        self._drafters = drafters
        self._kept = kept
        self._listen = listen
        self._batches = sorted(set(grids.batches))
        self._name = ""
        self._num_done = 0
        self._num_groups = 1 + grids.repeats + len(self._batches) * len(drafters)

    def file(self, identity: Identity) -> CostFile:
        """Measure what is missing, and put all together."""
        bytes_per_s = self._group("bandwidth", "bandwidth", self._bandwidth)["bytes_per_s"]
        sweeps = self._sweeps()
        return CostFile(
            identity=identity,
            target=typical_costs(sweeps),
            drafts={drafter.choice.label: self._drafts(drafter) for drafter in self._drafters},
            facts={
                **_provenance(),
                "memory_bytes_per_s": bytes_per_s,
                **_mixture(self._target.spec),
                "repeats": self._grids.repeats,
                "spread": spread(sweeps) if len(sweeps) > 1 else None,
            },
        )

    def _bandwidth(self) -> Mapping[str, Any]:
        return {"bytes_per_s": memory_bytes_per_s(self._target.spec.device)}

    def _sweeps(self) -> list[MeasuredCosts]:
        grids = self._grids
        endless = sweeps(
            self._target,
            slots=grids.batches,
            rows_per_slot=grids.rows,
            contexts=grids.contexts,
            progress=self._progress,
        )
        numbers = range(1, grids.repeats + 1)
        parts = [
            self._group(f"sweep {number}", f"target, sweep {number}", lambda: next(endless).to_plain())
            for number in numbers
        ]
        return [MeasuredCosts.from_plain(part) for part in parts]

    def _drafts(self, drafter: _Drafter) -> MeasuredDraftCosts:
        label = drafter.choice.label
        parts = [
            self._group(f"{drafter.key} {batch}", f"{label}, batch {batch}", partial(self._draft, drafter, batch))
            for batch in self._batches
        ]
        return joined_draft_costs([MeasuredDraftCosts.from_plain(part, label) for part in parts])

    def _draft(self, drafter: _Drafter, batch: int) -> Mapping[str, Any]:
        return measure_draft(
            self._target,
            drafter.proposer,
            slots=(batch,),
            nodes=node_counts(drafter.proposer),
            repeats=self._grids.repeats,
            progress=self._progress,
        ).to_plain()

    def _group(self, key: str, name: str, measure: Callable[[], Mapping[str, Any]]) -> Any:
        self._name = name
        if key not in self._kept.groups:
            self._progress(0, 1)
            self._kept.keep(key, measure())
        self._num_done += 1
        return self._kept.groups[key]

    def _progress(self, done: int, total: int) -> None:
        self._listen(Progress(self._num_done + done / total, self._num_groups, self._name))


def _mixture(spec: TargetSpec) -> dict[str, Any]:
    """Return the experts whose bytes depend on the rows of a forward, if there are any."""
    return {} if spec.mixture is None else {"mixture": asdict(spec.mixture)}


def _provenance() -> dict[str, Any]:
    git = git_state(PACKAGE)
    return {
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": git.commit,
        "dirty": git.dirty,
        "versions": {"outrider": outrider_version(), "torch": version("torch")},
    }
