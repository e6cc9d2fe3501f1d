"""Runs: an interruption costs at most a shard and changes no byte, and nothing of the benchmark gets in."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import outrider
from outrider.data.config import SynthesisConfig
from outrider.data.generator import EngineGenerator, Job, Listener, TextGenerator, Written
from outrider.data.identity import Identity
from outrider.data.shards import Dataset
from outrider.data.synthesis import Progress, Result, synthesize
from outrider.data.workloads import load_category
from outrider.errors import ConfigError, RunError
from outrider.requests.text import encode
from outrider.sampling import SamplingParams
from outrider.targets import load_target
from outrider.testing.directory import write_tiny_model
from outrider.testing.generator import ScriptedGenerator
from writing import files_of, tiny_identity, word_generator, words


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return tiny_identity(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> outrider.Target:
    return load_target(str(write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")), dtype="float64")


def prompts_file(path: Path, count: int, more: list[str] | None = None) -> str:
    texts = [f"{words(number, 6)}?" for number in range(count)] + (more or [])
    path.write_text("".join(json.dumps({"turns": [text, "and then?"]}) + "\n" for text in texts))
    return str(path)


def config(**changes: object) -> SynthesisConfig:
    fields: dict[str, object] = {
        "num_prompts": 20,
        "shard_size": 6,
        "max_new_tokens": 100,
        "max_prompt_tokens": 400,
        "max_turn_tokens": 100,
        "turns": 2,
    }
    return SynthesisConfig(**(fields | changes))  # type: ignore[arg-type]


class Stopping(TextGenerator):
    """Writes through another generator, and stops everything after a number of calls."""

    def __init__(self, generator: TextGenerator, num_calls: int, error: BaseException) -> None:
        self.generator, self.num_calls, self.error = generator, num_calls, error

    def write(self, jobs: object, listen: Listener = lambda jobs, tokens: None) -> list[Written]:
        if self.num_calls == 0:
            raise self.error
        self.num_calls -= 1
        return self.generator.write(jobs, listen)  # type: ignore[arg-type]


def test_a_run_writes_what_was_asked_for(identity: Identity, tmp_path: Path) -> None:
    seen: list[Progress] = []
    result = synthesize(config(), tmp_path / "d", identity, word_generator(identity), listen=seen.append)
    data = Dataset.open(tmp_path / "d")
    assert (result.totals.num_prompts, result.totals.num_shards) == (20, 4)
    assert result.totals.num_texts == len(data)
    learnt = sum(int(data.example(index).learn_T.sum()) for index in range(len(data)))
    assert learnt == result.totals.num_learnt_tokens == result.num_new_tokens == seen[-1].num_tokens
    assert seen[-1].num_prompts_wanted == 20
    manifest = json.loads((tmp_path / "d/manifest.json").read_text())
    assert manifest["totals"]["dropped"] == dict(result.totals.dropped)
    assert manifest["target"]["fingerprint"] == identity.fingerprint
    assert manifest["provenance"]["versions"]["outrider"]
    records = [json.loads(line) for line in (tmp_path / "d/shard-00000.jsonl").read_text().splitlines()]
    assert {len(record["answers"]) for record in records} == {1, 2}
    assert {answer["temperature"] for record in records for answer in record["answers"]} == {0.0, 0.7, 1.0}


def run_of(identity: Identity, generator: TextGenerator, directory: Path, **changes: object) -> Result:
    return synthesize(config(**changes), directory, identity, generator)


@pytest.mark.parametrize("num_calls", [0, 1, 4, 7, 10, 12])
def test_an_interrupted_run_ends_with_the_same_bytes(identity: Identity, tmp_path: Path, num_calls: int) -> None:
    whole = run_of(identity, word_generator(identity), tmp_path / "whole")
    stopping = Stopping(word_generator(identity), num_calls, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        run_of(identity, stopping, tmp_path / "parts")
    num_before = len(list((tmp_path / "parts").glob("*.safetensors")))
    parts = run_of(identity, word_generator(identity), tmp_path / "parts")
    assert files_of(tmp_path / "whole") == files_of(tmp_path / "parts")
    assert parts.totals == whole.totals
    assert (parts.num_new_tokens == whole.num_new_tokens) == (num_before == 0)
    (first, second) = (json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("whole", "parts"))
    assert first["totals"] == second["totals"]


def test_the_engine_writes_the_same_bytes_after_an_interruption(
    identity: Identity, target: outrider.Target, tmp_path: Path
) -> None:
    place = prompts_file(tmp_path / "p.jsonl", 14)
    changes = {"source": place, "num_prompts": None, "max_new_tokens": 8, "shard_size": 5}

    def generator(max_batch: int) -> EngineGenerator:
        return EngineGenerator(target, max_batch=max_batch, max_len=408)

    run_of(identity, generator(3), tmp_path / "whole", **changes)
    with pytest.raises(KeyboardInterrupt):
        run_of(identity, Stopping(generator(3), 3, KeyboardInterrupt()), tmp_path / "parts", **changes)
    run_of(identity, generator(2), tmp_path / "parts", **changes)
    assert len(files_of(tmp_path / "whole")) == 6
    assert files_of(tmp_path / "whole") == files_of(tmp_path / "parts")


def test_the_engine_writes_what_the_target_is_served_with(
    identity: Identity, target: outrider.Target, tmp_path: Path
) -> None:
    place = prompts_file(tmp_path / "p.jsonl", 3)
    generator = EngineGenerator(target, max_batch=2, max_len=440)
    run_of(
        identity,
        generator,
        tmp_path / "d",
        source=place,
        num_prompts=None,
        turns=1,
        temperatures=(0.0,),
        max_new_tokens=40,
    )
    data = Dataset.open(tmp_path / "d", target=target)
    engine = outrider.Engine(target, outrider.load_proposer("none", target))
    for index in range(3):
        prompt = encode(target.tokenizer, f"{words(index, 6)}?")
        (answer,) = engine.generate([prompt], SamplingParams(max_tokens=40))
        found = data.example(index)
        assert found.tokens_T.tolist() == [*prompt, *answer.tokens]
        assert found.learn_T.tolist() == [False] * len(prompt) + [True] * len(answer.tokens)


def test_a_jobs_own_ends_stop_the_engine(target: outrider.Target) -> None:
    generator = EngineGenerator(target, max_batch=2, max_len=200)
    jobs = [Job(prompt=(1, 2, 3), max_new_tokens=20, sampling=outrider.SamplingParams(seed=1, temperature=1.0))]
    (free,) = generator.write(jobs)
    end = free.tokens[4]
    cut = free.tokens[: free.tokens.index(end) + 1]
    (stopped, again) = generator.write([Job(**{**vars(jobs[0]), "ends": frozenset({end})}), jobs[0]])
    assert stopped == Written(cut, "stop")
    assert again == free


def test_a_finished_run_can_grow(identity: Identity, tmp_path: Path) -> None:
    run_of(identity, word_generator(identity), tmp_path / "d", num_prompts=7)
    before = files_of(tmp_path / "d")
    grown = run_of(identity, word_generator(identity), tmp_path / "d", num_prompts=16)
    assert grown.totals.num_prompts == 16
    assert before.items() <= files_of(tmp_path / "d").items()
    again = run_of(identity, word_generator(identity), tmp_path / "d", num_prompts=16)
    assert (again.num_new_tokens, again.totals) == (0, grown.totals)


def test_a_number_of_tokens_ends_a_run(identity: Identity, tmp_path: Path) -> None:
    result = run_of(identity, word_generator(identity), tmp_path / "d", num_prompts=None, num_tokens=900)
    assert 900 <= result.totals.num_learnt_tokens < 1400


def test_prompts_of_the_benchmark_and_copies_are_left_out(identity: Identity, tmp_path: Path) -> None:
    planted = load_category("writing")[0].turns[0]
    copies = [planted, f"Hello! {planted.upper()}", words(0, 6), words("other", 8), "x" * 2000]
    place = prompts_file(tmp_path / "p.jsonl", 2, copies)
    generator = word_generator(identity)
    result = run_of(identity, generator, tmp_path / "d", source=place, num_prompts=None)
    assert result.totals.dropped == {"overlap with writing": 2, "duplicate": 1, "length": 1}
    assert result.totals.num_prompts == 3
    assert not any(planted in identity.tokenizer.decode(job.prompt) for job in generator.jobs)


def test_a_data_set_is_a_source_of_prompts_for_the_next_target(identity: Identity, tmp_path: Path) -> None:
    run_of(identity, word_generator(identity), tmp_path / "a", num_prompts=5)
    place = str(tmp_path / "a/shard-00000.jsonl")
    run_of(identity, word_generator(identity), tmp_path / "b", source=place, num_prompts=None)
    a, b = (Dataset.open(tmp_path / name) for name in "ab")
    assert sorted(set(a.places_N4[:, 3].tolist())) == sorted(set(b.places_N4[:, 3].tolist()))


def test_other_settings_or_targets_do_not_go_on(identity: Identity, tmp_path: Path) -> None:
    run_of(identity, word_generator(identity), tmp_path / "d", num_prompts=3)
    with pytest.raises(RunError, match="was started with seed=0, not seed=1"):
        run_of(identity, word_generator(identity), tmp_path / "d", seed=1)
    quantised = replace(identity, weights="int8")
    with pytest.raises(RunError, match="was started with weights=float64, not weights=int8"):
        run_of(quantised, word_generator(quantised), tmp_path / "d")
    other = Identity.of(load_target(str(write_tiny_model(tmp_path / "other", seed=1)), dtype="float64"))
    with pytest.raises(RunError, match="was started with fingerprint="):
        run_of(other, word_generator(other), tmp_path / "d")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("x")
    with pytest.raises(RunError, match=r"holds 'thesis\.txt' but no data set"):
        run_of(identity, word_generator(identity), tmp_path / "mine")


def test_a_source_without_a_usable_prompt_is_given_up(
    identity: Identity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outrider.data.synthesis.PATIENCE", 40)
    same = ScriptedGenerator(
        lambda job: Written((*identity.tokenizer.encode(" all equal"), identity.eos_ids[0]), "end")
    )
    with pytest.raises(RunError, match=r"prompts in a row cannot be used; left out: .* duplicate"):
        run_of(identity, same, tmp_path / "d", num_prompts=1000, shard_size=500)
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(RunError, match="gave no prompt that can be used"):
        run_of(identity, same, tmp_path / "e", source=str(tmp_path / "empty.jsonl"))


def test_a_full_disk_is_one_sentence_and_keeps_what_is_finished(
    identity: Identity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_of(identity, word_generator(identity), tmp_path / "d", num_prompts=6)
    before = files_of(tmp_path / "d")

    def full(*arguments: object, **more: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr("outrider.data.shards.save_file", full)
        with pytest.raises(RunError, match="No space left on device"):
            run_of(identity, word_generator(identity), tmp_path / "d")
    assert before.items() <= files_of(tmp_path / "d").items()
    run_of(identity, word_generator(identity), tmp_path / "d")
    run_of(identity, word_generator(identity), tmp_path / "whole", num_prompts=6)
    run_of(identity, word_generator(identity), tmp_path / "whole")
    assert files_of(tmp_path / "d") == files_of(tmp_path / "whole")


def test_a_lost_list_of_conversations_is_named(identity: Identity, tmp_path: Path) -> None:
    run_of(identity, word_generator(identity), tmp_path / "d", num_prompts=3)
    path = tmp_path / "d/shard-00000.jsonl"
    path.write_text(path.read_text().split("\n")[0] + "\n")
    with pytest.raises(RunError, match=r"shard-00000\.jsonl does not fit its shard"):
        run_of(identity, word_generator(identity), tmp_path / "d")
    path.unlink()
    with pytest.raises(RunError, match=r"shard-00000\.jsonl cannot be read"):
        run_of(identity, word_generator(identity), tmp_path / "d")


BAD: list[tuple[Callable[[], object], str]] = [
    (lambda: config(num_prompts=0), "num_prompts=0 must be at least 1"),
    (lambda: config(temperatures=(0.001,)), "temperatures="),
    (lambda: config(temperatures=()), "temperatures="),
    (lambda: config(top_p=0.0), "top_p=0.0"),
    (lambda: config(heldout_fraction=1.0), "heldout_fraction=1.0"),
    (lambda: config(seed=-1), "seed=-1"),
    (lambda: config(max_turn_tokens=3), "max_turn_tokens=3"),
    (lambda: config(shard_size=10**6), "shard_size=1000000"),
]


@pytest.mark.parametrize(("make", "said"), BAD, ids=[said for _, said in BAD])
def test_settings_out_of_range_are_refused(make: Callable[[], object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make()


def test_what_does_not_fit_the_target_is_refused(identity: Identity, target: outrider.Target, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="do not fit in the 512 positions"):
        run_of(identity, word_generator(identity), tmp_path / "d", max_prompt_tokens=500)
    with pytest.raises(ConfigError, match=f"source={tmp_path}/none is neither magpie"):
        run_of(identity, word_generator(identity), tmp_path / "d", source=str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="texts of 513 tokens do not fit"):
        EngineGenerator(target, max_batch=1, max_len=513)


def test_a_target_is_known_by_its_files_alone(tmp_path: Path) -> None:
    directory = write_tiny_model(tmp_path / "model")
    for dtype in ("float64", "bfloat16"):
        loaded = Identity.of(load_target(str(directory), dtype=dtype))
        read = Identity.from_files(str(directory), dtype)
        assert read.plain() == loaded.plain()
        assert (read.eos_ids, read.max_positions) == (loaded.eos_ids, loaded.max_positions)
    with pytest.raises(ConfigError, match="did you mean 'float64'"):
        Identity.from_files(str(directory), "float63")
    with pytest.raises(ConfigError, match="unknown weights 'store'; did you mean 'stored'"):
        Identity.from_files(str(directory), "bfloat16", "store")  # type: ignore[arg-type]


def test_an_older_data_set_was_written_by_a_widened_target(identity: Identity, tmp_path: Path) -> None:
    widened = replace(identity, weights="bfloat16")
    run_of(widened, word_generator(widened), tmp_path / "d", num_prompts=2)
    manifest = json.loads((tmp_path / "d" / "manifest.json").read_text())
    del manifest["target"]["weights"]
    (tmp_path / "d" / "manifest.json").write_text(json.dumps(manifest))
    run_of(widened, word_generator(widened), tmp_path / "d", num_prompts=3)
    stored = replace(identity, weights="Q4_1, Q8_0")
    with pytest.raises(RunError, match="was started with weights=bfloat16, not weights=Q4_1, Q8_0"):
        run_of(stored, word_generator(stored), tmp_path / "d", num_prompts=4)
