"""Would a chain that stops where its head is unsure be faster? Every answer position, every rule, one cost model.

    python dev/confidence.py [--num-prompts 6] [--draft 0.043]

A head gives each drafted token a probability. Their product down the chain estimates how likely the chain is right so
far, so drafting could go on while it is at least some threshold: `stop` leaves the token out that fell below it, `keep`
verifies it too, for it is paid for. Here an EAGLE-3 head drafts a chain of `depth` behind every token of greedy answers
where users talk, with its probabilities, and nothing is verified, so that every position is seen. Each rule is then
played on these drafts, step by step, as a decoder would: a step costs

    1 + verify[0] + ... + verify[k - 1] + draft * (tokens drafted) + rest

plain steps with k verified tokens (`benchmarks/forward.py` and `outrider profile` measure these), and emits what was
right and one more. Printed is the geometric mean of the speedup over answers, for fixed chains and for several
thresholds.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import accumulate
from statistics import geometric_mean
from typing import NamedTuple

import torch
import tyro
from torch import Tensor

from outrider import Engine, load_proposer, load_target
from outrider.budget import FixedBudget
from outrider.data.workloads import load_category
from outrider.draft import Draft
from outrider.proposers.drafting import sampler
from outrider.proposers.drafting.recurrent import RecurrentSession
from outrider.sampling import SamplingParams, largest


class Seen(NamedTuple):
    """A draft: its probabilities, and how many of its tokens the text went on with."""

    probabilities: list[float]
    num_right: int


class Step(NamedTuple):
    """Tokens of a draft that are verified, and those that were drafted."""

    num_verified: int
    num_drafted: int


Rule = Callable[[list[float]], Step]


class Looking(FixedBudget):
    """Drafts and verifies nothing of it."""

    def prune(self, draft: Draft) -> Draft:
        drafts.append(draft.trees[0].tokens)
        return draft.keep([[]])


drafts: list[list[int]] = []
probabilities: list[float] = []


def watched(logits_BK: Tensor) -> Tensor:
    probabilities.append(float(logits_BK[0].softmax(-1).max()))
    return largest(logits_BK)


@dataclass(frozen=True, kw_only=True)
class Confidence:
    """Fixed chains against chains that stop by confidence."""

    checkpoint: str = "smollm2-135m/eagle3"
    categories: tuple[str, ...] = ("chat", "multi_turn", "writing", "reasoning")
    num_prompts: int = 6
    max_new_tokens: int = 64
    depth: int = 6
    verify: tuple[float, ...] = (0.03, 0.035, 0.035, 0.05, 0.05, 0.05)
    """Cost of each further row, in plain steps; one for every token of `depth`."""
    draft: float = 0.043
    rest: float = 0.02

    def run(self) -> None:
        torch.set_grad_enabled(False)
        answers = list(self.answers())
        rules: dict[str, Rule] = {f"fixed {k}": fixed(k) for k in range(1, self.depth)}
        for threshold in (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5):
            rules[f"stop {threshold}"] = by_confidence(threshold, keeps=False)
            rules[f"keep {threshold}"] = by_confidence(threshold, keeps=True)
        found = {name: self.speedup(answers, rule) for name, rule in rules.items()}
        for kind in ("fixed", "stop", "keep"):
            print("   ".join(f"{name} {value:.3f}" for name, value in found.items() if name.startswith(kind)))

    def answers(self) -> Iterable[list[Seen]]:
        """Yield, for every answer, the drafts behind each of its tokens."""
        target = load_target("smollm2-135m", dtype="bfloat16", device="cpu")
        head = load_proposer("eagle3", target, checkpoint=self.checkpoint, num_nodes=self.depth)
        engine = Engine(target, head, max_len=2048, budget=Looking(self.depth))
        assert isinstance(engine.session, RecurrentSession), "an EAGLE-3 head has one"
        assert engine.session.chains is not None, "it drafts chains"
        engine.session.chains.fused = None  # a fused chain shows no probabilities
        sampler.largest = watched  # type: ignore[assignment]
        for category in self.categories:
            for conversation in load_category(category)[: self.num_prompts]:
                drafts.clear()
                probabilities.clear()
                [answer] = engine.generate([conversation.turns[0]], SamplingParams(max_tokens=self.max_new_tokens))
                yield list(judged(answer.tokens))

    def speedup(self, answers: list[list[Seen]], rule: Rule) -> float:
        return geometric_mean([len(answer) / self.steps(answer, rule) for answer in answers])

    def steps(self, answer: list[Seen], rule: Rule) -> float:
        """Return the plain steps that an answer takes."""
        verify, place, total = [0.0, *accumulate(self.verify)], 0, 0.0
        while place < len(answer):
            room = len(answer) - place - 1
            num_verified, num_drafted = (min(count, room) for count in rule(answer[place].probabilities))
            total += 1 + verify[num_verified] + self.draft * num_drafted + (self.rest if num_drafted else 0.0)
            place += min(answer[place].num_right, num_verified) + 1
        return total


def judged(tokens: tuple[int, ...]) -> Iterable[Seen]:
    """Yield the drafts of one answer, each with the tokens that followed it."""
    rest = iter(probabilities)
    for place, draft in enumerate(drafts):
        pairs = zip(draft, tokens[place:], strict=False)
        wrong = next((depth for depth, (ours, theirs) in enumerate(pairs) if ours != theirs), len(draft))
        yield Seen([next(rest) for _ in draft], min(wrong, len(tokens) - place))


def fixed(num_nodes: int) -> Rule:
    return lambda probabilities: Step(min(num_nodes, len(probabilities)), min(num_nodes, len(probabilities)))


def by_confidence(threshold: float, keeps: bool) -> Rule:
    def rule(probabilities: list[float]) -> Step:
        sure, num_drafted = 1.0, 0
        for probability in probabilities:
            num_drafted += 1
            sure *= probability
            if sure < threshold:
                return Step(num_drafted if keeps else num_drafted - 1, num_drafted)
        return Step(num_drafted, num_drafted)

    return rule


if __name__ == "__main__":
    tyro.cli(Confidence).run()
