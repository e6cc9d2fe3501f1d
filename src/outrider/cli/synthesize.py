"""`outrider synthesize`: let the target write its own training data."""

import json
import sys
from contextlib import closing
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outrider.records.display import visible

if TYPE_CHECKING:
    from outrider.cli.terminal import Bar
    from outrider.data.generator import TextGenerator
    from outrider.data.identity import Identity
    from outrider.data.synthesis import Progress, Result, SynthesisConfig

__all__ = ["Synthesize"]


@dataclass(frozen=True, kw_only=True)
class Synthesize:
    """Let the target write its own training data: token ids, and which of them it wrote.

    An interrupted run is resumed by the same command; a larger --num-prompts lets a finished one grow. Prompts of the
    benchmark are left out. Counts go to standard error; where standard output is not a terminal, one line of JSON
    goes there.
    """

    output: Path
    """The directory of the data set."""
    target: str = "smollm2-135m"
    """A directory, a GGUF file, a hub id, or smollm2-135m."""
    source: str | None = None
    """Of prompts: magpie (the default: the target writes them too), a JSONL file, or hub:NAME:SPLIT:FIELD."""
    num_prompts: int | None = None
    """Conversations to end with; by default the whole file, or 1000 that the target begins."""
    num_tokens: int | None = None
    """Stop when the target has written about this many tokens."""
    turns: int | None = None
    """At most this many turns of a conversation; by default all of a file's, or 1."""
    system: str | None = None
    """The system message; by default the chat template decides, as in the benchmark."""
    temperatures: tuple[float, ...] = ()
    """Of the answers, in rotation; by default 0 (greedy), 0.7 and 1."""
    top_p: float | None = None
    """Of the answers; by default all tokens are kept."""
    prompt_temperatures: tuple[float, ...] = ()
    """Of prompts that the target writes; by default 0.6, 0.8 and 0.9."""
    prompt_top_p: float | None = None
    """Of prompts that the target writes; by default 0.9."""
    seed_phrases: Path | None = None
    """First words of prompts that the target writes, one a line, in place of ours; for other languages, say."""
    max_turn_tokens: int | None = None
    """Longest prompt that the target may write; by default 384."""
    max_prompt_tokens: int | None = None
    """Longest conversation that is answered; by default 1024."""
    max_new_tokens: int | None = None
    """Longest answer; one that is cut here is kept, without an end. By default 512."""
    shard_size: int | None = None
    """Conversations of a shard, all that an interruption can cost; by default 512."""
    heldout_fraction: float | None = None
    """Part of the prompts that training shall not see; by default 0.05."""
    seed: int | None = None
    """Of all sampling; by default 0."""
    max_batch: int = 16
    """Texts that our engine writes at a time."""
    method: str = "none"
    """The proposer that our engine writes with; the text does not depend on it."""
    endpoint: str | None = None
    """Let an OpenAI-compatible server write, for example http://localhost:8000/v1."""
    model: str | None = None
    """The target's name at the server; by default the only one that it serves."""
    concurrency: int = 32
    """Requests to the server at a time."""
    dtype: str = "bfloat16"
    """Of the weights."""
    device: str | None = None
    """cpu, cuda, ...; by default the GPU if there is one."""
    trust_remote_code: bool = False
    """Run Python code that comes with the target and its draft models; read it first."""

    def run(self) -> None:
        from outrider.cli.interruption import resumable
        from outrider.cli.terminal import end_with, progress
        from outrider.data.synthesis import SynthesisConfig, synthesize

        given = {field.name: getattr(self, field.name) for field in fields(SynthesisConfig)}
        config = SynthesisConfig(**{name: value for name, value in given.items() if value not in (None, ())})
        identity, generator = self._writer(config)
        by = f"server {self.endpoint}" if self.endpoint else f"engine, {self.dtype}"
        place = f"; finished shards are in {self.output}, and the same command goes on there"
        with resumable(lambda: place), closing(generator), progress() as bar:
            result = synthesize(
                config, self.output, identity, generator, written_by=by, listen=lambda at: _show(at, bar)
            )
        print(visible(_summary(result)), file=sys.stderr)
        end_with(json.dumps(self._line(identity, result)), f"All counts: {self.output}")

    def _writer(self, config: "SynthesisConfig") -> "tuple[Identity, TextGenerator]":
        """Who writes, and for whom."""
        from outrider.data.identity import Identity

        if self.endpoint is not None:
            from outrider.data.endpoint import ServerConfig, ServerGenerator

            server = ServerConfig(url=self.endpoint, model=self.model, concurrency=self.concurrency)
            identity = Identity.from_files(self.target, self.dtype, self.trust_remote_code)
            return identity, ServerGenerator(server, identity.tokenizer, identity.eos_ids, identity.vocab_size)
        from outrider.data.generator import EngineGenerator
        from outrider.targets import load_target

        target = load_target(
            self.target, dtype=self.dtype, device=self.device, trust_remote_code=self.trust_remote_code
        )
        generator = EngineGenerator(target, max_batch=self.max_batch, max_len=config.max_len, method=self.method)
        return Identity.of(target), generator

    def _line(self, identity: "Identity", result: "Result") -> dict[str, Any]:
        from outrider.data.shards import Dataset

        data = Dataset.open(self.output)
        totals = {name: value for name, value in asdict(result.totals).items() if name != "position"}
        return {
            "schema": "outrider.synthesize/1",
            "output": str(self.output),
            "target": identity.name,
            "target_fingerprint": identity.fingerprint,
            **totals,
            "num_held_out_texts": len(data.split().held_out),
            "num_new_tokens": result.num_new_tokens,
            "seconds": round(result.seconds, 3),
            "tokens_per_s": round(result.num_new_tokens / result.seconds, 1),
        }


def _summary(result: "Result") -> str:
    """For people: what there is, and what was left out."""
    totals = result.totals
    lines = [
        f"{totals.num_prompts} prompts, {totals.num_learnt_tokens} tokens by the target, {totals.num_shards} shards; "
        f"{totals.num_cut_answers} answers end at the limit"
    ]
    lines += [
        f"left out: {count} {reason}" for reason, count in sorted(totals.dropped.items(), key=lambda one: -one[1])
    ]
    return "\n".join(lines)


def _show(at: "Progress", bar: "Bar") -> None:
    """Prompts answered, tokens, tokens per second."""
    done, total = at.num_prompts, at.num_prompts_wanted
    if total is None and at.num_tokens_wanted is not None:
        done, total = at.num_tokens, at.num_tokens_wanted
    words = f"{at.num_prompts} prompts, {at.num_tokens} tokens, {at.tokens_per_s:.0f} tokens/s: {at.stage}"
    bar.show(done, total, words)
