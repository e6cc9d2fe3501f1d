"""Finished parts of a tuning run, on disk: prompts, answers and replays; each file is whole or absent.

    manifest.json    where the run comes from
    counted.json     ids of the prompts that count
    prompts.jsonl    these prompts, as `outrider bench --prompts` reads them; written, never read
    answers.json     tokens of every answer, as far as they are written
    replays.json     right tokens at every position, and steps of trees and of methods that learn
    shortlist.json   the choices to verify
    verify/          the benchmark's own run (`outrider.results.store`)
    report.json      the result; its presence says that the run is finished

Feature states are not kept: a run that goes on reads each answer once to have them.

Example: `RunFiles(Path("runs/x")).replays` is empty in a new run.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar, final

from outrider.data.workloads import Conversation
from outrider.errors import RunError, on_one_line
from outrider.metrics import SlotStep
from outrider.records.files import write_text, writing
from outrider.records.json_fields import Fields, read_json
from outrider.records.provenance import Manifest, manifest_from_json, manifest_to_json
from outrider.results.store import difference
from outrider.tuning.replays.replay import Key, Reach, Walk
from outrider.tuning.replays.texts import Text

__all__ = ["Answers", "Replays", "RunFiles"]

T = TypeVar("T")

MANIFEST: Final = "manifest.json"
COUNTED: Final = "counted.json"
PROMPTS: Final = "prompts.jsonl"
ANSWERS: Final = "answers.json"
REPLAYS: Final = "replays.json"
SHORTLIST: Final = "shortlist.json"
REPORT: Final = "report.json"
DELETE: Final = "delete it and run the same command again"
REMEDY: Final = "free space or give another --run-dir"
ANY: Final = 0
"""Number of requests of steps that are the same for all."""


class Replays:
    """Replays that are finished.

    reaches  by family and answer
    walks    by setting, number of requests (`ANY` where it makes no difference) and answer
    """

    def __init__(self) -> None:
        self.reaches: dict[str, dict[Key, Reach]] = {}
        self.walks: dict[str, dict[int, dict[Key, Walk]]] = {}


@dataclass
class Answers:
    """Answers of the target.

    tokens      by conversation and turn
    complete    False while more may be written
    prefill_s   seconds that reading their prompts took
    """

    tokens: dict[str, dict[int, tuple[int, ...]]] = field(default_factory=dict)
    complete: bool = False
    prefill_s: float = 0.0


@final
class RunFiles:
    """The directory of a run.

    Raises:
        RunError: if it belongs to a run with other settings, or cannot be written.
    """

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self.directory = directory.absolute()
        with writing(self.directory, REMEDY):
            self.directory.mkdir(parents=True, exist_ok=True)
        self.manifest = self._adopt(manifest)

    def _adopt(self, manifest: Manifest) -> Manifest:
        path = self.directory / MANIFEST
        if not path.exists():
            self._write(MANIFEST, manifest_to_json(manifest))
            return manifest
        try:
            started = manifest_from_json(path.read_text(encoding="utf-8"))
        except (RunError, OSError, ValueError) as error:
            flaw = on_one_line(str(error).partition(";")[0])
            raise RunError(f"{path} cannot be read ({flaw}); give a new --run-dir") from error
        if differs := difference(started, manifest):
            raise RunError(
                f"{self.directory} was started with {differs}; tune with the same settings or give a new --run-dir"
            )
        return started

    def counted(self, usable: Sequence[Conversation], most: int) -> tuple[Conversation, ...]:
        """Choose the prompts that count and keep them, so that a run goes on with the same, whatever time it is given.

        Args:
            usable: prompts with answers that may count.
            most: number of prompts in a new run.
        """
        before = self._counted_ids()
        found = tuple(one for one in usable if one.id in before) or tuple(usable[:most])
        ids = [one.id for one in found]
        self._write(COUNTED, json.dumps({"ids": ids, "sha256": _digest(ids)}))
        self._write_prompts(found)
        return found

    def _counted_ids(self) -> frozenset[str]:
        kept = self._read(COUNTED)
        if kept is None:
            return frozenset()
        ids = kept.texts("ids")
        if kept.text("sha256") != _digest(ids):
            raise RunError(f"{kept.where} was changed: its digest is another; {DELETE}")
        return frozenset(ids)

    def _write_prompts(self, conversations: Sequence[Conversation]) -> None:
        self._write(PROMPTS, "\n".join(json.dumps(asdict(one), ensure_ascii=False) for one in conversations))

    def keep_answers(self, kept: Answers) -> None:
        """Keep answers in place of earlier ones."""
        answers = [[id, turn, list(tokens)] for id, turns in kept.tokens.items() for turn, tokens in turns.items()]
        whole = {"ids": list(kept.tokens), "answers": answers, "complete": kept.complete, "prefill_s": kept.prefill_s}
        self._write(ANSWERS, json.dumps(whole))

    def answers(self) -> Answers:
        """Return what `keep_answers` kept; nothing in a new run."""
        kept = self._read(ANSWERS)
        if kept is None:
            return Answers()
        found = Answers(complete=kept.flag("complete", True), prefill_s=kept.number("prefill_s", 0.0))
        found.tokens.update((id, {}) for id in kept.texts("ids"))
        try:
            for id, turn, tokens in kept.array("answers"):
                found.tokens[id][int(turn)] = tuple(_counts(tokens))
        except (KeyError, TypeError, ValueError) as error:  # values of other kinds than this file holds
            raise RunError(f"{kept.where} is damaged ({on_one_line(str(error))}); {DELETE}") from error
        return found

    def replays(self, texts: Mapping[Key, Text]) -> Replays:
        """Return the finished replays along these answers; one along others counts as not made."""
        found, kept = Replays(), self._read(REPLAYS)
        if kept is None:
            return found
        try:
            for base, reaches in kept.section("reaches").items():
                along = {(id, turn): Reach(_counts(lengths), _counts(right)) for id, turn, lengths, right in reaches}
                if _fits(along, texts, _is_reach):
                    found.reaches[base] = along
            for setting, by_batch in kept.section("walks").items():
                walks = {
                    int(batch): {
                        (id, turn): _walk(texts[id, turn], steps) for id, turn, steps in walks if (id, turn) in texts
                    }
                    for batch, walks in by_batch.items()
                }
                if walks and all(_fits(along, texts, _is_walk) for along in walks.values()):
                    found.walks[setting] = walks
        except (AttributeError, TypeError, ValueError) as error:  # values of other kinds than this file holds
            raise RunError(f"{kept.where} is damaged ({on_one_line(str(error))}); {DELETE}") from error
        return found

    def keep_replays(self, replays: Replays) -> None:
        """Keep replays in place of earlier ones."""
        reaches = {
            base: [[*key, list(reach.lengths), list(reach.right)] for key, reach in found.items()]
            for base, found in replays.reaches.items()
        }
        walks = {
            setting: {batch: [[*key, _plain(walk)] for key, walk in found.items()] for batch, found in by_batch.items()}
            for setting, by_batch in replays.walks.items()
        }
        self._write(REPLAYS, json.dumps({"reaches": reaches, "walks": walks}))

    def shortlist(self) -> Fields | None:
        """Return what `keep_shortlist` kept; None in a new run."""
        return self._read(SHORTLIST)

    def keep_shortlist(self, plain: Mapping[str, Any]) -> None:
        """Keep the choices to verify, so that a run goes on with the same."""
        self._write(SHORTLIST, json.dumps(plain))

    def finish(self, report: str) -> None:
        """Write the result."""
        self._write(REPORT, report)

    def _write(self, name: str, text: str) -> None:
        write_text(self.directory / name, text + "\n", REMEDY)

    def _read(self, name: str) -> Fields | None:
        path = self.directory / name
        return read_json(path, RunError, DELETE) if path.exists() else None


def _digest(ids: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()


def _counts(values: Any) -> tuple[int, ...]:
    """
    Raises:
        ValueError: if these are no counts.
    """
    if any(type(value) is not int or value < 0 for value in values):
        raise ValueError("it holds something else where counts belong")
    return tuple(values)


def _fits(along: Mapping[Key, T], texts: Mapping[Key, Text], is_along: Callable[[T, int], bool]) -> bool:
    """Return whether these are replays along exactly these answers."""
    return along.keys() == texts.keys() and all(
        is_along(one, len(texts[key].known.answer)) for key, one in along.items()
    )


def _is_reach(reach: Reach, num_tokens: int) -> bool:
    return len(reach.lengths) == len(reach.right) == num_tokens


def _is_walk(walk: Walk, num_tokens: int) -> bool:
    return sum(step.num_emitted for step in walk) == num_tokens and all(
        step.num_accepted <= min(step.num_nodes, step.num_emitted) and step.num_emitted > 0 for step in walk
    )


def _plain(walk: Walk) -> list[list[int]]:
    return [[step.num_nodes, step.draft_depth, step.num_accepted, step.num_emitted] for step in walk]


def _walk(text: Text, steps: Sequence[Sequence[int]]) -> Walk:
    place, found = 0, list[SlotStep]()
    for nodes, depth, accepted, emitted in map(_counts, steps):
        found.append(
            SlotStep(
                request=0,
                context_length=len(text.known.prompt) + place,
                num_nodes=nodes,
                draft_depth=depth,
                num_accepted=accepted,
                num_emitted=emitted,
                finished=place + emitted == len(text.known.answer),
            )
        )
        place += emitted
    return tuple(found)
