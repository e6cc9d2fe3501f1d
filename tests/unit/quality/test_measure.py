"""A measurement end to end on tiny models: texts, candidates, the report and what is filed."""

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from outrider.data.workloads import CATEGORIES
from outrider.errors import CheckpointError, ConfigError, RunError
from outrider.quality.compare import Passage, compare
from outrider.quality.config import QualityConfig
from outrider.quality.filed import filed_quality, said
from outrider.quality.measure import measure
from outrider.quality.report import Report, read_report
from outrider.quality.table import print_report, sheet_of
from outrider.quality.texts import conversations_of, held_out
from outrider.records.codec import dumps
from outrider.records.progress import Progress, unheard
from outrider.targets import load_target
from outrider.testing.directory import write_tiny_model

SIZES = {"hidden_size": 32, "intermediate_size": 64, "head_dim": 8}


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OUTRIDER_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "model", dtype=torch.float32, **SIZES)


def config(model: Path, **changes: object) -> QualityConfig:
    fields = {"target": str(model), "weights": ("int8", "int4"), "num_tokens": 100, "dtype": "float32"} | changes
    return QualityConfig(**fields)  # type: ignore[arg-type]


def test_texts_are_prompts_of_all_categories_and_the_references_own_answers(model: Path) -> None:
    reference = load_target(str(model), dtype="float32")
    conversations = conversations_of(config(model))
    assert [one.category for one in conversations[: len(CATEGORIES)]] == list(CATEGORIES)
    texts = held_out(conversations, reference, 300, unheard)
    assert sum(passage.num_positions for passage in texts.prompts) == 300
    assert sum(passage.num_positions for passage in texts.answers) == 150
    assert all(passage.start == 1 and len(passage.tokens) <= 256 for passage in texts.prompts)
    assert all(passage.num_positions <= 64 for passage in texts.answers)
    for passage in texts.answers[:2]:  # the greedy text: the reference predicts every token of it first
        assert passage.start > 1
        own = compare(reference, reference, [passage])
        assert own.agreement == 1
        assert own.perplexity < compare(reference, reference, [Passage(passage.tokens[: passage.start])]).perplexity


def test_candidates_are_measured_reported_and_filed(model: Path) -> None:
    heard: list[Progress] = []
    labels: list[str] = []
    report, _ = measure(config(model), heard.append, lambda line: labels.append(line.label))
    int8, int4 = report.lines
    assert labels == ["int8", "int4"]
    assert (int8.model.weights, int4.model.weights) == ("int8", "int4, int8")
    assert int4.model.weight_bytes < int8.model.weight_bytes < report.reference.weight_bytes
    assert report.reference.weights == "float32"
    for line in report.lines:
        assert (line.prompts.num_positions, line.answers.num_positions) == (100, 50)
        assert line.prompts.reference_perplexity == int8.prompts.reference_perplexity
    assert 0 < int8.prompts.kl < int4.prompts.kl / 10
    assert int4.prompts.agreement < int8.prompts.agreement <= 1
    assert read_report(dumps(report)) == report
    spec = load_target(str(model), weights="int4", dtype="float32").spec
    filed = filed_quality(spec)
    assert filed is not None
    assert (filed.line, filed.reference) == (int4, report.reference)
    assert heard[-1][:2] == (2, 2)
    assert [at.done for at in heard[-5:]] == sorted(at.done for at in heard[-5:])


def test_what_is_said_of_loaded_weights(model: Path) -> None:
    spec = load_target(str(model), weights="int4", dtype="float32").spec
    assert said(spec, "int4") == (
        f"outrider quality --target {model} --weights int4 measures what these weights cost in quality"
    )
    report, unfinished = measure(config(model, weights=("int4",)))
    unfinished.end()
    line = report.lines[0]
    assert f"at {100 * line.prompts.agreement:.1f} % of 100 tokens, KL {line.prompts.kl:.3f} nats" in said(spec, "int4")
    assert said(load_target(str(model), dtype="float32").spec, "stored") == ""
    path = next((model.parent / "cache" / "quality").iterdir())
    path.write_text(path.read_text().replace('"kl"', '"kil"'))
    assert "measures what these weights cost" in said(spec, "int4")
    (model / "model.safetensors").touch()  # another file, for all that is known
    assert filed_quality(spec) is None


def test_texts_of_ones_own_are_not_filed(model: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "own.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"{word} and {word}"}) + "\n" for word in ("one", "two", "ten")))
    report, unfinished = measure(config(model, weights=("int8",), prompts=(prompts,)))
    unfinished.end()
    assert report.lines[0].prompts.num_positions < 100
    assert not list((tmp_path / "cache" / "quality").glob("*"))


def test_other_models_are_candidates(model: Path, tmp_path: Path) -> None:
    other = write_tiny_model(tmp_path / "other", 1, dtype=torch.float32, **SIZES)
    report, _ = measure(config(model, weights=(), candidates=(str(other), str(model), str(other))))
    assert [line.label for line in report.lines] == ["other", "model"]
    assert report.lines[0].prompts.kl > 0.1
    assert (report.lines[1].prompts.kl, report.lines[1].prompts.agreement) == (0, 1)


def test_keys_and_values_are_a_candidate_with_the_references_weights(model: Path) -> None:
    report, _ = measure(config(model, weights=("int8",), kv_dtype=("int8",)))
    weights, cache = report.lines
    assert [line.label for line in report.lines] == ["int8", "kv int8"]
    assert cache.model.weights == report.reference.weights == "float32"
    assert cache.model.weight_bytes == report.reference.weight_bytes
    assert 0 < cache.prompts.kl < weights.prompts.kl
    # neither kind of cache finds the figures of the other
    plain, codes = (load_target(str(model), dtype="float32", kv_dtype=kind).spec for kind in ("auto", "int8"))
    filed = filed_quality(codes)
    assert filed is not None
    assert filed.line == cache
    assert filed_quality(plain) is None


BAD = [
    ({"weights": ()}, ConfigError, "nothing to measure"),
    ({"num_tokens": 0}, ConfigError, "num_tokens=0 must be at least 1"),
    ({"candidates": ("nowhere.gguf",)}, CheckpointError, "nowhere.gguf"),
    ({"prompts": (Path("nowhere.jsonl"),)}, ConfigError, "nowhere.jsonl"),
]


@pytest.mark.parametrize(("changes", "kind", "words"), BAD, ids=[words for *_, words in BAD])
def test_bad_settings_are_refused_before_a_model_is_read(
    model: Path, changes: dict[str, object], kind: type[Exception], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outrider.quality.measure.load_target", lambda *args, **settings: pytest.fail("read"))
    with pytest.raises(kind, match=words):
        measure(config(model, **changes))


def test_prompts_that_leave_no_room_for_an_answer_are_refused(model: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "own.jsonl"
    prompts.write_text(json.dumps({"prompt": "x" * 400}) + "\n")
    with pytest.raises(ConfigError, match="no prompt has at most 256 tokens"):
        measure(config(model, prompts=(prompts,)))


def a_report(model: Path) -> Report:
    return measure(config(model, weights=("int4",)))[0]


def test_the_table(model: Path) -> None:
    report = a_report(model)
    first, second = sheet_of(report).lines
    assert first[:5] == ("reference", "float32", first[2], "100.0 %", "0.0000")
    assert second[3] == f"{100 * report.lines[0].prompts.agreement:.1f} %"
    for width in (200, 40):
        stream = io.StringIO()
        print_report(report, Console(file=stream, width=width))
        assert "int4" in stream.getvalue()
        assert max(map(len, stream.getvalue().splitlines())) <= width


def test_a_report_of_another_version_is_refused(model: Path) -> None:
    text = dumps(a_report(model))
    with pytest.raises(RunError, match=r"its schema is 'outrider\.quality/2'"):
        read_report(text.replace("outrider.quality/1", "outrider.quality/2"))
    with pytest.raises(RunError, match="not JSON"):
        read_report(text[:-2])
