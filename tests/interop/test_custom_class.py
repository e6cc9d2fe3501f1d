"""Our proposers as vLLM's custom class: rows that move, requests that come and go, and drafts as in our own engine."""

import json
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from outrider.errors import ConfigError
from outrider.proposer import Commit, DraftLimit
from outrider.proposers.corpus.store import Vocabulary, joined, write_corpus
from outrider.sampling import SamplingParams
from outrider.vllm.custom_class import OutriderDrafter, first_path, spec_of
from outrider.vllm.custom_drafters import METHOD, on_custom_class

MAX_LEN, MAX_ROWS = 96, 6


def vllm_config(order: object, num_nodes: int = 5) -> Any:
    text = SimpleNamespace(vocab_size=50, hidden_size=8, num_hidden_layers=2)
    return SimpleNamespace(
        additional_config=order,
        model_config=SimpleNamespace(model="m", max_model_len=MAX_LEN, dtype=torch.bfloat16, hf_text_config=text),
        scheduler_config=SimpleNamespace(max_num_seqs=MAX_ROWS),
        speculative_config=SimpleNamespace(num_speculative_tokens=num_nodes),
    )


def drafter(method: str, num_nodes: int = 5, **settings: Any) -> OutriderDrafter:
    return OutriderDrafter(vllm_config({"outrider": {"method": method, "settings": settings}}, num_nodes))


class Rows:
    """vLLM's side of the seam: texts in rows that move."""

    def __init__(self, drafter: OutriderDrafter) -> None:
        self.drafter = drafter
        self.padded = np.zeros((MAX_ROWS, MAX_LEN), dtype=np.int32)

    def step(self, texts: list[list[int]], written: list[int]) -> list[list[int]]:
        self.padded[:] = 49  # whatever lies behind a text is not part of it
        for row, text in enumerate(texts):
            self.padded[row, : len(text)] = text
        lengths = np.array([len(text) for text in texts] + [0] * (MAX_ROWS - len(texts)), dtype=np.int32)
        sampled = [text[len(text) - count :] for text, count in zip(texts, written, strict=True)]
        return self.drafter.propose(sampled, lengths, self.padded, slot_mappings=None)


SETTINGS: dict[str, dict[str, Any]] = {
    "ngram": {"min_n": 1},
    "suffix": {"factor": 2.0, "max_cached_requests": 3},
    "hybrid": {"drafter": "ngram", "max_cached_requests": 3},
}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("method", SETTINGS)
def test_drafts_are_those_of_a_session_that_is_told_which_row_is_whose(method: str, seed: int) -> None:
    """Requests arrive, leave, stay away for a while and change rows; texts repeat themselves in parts."""
    chance = random.Random(seed)
    rows = Rows(drafter(method, num_nodes=16, **SETTINGS[method]))
    other = drafter(method, num_nodes=16, **SETTINGS[method])
    told, limit = other.tracker.session, DraftLimit(other.num_nodes, other.num_nodes)
    texts: dict[int, list[int]] = {}
    seated: list[int] = []
    drafted = 0
    for _ in range(60):
        gone = [name for name in seated if chance.random() < 0.05]
        staying = [name for name in seated if name not in gone]
        coming = [name for name in range(100) if name not in seated][: chance.randint(0, MAX_ROWS - len(staying))]
        texts |= {name: [chance.randrange(4) for _ in range(chance.randint(1, 30))] for name in coming}
        now = [*staying, *coming]
        chance.shuffle(now)
        written = {name: [chance.randrange(4) for _ in range(chance.randint(1, 4))] for name in now}
        for name in now:
            texts[name] = [*texts[name], *written[name]]
        now = [name for name in now if len(texts[name]) < MAX_LEN - 20]

        goes_on = [name for name in now if name in staying]
        told.observe([Commit(name, list(range(len(written[name]))), written[name], 0) for name in goes_on], None)
        for name in seated:
            if name not in goes_on:
                told.release(name)
        for name in now:
            if name not in goes_on:
                told.admit(name, texts[name], SamplingParams(), None)
        want = [first_path(tree) for tree in told.propose(now, [limit] * len(now)).trees] if now else []
        assert rows.step([texts[name] for name in now], [len(written[name]) for name in now]) == want
        drafted += sum(map(len, want))
        seated = now
    assert drafted > 100


def test_a_prompt_that_begins_with_an_earlier_text_is_a_new_request() -> None:
    rows = Rows(drafter("ngram"))
    rows.step([[1, 2, 3, 4]], [1])
    rows.step([[1, 2, 3, 4, 5]], [1])
    session = rows.drafter.tracker.session
    first = session.indices[0]  # type: ignore[attr-defined]
    rows.step([[1, 2, 3, 4, 5, 9, 9, 6]], [1])
    assert session.indices[0] is not first  # type: ignore[attr-defined]


def test_equal_texts_have_a_seat_each() -> None:
    rows = Rows(drafter("ngram"))
    for text in ([1, 2, 1, 2, 3], [1, 2, 1, 2, 3, 1], [1, 2, 1, 2, 3, 1, 2]):
        drafts = rows.step([text, text], [1, 1])
        assert drafts[0] == drafts[1]
    assert len(rows.drafter.tracker.texts) == 2
    assert rows.step([[1, 2, 1, 2, 3, 1, 2, 4], [1, 2, 1, 2, 3, 1, 2, 1]], [1, 1])[1]


def test_a_prompt_in_the_middle_of_its_reading_gets_nothing() -> None:
    rows = Rows(drafter("ngram", min_n=1))
    assert rows.step([[1, 2, 1, 2], [3, 4, 3]], [0, 1]) == [[], [4, 3]]
    assert rows.step([[1, 2, 1, 2, 1], [3, 4, 3, 4]], [1, 1]) == [[2, 1], [3, 4]]


def test_drafts_end_with_the_context() -> None:
    rows = Rows(drafter("ngram", num_nodes=8, min_n=1))
    text = [1, 2, 3, 4, 5] * (MAX_LEN // 5)
    assert len(rows.step([text[: MAX_LEN - 4]], [1])[0]) == 3
    assert rows.step([text[: MAX_LEN - 1]], [3]) == [[]]


def test_all_seats_can_be_taken_again_and_again() -> None:
    rows = Rows(drafter("suffix"))
    for turn in range(5):
        rows.step([[turn, row, turn, row, 7] for row in range(MAX_ROWS)], [1] * MAX_ROWS)
    assert sorted([*rows.drafter.tracker.texts, *rows.drafter.tracker.free]) == list(range(MAX_ROWS))


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ({}, "names no method"),
        (None, "names no method"),
        ({"outrider": {"settings": {}}}, "names no method"),
        ({"outrider": {"method": "ngran"}}, "unknown method 'ngran'; did you mean 'ngram'"),
        ({"outrider": {"method": "ngram", "settings": {"max": 3}}}, "has no setting 'max'"),
        ({"outrider": {"method": "none"}}, "does not draft from token ids alone"),
        ({"outrider": {"method": "draft_model", "settings": {"layers": (0,)}}}, "needs a target on the native decoder"),
    ],
)
def test_orders_that_cannot_be_met_are_refused(order: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OutriderDrafter(vllm_config(order))


def test_our_settings_become_vllms_flags() -> None:
    spec = spec_of(vllm_config(None).model_config)
    exported = on_custom_class("suffix", {"num_nodes": 7, "factor": 2.0}, spec)
    assert exported.speculative == {
        "method": METHOD,
        "model": "outrider.vllm.custom_class.OutriderDrafter",
        "num_speculative_tokens": 7,
    }
    assert exported.flags["additional-config"] == (
        '{"outrider": {"method": "suffix", "settings": {"num_nodes": 7, "factor": 2.0, "max_cached_requests": 0}}}'
    )
    assert "cannot clear its cache" in exported.notes[0]
    with pytest.raises(ConfigError, match="needs a target on the native decoder"):
        on_custom_class("draft_model", {"layers": (0,)}, spec)


def test_vllms_process_needs_nothing_that_it_has_not_got() -> None:
    """numpy, torch and numba are vLLM's own requirements."""
    code = (
        "import sys, outrider.vllm.custom_class, outrider.proposers.hybrid, outrider.proposers.ngram, "
        "outrider.proposers.suffix; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"tyro", "gguf", "accelerate", "datasets", "httpx", "rich", "transformers", "vllm"} & {
        *done.stdout.split()
    }


def test_a_corpus_drafts_in_vllms_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_corpus(Path("day.corpus"), joined([[7, 8, 9, 10, 11]]), Vocabulary(size=50, digest="of the target"))
    spec = spec_of(vllm_config({}).model_config)
    exported = on_custom_class("suffix", {"corpus": "day.corpus"}, spec)
    settings = json.loads(exported.flags["additional-config"])["outrider"]["settings"]
    assert settings["corpus"] == str(tmp_path / "day.corpus")
    monkeypatch.chdir("/")
    assert Rows(drafter("suffix", **settings)).step([[1, 2, 7, 8]], [1]) == [[9, 10]]
