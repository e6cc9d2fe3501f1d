"""Tuning a server that already runs, from its answers to the report.

    1  answers    every prompt once; from then on it is known whether the server drafts
    2  rounds     the server, beside plain decoding where there is a second server, in all cells
    3  replays    methods along its answers, after it was measured: they take this machine's cores
    4  verdict    use what it does now, leave it off, or change

Example: `tuned_endpoint(config, target, sample, servers, files, listen).sentence` begins with "Use", "Keep", "Leave" or
"Change".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from time import monotonic
from typing import Final

from outrider.bench.cells import Cell
from outrider.data.workloads import Conversation
from outrider.errors import ConfigError
from outrider.export.deployment import deployment
from outrider.proposers.method_spec import method_specs
from outrider.records.progress import Listener
from outrider.results.counters import total_of
from outrider.results.derive import derive_rows
from outrider.results.rows import PLAIN, Row
from outrider.results.unit import UnitResult
from outrider.target import Target
from outrider.tuning.config import DeployEngine, TuneConfig
from outrider.tuning.endpoint.costs import ServedCosts, served_costs
from outrider.tuning.endpoint.facts import NOW, ServedFacts
from outrider.tuning.endpoint.measure import NO_DRAFTS, Job, answers_cell, contender_of, measure
from outrider.tuning.endpoint.predictions import Replayed, bounds, forecasts, replayed
from outrider.tuning.endpoint.probe import Server
from outrider.tuning.endpoint.servers import Servers
from outrider.tuning.endpoint.verdict import Bound, Verdict, verdict_of
from outrider.tuning.outcome.decide import overall, tune_rows
from outrider.tuning.outcome.recipe import write_recipe
from outrider.tuning.outcome.report import Forecast, RefusedDrafter, TuneReport
from outrider.tuning.prices.predict import Pick, Predicted
from outrider.tuning.prompts import Sample, cells_for, first_cells, longest
from outrider.tuning.replays.kept import RunFiles
from outrider.tuning.replays.rebuild import rebuilt
from outrider.tuning.replays.replay import Key
from outrider.tuning.replays.texts import Text, is_degenerate
from outrider.tuning.schedule import Schedule

__all__ = ["tuned_endpoint"]

ROUNDS: Final = 3
ANSWERS_SHARE, ROUNDS_SHARE, REPLAYS_SHARE = 0.3, 0.8, 0.95
SPARE: Final = 1.25
"""Prompts that are asked for each that counts: some answers are loops."""
MOST_FORECASTS: Final = 200
MOST_SPREAD: Final = 0.2
"""Spread of the repeats up to which a server counts as undisturbed."""


@dataclass(frozen=True, kw_only=True)
class _Answered:
    """Prompts that count, their answers, how many others were loops, and whether the server drafted."""

    conversations: tuple[Conversation, ...]
    texts: Mapping[Key, Text]
    num_degenerate: int
    drafts: bool


def tuned_endpoint(
    config: TuneConfig, target: Target, sample: Sample, servers: Servers, files: RunFiles, listen: Listener
) -> TuneReport:
    """Measure the servers, and return the report.

    Args:
        target: the target by its files; its weights are loaded where heads are tried.

    Raises:
        ConfigError: if the second server drafts, or the prompts fill no number of requests.
        RunError: if a server fails while it is measured.
    """
    return _EndpointTuning(config, target, sample, servers, files, listen).run()


class _EndpointTuning:
    def __init__(
        self,
        config: TuneConfig,
        target: Target,
        sample: Sample,
        servers: Servers,
        files: RunFiles,
        listen: Listener,
    ) -> None:
        self.config = config
        self.target = target
        self.sample = sample
        self.servers = servers
        self.files = files
        self.listen = listen
        self.schedule = Schedule(monotonic(), config.seconds)
        self.rules = sample.rules(config, target)
        self.job = Job(
            target=target,
            directory=files.directory,
            manifest=files.manifest,
            rules_of=lambda cell: sample.rules(config, target, cell.repeat),
            listen=listen,
        )
        self.engine = engine_for(config, servers.main)

    def run(self) -> TuneReport:
        with self.schedule.stage("answers"):
            answered = self._answered()
        cells = first_cells(self.config, answered.conversations)
        with self.schedule.stage("rounds"):
            units = self._rounds(answered)
        with self.schedule.stage("replays"):
            found = replayed(
                self.config,
                self.target,
                answered.texts,
                cells,
                self.files,
                max_len=longest(answered.conversations, self.target, self.rules),
                end=self._end(REPLAYS_SHARE),
                listen=self.listen,
            )
        return self._concluded(answered, cells, units, found)

    def _end(self, share: float) -> float:
        return self.schedule.start + share * self.config.seconds

    def _answered(self) -> _Answered:
        needed = max(self.config.concurrency)
        wanted = self.schedule.most_prompts(needed)
        asked = self.sample.conversations[: round(SPARE * wanted)]
        cell = answers_cell(asked, needed, self.config.temperature)
        contender = contender_of(self.servers.main, NOW, self.servers.reader, self.config)
        units = measure(self.job, [contender], [cell], into="answers", end=self._end(ANSWERS_SHARE))
        texts = self._texts_of(units, asked)
        loops = {text.conversation for text in texts.values() if is_degenerate(text.known.answer)}
        answered = [one for one in asked if (one.id, 0) in texts]
        all_loops = len(loops) == len(answered)
        good = tuple(one for one in answered if all_loops or one.id not in loops)
        good = self.files.counted(good, wanted)
        ids = {one.id for one in good}
        counters = total_of(unit.counters for unit in units if unit.counters is not None)
        return _Answered(
            conversations=good,
            texts={key: text for key, text in texts.items() if text.conversation in ids},
            num_degenerate=len(loops),
            drafts=counters.num_draft_tokens > 0,
        )

    def _texts_of(self, units: Sequence[UnitResult], asked: Sequence[Conversation]) -> dict[Key, Text]:
        """Return the server's answers in these units, in order."""
        known, found = {one.id: one for one in asked}, dict[Key, Text]()
        for unit in units:
            for id in [id for id in unit.conversations if id in known]:
                answers = {one.turn: one.tokens for one in unit.answers if one.conversation == id}
                found |= {text.key: text for text in rebuilt(known[id], answers, self.target, self.rules)}
        return found

    def _rounds(self, answered: _Answered) -> list[UnitResult]:
        main, plain, reader = self.servers
        contenders = [contender_of(main, NOW if answered.drafts else PLAIN, reader, self.config)]
        if answered.drafts and plain is not None:
            contenders.append(contender_of(plain, PLAIN, reader, self.config))
        elif answered.drafts and main.engine in NO_DRAFTS:
            contenders.append(contender_of(main, PLAIN, reader, self.config, drafts=False))
        cells = [cell for number in range(ROUNDS) for cell in self._cells(answered, number)]
        units = measure(self.job, contenders, cells, into="rounds", end=self._end(ROUNDS_SHARE))
        of_plain = [unit.counters for unit in units if unit.method == PLAIN and unit.counters is not None]
        if plain is not None and (drafted := total_of(of_plain).num_draft_tokens):
            raise ConfigError(
                f"none={plain.endpoint.url} is not plain decoding, for it drafted {drafted} tokens; give a server "
                "without speculation"
            )
        return units

    def _baseline(self, answered: _Answered) -> Server | None:
        """Return the server that gives plain decoding: one that does not draft, or can be asked not to."""
        main, plain, _ = self.servers
        if not answered.drafts:
            return main
        return plain or (main if main.engine in NO_DRAFTS else None)

    def _cells(self, answered: _Answered, number: int) -> list[Cell]:
        """Return the cells of a round; where plain decoding's costs are wanted, one with more requests at once too."""
        most = max(self.config.concurrency)
        more = min(4 * most, len(answered.conversations))
        has_plain = not answered.drafts or self._baseline(answered) is not None
        wanted = (*self.config.concurrency, *((more,) if has_plain and more > most and number == 0 else ()))
        return cells_for(replace(self.config, concurrency=wanted), answered.conversations, number)

    def _concluded(
        self, answered: _Answered, cells: Sequence[Cell], units: Sequence[UnitResult], found: Replayed
    ) -> TuneReport:
        config, batches = self.config, tuple(sorted({cell.batch for cell in cells}))
        costs = served_costs(unit for unit in units if unit.method == PLAIN)
        asked = [unit for unit in units if unit.batch in batches]
        rows = sorted(derive_rows(asked), key=lambda row: row.batch)
        now = [row for row in overall(rows) if row.method == NOW]
        predicted = [] if costs is None else forecasts(found, costs, cells, self.rules, config, self.engine)
        verdict = verdict_of(
            drafts=answered.drafts,
            now={row.batch: row.speedup for row in now if row.speedup is not None},
            tau=now[0].tau if now else None,
            predicted=predicted,
            bounds=[] if costs is not None else self._bounds(now, asked, found),
        )
        main, baseline = self.servers.main, self._baseline(answered)
        report = TuneReport(
            run=str(self.files.directory),
            target=config.target,
            machine=f"{self.servers.main.engine or 'a server'} at {main.endpoint.url}",
            temperature=config.temperature,
            concurrency=batches,
            is_prediction=verdict.is_prediction,
            method=verdict.method,
            budget="fixed",
            sentence=verdict.sentence,
            speedups=verdict.speedups,
            off_from=verdict.off_from,
            crossover=verdict.crossover,
            limit=None,
            waterfall=None,
            rows=tune_rows(asked, [Pick(NOW, "fixed")]),
            checks=(),
            median_error=None,
            forecasts=_forecasts(predicted, batches),
            refused=tuple(RefusedDrafter(name=one.name, reason=one.reason) for one in found.candidates.refused),
            num_prompts=len(answered.conversations),
            num_degenerate=answered.num_degenerate,
            notes=(
                *self.sample.notes,
                *found.notes,
                *_notes(answered, units, costs, config, batches, self.engine),
                *_disturbed(rows),
            ),
            deploy=self._deployed(verdict),
            seconds=dict(self.schedule.stages),
            served=ServedFacts(
                url=main.endpoint.url,
                engine=main.engine,
                model=main.model,
                drafts=answered.drafts,
                baseline=None if baseline is None else baseline.endpoint.url,
                rows=tuple(rows),
            ),
        )
        return replace(report, recipe=str(write_recipe(report, config, self.files.directory, ())))

    def _bounds(self, now: Sequence[Row], units: Sequence[UnitResult], found: Replayed) -> list[Bound]:
        """Return bounds from the fewest requests at once, where the server's steps are known."""
        row = now[0] if now else None
        own = [unit for unit in units if row is not None and unit.batch == row.batch]
        counters = total_of(unit.counters for unit in own if unit.counters is not None)
        num_tokens = sum(len(answer.tokens) - 1 for unit in own for answer in unit.answers)
        if row is None or row.tau is None or num_tokens <= 0:
            return []
        rows = 1 + counters.num_draft_tokens * row.tau / num_tokens
        return bounds(found, self.config, self.engine, tau=row.tau, rows=rows)

    def _deployed(self, verdict: Verdict) -> tuple[str, ...]:
        if verdict.method == NOW:
            return ()
        [spec] = method_specs([verdict.method])
        return deployment(spec, self.config.target, self.engine).shown


def engine_for(config: TuneConfig, server: Server) -> DeployEngine:
    """Return the engine that the result is for: the one that was asked for, else the server's own."""
    if config.engine != "outrider" or server.engine is None:
        return config.engine
    return server.engine


def _forecasts(predicted: Sequence[Predicted], batches: Sequence[int]) -> tuple[Forecast, ...]:
    return tuple(
        Forecast(
            method=one.choice.text,
            budget=one.choice.budget,
            speedups=tuple(one.speedups[batch] for batch in batches),
            score=one.score,
        )
        for one in predicted[:MOST_FORECASTS]
    )


def _disturbed(rows: Sequence[Row]) -> list[str]:
    """Return a note where repeats differ too much to decide by."""
    spread = max((row.repeat_spread or 0.0 for row in overall(rows)), default=0.0)
    if spread <= MOST_SPREAD:
        return []
    return [
        f"repeats were up to {100 * spread:.0f} % apart: the server or its machine was busy; measure again when idle"
    ]


def _notes(
    answered: _Answered,
    units: Sequence[UnitResult],
    costs: ServedCosts | None,
    config: TuneConfig,
    batches: Sequence[int],
    engine: DeployEngine,
) -> list[str]:
    notes = [f"not measured: {count} requests at once" for count in config.concurrency if count not in batches]
    without = sum(unit.counters is None for unit in units)
    if without:
        notes.append(
            f"{without} of {len(units)} measurements have no counts: the server's counters grew by other tokens than "
            "arrived here, so somebody else uses it"
        )
    if answered.drafts and costs is None:
        notes.append("not measured: plain decoding, for a running server that drafts cannot be asked not to")
    if costs is not None:
        notes.append(
            "predictions price a forward by its rows, as plain decoding of up to "
            f"{costs.rows[-1]:.1f} requests at once showed; what {engine} spends on drafting and accepting is not known"
        )
    return notes
