"""The lines that run the result on the engine that was asked for; `outrider.export.deployment` knows the engines.

Example: for plain decoding on our own engine the last line is `outrider generate ... --method none`.
"""

from outrider.export.deployment import Deployment, deployment
from outrider.proposers.method_spec import method_specs
from outrider.tuning.config import TuneConfig
from outrider.tuning.prices.predict import Pick

__all__ = ["deployed", "python_lines"]


def deployed(config: TuneConfig, choice: Pick) -> tuple[str, ...]:
    """Return the lines that run a choice; where the engine cannot, the reason and the nearest that it can."""
    return _deployment(config, choice, config.engine).shown


def python_lines(config: TuneConfig, choice: Pick) -> tuple[str, ...]:
    """Return the lines of Python that run a choice here."""
    return _deployment(config, choice, "outrider").lines


def _deployment(config: TuneConfig, choice: Pick, engine: str) -> Deployment:
    [spec] = method_specs([choice.text])
    return deployment(spec, config.target, engine, budget=choice.budget)
