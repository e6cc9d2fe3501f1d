"""The first layer: acceptance rules by exact enumeration on toy vocabularies, and faulty rules that must fail it.

Each rule runs on chains and trees, sampled and deterministic, with zeros in p and q, over one step and several, and its
law must equal the model's own to 1e-12 (`outrider.audit.enumerate`). A greedy model has one-hot distributions.

The enumerated functions are those that run in the engine; the faulty ones are made from them.

Example: with p = (0.5, 0.5) and no draft, a rule whose bonus is the argmax always says token 0: an error of 0.5.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from outrider.audit.enumerate import (
    RULES,
    Drafter,
    Guess,
    Model,
    Rule,
    draw_tree,
    fixed_tree,
    law_error,
    random_model,
)
from outrider.audit.report import Finding, Layer
from outrider.draft import Tree
from outrider.verify import AcceptedPath, Chance

__all__ = ["FAULTY_RULES", "enumerated", "rule_controls", "rule_layer"]

EXACT: Final = 1e-12
SEEN: Final = 1e-3
"""Error of a law from which a faulty rule counts as caught: far above rounding."""


@dataclass(frozen=True, kw_only=True)
class Toy:
    """A model, a drafter and the length of the texts whose law is enumerated."""

    name: str
    model: Model
    drafter: Drafter
    vocab_size: int
    length: int
    num_steps: int | None = 1
    is_chain: bool = True


def greedy(model: Model) -> Model:
    """Return the model at temperature 0: all probability at the most probable token."""

    def best(text: tuple[int, ...]) -> Tensor:
        p_V = model(text)
        return torch.zeros_like(p_V).index_fill_(0, p_V.argmax(), 1.0)

    return best


def toys(rule: str) -> Iterator[Toy]:
    """Yield the toys for one rule."""
    p, q, short = random_model(1, 3), random_model(2, 3), random_model(4, 2)
    yield Toy(name="a sampled chain", model=p, drafter=draw_tree(q, (1, 1)), vocab_size=3, length=3)
    yield Toy(name="a sampled chain that agrees", model=p, drafter=draw_tree(p, (1, 1)), vocab_size=3, length=3)
    yield Toy(name="a deterministic chain", model=p, drafter=fixed_tree(Tree.chain([1, 0])), vocab_size=3, length=3)
    holes, cut = random_model(5, 4, zeros=0.5), random_model(6, 4, zeros=0.5)
    yield Toy(name="zeros in p and q", model=holes, drafter=draw_tree(cut, (1, 1)), vocab_size=4, length=3)
    yield Toy(name="a greedy target", model=greedy(p), drafter=draw_tree(q, (1, 1)), vocab_size=3, length=3)
    steps = draw_tree(random_model(53, 2), (1, 1))
    yield Toy(name="several steps", model=short, drafter=steps, vocab_size=2, length=3, num_steps=2)
    if rule != "block":
        tree = fixed_tree(Tree([0, 1, 2, 0, 1], [-1, -1, 1, 1, 2]))
        yield Toy(name="a deterministic tree", model=p, drafter=tree, vocab_size=3, length=3, is_chain=False)
        wide = draw_tree(random_model(8, 4), (3,))
        yield Toy(name="a sampled tree", model=random_model(7, 4), drafter=wide, vocab_size=4, length=2, is_chain=False)


def enumerated(rule: str, function: Rule, toy: Toy) -> float:
    """Return the largest error of the law of a rule on a toy."""
    return law_error(
        toy.model, toy.drafter, function, vocab_size=toy.vocab_size, length=toy.length, num_steps=toy.num_steps
    )


def rule_layer(rules: Sequence[str]) -> Layer:
    """Enumerate every rule that the audit uses."""
    findings = []
    for rule in rules:
        cases = list(toys(rule))
        errors = {toy.name: enumerated(rule, RULES[rule], toy) for toy in cases}
        worst = max(errors, key=lambda name: errors[name])
        exact = errors[worst] < EXACT
        detail = f"the law of {len(cases)} toys is the model's, to {errors[worst]:.1e}"
        wrong = f"on {worst} the law of the text differs from the model's by {errors[worst]:.3g}"
        findings.append(
            Finding(
                name=rule,
                verdict="PASS" if exact else "FAIL",
                detail=detail if exact else wrong,
                counts={"num_toys": len(cases), "largest_error": errors[worst]},
            )
        )
    largest = max(finding.counts["largest_error"] for finding in findings)
    return Layer.of("rule", findings, f"{', '.join(rules)}: the enumerated law is exact, to {largest:.0e}")


def argmax_bonus(rule: Rule) -> Rule:
    """Return the rule with the most probable token as its bonus instead of a drawn one."""

    def faulty(guess: Guess, p_MV: Tensor, position: int, chance: Chance) -> AcceptedPath:
        path = rule(guess, p_MV, position, chance)
        return path._replace(bonus=int(p_MV[path.rows[-1] if path.rows else 0].argmax()))

    return faulty


def one_token_too_many(rule: Rule) -> Rule:
    """Return the rule with one more drafted token accepted where there is one."""

    def faulty(guess: Guess, p_MV: Tensor, position: int, chance: Chance) -> AcceptedPath:
        path = rule(guess, p_MV, position, chance)
        below = guess.tree.children()[path.rows[-1] if path.rows else 0]
        if not below:
            return path
        row, token = below[0], guess.tree.tokens[below[0] - 1]
        return AcceptedPath([*path.rows, row], [*path.tokens, token], path.bonus)

    return faulty


FAULTY_RULES: Final[dict[str, Callable[[Rule], Rule]]] = {
    "the bonus by argmax": argmax_bonus,
    "one token too many": one_token_too_many,
}


def rule_controls(rules: Sequence[str]) -> list[Finding]:
    """Enumerate faulty rules: every one must be seen."""
    findings = []
    for rule in rules:
        toy = next(toys(rule))
        for name, broken in FAULTY_RULES.items():
            error = enumerated(rule, broken(RULES[rule]), toy)
            findings.append(
                Finding(
                    name=f"{rule}, enumerated: {name}",
                    verdict="PASS" if error > SEEN else "INCONCLUSIVE",
                    detail=f"{'caught' if error > SEEN else 'not caught'}: the law is off by {error:.2g}",
                    counts={"error": error},
                )
            )
    return findings
