"""Methods replayed along the server's texts: priced where plain decoding's steps were measured, else bounded.

Lookups are always tried. Heads read hidden states: those that are known for the target are tried where its weights are
here and small, and those of `--drafters` always. What the server's engine cannot run is left out.

Example: for a vLLM server the hybrid and all trees are left out, since vLLM drafts chains with one method.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Final

from outrider.bench.cells import Cell
from outrider.catalogue.drafters import drafters_of
from outrider.costs.tables import DraftCosts
from outrider.data.dialogue import Rules
from outrider.export.deployment import deployment
from outrider.planning.check import CostTables
from outrider.planning.predict import FreeDrafts
from outrider.proposers.method_spec import method_specs
from outrider.records.progress import Listener, Progress
from outrider.results.rows import PLAIN
from outrider.target import Target
from outrider.targets import target_of
from outrider.tuning.candidates import Candidates, Family, find_candidates, loaded
from outrider.tuning.config import DeployEngine, TuneConfig
from outrider.tuning.endpoint.bounds import bounds_of
from outrider.tuning.endpoint.costs import BytesOfDrafter, ServedCosts
from outrider.tuning.endpoint.verdict import Bound
from outrider.tuning.prices.forecast import Replaying, forecasts_of
from outrider.tuning.prices.predict import Predicted
from outrider.tuning.replays.kept import Replays, RunFiles
from outrider.tuning.replays.known import ReplayTarget
from outrider.tuning.replays.rebuild import with_states
from outrider.tuning.replays.replay import Key
from outrider.tuning.replays.texts import Text

__all__ = ["Replayed", "bounds", "forecasts", "replayed"]

MOST_BYTES: Final = 4_000_000_000
"""Weights of a target that is loaded here to try the heads that are known for it."""
WITH_WEIGHTS: Final = ("shipped", "catalogue", "combined")


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """Families that were replayed, and the drafters that take no part.

    weight_bytes   the target's
    """

    families: tuple[Family, ...]
    replays: Replays
    texts: Mapping[Key, Text]
    candidates: Candidates
    weight_bytes: int

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on what was not tried."""
        late = [family.base for family in self.candidates.families if family not in self.families]
        told = (f"not replayed for lack of time: {', '.join(late)}",) if late else ()
        return (*self.candidates.notes, *told)


def replayed(
    config: TuneConfig,
    described: Target,
    texts: Mapping[Key, Text],
    cells: Sequence[Cell],
    files: RunFiles,
    *,
    max_len: int,
    end: float,
    listen: Listener,
) -> Replayed:
    """Run every method that can be tried along the texts, until monotonic time `end`.

    Args:
        described: the target by its files; its weights are loaded where heads are tried.
    """

    def tell(words: str) -> None:
        listen(Progress(0, None, words))

    is_small = 0 < described.spec.weight_bytes <= MOST_BYTES
    kinds = ("lookup", *(WITH_WEIGHTS if is_small else ()))
    known = [one for one in drafters_of(config.target) if one.kind in kinds]
    needs_weights = config.drafters or any(one.is_ready and one.kind in WITH_WEIGHTS for one in known)
    target = target_of(config, listen) if needs_weights else described
    candidates = find_candidates(target, config.drafters, lambda name: tell(f"loading {name}"), known)
    tell("reading the server's texts")
    whole = {key: with_states(text, target, candidates.feature_layers) for key, text in texts.items()}
    replays = files.replays(whole)
    families = Replaying(
        target=ReplayTarget(target, [text.known for text in whole.values()], candidates.feature_layers),
        texts=whole,
        cells=cells,
        files=files,
        load=lambda text: loaded(text, target),
        max_len=max_len,
        end=max(end, monotonic() + 1),
        tell=tell,
    ).run(candidates.families, replays)
    return Replayed(
        families=families,
        replays=replays,
        texts=whole,
        candidates=candidates,
        weight_bytes=described.spec.weight_bytes,
    )


def forecasts(
    found: Replayed, costs: ServedCosts, cells: Sequence[Cell], rules: Rules, config: TuneConfig, engine: DeployEngine
) -> list[Predicted]:
    """Return the predicted speedups of what the engine can run, over plain decoding, the best first."""
    drafts: dict[str, DraftCosts] = {PLAIN: FreeDrafts()}
    for family in found.families:
        share = family.deepest.spec.num_bytes / max(1, found.weight_bytes)
        drafts |= {one.text: BytesOfDrafter(share, costs) for one in family.settings}
    tables = CostTables(target=costs, drafts=drafts)
    priced = forecasts_of(found.families, found.replays, found.texts, cells, tables, rules)
    return [one for one in priced.predicted if _runs(one.choice.text, config.target, engine)]


def bounds(found: Replayed, config: TuneConfig, engine: DeployEngine, *, tau: float, rows: float) -> list[Bound]:
    """Return what lookups that the engine can run gain at least over what the server does now.

    Args:
        tau: the server's tokens a step.
        rows: the server's rows a step, the root included.
    """
    every = bounds_of(found.families, found.replays, found.texts, tau=tau, rows=rows)
    return [one for one in every if _runs(one.text, config.target, engine)]


def _runs(text: str, target: str, engine: DeployEngine) -> bool:
    [spec] = method_specs([text])
    return deployment(spec, target, engine).refused is None
