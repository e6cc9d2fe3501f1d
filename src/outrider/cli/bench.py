"""`outrider bench`: measure methods against plain decoding."""

import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from outrider.bench.config import BenchConfig

__all__ = ["Bench"]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Measure methods against plain decoding, side by side on the same prompts.

    Options that are not given come from the preset; one without a value is empty. An interrupted run is resumed by the
    same command; nothing is measured twice. Tables go to standard output, ended by one line of JSON where that is not a
    terminal; all records are kept in the run's directory.
    """

    preset: str = "quick"
    """A TOML file, or one of ours in recipes/: quick is a slice of a few minutes, full is everything."""
    run_dir: Path | None = None
    """Where records and results go; by default the unfinished run with these settings, or a new one, under runs/."""
    resume: bool = True
    """Without --run-dir: go on with an unfinished run of the same settings."""
    target: str | None = None
    """A directory, a GGUF file, a hub id, or smollm2-135m."""
    dtype: str | None = None
    """Of the weights: bfloat16, float16, float32, float64."""
    device: str | None = None
    """cpu, cuda, ...; by default the GPU if there is one."""
    trust_remote_code: bool = False
    """Run Python code that comes with the target and its draft models; read it first."""
    methods: tuple[str, ...] | None = None
    """For example: none ngram:num_nodes=8,max_n=4. Plain decoding (none) always takes part."""
    budget: tuple[Literal["fixed", "auto"], ...] | None = None
    """fixed drafts as much as the method is set to, auto as much as pays here; each method runs under each."""
    verification: str | None = None
    """coupled, rejection or block."""
    categories: tuple[str, ...] | None = None
    """Of our own prompts; see workloads/README.md."""
    prompts: tuple[str, ...] | None = None
    """Prompts of your own, all of them: JSONL files, or hub:NAME:SPLIT:FIELD; our categories only where given too."""
    num_prompts: int | None = None
    """Prompts of each category, from the top; rounded up to fill the last batch."""
    max_prompt_tokens: int | None = None
    """Leaves out longer prompts."""
    max_new_tokens: int | None = None
    """Caps the length of each answer."""
    batches: tuple[int, ...] | None = None
    """Batch sizes."""
    temperatures: tuple[float, ...] | None = None
    """0 is greedy."""
    repeats: int | None = None
    """Times that each cell is measured."""
    seed: int | None = None
    """Of all sampling."""
    warm: bool | None = None
    """Also measure methods that learn after they have read answers to other prompts of the category."""
    ignore_eos: bool | None = None
    """Write on to the limit; such rows are labelled."""
    engine: tuple[Literal["outrider", "vllm", "vllm-custom"], ...] | None = None
    """Who decodes: outrider, our engine; vllm, a server of it for each method (make vllm builds it); vllm-custom, a
    server of it that drafts with our own code. By default outrider, or only the endpoints where some are given."""
    endpoint: tuple[str, ...] | None = None
    """Servers that already run: URL or METHOD=URL, for example none=http://localhost:8000/v1."""
    endpoint_model: str | None = None
    """The model's name there, if they serve several."""
    endpoint_metrics: tuple[str, ...] | None = None
    """Prometheus pages whose counters are added, where several replicas answer; by default the endpoint's own."""
    serve: tuple[str, ...] | None = None
    """Flags for the servers that we start: tensor-parallel-size=2 enforce-eager."""
    together: bool | None = None
    """Run the servers of all methods at once and take turns; needs memory for all of them."""
    start_timeout: float | None = None
    """Seconds that a server may take to become healthy."""
    stall_timeout: float | None = None
    """Seconds that a server may say nothing while it answers."""
    external: tuple[str, ...] | None = None
    """Baselines outside our engine: transformers, transformers-lookup, transformers-assisted:layers=0,1,2."""
    external_categories: tuple[str, ...] | None = None
    """Where those take part; by default in all."""
    external_prompts: int | None = None
    """Prompts of each category that they answer."""
    external_repeats: int | None = None
    """Times that they are measured."""

    def run(self) -> None:
        from outrider.bench.benchmark import benchmark
        from outrider.cli.interruption import resumable
        from outrider.cli.terminal import console, end_with, progress
        from outrider.results.rows import to_json
        from outrider.results.tables.table import print_report

        config = self.config()
        directory: list[Path] = []

        def place() -> str:
            return f"; finished units are in {directory[0]}, and the same command goes on there" if directory else ""

        with resumable(place), progress() as bar:
            report = benchmark(
                config,
                self.run_dir,
                name=Path(self.preset).stem,
                resume=self.resume,
                started=directory.append,
                listen=lambda at: bar.show(at.num_done, at.num_units, at.unit),
            )
        print_report(report, console(sys.stdout))
        end_with(to_json(report), f"All columns: {report.run}/report.md; as data: report.json there")

    def config(self) -> "BenchConfig":
        """Return the settings of the run."""
        from outrider.bench.preset import chosen

        return chosen(self.preset, self._given())

    def _given(self) -> dict[str, object]:
        """Return what was said on the command line; None for what was not."""
        given = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in OWN}
        for plural, singular in (("budgets", "budget"), ("engines", "engine"), ("endpoints", "endpoint")):
            given[plural] = given.pop(singular)
        given["trust_remote_code"] = self.trust_remote_code or None
        alone = {"engines": ()} if self.endpoint and self.engine is None else {}
        return given | alone


OWN = ("preset", "run_dir", "resume")
