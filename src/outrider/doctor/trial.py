"""Trials: a checkpoint, or variants of it, drafting along texts that the target wrote once.

Nothing of the target runs in a trial, so that it takes tenths of a second for a small head (`ReplayTarget`).

Example: `trials.accuracy([variant])` is the accuracy of the checkpoint with that change, or None if it does not load.
"""

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, final

import torch
from torch import Tensor

from outrider.data.dialogue import Dialogue, Rules
from outrider.data.workloads import Conversation
from outrider.doctor.accuracy import Accuracy
from outrider.doctor.likelihood import Likelihood, likelihood
from outrider.doctor.variant import Variant, write_variant
from outrider.errors import CheckpointError, ConfigError, OutriderError, on_one_line
from outrider.params import SamplingParams
from outrider.proposer import Proposer
from outrider.proposers import configure, load_proposer, proposer_class
from outrider.target import Target
from outrider.tuning.replays.known import ReplayTarget
from outrider.tuning.replays.replay import chain_reach
from outrider.tuning.replays.texts import Text, write_texts

__all__ = ["DEPTH", "Known", "Trials", "chain_settings", "known_texts", "swapped"]

MOST_SLOTS: Final = 16
DEPTH: Final = 4
"""Depth of the chains: what is wrong shows within a few tokens."""


GREEDY: Final = SamplingParams()


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Rules(Rules):
    """Rules with further settings of a request, such as penalties."""

    settings: SamplingParams = GREEDY

    def sampling(self, conversation: Conversation, turn: int) -> SamplingParams:
        return dataclasses.replace(self.settings, seed=super().sampling(conversation, turn).seed)


@dataclasses.dataclass(frozen=True, eq=False)
class Known:
    """Texts of the target, and a target that repeats them."""

    texts: Sequence[Text]
    replay: ReplayTarget
    max_len: int


def known_texts(
    target: Target,
    conversations: Sequence[Conversation],
    layers: Sequence[int],
    *,
    num_tokens: int,
    settings: SamplingParams = GREEDY,
    told: Callable[[int], None] = lambda num_tokens: None,
) -> Known:
    """Let the target answer the first turn of each conversation, and keep its states at the feature layers.

    Args:
        settings: temperature, filters and penalties of the answers.

    Raises:
        ConfigError: if no prompt leaves room for an answer.
    """
    first = [dataclasses.replace(one, turns=one.turns[:1]) for one in conversations]
    lengths = [len(Dialogue(one).ask(0, target.tokenizer)) for one in first]
    most = target.spec.max_positions - 2
    fitting = [(one, length) for one, length in zip(first, lengths, strict=True) if length <= most]
    if not fitting:
        raise ConfigError(
            f"no prompt leaves room for an answer in {target.spec.max_positions} tokens; give shorter ones"
        )
    max_len = min(target.spec.max_positions, max(length for _, length in fitting) + num_tokens + 1)
    rules = _Rules(
        temperature=settings.temperature,
        repeat=0,
        seed=0,
        max_new_tokens=num_tokens,
        max_len=max_len,
        ignore_eos=False,
        settings=settings,
    )
    written = write_texts(
        target,
        [one for one, _ in fitting],
        rules,
        batch=min(MOST_SLOTS, len(fitting)),
        max_len=max_len,
        layers=layers,
        told=told,
    )
    texts = [text for text in written.texts if len(text.known.answer) > DEPTH]
    if not texts:
        raise ConfigError(f"every answer has at most {DEPTH} tokens; give other --prompts or more --max-new-tokens")
    return Known(texts, ReplayTarget(target, [text.known for text in texts], layers), max_len)


def swapped(target: Target, known: Known, layers: Sequence[int]) -> Known:
    """Return the same texts, each with the states of the next one at these layers; a lone text's are halved and turned.

    >>> turned_rows(5, 3, 1).tolist()
    [1, 2, 0, 1, 2]
    """
    columns = [known.replay.layers.index(layer) for layer in layers]
    texts = []
    for text, other in zip(known.texts, [*known.texts[1:], known.texts[0]], strict=True):
        mine, theirs = text.known.states_TLE, other.known.states_TLE
        assert mine is not None
        assert theirs is not None
        rows_T = turned_rows(len(mine), len(theirs), len(theirs) // 2 if len(known.texts) == 1 else 0)
        states_TLE = theirs[rows_T][:, columns]
        texts.append(dataclasses.replace(text, known=dataclasses.replace(text.known, states_TLE=states_TLE)))
    return Known(texts, ReplayTarget(target, [text.known for text in texts], layers), known.max_len)


def turned_rows(length: int, num_rows: int, start: int) -> Tensor:
    """Return so many row numbers, counted from `start` and again from 0 behind the last one."""
    return (torch.arange(length) + start) % num_rows


def chain_settings(method: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings of a method that draft chains of a few tokens, whatever the user asked for."""
    defaults = {field.name: field.default for field in dataclasses.fields(proposer_class(method).Config)}
    shape = {"width": 1, "tree": None, "depth": None, "num_nodes": DEPTH}
    if defaults.get("num_nodes") is None:  # as many as the checkpoint was trained for
        shape["num_nodes"] = None
    return settings | {name: value for name, value in shape.items() if name in defaults}


@final
class Trials:
    """Trials of one checkpoint.

    Args:
        settings: settings of the method besides its checkpoint.
        scratch: directory for variants.
    """

    def __init__(self, target: Target, method: str, settings: dict[str, Any], checkpoint: Path, scratch: Path) -> None:
        self.target, self.method, self.checkpoint, self.scratch = target, method, checkpoint, scratch
        self.settings = chain_settings(method, settings)
        self.reason = ""
        """Message of the last variant that did not load."""

    def load(self, variants: Sequence[Variant] = (), **more: Any) -> Proposer:
        """Load the checkpoint with these changes, and with more settings of the method.

        Raises:
            ConfigError, CheckpointError: if it does not load.
        """
        if not variants:
            return self._load(self.checkpoint, **more)
        with tempfile.TemporaryDirectory(dir=self.scratch) as scratch:
            directory = Path(scratch) / self.checkpoint.name
            write_variant(self.checkpoint, variants, directory)
            return self._load(directory, **more)

    def accuracy(self, known: Known, variants: Sequence[Variant] = ()) -> Accuracy | None:
        """Return the accuracy with these changes along known texts; None if that does not load."""
        try:
            proposer = self.load(variants)
            reaches = chain_reach(known.replay, proposer, known.texts, known.max_len)
        except (OutriderError, ValueError) as error:  # a layer that the texts do not hold is a ValueError
            self.reason = on_one_line(str(error), 300)
            return None
        if reaches is None:
            raise CheckpointError(f"method '{self.method}' drafts trees even where chains are asked for")
        return Accuracy(reaches, known.texts, min(DEPTH, proposer.spec.max_nodes))

    def likelihood(self, known: Known, variants: Sequence[Variant] = ()) -> Likelihood | None:
        """Return the likelihood of known texts with these changes; None if that does not load."""
        try:
            proposer = self.load(variants, sampled=True)
            return likelihood(known.replay, proposer, known.texts, known.max_len)
        except (OutriderError, ValueError) as error:
            self.reason = on_one_line(str(error), 300)
            return None

    def _load(self, directory: Path, **more: Any) -> Proposer:
        settings = self.settings | more | {"checkpoint": str(directory)}
        configure(self.method, settings)
        return load_proposer(self.method, self.target, **settings)
