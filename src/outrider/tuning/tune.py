"""Tuning from settings to a result: which method, which settings, which budget.

    1  candidates   drafters that fit, and why others do not
    2  answers      written once by the target
    3  replays      every setting along them, without the target
    4  costs        what steps cost here, from the cache as far as they are there
    5  forecasts    every setting at every number of requests
    6  verify       the best few, side by side, while there is time
    7  decide       use this, or leave it off

Everything that is finished is kept in the run's directory; the same call goes on there.

Example: `tune("smollm2-135m", concurrency=(1, 4), time="5m").sentence`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, Final

from outrider.bench.cells import Cell
from outrider.costs.tables import STEADY
from outrider.data.dialogue import Rules
from outrider.data.workloads import Conversation
from outrider.errors import ConfigError, nearest
from outrider.planning.check import CostTables
from outrider.records.codec import dumps
from outrider.records.progress import Listener, Progress, unheard
from outrider.results.unit import UnitResult
from outrider.target import Target
from outrider.targets import target_of
from outrider.tuning.candidates import Candidates, Family, find_candidates, loaded
from outrider.tuning.config import TuneConfig
from outrider.tuning.endpoint.server import tuned_server
from outrider.tuning.opening import open_files
from outrider.tuning.outcome.conclude import Findings, concluded
from outrider.tuning.outcome.report import TuneReport
from outrider.tuning.prices.book import CostBook, cost_grid
from outrider.tuning.prices.forecast import Forecasts, Replaying, forecasts_of
from outrider.tuning.prices.predict import Predicted
from outrider.tuning.prices.pricing import Forecaster, Priced, priced
from outrider.tuning.prices.sheet import sheet_costs
from outrider.tuning.prices.simulate import Simulating, simulated
from outrider.tuning.prompts import Sample, cells_for, first_cells, longest, sampled
from outrider.tuning.replays.kept import Answers, RunFiles
from outrider.tuning.replays.known import ReplayTarget
from outrider.tuning.replays.rebuild import rebuilt, with_states
from outrider.tuning.replays.replay import Key
from outrider.tuning.replays.texts import Text, is_degenerate, write_texts
from outrider.tuning.schedule import Schedule, Shortlist, shortlist
from outrider.tuning.verify import Trial, of_cells, verify

__all__ = ["tune", "tuned"]

WRITING_SLOTS: Final = 8
WARM_UP: Final = 48


def tune(target: str | Target = "smollm2-135m", **settings: Any) -> TuneReport:
    """Find the method, the settings and the budget for a target, and return the result.

    Args:
        target: a name as `load_target` takes it, or a loaded target.
        settings: the fields of `outrider.tuning.config.TuneConfig`, such as prompts, concurrency, time and drafters.

    Raises:
        ConfigError: for an unknown setting, or one out of range.
        CheckpointError: if the target or a drafter cannot be read.
        RunError: if the run's directory cannot be written, or is another run's.
    """
    known = [field.name for field in fields(TuneConfig) if field.name != "target"]
    if strange := [name for name in settings if name not in known]:
        raise ConfigError(f"tune has no setting '{strange[0]}'{nearest(strange[0], known)}")
    if isinstance(target, str):
        return tuned(TuneConfig(target=target, **settings))
    return tuned(TuneConfig(target=target.spec.name, **settings), target)


def tuned(
    config: TuneConfig,
    target: Target | None = None,
    *,
    started: Callable[[Path], None] = lambda directory: None,
    listen: Listener = unheard,
) -> TuneReport:
    """Find the method, or go on where an interrupted run stopped.

    Args:
        target: the loaded target, where the caller has it.
        started: called with the run's directory when it exists.
        listen: told of what is done, and what leads so far.

    Raises:
        OutriderError: as `tune`.
    """
    if config.endpoints:
        return tuned_server(config, target, started=started, listen=listen)
    start = monotonic()  # loading, and compiling kernels for the first time, count too
    target = target_of(config, listen) if target is None else target
    sample = sampled(config, target)
    listen(Progress(0, None, "looking for drafters"))
    candidates = find_candidates(target, config.drafters, lambda name: listen(Progress(0, None, f"loading {name}")))
    files = open_files(config, target, sample, started)
    report = _Tuning(config, target, sample, candidates, files, listen, start).run()
    files.finish(dumps(report))
    return report


@dataclass
class _Answered:
    """Prompts whose answers count, those answers, and how many others were loops."""

    conversations: tuple[Conversation, ...]
    texts: dict[Key, Text]
    num_degenerate: int
    all_degenerate: bool = False


class _Tuning:
    """One run, stage by stage."""

    def __init__(
        self,
        config: TuneConfig,
        target: Target,
        sample: Sample,
        candidates: Candidates,
        files: RunFiles,
        listen: Listener,
        start: float,
    ) -> None:
        self.config = config
        self.target = target
        self.sample = sample
        self.candidates = candidates
        self.files = files
        self.listen = listen
        self.rules: Rules = sample.rules(config, target)
        self.schedule = Schedule(start, config.seconds)
        self.max_len = longest(sample.conversations, target, self.rules)

    def run(self) -> TuneReport:
        with self.schedule.stage("answers"):
            answered = self._answered()
        cells = first_cells(self.config, answered.conversations)
        found = self._forecasts(answered, cells)
        forecasts, predicted = found.forecasts, found.forecasts.predicted
        with self.schedule.stage("verifying"):
            units = [] if self.config.hardware else self._verified(answered, forecasts, predicted)
            units = of_cells(units, cells)
        return concluded(
            Findings(
                config=self.config,
                target=self.target,
                conversations=answered.conversations,
                candidates=self.candidates,
                forecasts=forecasts,
                predicted=predicted,
                units=units,
                cells=cells,
                num_degenerate=answered.num_degenerate,
                notes=(
                    *self.sample.notes,
                    *(("every answer is a loop, so none was left out",) if answered.all_degenerate else ()),
                    *found.notes,
                ),
                directory=self.files.directory,
                seconds=dict(self.schedule.stages),
            )
        )

    def _say(self, words: str) -> None:
        self.listen(Progress(min(self.schedule.spent, self.schedule.seconds), self.schedule.seconds, words))

    def _say_written(self, num_prompts: int, num_tokens: int) -> None:
        self._say(f"the target answers {num_prompts} prompts: {num_tokens} tokens")

    def _answered(self) -> _Answered:
        """Return answers, in whole rounds over the categories, until their share of the time is spent."""
        kept, texts = self.files.answers(), list[Text]()
        needed = max(self.config.concurrency)
        done: list[Conversation] = []
        for wave in self.sample.waves(needed):
            wave = [one for one in wave if one.id in kept.tokens] if kept.complete else wave
            unwritten = [one for one in wave if one.id not in kept.tokens]
            num_good = len({one.id for one in done} - _loops(texts))
            if unwritten and done and num_good >= needed and not self.schedule.may_write():
                break
            done += wave
            for one in wave:
                texts += self._read(one, kept.tokens.get(one.id, {}))
            if unwritten:
                texts += self._written(unwritten, kept, len(done))
        kept.complete = True
        self.files.keep_answers(kept)
        self.schedule.prefill_s += kept.prefill_s
        loops = _loops(texts)
        all_loops = len(loops) == len(done)
        good = tuple(done) if all_loops else tuple(one for one in done if one.id not in loops)
        good = self.files.counted(good, self.schedule.most_prompts(needed))
        ids = {one.id for one in good}
        return _Answered(good, {text.key: text for text in texts if text.conversation in ids}, len(loops), all_loops)

    def _read(self, one: Conversation, answers: Mapping[int, Sequence[int]]) -> list[Text]:
        """Return the texts of a conversation that was answered before."""
        layers = self.candidates.feature_layers
        return [with_states(text, self.target, layers) for text in rebuilt(one, answers, self.target, self.rules)]

    def _written(self, wave: Sequence[Conversation], kept: Answers, num_asked: int) -> list[Text]:
        """Let the target answer, and keep that."""
        written = write_texts(
            self.target,
            wave,
            self.rules,
            batch=min(WRITING_SLOTS, len(wave)),
            max_len=self.max_len,
            layers=self.candidates.feature_layers,
            told=partial(self._say_written, num_asked),
        )
        kept.tokens.update((one.id, {}) for one in wave)
        for text in written.texts:
            kept.tokens[text.conversation][text.turn] = text.known.answer
        kept.prefill_s += written.prefill_s
        self.files.keep_answers(kept)
        return written.texts

    def _forecasts(self, answered: _Answered, cells: Sequence[Cell]) -> Priced:
        texts, families = answered.texts, self.candidates.families
        replays = self.files.replays(texts)
        known = ReplayTarget(self.target, [text.known for text in texts.values()], self.candidates.feature_layers)
        replaying = Replaying(
            target=known,
            texts=texts,
            cells=cells,
            files=self.files,
            load=lambda text: loaded(text, self.target),
            max_len=self.max_len,
            end=self.schedule.end_of_replays,
            tell=self._say,
        )
        with self.schedule.stage("replays"):
            done = replaying.run(families, replays)
        left_out = [family.base for family in families if family not in done]

        def forecast(families: Sequence[Family], tables: CostTables) -> Forecasts:
            return forecasts_of(families, replays, texts, cells, tables, self.rules)

        with self.schedule.stage("costs"):
            found = (
                self._on_a_sheet(done, texts, forecast) if self.config.hardware else self._timed(done, texts, forecast)
            )
            job = Simulating(
                target=known,
                texts=texts,
                cells=cells,
                tables=found.tables,
                rules=self.rules,
                replays=replays,
                load=replaying.load,
                max_len=self.max_len,
                end=self.schedule.end_of_runs,
                tell=self._say,
            )
            forecasts, notes = simulated(job, done, found.forecasts)
        late = (f"not replayed for lack of time: {', '.join(left_out)}",) if left_out else ()
        return Priced(forecasts, found.tables, (*found.notes, *notes, *late))

    def _timed(self, families: Sequence[Family], texts: Mapping[Key, Text], forecast: Forecaster) -> Priced:
        """Predict from what steps cost here."""
        lengths = [(len(text.known.prompt), len(text.known.tokens)) for text in texts.values()]
        book = CostBook(self.target, cost_grid(self.config.concurrency, lengths, self.target.spec.max_positions))
        self._say("timing forwards, once for this machine")
        own = book.target_costs(self.schedule.for_forwards)
        found = priced(families, book, own, forecast, end=self.schedule.end_of_drafts, tell=self._say)
        if book.spread is None or book.spread <= STEADY:
            return found
        note = f"the machine was disturbed while costs were measured: sweeps were {100 * book.spread:.0f} % apart"
        return found._replace(notes=(*found.notes, note))

    def _on_a_sheet(self, families: Sequence[Family], texts: Mapping[Key, Text], forecast: Forecaster) -> Priced:
        """Predict from what steps cost on the machine of a data sheet."""
        assert self.config.hardware is not None
        context = sum(len(text.known.tokens) for text in texts.values()) / len(texts)
        tables, notes = sheet_costs(self.config.hardware, self.target, families, context)
        known = [family for family in families if all(one.text in tables.drafts for one in family.settings)]
        return Priced(forecast(known, tables), tables, notes)

    def _verified(self, answered: _Answered, forecasts: Forecasts, predicted: Sequence[Predicted]) -> list[UnitResult]:
        seconds = self.schedule.for_verifying
        kept = self.files.shortlist()
        plan = (
            Shortlist.from_plain(kept)
            if kept is not None
            else shortlist(predicted, forecasts.plain, seconds, self.schedule.prefill_s)
        )
        self.files.keep_shortlist(plan.to_plain())
        if not plan.choices:
            return []

        def cells_of(number: int) -> list[Cell]:
            return [plan.capped(cell) for cell in cells_for(self.config, answered.conversations, number)]

        job = Trial(
            target=self.target,
            directory=self.files.directory / "verify",
            manifest=self.files.manifest,
            cells_of=cells_of,
            rules_of=lambda cell: self.sample.rules(self.config, self.target, cell.repeat),
            load=lambda text: loaded(text, self.target),
            max_len=self.max_len,
            warm_up=list(next(iter(answered.texts.values())).known.prompt[: min(WARM_UP, self.max_len // 2)]),
            listen=self.listen,
        )
        return verify(job, plan.choices, seconds=seconds)


def _loops(texts: Sequence[Text]) -> set[str]:
    """Return the conversations with an answer that is a loop."""
    return {text.conversation for text in texts if is_degenerate(text.known.answer)}
