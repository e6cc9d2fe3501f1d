"""Outrider's proposers inside vLLM, through its method `custom_class`.

vLLM imports the class that `"model"` names, and calls its `propose` after each step with token ids alone. So every
proposer without weights runs there unchanged: lookups, hybrids of them, and those of other packages.

    vllm serve MODEL \\
      --speculative-config '{"method": "custom_class", "model": "outrider.vllm.custom_class.OutriderDrafter",
                             "num_speculative_tokens": 8}' \\
      --additional-config '{"outrider": {"method": "ngram", "settings": {"max_n": 4}}}'

vLLM does not tell which request a row of its batch is, and it moves rows. `RowTracker` finds out from the texts: a row
whose text is a known text plus the tokens just written continues that request; any other row is a new request; a known
text without such a row has ended.

    slots before   0: "a b"                   rows of this step   "x y z" (wrote z), "a b c d" (wrote c d)
    slots after    0: "a b c d", 1: "x y z"   row 0 is new, in slot 1; row 1 is slot 0 and committed "c d"

This file is imported in vLLM's process: it needs only packages of vLLM's environment, and never imports vLLM.
`custom_drafters.py` makes the flags for a method.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final, final

import numpy as np
import torch
from numpy.typing import NDArray

from outrider.draft import Tree
from outrider.errors import ConfigError
from outrider.noise import Stream
from outrider.proposer import Commit, DraftLimit, Proposer, Session, SessionPlan
from outrider.proposers import load_proposer
from outrider.sampling import SamplingParams
from outrider.target import TargetSpec
from outrider.vllm.spec_only_target import SpecOnlyTarget

__all__ = ["KEY", "OutriderDrafter", "RowTracker", "custom_drafter", "first_path", "spec_of"]

Tokens = NDArray[np.int32]
KEY: Final = "outrider"
"""Outrider's key in vLLM's additional configuration."""
KEY_TOKENS: Final = 8


def custom_drafter(method: str, settings: Mapping[str, Any], spec: TargetSpec) -> Proposer:
    """Return the proposer of a method that drafts from token ids alone.

    Raises:
        ConfigError: if the method is unknown, or needs more than token ids.
    """
    proposer = load_proposer(method, SpecOnlyTarget(spec), **settings)
    needs = proposer.spec
    if needs.num_bytes or needs.feature_layers or proposer.scripted or not needs.max_nodes:
        raise ConfigError(
            f"'{method}' does not draft from token ids alone, which is all that vLLM passes to a custom class"
        )
    return proposer


@final
class OutriderDrafter:
    """The class that vLLM instantiates and calls."""

    def __init__(self, vllm_config: Any) -> None:
        """Open the proposer that vLLM's additional configuration names.

        Args:
            vllm_config: vLLM's `VllmConfig`.

        Raises:
            ConfigError: if its additional configuration names no method that drafts from token ids.
        """
        order = (vllm_config.additional_config or {}).get(KEY)
        if not isinstance(order, Mapping) or "method" not in order:
            raise ConfigError(
                f"vLLM's additional configuration names no method; give --additional-config "
                f'\'{{"{KEY}": {{"method": "NAME"}}}}\''
            )
        self.max_len: int = vllm_config.model_config.max_model_len
        num_slots: int = vllm_config.scheduler_config.max_num_seqs
        proposer = custom_drafter(order["method"], order.get("settings", {}), spec_of(vllm_config.model_config))
        plan = SessionPlan(
            max_slots=num_slots, max_positions=self.max_len, noise=Stream.DRAFT, device=torch.device("cpu")
        )
        self.num_nodes = min(proposer.spec.max_nodes, vllm_config.speculative_config.num_speculative_tokens)
        self.tracker = RowTracker(proposer.open(plan), num_slots)

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Load nothing; vLLM calls this with the target's module."""

    def propose(
        self,
        sampled_token_ids: Sequence[Sequence[int]],
        num_tokens_no_spec: NDArray[np.integer[Any]],
        token_ids_cpu: Tokens,
        slot_mappings: object = None,
    ) -> list[list[int]]:
        """Return the next draft of each row.

        Args:
            sampled_token_ids: tokens that the step wrote, by row; empty while a prompt is still being read.
            num_tokens_no_spec: length of the text, by row.
            token_ids_cpu: padded text, by row.
        """
        lengths = num_tokens_no_spec[: len(sampled_token_ids)].tolist()
        written = [row for row, tokens in enumerate(sampled_token_ids) if len(tokens)]
        texts = [token_ids_cpu[row, : lengths[row]] for row in written]
        slots = self.tracker.follow(texts, [len(sampled_token_ids[row]) for row in written])
        # the last position is left to the bonus token
        limits = [min(self.num_nodes, self.max_len - lengths[row] - 1) for row in written]
        asked = [place for place, limit in enumerate(limits) if limit > 0]
        drafts: list[list[int]] = [[] for _ in sampled_token_ids]
        if asked:
            draft = self.tracker.session.propose(
                [slots[place] for place in asked], [DraftLimit(limits[place], limits[place]) for place in asked]
            )
            for place, tree in zip(asked, draft.trees, strict=True):
                drafts[written[place]] = first_path(tree)
        return drafts


@final
class RowTracker:
    """The map from the rows of another engine's batch to the slots of a session."""

    def __init__(self, session: Session, num_slots: int) -> None:
        self.session = session
        self.free = list(range(num_slots))[::-1]
        self.texts: dict[int, Tokens] = {}

    def follow(self, texts: Sequence[Tokens], num_written: Sequence[int]) -> list[int]:
        """Pass commits, ends and new requests to the session, and return the slot of each row.

        Args:
            texts: the whole text, by row.
            num_written: number of new tokens at its end, by row.
        """
        places = self._recognised(texts, num_written)
        self.session.observe(
            [
                Commit(slot, list(range(num_written[place])), texts[place][-num_written[place] :].tolist(), place)
                for place, slot in places.items()
            ],
            None,
        )
        for slot in self.texts.keys() - places.values():
            self.session.release(slot)
            self.free.append(slot)
            del self.texts[slot]
        for place, text in enumerate(texts):
            if place not in places:
                places[place] = self.free.pop()
                self.session.admit(places[place], text.tolist(), SamplingParams(), None)
            # vLLM reuses the array
            self.texts[places[place]] = text.copy()
        return [places[place] for place in range(len(texts))]

    def _recognised(self, texts: Sequence[Tokens], num_written: Sequence[int]) -> dict[int, int]:
        """Return by row the slot whose text it continues; equal texts get one row each."""
        known: dict[tuple[int, bytes], list[int]] = defaultdict(list)
        for slot, text in self.texts.items():
            known[_key(text)].append(slot)
        found = {}
        for place, (text, count) in enumerate(zip(texts, num_written, strict=True)):
            before = text[: len(text) - count]
            alike = known[_key(before)]
            if same := [slot for slot in alike if np.array_equal(self.texts[slot], before)]:
                alike.remove(same[0])
                found[place] = same[0]
        return found


def _key(text: Tokens) -> tuple[int, bytes]:
    """Return a cheap key that few texts share."""
    return len(text), text[-KEY_TOKENS:].tobytes()


def first_path(tree: Tree) -> list[int]:
    """Return the chain of first children, for an engine that verifies chains.

    >>> first_path(Tree([5, 6, 7, 8], [-1, -1, 0, 2]))
    [5, 7, 8]
    """
    tokens: list[int] = []
    end = -1
    for node, (token, parent) in enumerate(zip(tree.tokens, tree.parents, strict=True)):
        if parent == end:
            tokens.append(token)
            end = node
    return tokens


def spec_of(model_config: Any) -> TargetSpec:
    """Return the target's spec from vLLM's `ModelConfig`."""
    text = model_config.hf_text_config
    return TargetSpec(
        name=str(model_config.model),
        source=None,
        vocab_size=text.vocab_size,
        hidden_size=text.hidden_size,
        num_layers=text.num_hidden_layers,
        max_positions=model_config.max_model_len,
        eos_ids=(),
        dtype=model_config.dtype,
        device=torch.device("cpu"),
        weight_bytes=0,
        batch_invariant=False,
        weights=str(model_config.dtype).removeprefix("torch."),
    )
