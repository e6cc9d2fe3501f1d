"""Damaged tuning runs, cost tables, kept results, recipes and copies of published drafters."""

import json
import os
import random
import re
import shutil
import tempfile
import tomllib
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from benchmarks.fuzz.checkpoints import intact
from benchmarks.fuzz.heads import target
from benchmarks.fuzz.mutate import json_text, mutate_bytes, mutate_json, mutate_text
from benchmarks.fuzz.runs import damage_lines, delete_line
from huggingface_hub import constants

from outrider.bench.methods import load_methods
from outrider.bench.notes import Notes
from outrider.bench.preset import chosen
from outrider.bench.workload import read_workload
from outrider.budget import load_budget
from outrider.catalogue.drafters import drafters_of
from outrider.catalogue.listing import listed
from outrider.costs.tuned import last_tuned
from outrider.errors import CheckpointError, ConfigError, RunError
from outrider.planning.config import PlanRequest
from outrider.planning.planner import planned
from outrider.proposers.auto import picked
from outrider.proposers.method_spec import load_method, method_specs
from outrider.tuning import verify
from outrider.tuning.config import TuneConfig
from outrider.tuning.outcome.report import TuneReport
from outrider.tuning.prices.book import CostBook, CostGrid
from outrider.tuning.tune import tuned as tune

MOST_FOLLOWED = 60
LINE = re.compile(r"(\S+), line (\d+)\b.*; delete the line and run the same command again$")
WHOLE = re.compile(r"^(\S+?):? .*; delete it and run the same command again$")


class Finished(NamedTuple):
    """A finished run with its cache, and what it was asked for."""

    config: TuneConfig
    directory: Path
    cache: Path
    report: TuneReport


@cache
def finished() -> Finished:
    """Return a run that tuned a tiny model; made once in a process."""
    scratch = Path(tempfile.mkdtemp(prefix="fuzz-tune-"))
    prompts = [{"prompt": text} for text in ("ab ab ab", "xy xy", "ba ba")]
    (scratch / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in prompts), encoding="utf-8")
    config = TuneConfig(
        target=str(intact()),
        prompts=(str(scratch / "p.jsonl"),),
        concurrency=(1, 2),
        dtype="float32",
        max_new_tokens=5,
        time="2h",
        run_dir=scratch / "run",
    )
    report = _tuned(config, scratch / "cache")
    return Finished(config, scratch / "run", scratch / "cache", report)


def _tuned(config: TuneConfig, cache: Path) -> TuneReport:
    with patch.object(verify, "MOST_ROUNDS", 1), patch.dict(os.environ, OUTRIDER_CACHE=str(cache)):
        return tune(config, target())


def tune_run(rng: random.Random, directory: Path) -> None:
    """Damage the files of a tuning run or its cache, follow what refusals say, and go on with the run."""
    run = finished()
    copy, cache = directory / "run", directory / "cache"
    shutil.copytree(run.directory, copy)
    shutil.copytree(run.cache, cache)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        _damage(rng.choice((copy, copy, copy, cache)), rng)
    config = TuneConfig(**{**vars(run.config), "run_dir": copy})
    for _ in range(MOST_FOLLOWED):
        try:
            report = _tuned(config, cache)
        except RunError as error:
            line, whole = LINE.search(str(error)), WHOLE.match(str(error))
            if line is not None:
                delete_line(Path(line[1]), int(line[2]))
            elif whole is not None and Path(whole[1]).exists():
                Path(whole[1]).unlink()
            else:
                raise
        else:
            break
    else:
        raise AssertionError("a remedy that was followed did not help")
    assert report.num_prompts == run.report.num_prompts, "prompts were lost"
    assert {row.lossless for row in report.rows} == {"exact"}
    assert {one.method for one in report.forecasts} == {one.method for one in run.report.forecasts}


def _damage(place: Path, rng: random.Random) -> None:
    path = rng.choice([one for one in sorted(place.rglob("*")) if one.is_file() and not one.name.startswith(".")])
    data = path.read_bytes()
    if rng.random() < 0.1:
        path.unlink()
    elif path.suffix == ".jsonl" and rng.random() < 0.7:
        damage_lines(path, rng)
    elif path.suffix == ".json" and rng.random() < 0.7:
        path.write_bytes(json_text(mutate_json(json.loads(data), rng), rng) if _is_json(data) else b"{")
    else:
        path.write_bytes(rng.choice((mutate_text, mutate_bytes))(data, rng))


def _is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return False
    return True


def tuned(rng: random.Random, directory: Path) -> None:
    """Damage what tuning kept for a target and its cost tables; pick a method and read costs."""
    shutil.copytree(finished().cache, directory / "cache")
    with patch.dict(os.environ, OUTRIDER_CACHE=str(directory / "cache")):
        for file in sorted((directory / "cache").rglob("*.json")):
            data = file.read_bytes()
            if rng.random() < 0.7:
                file.write_bytes(json_text(mutate_json(json.loads(data), rng), rng))
            elif rng.random() < 0.3:
                file.write_bytes(mutate_bytes(data, rng))
        kept = last_tuned(target())
        pick = picked(target())
        proposer = load_method(pick.spec, target())
        load_budget(pick.budget, target(), proposer.spec.max_nodes)
        book = CostBook(target(), CostGrid((1, 2), (1, 2), (20, 30)))
        assert book.spread is None or book.spread == book.spread
    if kept is None or kept.method not in (pick.text, "none"):
        raise ConfigError("what was kept is not used")


TOML_VALUES = (
    *("1", "-1", "0", "2147483648", "1e400", "nan", "inf", "-inf", "true", '""', '"x"', "[]", "{}", "[1, 'x']"),
    *('"\\u0000"', '"\\u001B[31m"', "1979-05-27", "07:32:00", "[[[]]]", "{ a = { b = 1 } }", "'''\n'''"),
    *("9" * 5000, "[" * 3000, '"' + "a" * 5000 + '"', '["none", "none"]', '["eagle3"]', '["ngram:num_nodes=9999999"]'),
    *('["ngram:num_nodes=x"]', '["nosuch"]', '["vllm"]', '["llama.cpp"]', '["http://127.0.0.1:1/v1"]', '["chat"]'),
    *("[0.0, 1.0]", "[1, 100000]", '["hub:a:b:c"]', '["missing.jsonl"]', '["mt-bench"]', '["transformers-lookup"]'),
)


def recipe(rng: random.Random, directory: Path) -> None:
    """Damage a preset of the benchmark, a data sheet or sizes of drafters, and use it."""
    match rng.randrange(4):
        case 0:
            path = _damaged_toml("recipes/hardware/" + rng.choice(("h100", "cpu-2core")) + ".toml", rng, directory)
            planned(PlanRequest(hardware=str(path), acceptance=("ngram=0.8",), methods=("ngram",)))
        case 1:
            path = _damaged_toml("recipes/drafters/published.toml", rng, directory)
            planned(PlanRequest(hardware="h100", drafters=str(path), acceptance=("0.8",), methods=("eagle3",)))
        case _:
            (directory / "p.jsonl").write_text('{"prompt": "ab ab"}\n', encoding="utf-8")
            (directory / "recipe.toml").write_bytes(_preset(rng, directory))
            _use_preset(directory / "recipe.toml")


def _damaged_toml(name: str, rng: random.Random, directory: Path) -> Path:
    lines = Path(name).read_text(encoding="utf-8").splitlines()
    path = directory / "damaged.toml"
    path.write_bytes(_damaged_lines(lines, rng))
    return path


def _damaged_lines(lines: list[str], rng: random.Random) -> bytes:
    """Change a value, a name or a line, or damage the whole as text."""
    for _ in range(rng.choice((1, 1, 2))):
        at = rng.randrange(len(lines))
        name, equals, _ = lines[at].partition("=")
        match rng.randrange(6):
            case 0 | 1 | 2 if equals:
                lines[at] = f"{name}= {rng.choice(TOML_VALUES)}"
            case 3:
                lines.insert(at, rng.choice(lines))
            case 4:
                lines[at] = rng.choice(("[x]", "[[ngram]]", "x = 1", "= 1", "\x00", "[", lines[at][:-1]))
            case _:
                lines.pop(at)
    data = "\n".join(lines).encode()
    return mutate_text(data, rng) if rng.random() < 0.1 else data


def _preset(rng: random.Random, directory: Path) -> bytes:
    settings = {
        "target": json.dumps(str(intact())),
        "dtype": '"float32"',
        "methods": '["ngram:num_nodes=2", "suffix"]',
        "budgets": '["fixed"]',
        "categories": "[]",
        "prompts": json.dumps([str(directory / "p.jsonl")]),
        "max_new_tokens": "4",
        "batches": "[1, 2]",
        "temperatures": "[0.0]",
        "repeats": "1",
    }
    others = ("weights", "engines", "endpoints", "external", "queue", "pooled", "serve", "optional", "verification")
    for _ in range(rng.choice((0, 1, 2))):
        settings[rng.choice((*settings, *others, "device", "seed", "num_prompts"))] = rng.choice(TOML_VALUES)
    return _damaged_lines([f"{name} = {value}" for name, value in settings.items()], rng)


def _use_preset(path: Path) -> None:
    """Read a preset as `outrider bench --preset` does, up to what it runs."""
    config = chosen(str(path), {})
    method_specs(config.methods)
    if config.target != str(intact()):
        raise ConfigError("another target is not loaded here")
    workload = read_workload(config, target())
    assert workload.cells
    load_methods(config, target(), Notes())
    tomllib.loads(path.read_text(encoding="utf-8"))


HUB_ID = "yuhuili/EAGLE3-LLaMA3.1-Instruct-8B"
CONFIG = {"vocab_size": 128256, "hidden_size": 4096, "draft_vocab_size": 32000, "model_type": "llama"}
LLAMA = {"vocab_size": 128256, "hidden_size": 4096, "num_hidden_layers": 32, "model_type": "llama"}


def catalogue(rng: random.Random, directory: Path) -> None:
    """Damage the local copy of a published drafter or the target's own files, and list drafters."""
    hub, model = directory / "hub", directory / "Llama-3.1-8B-Instruct"
    snapshot = hub / f"models--{HUB_ID.replace('/', '--')}" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_bytes(
        rng.choice((b"abc", b"abc", b"abc", b"", b"\xff", b"../..", b"x"))
    )
    model.mkdir()
    (model / "config.json").write_bytes(_config(LLAMA | {"num_nextn_predict_layers": 1}, rng, 0.5))
    (snapshot / "config.json").write_bytes(_config(CONFIG, rng, 0.7))
    for name in rng.sample(("model.safetensors", "pytorch_model.bin", "x.pt", "model-00001-of-00002.safetensors"), 2):
        (snapshot / name).write_bytes(rng.choice((b"", b"{}", b"\x08\0\0\0\0\0\0\0{}      ", b"\xff" * 9)))
    if rng.random() < 0.1:
        victim = rng.choice([*snapshot.iterdir(), *model.iterdir()])
        victim.unlink()
        if rng.random() < 0.5:
            victim.mkdir()
    with patch.object(constants, "HF_HUB_CACHE", str(hub)):
        found = drafters_of(model if rng.random() < 0.8 else "meta-llama/Llama-3.1-8B-Instruct")
    json.loads(listed("x", found))
    head = next(one for one in found if one.name == HUB_ID)
    assert head.why.isprintable(), "what is shown holds control characters"
    if head.fits is False:
        raise CheckpointError("the drafter does not fit")


def _config(fields: dict[str, Any], rng: random.Random, share: float) -> bytes:
    return json_text(mutate_json(fields, rng), rng) if rng.random() < share else json.dumps(fields).encode()
