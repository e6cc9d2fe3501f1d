"""How often steps ask the device for numbers."""

from collections.abc import Sequence

from outrider.engine import Engine
from outrider.sampling import SamplingParams
from outrider.testing.copies import HostCopies


def questions(engine: Engine, prompts: Sequence[Sequence[int]], max_new_tokens: int, num_steps: int) -> list[str]:
    """What the steps behind the first one ask, in order."""
    for prompt in prompts:
        engine.add(prompt, SamplingParams(max_tokens=max_new_tokens, ignore_eos=True))
    engine.admit()
    engine.step()
    with HostCopies() as copies:
        for _ in range(num_steps):
            engine.step()
    return copies.names
