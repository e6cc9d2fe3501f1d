"""Our methods in vLLM's words; heads are exported once, and exports are taken as they are."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from outrider.bench.config import BenchConfig
from outrider.bench.serving.contenders import Engines, serving_contenders
from outrider.data.texts import Corpus
from outrider.errors import ConfigError
from outrider.export.exported import MARKER, Export, Exported, export_checkpoint
from outrider.export.serving import SERVED, Order, on_vllm
from outrider.proposers import REGISTRY, configure, load_proposer
from outrider.proposers.method_spec import method_specs
from outrider.target import Target
from outrider.targets.deferred import DeferredTarget
from outrider.testing.directory import write_tiny_model
from outrider.train.objective import Objective, Teacher
from outrider.train.objectives import OBJECTIVES
from outrider.vllm.environment import Vllm


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    directory = write_tiny_model(tmp_path_factory.mktemp("target"), dtype=torch.bfloat16)
    return DeferredTarget(str(directory), dtype="float32")


def served(text: str, target: Target, output: Path) -> Exported:
    [choice] = method_specs([text])
    exported = on_vllm(choice.name, Order(config=configure(choice.name, choice.settings), target=target, output=output))
    assert exported is not None
    return exported


def checkpoint(name: str, target: Target, directory: Path, **settings: Any) -> Path:
    """A freshly started, untrained one."""
    module, _, attribute = OBJECTIVES[name].partition(":")
    cls: type[Objective] = getattr(import_module(module), attribute)
    counts_V = torch.arange(target.spec.vocab_size) % 20
    corpus = Corpus(counts_V=counts_V, num_tokens=int(counts_V.sum()))
    assert isinstance(target, DeferredTarget)
    objective = cls.create(Teacher.of(target.loaded, "cpu"), cls.Config(**settings), corpus, seed=3)
    directory.mkdir()
    objective.save(directory, torch.bfloat16)
    return directory


def test_methods_without_weights(target: Target, tmp_path: Path) -> None:
    assert served("none", target, tmp_path).speculative == {}
    lookup = served("ngram:num_nodes=5,max_n=3,policy=earliest", target, tmp_path)
    assert lookup.speculative == {
        "method": "ngram",
        "num_speculative_tokens": 5,
        "prompt_lookup_min": 2,
        "prompt_lookup_max": 3,
    }
    assert lookup.notes == ()
    suffix = served("suffix:num_nodes=7,factor=2.0", target, tmp_path)
    assert suffix.speculative["suffix_decoding_max_spec_factor"] == 2.0
    assert suffix.speculative["suffix_decoding_max_cached_requests"] == 0
    assert any("cannot clear its cache" in note for note in suffix.notes)


HEADS: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "eagle3": ("eagle3", {"draft_vocab": 100}, "num_nodes=4", {"method": "eagle3", "num_speculative_tokens": 4}),
    "eagle3 tree": (
        "eagle3",
        {"draft_vocab": 100},
        "num_nodes=9,width=3,depth=4",
        {"method": "eagle3", "num_speculative_tokens": 4},
    ),
    "medusa": ("medusa", {"output": "shared"}, "num_nodes=16", {"method": "medusa"}),
    "mtp": ("mtp", {"state": "normed"}, "num_nodes=2", {"method": "mtp", "num_speculative_tokens": 2}),
    "pard": (
        "pard",
        {"layers": "0,1"},
        "num_nodes=3",
        {"method": "draft_model", "parallel_drafting": True, "num_speculative_tokens": 3},
    ),
    "draft_model": (
        "draft",
        {"layers": "0,1"},
        "num_nodes=3",
        {"method": "draft_model", "num_speculative_tokens": 3},
    ),
}


@pytest.mark.parametrize("case", HEADS)
def test_a_head_is_exported_once_into_the_run(case: str, target: Target, tmp_path: Path) -> None:
    objective, settings, given, wanted = HEADS[case]
    method = case.partition(" ")[0]
    source = checkpoint(objective, target, tmp_path / "trained", **settings)
    text, output = f"{method}:checkpoint={source},{given}", tmp_path / "exports" / "head"
    exported = served(text, target, output)
    assert dict(exported.speculative) | wanted == exported.speculative
    assert exported.speculative["model"] == str(output)
    assert ("vLLM drafts a chain, not the tree" in exported.notes) == (case in ("eagle3 tree", "medusa"))
    written = (output / "model.safetensors").stat().st_mtime_ns
    assert served(text, target, output).speculative == exported.speculative
    assert (output / "model.safetensors").stat().st_mtime_ns == written
    load_proposer(method, target, checkpoint=str(output), num_nodes=2)


def test_an_export_is_served_as_it_is(target: Target, tmp_path: Path) -> None:
    source = checkpoint("eagle3", target, tmp_path / "trained", draft_vocab=100)
    output = tmp_path / "given"
    output.mkdir()
    export_checkpoint(Export(checkpoint=source, target=target, output=output, engine="speculators", num_nodes=5))
    exported = served(f"eagle3:checkpoint={output},num_nodes=3", target, tmp_path / "unused")
    assert exported.speculative == {"method": "eagle3", "model": str(output), "num_speculative_tokens": 3}
    assert not (tmp_path / "unused").exists()


def test_an_export_for_another_engine_is_exported_anew(target: Target, tmp_path: Path) -> None:
    source = checkpoint("eagle3", target, tmp_path / "trained", draft_vocab=100)
    given, output = tmp_path / "given", tmp_path / "output"
    given.mkdir()
    export_checkpoint(Export(checkpoint=source, target=target, output=given, engine="sglang", num_nodes=5))
    assert json.loads((given / MARKER).read_text())["engine"] == "sglang"
    assert served(f"eagle3:checkpoint={given}", target, output).speculative["model"] == str(output)


def test_layers_of_the_target_draft_as_they_do_here(target: Target, tmp_path: Path) -> None:
    exported = served("draft_model:layers=1,num_nodes=2", target, tmp_path / "one")
    assert exported.speculative == {
        "method": "draft_model",
        "model": str(tmp_path / "one"),
        "num_speculative_tokens": 2,
    }
    own = load_proposer("draft_model", DeferredTarget.loaded.func(target), layers="1").model  # type: ignore[attr-defined]
    read = load_proposer("draft_model", target, checkpoint=str(tmp_path / "one")).model  # type: ignore[attr-defined]
    states = torch.randn(3, target.spec.hidden_size)
    assert read.spec.num_layers == 1
    assert torch.equal(own.project(states), read.project(states))


def test_every_method_is_served_or_known_not_to_be() -> None:
    assert set(REGISTRY) - set(SERVED) == {"none", "oracle", "hybrid"}


def test_modules_that_read_another_state_than_vllm_feeds_are_refused(target: Target, tmp_path: Path) -> None:
    source = checkpoint("mtp", target, tmp_path / "trained")
    with pytest.raises(ConfigError, match='train with state="normed"'):
        served(f"mtp:checkpoint={source}", target, tmp_path / "head")


def test_several_modules_need_a_multiple(target: Target, tmp_path: Path) -> None:
    source = checkpoint("mtp", target, tmp_path / "trained", num_modules=2, num_depths=2)
    with pytest.raises(ConfigError, match="vLLM drafts a multiple of the 2 modules"):
        served(f"mtp:checkpoint={source},num_nodes=3", target, tmp_path / "head")


def test_a_head_that_vllm_has_no_place_for_is_left_out(target: Target, tmp_path: Path) -> None:
    source = checkpoint("mtp", target, tmp_path / "head", state="residual")
    vllm = Vllm(python=Path("python"), version="1", is_cpu=True, methods=frozenset(), has_suffix=True)
    joined = serving_contenders(
        BenchConfig(engines=("vllm",)),
        method_specs(["none", f"mtp:checkpoint={source}"]),
        target,
        [1],
        64,
        tmp_path / "run",
        tell=print,
        engines=Engines(vllm=vllm),
    )
    assert [[one.name.method for one in contenders] for contenders in joined.contender_groups] == [["none"]]
    [reason] = [note for note in joined.notes if note.startswith("left out")]
    assert "left out: mtp, for" in reason
    assert "state" in reason
