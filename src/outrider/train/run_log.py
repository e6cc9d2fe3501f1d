"""The log of a run: `log.jsonl`, one line per event, and the same numbers for TensorBoard.

    {"kind": "step", "step": 12, "loss": 2.31, "learning_rate": 0.0001, ...}
    {"kind": "held_out", "step": 200, "tau": 2.4, "conditional": [0.71, 0.66], ...}
    {"kind": "decoded", "step": 1000, "tau": 2.2, ...}

When a run is resumed, lines behind the checkpoint are cut off: those steps are taken again, and each step has one line.

Example: `RunLog(directory, from_step=200)` keeps the lines of steps 1 to 200.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

from outrider.errors import ConfigError, RunError
from outrider.records.files import write_text, writing
from outrider.records.json_fields import Fields, parse_json

__all__ = ["RunLog", "curve", "evaluations"]

LOG = "log.jsonl"
CURVE_POINTS = 32


@final
class RunLog:
    """The log of one run; only the main process has one.

    Raises:
        ConfigError: if TensorBoard is not installed.
    """

    def __init__(self, directory: Path, from_step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError("training writes TensorBoard files; pip install outrider[train]") from error
        self.path = directory / LOG
        with writing(directory):
            directory.mkdir(parents=True, exist_ok=True)
            kept = [line for line in _lines(self.path) if line.integer("step") <= from_step]
            write_text(self.path, "".join(json.dumps(line.plain()) + "\n" for line in kept))
            self._board = SummaryWriter(str(directory / "tensorboard"), purge_step=from_step + 1)
            self._file = self.path.open("a", encoding="utf-8")

    def write(self, kind: str, step: int, figures: Mapping[str, Any]) -> None:
        """Log figures: numbers, lists of numbers by depth, or None."""
        with writing(self.path):
            self._file.write(json.dumps({"kind": kind, "step": step, **figures}) + "\n")
            self._file.flush()
            for name, value in figures.items():
                by_depth = enumerate(value, start=1) if isinstance(value, (list, tuple)) else [(None, value)]
                for depth, number in by_depth:
                    if number is not None:
                        tag = f"{kind}/{name}" if depth is None else f"{kind}/{name}_{depth}"
                        self._board.add_scalar(tag, number, step)

    def close(self) -> None:
        self._file.close()
        self._board.close()


def curve(directory: Path, points: int = CURVE_POINTS) -> list[tuple[int, float]]:
    """Return at most `points` (step, loss) pairs of a run's log, evenly spaced, the last one included."""
    steps = [line for line in _lines(directory / LOG) if line["kind"] == "step"]
    losses = [(line.integer("step"), line.number("loss", None)) for line in steps]
    known: Sequence[tuple[int, float]] = [(step, loss) for step, loss in losses if loss is not None]
    stride = max(1, -(-len(known) // points))
    return sorted(known[::-1][::stride])  # from the end, which is always included


def evaluations(directory: Path) -> list[dict[str, Any]]:
    """Return the `held_out` lines of a run's log, each with the `tokens` that had been read by then."""
    found, tokens = [], 0
    for line in _lines(directory / LOG):
        tokens = line.integer("tokens", low=0) if line["kind"] == "step" else tokens
        if line["kind"] == "held_out":
            line.number("tau")
            line.number("loss", None)
            line.integer("num_texts", low=0)
            line.integer("num_anchors", low=0)
            conditional = line.array("conditional")
            if not all(isinstance(one, float | int) and 0 <= one <= 1 for one in conditional):
                line.refuse("conditional", "a list of numbers from 0 to 1")
            found.append({**line, "tokens": tokens})
    return found


def _lines(path: Path) -> list[Fields]:
    """Return the whole lines; drop what a crash left of the last one.

    Raises:
        RunError: for a line that is damaged; names it.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunError(
            f"{path} cannot be read ({error.strerror}); mend it, or delete it to go on without it"
        ) from error
    found = []
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].split(b"\n"), start=1):
        if line.strip():
            found.append(parse_json(line, f"{path}, line {number}", RunError, "delete that line and resume the run"))
            found[-1].integer("step", low=0)
            found[-1].text("kind")
    return found
