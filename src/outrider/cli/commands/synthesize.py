"""`outrider synthesize`: let the target write its own training data."""

import json
import sys
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import tyro

from outrider.data.config import SynthesisConfig
from outrider.models.weight_kinds import Backend, KvDtype, WeightsChoice
from outrider.records.display import visible

if TYPE_CHECKING:
    from outrider.cli.terminal import Bar
    from outrider.data.generator import TextGenerator
    from outrider.data.identity import Identity
    from outrider.data.synthesis import Progress, Result

__all__ = ["Synthesize"]


@dataclass(frozen=True, kw_only=True)
class Synthesize:
    """Let the target write its own training data: token ids, and which of them it wrote.

    An interrupted run is resumed by the same command; a larger --num-prompts lets a finished one grow. Prompts of the
    benchmark are left out. Counts go to standard error; where standard output is not a terminal, one line of JSON
    goes there.
    """

    backend: ClassVar[Backend] = "auto"
    kv_dtype: ClassVar[KvDtype] = "auto"

    output: Path
    """Directory of the data set."""
    target: str = "smollm2-135m"
    """Model that writes: a directory, a GGUF file, a hub id, or smollm2-135m."""
    settings: Annotated[SynthesisConfig, tyro.conf.arg(name="")] = field(default_factory=SynthesisConfig)
    max_batch: int = 16
    """Texts that our engine writes at a time."""
    method: str = "none"
    """Proposer that our engine writes with; the text does not depend on it."""
    endpoint: str | None = None
    """OpenAI-compatible server that writes instead, for example http://localhost:8000/v1."""
    model: str | None = None
    """Name of the target at the server; by default the only model that it serves."""
    concurrency: int = 32
    """Requests to the server at a time."""
    dtype: str = "bfloat16"
    """Dtype of the cache and of plain weights."""
    weights: WeightsChoice = "stored"
    """Weights on the CPU: stored as the file holds them, bf16 widened, int8 or int4 quantised while loading; with
    --endpoint, those that the server runs."""
    device: str | None = None
    """Device, such as cpu or cuda; by default the GPU if there is one."""
    trust_remote_code: bool = False
    """Run Python code that comes with the target and its draft models; read it first."""

    def run(self) -> None:
        from outrider.cli.interruption import resumable
        from outrider.cli.terminal import end_with, progress
        from outrider.data.synthesis import synthesize

        identity, generator = self._writer()
        by = f"server {self.endpoint}" if self.endpoint else f"engine, {self.dtype}"
        place = f"; finished shards are in {self.output}, and the same command goes on there"
        with resumable(lambda: place), closing(generator), progress() as bar:
            result = synthesize(
                self.settings, self.output, identity, generator, written_by=by, listen=lambda at: _show(at, bar)
            )
        print(visible(_summary(result)), file=sys.stderr)
        end_with(json.dumps(self._line(identity, result)), f"All counts: {self.output}")

    def _writer(self) -> "tuple[Identity, TextGenerator]":
        """Return the target's identity, and what writes its texts."""
        from outrider.data.identity import Identity

        if self.endpoint is not None:
            from outrider.data.endpoint import ServerConfig, ServerGenerator

            server = ServerConfig(url=self.endpoint, model=self.model, concurrency=self.concurrency)
            identity = Identity.from_files(self.target, self.dtype, self.weights, self.trust_remote_code)
            return identity, ServerGenerator(server, identity.tokenizer, identity.eos_ids, identity.vocab_size)
        from outrider.cli.loading import loaded
        from outrider.data.generator import EngineGenerator

        target = loaded(self)
        generator = EngineGenerator(target, max_batch=self.max_batch, max_len=self.settings.max_len, method=self.method)
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
    """Return lines for people: the counts, and what was left out."""
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
    """Show the prompts answered, tokens, and tokens per second."""
    done, total = at.num_prompts, at.num_prompts_wanted
    if total is None and at.num_tokens_wanted is not None:
        done, total = at.num_tokens, at.num_tokens_wanted
    words = f"{at.num_prompts} prompts, {at.num_tokens} tokens, {at.tokens_per_s:.0f} tokens/s: {at.stage}"
    bar.show(done, total, words)
