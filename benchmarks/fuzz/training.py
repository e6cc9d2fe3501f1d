"""Damaged prompt files, data sets and training runs, used as their commands use them."""

import functools
import json
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from benchmarks.fuzz.mutate import json_text, mutate_bytes, mutate_json, mutate_text
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from outrider.cli.commands.train import _resumed, with_methods
from outrider.data.directory import DataDirectory, Shard
from outrider.data.prompts import FilePrompts
from outrider.data.shards import Dataset, Text, prompt_hash
from outrider.data.texts import Data, Example, ListedTexts, count
from outrider.data.workloads import load_prompts
from outrider.testing import tiny_target
from outrider.train.card import write_card
from outrider.train.checkpoints import newest
from outrider.train.config import TrainConfig
from outrider.train.objectives.medusa import MedusaObjective, MedusaObjectiveConfig
from outrider.train.record import read_record
from outrider.train.run import Setup, accelerator, train
from outrider.train.run_log import RunLog, curve, evaluations

SAID = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "x"}, {"role": "user", "content": "b"}]
ROWS: list[dict[str, Any]] = [
    {"question_id": 81, "category": "writing", "turns": ["a", "b"], "reference": ["x"]},
    {"task_id": "HumanEval/0", "prompt": "def f():", "canonical_solution": "x", "test": "t", "entry_point": "f"},
    {"question": "How many?", "answer": "#### 3"},
    {"instruction": "Add.", "input": "2 and 3", "output": "5"},
    {"instruction": "c", "input": "d", "output": "x", "system": "s", "history": [["a", "x"], ["b", "x"]]},
    {"messages": [{"role": "system", "content": "s"}, *SAID], "id": "m"},
    {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "x"}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]},
    {"query": "Who?", "passages": [{"title": "T", "text": "one"}, {"text": "two"}]},
    {"prompt": "a", "system": "s", "max_new_tokens": 9, "id": "p-9"},
]


def prompts_file(rng: random.Random, directory: Path) -> None:
    """Read rows of published layouts, some changed, from a file that may be damaged as text."""
    rows = [rng.choice(ROWS) for _ in range(rng.randint(1, 4))]
    rows = [mutate_json(row, rng) if rng.random() < 0.35 else row for row in rows]
    data = json.dumps(rows).encode() if rng.random() < 0.15 else b"\n".join(json_text(row, rng) for row in rows)
    path = directory / "prompts.jsonl"
    path.write_bytes(mutate_text(data, rng) if rng.random() < 0.2 else data)
    prompts = FilePrompts(str(path)).take(0, 9, lambda jobs, tokens: None)
    assert all(turn.encode() and turn.strip() for prompt in prompts for turn in prompt.turns)
    assert all((prompt.fault is None) == bool(prompt.turns) for prompt in prompts)
    asked = load_prompts(path)
    assert [one.turns for one in asked] == [prompt.turns for prompt in prompts]
    json.dumps([vars(one) for one in asked], ensure_ascii=False).encode()


@functools.cache
def _data() -> Path:
    """Write a data set of two shards."""
    directory = Path(tempfile.mkdtemp(prefix="fuzz-data-")) / "data"
    manifest = {
        "target": {"name": "t", "fingerprint": "f" * 16},
        "settings": {"heldout_fraction": 0.25},
        "provenance": {},
    }
    with DataDirectory(directory, manifest) as data:
        for first in (0, 3):
            prompts = [f"prompt {number}" for number in range(first, first + 3)]
            texts = [Text((1, 2, 3, 4), (False, True, True, True), prompt_hash(prompt)) for prompt in prompts]
            records = [{"messages": [{"role": "user", "content": prompt}], "answers": []} for prompt in prompts]
            data.write(Shard(texts=texts, records=records, position=first + 3, dropped={"length": 1}, num_cut=0))
    return directory


def shards(rng: random.Random, directory: Path) -> None:
    """Change one file of a data set, train on it and add to it."""
    place = directory / "data"
    shutil.copytree(_data(), place)
    path = rng.choice([one for one in sorted(place.iterdir()) if not one.name.startswith(".")])
    if path.suffix == ".safetensors" and rng.random() < 0.6:
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["outrider"])
        tensors = load_file(path)
        if rng.random() < 0.3:
            name = rng.choice(sorted(tensors))
            tensors[name] = rng.choice([tensors[name][:-1], tensors[name].float(), tensors[name][None], tensors[name]])
            tensors[name].flatten()[-1:] = 7
        text = json_text(mutate_json(header, rng), rng).decode("utf-8", "replace")
        save_file(tensors, path, metadata={"outrider": text})
    elif path.suffix == ".json":
        path.write_bytes(json_text(mutate_json(json.loads(path.read_text()), rng), rng))
    elif path.suffix == ".jsonl":
        lines = path.read_bytes().split(b"\n")
        at = rng.randrange(3)
        lines[at] = json_text(mutate_json(json.loads(lines[at]), rng), rng)
        path.write_bytes(b"\n".join(lines))
    else:
        path.write_bytes(mutate_bytes(path.read_bytes(), rng))
    manifest = {
        "target": {"name": "t", "fingerprint": "f" * 16},
        "settings": {"heldout_fraction": 0.25},
        "provenance": {},
    }
    if rng.random() < 0.5:
        with DataDirectory(place, manifest) as data:
            assert data.totals.num_learnt_tokens == 18
            assert len(list(data.records())) == 6
    data = Dataset.open(place, max_tokens=8)
    sides = data.split()
    assert len(sides.train) + len(sides.held_out) == 6
    count(data, 31)


def _setup(processes: Any) -> Setup:
    generator = torch.Generator().manual_seed(1)
    listed = [Example(torch.randint(0, 30, (9,), generator=generator), torch.arange(9) >= 3) for _ in range(8)]
    config = TrainConfig(
        row_length=18, rows=1, epochs=1, eval_every=2, checkpoint_every=2, real_tau_every=0, save_dtype="float32"
    )
    return Setup(
        method="medusa",
        objective=MedusaObjective,
        settings=MedusaObjectiveConfig(num_heads=2),
        target=tiny_target(dtype=torch.float32),
        data=Data(train=ListedTexts(listed[2:]), held_out=ListedTexts(listed[:2])),
        config=config,
        options={"data": ["d"], "target": "t", "dtype": "float32", "features": "live", "threads": None},
    )


@functools.cache
def _run() -> Path:
    """Finish a training run of a few steps."""
    directory = Path(tempfile.mkdtemp(prefix="fuzz-run-")) / "run"
    processes = accelerator("cpu")
    train(_setup(processes), directory, processes)
    shutil.rmtree(directory / "tensorboard")
    return directory


def run_log(rng: random.Random, directory: Path) -> None:
    """Change a line of a training log, and read it as a resumed and as a finished run does."""
    place = directory / "run"
    shutil.copytree(_run(), place, ignore=shutil.ignore_patterns("checkpoints"))
    path = place / "log.jsonl"
    lines = path.read_bytes().splitlines()
    at = rng.randrange(len(lines))
    lines[at] = json_text(mutate_json(json.loads(lines[at]), rng), rng)
    data = b"\n".join(lines) + rng.choice([b"", b"\n"])
    path.write_bytes(mutate_text(data, rng) if rng.random() < 0.3 else data)
    curve(place)
    evaluations(place)
    write_card(place, rng.choice(["best", "final"]))
    if rng.random() < 0.2:
        RunLog(place, from_step=2).close()


def train_run(rng: random.Random, directory: Path) -> None:
    """Change the record, state, summary or weights of a run, and resume it."""
    place = directory / "run"
    shutil.copytree(_run(), place)
    if rng.random() < 0.5:
        (place / "summary.json").unlink()
        shutil.rmtree(place / "final")
    names = ["config.json", "summary.json", "log.jsonl", *(f"checkpoints/{one}" for one in ("a", "b"))]
    path = place / rng.choice(names)
    if path.parent.name == "checkpoints":
        steps = sorted((place / "checkpoints").iterdir())
        path = rng.choice(sorted(steps[path.name == "b"].iterdir()))
    if path.suffix == ".safetensors":
        path.write_bytes(mutate_bytes(path.read_bytes(), rng))
    elif path.suffix == ".json" and path.exists():
        path.write_bytes(json_text(mutate_json(json.loads(path.read_text()), rng), rng))
    elif path.exists():
        path.write_bytes(mutate_text(path.read_bytes(), rng))
    _resumed(_command()(), read_record(place), place)
    newest(place / "checkpoints")
    if rng.random() < 0.25:
        processes = accelerator("cpu")
        report = train(_setup(processes), place, processes, resume=True)
        assert report["steps"] == 3
        assert (place / "final" / "model.safetensors").is_file()


@functools.cache
def _command() -> Any:
    """Return the class of `outrider train medusa`."""
    found = with_methods().__dataclass_fields__["method"].type
    union = found.__origin__
    return next(one.__origin__ for one in union.__args__ if one.__origin__.__name__ == "medusa")
