"""Cache bytes per token of a method: by how much its session grows for each token of text.

Asked of two engines for one request, one with twice the other's room and a text that fills it:

    bytes per token = (session bytes at 2 P - session bytes at P) / P

This covers both kinds of memory alike: caches that are planned (a draft model's keys and values grow with the room) and
indices that grow with the text (n-grams, suffix trees; on text without repetition, their worst case). What does not
depend on the length cancels out. The target's own cache is `CachePlan.bytes_per_token`.

Example: a draft model of 12 layers with 3 key/value heads of size 64 in bf16 needs 2 x 12 x 3 x 64 x 2 = 9,216 bytes.
"""

from typing import Final

from outrider.engine import Engine
from outrider.metrics import PrefillRecord, StepRecord
from outrider.proposer import Proposer
from outrider.sampling import SamplingParams
from outrider.target import Target

__all__ = ["session_bytes_per_token"]

LENGTH: Final = 256
STRIDE: Final = 7919  # a prime, so that text is without repetition as far as the vocabulary allows


def session_bytes_per_token(target: Target, proposer: Proposer) -> float:
    """Bytes that a session of this proposer takes for each further token of one request."""
    length = min(LENGTH, target.spec.max_positions // 2)
    return max(0.0, (_held(target, proposer, 2 * length) - _held(target, proposer, length)) / length)


def _held(target: Target, proposer: Proposer, length: int) -> int:
    """The most that a session holds on a text of `length` tokens."""
    held: list[int] = []

    def record(item: StepRecord | PrefillRecord) -> None:
        held.append(engine.session.num_bytes)

    engine = Engine(target, proposer, max_len=length, record=record)
    prompt = [STRIDE * place % target.spec.vocab_size for place in range(length - 2)]
    engine.generate([prompt], SamplingParams(max_tokens=2, ignore_eos=True))
    return max(held)
