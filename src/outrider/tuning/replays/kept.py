"""Finished parts of a tuning run, on disk: prompts, answers and replays; each file is whole or absent.

    manifest.json    where the run comes from
    prompts.jsonl    the prompts that count, as `outrider bench --prompts` reads them
    answers.json     tokens of every answer, as far as they are written
    replays.json     right tokens at every position, and steps of trees and of methods that learn
    shortlist.json   the choices to verify
    verify/          the benchmark's own run (`outrider.results.store`)
    report.json      the result; its presence says that the run is finished

Feature states are not kept: a run that goes on reads each answer once to have them.

Example: `RunFiles(Path("runs/x")).replays` is empty in a new run.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, final

from outrider.data.workloads import Conversation
from outrider.errors import RunError
from outrider.metrics import SlotStep
from outrider.records.codec import parsed
from outrider.records.files import write_text, writing
from outrider.records.provenance import Manifest, manifest_from_json, manifest_to_json
from outrider.results.store import difference
from outrider.tuning.replays.replay import Key, Reach, Walk
from outrider.tuning.replays.texts import Text

__all__ = ["Answers", "Replays", "RunFiles"]

MANIFEST: Final = "manifest.json"
PROMPTS: Final = "prompts.jsonl"
ANSWERS: Final = "answers.json"
REPLAYS: Final = "replays.json"
SHORTLIST: Final = "shortlist.json"
REPORT: Final = "report.json"
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
        started = manifest_from_json(path.read_text(encoding="utf-8"))
        if differs := difference(started, manifest):
            raise RunError(
                f"{self.directory} was started with {differs}; tune with the same settings or give a new --run-dir"
            )
        return started

    def keep_prompts(self, conversations: Sequence[Conversation]) -> None:
        """Keep the prompts that count."""
        self._write(PROMPTS, "\n".join(json.dumps(asdict(one), ensure_ascii=False) for one in conversations))

    def keep_answers(self, kept: Answers) -> None:
        """Keep answers in place of earlier ones."""
        answers = [[id, turn, list(tokens)] for id, turns in kept.tokens.items() for turn, tokens in turns.items()]
        whole = {"ids": list(kept.tokens), "answers": answers, "complete": kept.complete, "prefill_s": kept.prefill_s}
        self._write(ANSWERS, json.dumps(whole))

    def answers(self) -> Answers:
        """Return what `keep_answers` kept; nothing in a new run."""
        plain = self._read(ANSWERS)
        found = Answers(complete=bool(plain.get("complete", plain)), prefill_s=float(plain.get("prefill_s", 0.0)))
        found.tokens.update((str(id), {}) for id in plain.get("ids", []))
        for id, turn, tokens in plain.get("answers", []):
            found.tokens[id][turn] = tuple(tokens)
        return found

    def prompt_ids(self) -> frozenset[str]:
        """Return the ids of the prompts that count; none in a new run."""
        path = self.directory / PROMPTS
        lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
        return frozenset(str(parsed(line, str(path))["id"]) for line in lines if line.strip())

    def replays(self, texts: Mapping[Key, Text]) -> Replays:
        """Return the finished replays along these answers."""
        found, plain = Replays(), self._read(REPLAYS)
        for base, reaches in plain.get("reaches", {}).items():
            found.reaches[base] = {(id, turn): Reach(tuple(a), tuple(b)) for id, turn, a, b in reaches}
        for setting, by_batch in plain.get("walks", {}).items():
            found.walks[setting] = {
                int(batch): {(id, turn): _walk(texts[id, turn], steps) for id, turn, steps in walks}
                for batch, walks in by_batch.items()
            }
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

    def shortlist(self) -> dict[str, Any]:
        """Return what `keep_shortlist` kept; empty in a new run."""
        return self._read(SHORTLIST)

    def keep_shortlist(self, plain: Mapping[str, Any]) -> None:
        """Keep the choices to verify, so that a run goes on with the same."""
        self._write(SHORTLIST, json.dumps(plain))

    def finish(self, report: str) -> None:
        """Write the result."""
        self._write(REPORT, report)

    def _write(self, name: str, text: str) -> None:
        write_text(self.directory / name, text + "\n", REMEDY)

    def _read(self, name: str) -> dict[str, Any]:
        path = self.directory / name
        if not path.exists():
            return {}
        value = parsed(path.read_text(encoding="utf-8"), str(path))
        if not isinstance(value, dict):
            raise RunError(f"{path} is damaged; delete it and run the same command again")
        return value


def _plain(walk: Walk) -> list[list[int]]:
    return [[step.num_nodes, step.draft_depth, step.num_accepted, step.num_emitted] for step in walk]


def _walk(text: Text, steps: Sequence[Sequence[int]]) -> Walk:
    place, found = 0, list[SlotStep]()
    for nodes, depth, accepted, emitted in steps:
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
