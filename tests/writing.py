"""Material for the tests of synthesis: a target's tokenizer, and generators that write words."""

import random
from pathlib import Path

from outrider.data.generator import Job, Written
from outrider.data.identity import Identity
from outrider.targets import load_target
from outrider.testing.directory import write_tiny_model
from outrider.testing.generator import ScriptedGenerator

WORDS = [
    a + b + c for a in ("ba", "ko", "tri", "mel", "su") for b in ("ra", "ni", "lo", "ve") for c in ("n", "s", "ka")
]


def tiny_identity(directory: Path) -> Identity:
    return Identity.of(load_target(str(write_tiny_model(directory)), dtype="float64"))


def words(seed: object, count: int) -> str:
    chance = random.Random(str(seed))
    return " ".join(chance.choice(WORDS) for _ in range(count))


def word_generator(identity: Identity) -> ScriptedGenerator:
    """Writes 12 words of its own for each seed, and ends them."""

    def script(job: Job) -> Written:
        tokens = identity.tokenizer(" " + words(job.sampling.seed, 12), add_special_tokens=False)["input_ids"]
        if len(tokens) >= job.max_new_tokens:
            return Written(tuple(tokens[: job.max_new_tokens]), "length")
        return Written((*tokens, identity.eos_ids[0]), "end")

    return ScriptedGenerator(script)


def files_of(directory: Path) -> dict[str, bytes]:
    """The shards and their lists, byte for byte."""
    return {path.name: path.read_bytes() for path in sorted(directory.glob("shard-*"))}
