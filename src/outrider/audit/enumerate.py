"""The exact law of what a verifier emits, by taking every branch of every random decision.

A verifier asks a `Chance` for each decision. `EnumeratingChance` answers from a script; `branches` tries every script,
depth first, and gives each outcome its exact probability. So the proven code is the code
that runs in production, and "lossless" is an equality to rounding error:

    sum over drafts d and decisions c of P(d) P(c | d) [emitted tokens = x_1..x_n]  =  prod_i p(x_i | x_1..x_{i-1})

(Leviathan et al., arXiv 2211.17192, appendix A.1).

Where a step repeats the coordinates (position, draw) of an earlier decision, counter-based noise repeats its number u,
and so does the enumeration: a rule that reuses its noise is found to be biased.

Worked example: p = (0.5, 0.5), one token drafted from q = (0.8, 0.2). Token 0 is accepted with probability 0.625 and
token 1 always, so `emitted_law` sums 0.8 * (0.625 [0] + 0.375 [1]) + 0.2 * [1] and gives (0.5, 0.5).

To prove a drafter, draw with `chance.draw(q_V)` and assert that `law_error` is below 1e-12.

Shapes: M = N + 1 rows of a draft with N nodes, V vocabulary.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import product
from typing import Generic, NamedTuple, TypeVar, final

import torch
from torch import Tensor

from outrider.draft import Tree
from outrider.verify import AcceptedPath, Chance, judge_block, reject_tree, walk

__all__ = [
    "RULES",
    "Branch",
    "Drafter",
    "EnumeratingChance",
    "Guess",
    "Model",
    "Rule",
    "branches",
    "draw_tree",
    "emitted_law",
    "fixed_tree",
    "law_error",
    "mean_accepted",
    "model_law",
    "random_model",
]

T = TypeVar("T")
Text = tuple[int, ...]
Model = Callable[[Text], Tensor]
"""A toy language model: the distribution [V] of the next token after a text, in float64."""


class Guess(NamedTuple):
    """A draft and the distributions [M, V] its children were drawn from; None when it was not random."""

    tree: Tree
    q_MV: Tensor | None


@final
class EnumeratingChance(Chance):
    """Follows a script of decisions, then takes first alternatives, and notes the ones it left.

    probability   probability of the branch that was taken, up to now
    untried       scripts of the alternatives that were passed by
    """

    def __init__(self, script: Sequence[int] = ()) -> None:
        self.probability = 1.0
        self.untried: list[tuple[int, ...]] = []
        self._script = tuple(script)
        self._taken: list[int] = []
        self._bounds: dict[tuple[int, int], tuple[float, float]] = {}
        self._picked: set[int] = set()

    def accept(self, probability: float, position: int, draw: int) -> bool:
        """Return whether u < probability; the same (position, draw) has the same u."""
        low, high = self._bounds.get((position, draw), (0.0, 1.0))
        border = min(max(probability, low), high)
        yes = self._take([high - border, border - low]) == 1
        self._bounds[position, draw] = (low, border) if yes else (border, high)
        return yes

    def pick(self, probs_V: Tensor, position: int) -> int:
        assert position not in self._picked, f"the token at position {position} is drawn twice with the same noise"
        self._picked.add(position)
        return self.draw(probs_V)

    def draw(self, probs_V: Tensor) -> int:
        """Draw a token with noise of its own, as a drafter does."""
        return self._take(probs_V.tolist())

    def _take(self, weights: list[float]) -> int:
        possible = [choice for choice, weight in enumerate(weights) if weight > 0]
        depth = len(self._taken)
        if depth < len(self._script):
            choice = self._script[depth]
        else:
            choice = possible[0]
            self.untried += [(*self._taken, other) for other in possible[1:]]
        self._taken.append(choice)
        self.probability *= weights[choice] / sum(weights)
        return choice


Drafter = Callable[[Text, EnumeratingChance], Guess]
Rule = Callable[[Guess, Tensor, int, Chance], AcceptedPath]
"""A verifier of one slot: the guess, p_MV, the position of the first token to be decided, the chance."""


class Branch(NamedTuple, Generic[T]):
    """One outcome and the probability of its branch."""

    probability: float
    outcome: T


def branches(procedure: Callable[[EnumeratingChance], T]) -> list[Branch[T]]:
    """Return every outcome of a procedure that draws all its randomness from the chance it is given."""
    found: list[Branch[T]] = []
    scripts: list[tuple[int, ...]] = [()]
    while scripts:
        chance = EnumeratingChance(scripts.pop())
        outcome = procedure(chance)
        found.append(Branch(chance.probability, outcome))
        scripts += chance.untried
    return found


def _coupled(guess: Guess, p_MV: Tensor, position: int, chance: Chance) -> AcceptedPath:
    """Draw every row when it is needed: rows of one path differ in position, and none is looked at twice."""
    positions = [position, *(position + depth for depth in guess.tree.depths())]
    return walk(guess.tree, lambda row: chance.pick(p_MV[row], positions[row]))


def _rejection(guess: Guess, p_MV: Tensor, position: int, chance: Chance) -> AcceptedPath:
    return reject_tree(guess.tree, p_MV, guess.q_MV, position, chance)


def _block(guess: Guess, p_MV: Tensor, position: int, chance: Chance) -> AcceptedPath:
    return judge_block(guess.tree.tokens, p_MV, guess.q_MV, position, chance)


RULES: dict[str, Rule] = {"coupled": _coupled, "rejection": _rejection, "block": _block}
"""The rules of `outrider.verify`, by name."""


def random_model(seed: int, vocab_size: int, *, zeros: float = 0.0) -> Model:
    """Return a model with random distributions; each token but one has probability 0 with probability `zeros`."""

    def table(text: Text) -> Tensor:
        generator = torch.Generator().manual_seed(hash((seed, *text)) % 2**31)
        weights_V = torch.rand(vocab_size, generator=generator, dtype=torch.float64) ** 3 + 1e-4
        spared = int(torch.randint(vocab_size, (), generator=generator))
        cut_V = torch.rand(vocab_size, generator=generator) < zeros
        cut_V[spared] = False
        weights_V[cut_V] = 0
        return weights_V / weights_V.sum()

    return table


def fixed_tree(tree: Tree) -> Drafter:
    """Return a drafter that always gives the same draft, whatever the text."""
    return lambda text, chance: Guess(tree, None)


def draw_tree(q: Model, widths: Sequence[int]) -> Drafter:
    """Return a drafter that draws `widths[d]` children of a node of depth d from q, without replacement, in order."""

    q = cache(q)

    def draft(text: Text, chance: EnumeratingChance) -> Guess:
        tree, texts, rows = Tree([], []), [text], deque([0])
        while rows:
            row = rows.popleft()
            depth = len(texts[row]) - len(text)
            rest_V = q(texts[row]).clone()
            for _ in range(widths[depth] if depth < len(widths) else 0):
                if rest_V.sum() == 0:
                    break
                token = chance.draw(rest_V)
                rest_V[token] = 0
                tree.tokens.append(token)
                tree.parents.append(row - 1)
                rows.append(len(texts))
                texts.append((*texts[row], token))
        return Guess(tree, torch.stack([q(text) for text in texts]))

    return draft


def model_law(model: Model, vocab_size: int, length: int) -> Tensor:
    """Return the probability of every text of that length, [V] * length."""
    law = torch.ones((), dtype=torch.float64)
    for depth in range(length):
        tables = [model(text) for text in product(range(vocab_size), repeat=depth)]
        law = law[..., None] * torch.stack(tables).reshape((vocab_size,) * (depth + 1))
    return law


def emitted_law(
    model: Model, drafter: Drafter, rule: Rule | str, *, vocab_size: int, length: int, num_steps: int | None = None
) -> Tensor:
    """Return the law of the first `length` tokens that drafting and verifying emits, [V] * length.

    Args:
        rule: a function, or a name in `RULES`.
        num_steps: number of steps that draft; after them, text is completed by plain decoding. By default all do.
    """
    rule = RULES[rule] if isinstance(rule, str) else rule
    model = cache(model)

    def decode(chance: EnumeratingChance) -> Text:
        text: Text = ()
        steps = 0
        while len(text) < length and steps != num_steps:
            text += _step(model, drafter, rule, text, chance)[1]
            steps += 1
        return text[:length]

    weights: dict[Text, float] = defaultdict(float)
    for branch in branches(decode):
        weights[branch.outcome] += branch.probability
    law = torch.zeros((vocab_size,) * length, dtype=torch.float64)
    for start, weight in weights.items():
        law[start] += weight * model_law(partial(_after, model, start), vocab_size, length - len(start))
    return law


def _after(model: Model, start: Text, text: Text) -> Tensor:
    return model((*start, *text))


def _step(model: Model, drafter: Drafter, rule: Rule, text: Text, chance: EnumeratingChance) -> tuple[int, Text]:
    guess = drafter(text, chance)
    texts = [text]
    for token, parent in zip(*guess.tree, strict=True):
        texts.append((*texts[parent + 1], token))
    path = rule(guess, torch.stack([model(row) for row in texts]), len(text), chance)
    return len(path.rows), (*path.tokens, path.bonus)


def law_error(
    model: Model, drafter: Drafter, rule: Rule | str, *, vocab_size: int, length: int, num_steps: int | None = None
) -> float:
    """Return the largest difference between the emitted law and the model's own; rounding error for a lossless rule."""
    law = emitted_law(model, drafter, rule, vocab_size=vocab_size, length=length, num_steps=num_steps)
    return float((law - model_law(model, vocab_size, length)).abs().max())


def mean_accepted(model: Model, drafter: Drafter, rule: Rule | str) -> float:
    """Return the expected number of accepted nodes of the first step."""
    rule = RULES[rule] if isinstance(rule, str) else rule
    found = branches(lambda chance: _step(model, drafter, rule, (), chance)[0])
    return sum(branch.probability * branch.outcome for branch in found)
