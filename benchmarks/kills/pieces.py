"""Finished pieces of a command, by name, each with a value that changes when it is made again.

a unit of a benchmark, a step of training    its line, which holds measured times
a shard, a quantised model                   the inode of its file, which is replaced by renaming
an answer, a replay, a group of a profile    how often a run began it, as the ledger says
a candidate's figures, a part of an audit    the same
a page                                       none: it is whole, or it is not there
"""

import functools
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from outrider.audit.kept import PIECES, Kept
from outrider.profiling import profile
from outrider.quality import measure
from outrider.quality.unfinished import Unfinished
from outrider.tuning import tune, verify
from outrider.tuning.prices import book
from outrider.tuning.prices.forecast import Replaying

__all__ = ["Pieces", "audited", "files", "judged", "lines", "page", "profiled", "steps", "tuned", "watch"]

Pieces = dict[str, Any]
LEDGER, ENDED = "ledger", "ended"


def files(place: Path, *patterns: str) -> Pieces:
    """Return the inodes of files."""
    found = [path for pattern in patterns for path in place.glob(pattern)]
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}


def lines(path: Path) -> Pieces:
    """Return the whole lines of a benchmark's units."""
    data = path.read_bytes() if path.exists() else b""
    found = [json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]
    assert len({line["unit"] for line in found}) == len(found), f"{path} holds a unit twice"
    return {line["unit"]: line for line in found}


def steps(place: Path) -> Pieces:
    """Return the logged steps of a training run that its newest checkpoint holds, and the shards of its features."""
    newest = max((int(path.name[5:]) for path in (place / "checkpoints").glob("step-*")), default=0)
    path = place / "log.jsonl"
    logged = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]] if path.exists() else []
    kept = {f"{line['kind']} {line['step']}": line for line in logged if line["step"] <= newest}
    return kept | files(place.parent / "features", "*.safetensors")


def tuned(place: Path) -> Pieces:
    """Return the answers, replays, costs and units of a tuning run."""
    begun = _begun(place)
    replays = _json(place / "replays.json")
    names = [f"answer {one}" for one in _json(place / "answers.json").get("ids", ())]
    names += [f"replay {one}" for part in ("reaches", "walks") for one in replays.get(part, ())]
    found: Pieces = {name: begun[name] for name in names}
    for path in (place.parent / "cache" / "tuned").glob("*.costs.json"):
        costs = _json(path)
        found |= {"forwards": costs["target"]} | {f"drafts {name}": one for name, one in costs["drafts"].items()}
    return found | lines(place / "verify" / "units.jsonl")


def profiled(place: Path) -> Pieces:
    """Return the groups of a profile."""
    begun, unfinished, whole = _begun(place), place.with_name("out.json.unfinished"), place.with_name("out.json")
    groups = _json(unfinished)["groups"] if unfinished.exists() else begun if whole.exists() else ()
    return {name: begun[name] for name in groups}


def judged(place: Path) -> Pieces:
    """Return the quantised models, the texts and the candidates' figures of a measurement of quality.

    Once a result is printed, the next run is another measurement, whose pieces are its own.
    """
    cache = place.parent / "cache"
    *ended, running = _measurements(place)
    found = files(cache, "quantised/*.safetensors") | (ended[-1] if ended else {})
    for path in (cache / "quality").glob("*.unfinished"):
        kept = json.loads(path.read_text(encoding="utf-8").partition("\n")[2])
        found |= {name: running[name] for name in ("texts", *(f"figures {line['label']}" for line in kept["lines"]))}
    return found


def _measurements(place: Path) -> list[Counter[str]]:
    """Return what each measurement began; the last one has not ended."""
    path = place.parent / LEDGER
    found = [Counter[str]()]
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        if line == ENDED:
            found.append(Counter())
        else:
            found[-1][line] += 1
    return found


def audited(place: Path) -> Pieces:
    """Return the finished comparisons of an audit; all of them where its result is written."""
    begun = _begun(place)
    if place.with_name("out.json").exists():
        return dict(begun)
    kept = [path / PIECES for path in (place.parent / "cache" / "audits").glob("*")]
    return {name: begun[name] for path in kept for name in _json(path)}


def page(place: Path) -> Pieces:
    """Return nothing: a page is one piece, and must be whole where it is."""
    path = place.with_name("out.html")
    assert not path.exists() or path.read_bytes().rstrip().endswith(b"</html>"), f"{path} is cut off"
    return {}


def watch(place: Path) -> None:
    """Let the commands of this process tell the ledger of a trial what they begin, and tuning measure as little as it
    can."""
    verify.MOST_ROUNDS = book.MOST_SWEEPS = 2  # type: ignore[misc]
    _tell(place, tune, "write_texts", lambda target, texts, *_, **__: [f"answer {one.id}" for one in texts])
    _tell(place, Replaying, "_family", lambda self, family, replays: _replays(family))
    _tell(place, profile._Kept, "keep", lambda self, key, plain: [key])
    _tell_made(place)
    _tell(place, measure, "held_out", lambda *_: ["texts"])
    _tell(place, measure, "_line", lambda one, *_: [f"figures {one.label}"])
    _tell(place, Unfinished, "end", lambda *_: [ENDED])


def _replays(family: Any) -> list[str]:
    return [f"replay {name}" for name in (family.base, *(one.text for one in family.settings))]


def _tell(place: Path, owner: Any, name: str, names_of: Callable[..., Sequence[str]]) -> None:
    inner = getattr(owner, name)

    @functools.wraps(inner)
    def told(*args: Any, **more: Any) -> Any:
        with (place.parent / LEDGER).open("a", encoding="utf-8") as file:
            file.write("".join(f"{one}\n" for one in names_of(*args, **more)))
        return inner(*args, **more)

    setattr(owner, name, told)


def _tell_made(place: Path) -> None:
    """Let the ledger know which comparisons of an audit are made: not those that were kept."""
    inner = Kept.piece

    def told(self: Kept, name: str, kind: Any, make: Callable[[], Any]) -> Any:
        def made() -> Any:
            with (place.parent / LEDGER).open("a", encoding="utf-8") as file:
                file.write(f"{name}\n")
            return make()

        return inner(self, name, kind, made)

    Kept.piece = told  # type: ignore[method-assign]


def _begun(place: Path) -> Counter[str]:
    path = place.parent / LEDGER
    return Counter(path.read_text(encoding="utf-8").splitlines() if path.exists() else ())


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
