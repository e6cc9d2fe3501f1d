"""Measure what a draft costs: proposing and observing, by method, number of nodes and slots.

    python benchmarks/drafts.py [--methods eagle3,mtp] [--nodes 1,2,4] [--slots 1,4] [--repeats 15] [--columns 8192]

The heads have random weights of the shapes that training gives them; what they draft is nonsense, what it costs is not.
A cycle is that of the engine: propose, one target forward, observe. Every slot is told that half its draft was
accepted. All cases are interleaved, with the plain forward of one row per slot among them, and medians are printed: the
draft's milliseconds and c, their ratio to the plain forward of as many slots. The last line is JSON.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from outrider.data.texts import Corpus
from outrider.draft import Draft
from outrider.formats.token_ranking import rank_tokens, write_ranking
from outrider.noise import Stream
from outrider.proposer import Commit, DraftLimit, Proposer, SessionPlan
from outrider.proposers import load_proposer
from outrider.sampling import SamplingParams
from outrider.target import Target
from outrider.targets import load_target
from outrider.train.objective import OBJECTIVES, Teacher

PROMPT, MAX_LEN, WARM = 64, 1024, 3


@dataclass(frozen=True, kw_only=True)
class Drafter:
    """A head to train for no step at all, and the way to load it."""

    objective: str
    settings: dict[str, Any]
    load: dict[str, Any]
    per_nodes: Callable[[int], dict[str, Any]]


def drafters(columns: int) -> dict[str, Drafter]:
    """Return the methods with weights, as the README recommends them, and a tree of EAGLE-3 beside its chain."""
    eagle3 = {"draft_vocab": columns, "num_depths": 4}
    layers = {"layers": "0,1,29"}
    chain: Callable[[int], dict[str, Any]] = lambda nodes: {"num_nodes": nodes}  # noqa: E731
    tree: Callable[[int], dict[str, Any]] = lambda nodes: {"num_nodes": nodes, "width": 4, "depth": 4}  # noqa: E731
    reduced = {"draft_vocab": columns}
    return {
        "eagle3": Drafter(objective="eagle3", settings=eagle3, load={}, per_nodes=chain),
        "eagle3 tree": Drafter(objective="eagle3", settings=eagle3, load={}, per_nodes=tree),
        "mtp": Drafter(objective="mtp", settings={}, load=reduced, per_nodes=chain),
        "medusa": Drafter(objective="medusa", settings=reduced, load={}, per_nodes=chain),
        "pard": Drafter(objective="pard", settings=layers, load=reduced, per_nodes=chain),
        "draft_model": Drafter(objective="draft", settings=layers, load=reduced, per_nodes=chain),
    }


def made(drafter: Drafter, target: Target, directory: Path) -> None:
    """Write a checkpoint of first weights, and a ranking of made-up counts beside it."""
    generator = torch.Generator().manual_seed(0)
    counts_V = torch.randint(0, 100, (target.spec.vocab_size,), generator=generator)
    counts_V[:17] = 0
    corpus = Corpus(counts_V=counts_V, num_tokens=int(counts_V.sum()))
    module, _, name = OBJECTIVES[drafter.objective].partition(":")
    objective = getattr(import_module(module), name)
    teacher = Teacher.of(target, "cpu")
    directory.mkdir(parents=True, exist_ok=True)
    objective.create(teacher, objective.Config(**drafter.settings), corpus, seed=0).save(directory, torch.bfloat16)
    write_ranking(directory, rank_tokens(target, counts_V), target)


class Case:
    """One proposer with slots that have read a prompt, and its cycle."""

    def __init__(self, name: str, proposer: Proposer | None, target: Target, nodes: int, slots: int) -> None:
        self.name, self.target, self.nodes, self.slots = name, target, nodes, list(range(slots))
        self.generator = torch.Generator().manual_seed(1)
        feature_layers = () if proposer is None else proposer.feature_layers
        self.forward = target.open(target.plan(slots, MAX_LEN, nodes + 2), feature_layers)
        plan = SessionPlan(max_slots=slots, max_positions=MAX_LEN, noise=Stream.TARGET, device=target.spec.device)
        self.session = None if proposer is None else proposer.open(plan)
        self.roots = self._tokens(slots)
        prompts = [self._tokens(PROMPT) for _ in self.slots]
        features = self.forward.prefill(self.slots, [prompt[:-1] for prompt in prompts])
        for slot, prompt, features_TF in zip(self.slots, prompts, features, strict=True):
            if self.session is not None:
                self.session.admit(slot, prompt, SamplingParams(), features_TF)
        self.samples: list[float] = []

    def _tokens(self, count: int) -> list[int]:
        return torch.randint(17, self.target.spec.vocab_size, (count,), generator=self.generator).tolist()

    def cycle(self) -> None:
        """Propose, verify, observe; what is kept is the time of the first and the last, or of the plain forward."""
        start = time.perf_counter()
        if self.session is None:
            self.forward.forward(self.slots, self.roots, Draft.empty(len(self.slots)))
            self.samples.append(time.perf_counter() - start)
            return
        draft = self.session.propose(self.slots, [DraftLimit(self.nodes, self.nodes)] * len(self.slots))
        spent = time.perf_counter() - start
        features_BMF = self.forward.forward(self.slots, self.roots, draft).features_BMF
        commits = [self._commit(draft, place) for place in range(len(self.slots))]
        self.forward.cache.commit(self.slots, [commit.rows[1:] for commit in commits])
        self.roots = [commit.tokens[-1] for commit in commits]
        start = time.perf_counter()
        self.session.observe(commits, features_BMF)
        self.samples.append(spent + time.perf_counter() - start)

    def _commit(self, draft: Draft, place: int) -> Commit:
        """Accept half of the first path."""
        tree, path, row = draft.trees[place], [], 0
        children = tree.children()
        while children[row] and len(path) < (self.nodes + 1) // 2:
            row = children[row][0]
            path.append(row)
        tokens = [tree.tokens[row - 1] for row in path] + self._tokens(1)
        return Commit(self.slots[place], [0, *path], tokens, place)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", default="eagle3,eagle3 tree,mtp,medusa,pard,draft_model")
    parser.add_argument("--nodes", default="1,2,4")
    parser.add_argument("--slots", default="1,4")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--columns", type=int, default=8192)
    options = parser.parse_args()
    target = load_target("smollm2-135m", dtype="bfloat16")
    cases: list[Case] = []
    with tempfile.TemporaryDirectory() as scratch, target.decoding_threads():
        for slots in numbers(options.slots):
            cases.append(Case("none", None, target, 0, slots))
            for name in options.methods.split(","):
                cases += method_cases(name, target, Path(scratch), options.columns, numbers(options.nodes), slots)
        for _ in range(options.repeats + WARM):
            for case in cases:
                case.cycle()
    report(cases)


def method_cases(
    name: str, target: Target, scratch: Path, columns: int, nodes: Sequence[int], slots: int
) -> list[Case]:
    drafter = drafters(columns)[name]
    directory = scratch / drafter.objective
    if not directory.exists():
        made(drafter, target, directory)
    method = name.split()[0]
    proposers = {
        count: load_proposer(method, target, checkpoint=str(directory), **drafter.load, **drafter.per_nodes(count))
        for count in nodes
    }
    return [Case(name, proposer, target, count, slots) for count, proposer in proposers.items()]


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def report(cases: Sequence[Case]) -> None:
    rows = []
    for case in cases:
        spent, num_slots = statistics.median(case.samples[WARM:]), len(case.slots)
        plain = next(
            statistics.median(one.samples[WARM:]) for one in cases if one.session is None and one.slots == case.slots
        )
        c = spent / plain
        rows.append({"method": case.name, "slots": num_slots, "nodes": case.nodes, "s": spent, "c": c})
        print(f"{case.name:12} {num_slots:2} slots {case.nodes:3} nodes  {1e3 * spent:6.2f} ms  c {c:5.2f}")
    print(json.dumps({"drafts": rows}))


if __name__ == "__main__":
    main()
