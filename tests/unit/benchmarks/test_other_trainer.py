"""The files for another trainer: their states are those that `transformers` computes, and its teacher is the target."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT))

from benchmarks.other_trainer import convert as files  # noqa: E402
from benchmarks.other_trainer.acceptance import held_out  # noqa: E402
from benchmarks.other_trainer.table import table  # noqa: E402

from outrider import RunError, load_target  # noqa: E402
from outrider.data.texts import Data, Example, ListedTexts  # noqa: E402
from outrider.formats.eagle3 import read_eagle3, write_speculators  # noqa: E402
from outrider.proposers.eagle3 import random_checkpoint  # noqa: E402
from outrider.target import Target  # noqa: E402
from outrider.testing.directory import write_tiny_model  # noqa: E402
from outrider.train.feature_store import FeatureStore  # noqa: E402
from outrider.train.features import FeatureReader  # noqa: E402

LAYERS = (2, 3, 3)
"""The published default of a target of six layers: 2, n // 2 and n - 3."""
ROW = 24


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("target"), dtype=torch.float32, num_layers=6)


@pytest.fixture(scope="module")
def target(directory: Path) -> Target:
    return load_target(str(directory), dtype="float32", device="cpu")


def texts(seed: int, count: int) -> ListedTexts:
    generator = torch.Generator().manual_seed(seed)
    tokens = [torch.randint(0, 250, (12 + 8 * number,), generator=generator) for number in range(count)]
    return ListedTexts([Example(one.int(), torch.arange(len(one)) >= 5) for one in tokens])


@pytest.fixture
def source(target: Target, tmp_path: Path) -> files.Source:
    """Training texts of 12, 20 and 28 tokens, the last cut to 24, and two held-out ones."""
    data, places = Data(train=texts(0, 3), held_out=texts(1, 2)), (tmp_path / "train", tmp_path / "held-out")
    for place, some in zip(places, (data.train, data.held_out), strict=True):
        store = FeatureStore(place, FeatureReader(target, (*LAYERS, 6), ROW), some)
        store.begin()
        store.write(store.missing)
    return files.Source.of(data, target, ROW, tmp_path)


def test_states_are_those_of_transformers(directory: Path, source: files.Source, tmp_path: Path) -> None:
    output = tmp_path / "converted"
    files.convert(source, files.final_norm(directory), output)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    model.model.norm.register_forward_pre_hook(lambda module, inputs: entering.append(inputs[0][0]))
    kept = json.loads((output / "texts.json").read_text())
    assert (kept["num_train"], len(kept["texts"])) == (3, 5)
    for index, row in enumerate(kept["texts"]):
        entering: list[torch.Tensor] = []
        stored = load_file(output / "hidden_states" / f"hs_{index}.safetensors")
        assert stored["token_ids"].tolist() == row["input_ids"]
        with torch.no_grad():
            found = model(torch.tensor([row["input_ids"]]), output_hidden_states=True)
        for place, layer in enumerate(LAYERS):
            torch.testing.assert_close(
                stored["hidden_states"][:, place], found.hidden_states[layer][0], rtol=1e-4, atol=1e-3
            )
        # what speculators does with the last state: the target's norm and head give its logits
        with torch.no_grad():
            logits_TV = model.lm_head(model.model.norm(stored["hidden_states"][:, 3]))
        torch.testing.assert_close(logits_TV, found.logits[0], rtol=1e-3, atol=1e-4)
        # it is the state before the norm but for its length
        ratio_TE = stored["hidden_states"][:, 3] / entering[0]
        torch.testing.assert_close(ratio_TE, ratio_TE[:, :1].expand_as(ratio_TE), rtol=1e-2, atol=1e-3)


def test_texts_are_cut_as_in_training_and_answers_are_counted(
    directory: Path, source: files.Source, tmp_path: Path
) -> None:
    files.convert(source, files.final_norm(directory), tmp_path / "converted")
    rows = json.loads((tmp_path / "converted" / "texts.json").read_text())["texts"]
    assert [len(row["input_ids"]) for row in rows] == [12, 20, 24, 12, 20]
    assert rows[0]["loss_mask"] == [0] * 5 + [1] * 7
    counts = json.loads((tmp_path / "converted" / "token_freq.json").read_text())
    assert sum(counts.values()) == 7 + 15 + 19  # the held-out texts take no part


def test_a_conversion_goes_on_and_refuses_another_source(
    directory: Path, source: files.Source, target: Target, tmp_path: Path
) -> None:
    norm_E, output = files.final_norm(directory), tmp_path / "converted"

    class StopError(Exception): ...

    def stop(done: int, total: int) -> None:
        if done == 3:
            raise StopError

    with pytest.raises(StopError):
        files.convert(source, norm_E, output, stop)
    first = output / "hidden_states" / "hs_0.safetensors"
    before = first.stat().st_mtime_ns
    assert not (output / "texts.json").exists()
    files.convert(source, norm_E, output)
    assert first.stat().st_mtime_ns == before
    other = files.Source(data=source.data, states=source.states, identity={"train": "others"})
    with pytest.raises(RunError, match="holds files of other texts or of another target; give another --output"):
        files.convert(other, norm_E, output)


def test_states_of_other_rows_are_not_taken(source: files.Source, target: Target, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no cached states of rows of 20 tokens; run outrider train eagle3 --features"):
        files.Source.of(source.data, target, 20, tmp_path)


def test_an_element_that_the_norm_hides_stays_zero() -> None:
    features_TF = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 0.0, 8.0]])
    states_TAE = files.states_of(features_TF, torch.tensor([0.0, 2.0]))
    assert states_TAE.tolist() == [[[1, 2], [3, 4], [5, 6], [0, 4]]]


def test_a_head_of_speculators_is_judged_on_the_held_out_texts(
    source: files.Source, target: Target, tmp_path: Path
) -> None:
    write_speculators(
        tmp_path, random_checkpoint(target, 3), torch.float32, verifier="org/target", architectures=["LlamaForCausalLM"]
    )
    checkpoint = read_eagle3(tmp_path, target)
    found = held_out(checkpoint, target, source, 3, ROW)
    # a root and the token behind it must both be the target's: 7 - 1 and 15 - 1 places
    assert (found.num_texts, found.num_anchors) == (2, 20)
    lines = table(
        {"some": {"weights": 10, "tau": found.tau, "conditional": found.conditional, "texts": 2} | KEPT}, None
    )
    assert lines[0].startswith("# held out: 2 texts, 20 positions")
    assert lines[2].startswith("some  0.00 M")


KEPT = {"anchors": 20, "sampled_tau": 1.0, "overlap": (0.1, 0.2)}
