"""What is exported loads again and drafts the same; what cannot be exported is refused in a sentence."""

import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from outrider.cli import main
from outrider.data.texts import Corpus
from outrider.engine import Engine
from outrider.errors import CheckpointError, ConfigError
from outrider.export.exported import Export, export_checkpoint
from outrider.metrics import StepRecord, summarize
from outrider.proposers import load_proposer
from outrider.sampling import SamplingParams
from outrider.target import Target
from outrider.targets import load_target
from outrider.testing.directory import write_tiny_model
from outrider.train.objective import Objective, Teacher
from outrider.train.objectives import OBJECTIVES

SETTINGS: dict[str, dict[str, Any]] = {
    "eagle3": {"draft_vocab": 100},
    "peagle": {"num_layers": 2, "draft_vocab": 100},
    "dflash": {"num_layers": 2, "block_size": 5},
    "medusa": {"output": "shared", "draft_vocab": 100},
    "pard": {"layers": "0,1"},
    "mtp": {"state": "normed"},
    "draft": {"layers": "0,1"},
}


def objective_class(name: str) -> type[Objective]:
    module, _, attribute = OBJECTIVES[name].partition(":")
    found: type[Objective] = getattr(import_module(module), attribute)
    return found


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    directory = write_tiny_model(tmp_path_factory.mktemp("target"), dtype=torch.bfloat16)
    return load_target(str(directory), dtype="float32", device="cpu")


def trained(name: str, target: Target, directory: Path, **changes: Any) -> Path:
    cls = objective_class(name)
    counts_V = torch.arange(target.spec.vocab_size) % 20
    corpus = Corpus(counts_V=counts_V, num_tokens=int(counts_V.sum()))
    objective = cls.create(Teacher.of(target, "cpu"), cls.Config(**SETTINGS[name] | changes), corpus, seed=3)
    directory.mkdir()
    objective.save(directory, torch.bfloat16)
    return directory


def drafted(target: Target, method: str, checkpoint: Path) -> list[tuple[tuple[int, ...], float]]:
    """Texts and tau of a few prompts."""
    results = []
    for prompt in ("one two", "a longer prompt, with more in it"):
        records: list[Any] = []
        engine = Engine(
            target, load_proposer(method, target, checkpoint=str(checkpoint), num_nodes=3), record=records.append
        )
        answer = engine.generate([prompt], SamplingParams(max_tokens=24, ignore_eos=True))[0]
        steps = [record for record in records if isinstance(record, StepRecord)]
        results.append((answer.tokens, summarize(steps, []).tokens_per_target_forward))
    return results


@pytest.mark.parametrize("name", SETTINGS)
def test_an_export_drafts_what_the_checkpoint_drafts(name: str, target: Target, tmp_path: Path) -> None:
    checkpoint = trained(name, target, tmp_path / "trained")
    output = tmp_path / "exported"
    output.mkdir()
    export = Export(checkpoint=checkpoint, target=target, output=output, engine="vllm", num_nodes=3)
    exported = export_checkpoint(export)
    method = objective_class(name).method
    assert drafted(target, method, output) == drafted(target, method, checkpoint)
    assert f'"model": "{output}"' in exported.command(export)
    assert exported.command(export).startswith(f"vllm serve {target.spec.source}")


@pytest.mark.parametrize("name", ["pard", "draft"])
def test_exported_draft_models_load_in_transformers(name: str, target: Target, tmp_path: Path) -> None:
    checkpoint = trained(name, target, tmp_path / "trained")
    output = tmp_path / "exported"
    output.mkdir()
    export_checkpoint(Export(checkpoint=checkpoint, target=target, output=output, engine="vllm", num_nodes=3))
    model, loading = AutoModelForCausalLM.from_pretrained(output, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert model.config.vocab_size == target.spec.vocab_size
    config = json.loads((output / "config.json").read_text(encoding="utf-8"))
    assert ("pard_token" in config) == (name == "pard")
    assert (output / "tokenizer.json").is_file()


def test_the_speculators_layout_names_the_target(target: Target, tmp_path: Path) -> None:
    checkpoint = trained("eagle3", target, tmp_path / "trained")
    output = tmp_path / "exported"
    output.mkdir()
    export_checkpoint(Export(checkpoint=checkpoint, target=target, output=output, engine="speculators", num_nodes=5))
    verifier = json.loads((output / "config.json").read_text(encoding="utf-8"))["speculators_config"]["verifier"]
    assert verifier == {"architectures": ["LlamaForCausalLM"], "name_or_path": target.spec.source}
    assert drafted(target, "eagle3", output) == drafted(target, "eagle3", checkpoint)


def test_a_head_of_several_layers_is_exported_where_they_are_read_alike(target: Target, tmp_path: Path) -> None:
    checkpoint = trained("eagle3", target, tmp_path / "trained", num_layers=2)
    output = tmp_path / "exported"
    output.mkdir()
    export = Export(checkpoint=checkpoint, target=target, output=output, engine="speculators", num_nodes=5)
    export_checkpoint(export)
    assert drafted(target, "eagle3", output) == drafted(target, "eagle3", checkpoint)
    with pytest.raises(ConfigError, match="has 2 layers, and SGLang reads other norms"):
        export_checkpoint(replace(export, engine="sglang"))


def test_flags_for_sglang(target: Target, tmp_path: Path) -> None:
    checkpoint = trained("eagle3", target, tmp_path / "trained")
    output = tmp_path / "exported"
    output.mkdir()
    export = Export(checkpoint=checkpoint, target=target, output=output, engine="sglang", num_nodes=4)
    command = export_checkpoint(export).command(export)
    assert "--speculative-algorithm EAGLE3" in command
    assert "--speculative-num-draft-tokens 5" in command


@pytest.mark.parametrize("changes", [{}, {"selector_rank": 3, "conv_group_size": 8}], ids=["dflash", "dflash2"])
@pytest.mark.parametrize(
    ("engine", "served"),
    [
        ("vllm", '"method": "dflash"'),
        ("speculators", '"method": "dflash", '),
        ("sglang", "--speculative-algorithm DFLASH"),
    ],
)
def test_a_block_is_exported_in_every_layout(
    engine: Any, served: str, changes: dict[str, Any], target: Target, tmp_path: Path
) -> None:
    checkpoint = trained("dflash", target, tmp_path / "trained", **changes)
    output = tmp_path / "exported"
    output.mkdir()
    export = Export(checkpoint=checkpoint, target=target, output=output, engine=engine, num_nodes=3)
    command = export_checkpoint(export).command(export)
    assert served in command
    assert engine != "sglang" or "--speculative-dflash-block-size 4" in command  # the root has a slot
    config = json.loads((output / "config.json").read_text(encoding="utf-8"))
    assert ("DFlash2DraftModel" in config["architectures"]) == bool(changes)
    assert drafted(target, "dflash", output) == drafted(target, "dflash", checkpoint)
    with pytest.raises(ConfigError, match="num_nodes=5 exceeds the 4 tokens that a block of"):
        export_checkpoint(replace(export, num_nodes=5))


@pytest.mark.parametrize(
    ("name", "engine", "message"),
    [
        ("medusa", "sglang", "has no Medusa"),
        ("pard", "sglang", "no parallel drafting"),
        ("mtp", "speculators", "does not load this layout"),
        ("draft", "speculators", "has no draft models"),
    ],
)
def test_what_an_engine_cannot_load_is_refused(
    name: str, engine: Any, message: str, target: Target, tmp_path: Path
) -> None:
    checkpoint = trained(name, target, tmp_path / "trained")
    export = Export(checkpoint=checkpoint, target=target, output=tmp_path, engine=engine, num_nodes=3)
    with pytest.raises(ConfigError, match=message):
        export_checkpoint(export)


def test_vllm_counts_modules_in_the_targets_config(target: Target, tmp_path: Path) -> None:
    checkpoint = trained("mtp", target, tmp_path / "trained")
    output = tmp_path / "exported"
    output.mkdir()
    export = Export(checkpoint=checkpoint, target=target, output=output, engine="vllm", num_nodes=3)
    command = export_checkpoint(export).command(export)
    assert command.endswith("""--hf-overrides '{"num_nextn_predict_layers": 1}'""")


def test_something_else_is_refused(target: Target, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    export = Export(checkpoint=tmp_path, target=target, output=tmp_path, engine="vllm", num_nodes=3)
    with pytest.raises(CheckpointError, match="none of the checkpoints"):
        export_checkpoint(export)


def test_the_command(target: Target, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = trained("draft", target, tmp_path / "trained")
    output = tmp_path / "out"
    directory = str(target.spec.source)
    assert main(["export", str(checkpoint), "--target", directory, "--output", str(output), "--num-nodes", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].startswith("vllm serve ")
    assert json.loads(lines[-1])["speculative"]["num_speculative_tokens"] == 2
    assert main(["export", str(checkpoint), "--target", directory, "--output", str(output)]) == 2
    assert "is not empty" in capsys.readouterr().err
