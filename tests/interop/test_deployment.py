"""A method as commands: to run it here, and to serve it on vLLM, SGLang and llama.cpp.

Flags are compared with those that the engines' own documentation lists, and heads with what an export prints.
"""

import json
import shlex
import tomllib
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

import outrider
from outrider.bench.preset import configured
from outrider.cli import main
from outrider.errors import ConfigError
from outrider.export.deployment import ENGINES, Deployment, deployment
from outrider.formats.eagle3 import write_native
from outrider.proposers import REGISTRY
from outrider.proposers.eagle3 import random_checkpoint
from outrider.proposers.method_spec import method_specs
from outrider.testing.directory import write_tiny_model

TARGET = "Qwen/Qwen3-8B"
LLAMA_FLAGS = {
    *("model", "spec-type", "model-draft", "spec-draft-n-max"),
    *("spec-ngram-simple-size-n", "spec-ngram-simple-size-m"),
}
"""Of `llama-server`: tools/server/README.md and docs/speculative.md."""
LLAMA_KINDS = {"draft-simple", "draft-eagle3", "ngram-simple"}
SGLANG_FLAGS = {
    *("model-path", "speculative-algorithm", "speculative-draft-model-path", "speculative-num-steps"),
    *("speculative-eagle-topk", "speculative-num-draft-tokens", "speculative-ngram-min-match-window-size"),
    *("speculative-ngram-max-match-window-size", "speculative-ngram-max-bfs-breadth"),
    "speculative-dflash-block-size",
}
"""Of SGLang: its page on speculative decoding."""


def deployed(text: str, engine: str, target: str = TARGET, **more: Any) -> Deployment:
    return deployment(method_specs([text])[0], target, engine, **more)


def flags(found: Deployment) -> dict[str, str]:
    words = shlex.split(found.command or "")
    return {name[2:]: value for name, value in pairwise(words) if name.startswith("--")}


def speculative(found: Deployment) -> Mapping[str, Any]:
    config: dict[str, Any] = json.loads(flags(found)["speculative-config"])
    return config


def test_plain_decoding_needs_no_flags() -> None:
    assert deployed("none", "vllm").command == f"vllm serve {TARGET}"
    assert deployed("none", "sglang").command == f"python -m sglang.launch_server --model-path {TARGET}"
    assert deployed("none", "llama.cpp", "model.gguf").commands == ("llama-server --model model.gguf",)


def test_lookups() -> None:
    text = "ngram:num_nodes=5,min_n=3,max_n=4"
    assert speculative(deployed(text, "vllm")) == {
        "method": "ngram",
        "num_speculative_tokens": 5,
        "prompt_lookup_min": 3,
        "prompt_lookup_max": 4,
    }
    assert flags(deployed(text, "sglang")) == {
        "model-path": TARGET,
        "speculative-algorithm": "NGRAM",
        "speculative-num-draft-tokens": "6",
        "speculative-ngram-min-match-window-size": "3",
        "speculative-ngram-max-match-window-size": "4",
        "speculative-ngram-max-bfs-breadth": "1",
    }
    assert flags(deployed(text, "llama.cpp", "model.gguf")) == {
        "model": "model.gguf",
        "spec-type": "ngram-simple",
        "spec-ngram-simple-size-n": "3",
        "spec-ngram-simple-size-m": "5",
    }


@pytest.mark.parametrize(("given", "kept"), [(0, 0), (50, 50), (-1, 10_000)])
def test_a_deployed_server_keeps_earlier_answers(given: int, kept: int) -> None:
    found = speculative(deployed(f"suffix:max_cached_requests={given}", "vllm"))
    assert found["suffix_decoding_max_cached_requests"] == kept


def test_published_heads_are_served_as_they_are() -> None:
    native, library = "AngelSlim/Qwen3-8B_eagle3", "RedHatAI/Qwen3-8B-speculator.eagle3"
    for head in (native, library):
        found = deployed(f"eagle3:checkpoint={head},num_nodes=3", "vllm")
        assert len(found.commands) == 1
        assert speculative(found) == {"method": "eagle3", "model": head, "num_speculative_tokens": 3}
    assert flags(deployed(f"eagle3:checkpoint={native},num_nodes=3", "sglang")) == {
        "model-path": TARGET,
        "speculative-algorithm": "EAGLE3",
        "speculative-draft-model-path": native,
        "speculative-num-steps": "3",
        "speculative-eagle-topk": "1",
        "speculative-num-draft-tokens": "4",
    }
    assert "--to sglang" in deployed(f"eagle3:checkpoint={library}", "sglang").commands[0]
    pard = speculative(deployed("pard:checkpoint=amd/PARD-Qwen3-0.6B", "vllm"))
    assert (pard["method"], pard["parallel_drafting"]) == ("draft_model", True)
    masked = "peagle:checkpoint=RedHatAI/Qwen3-8B-speculator.peagle,num_nodes=4"
    assert speculative(deployed(masked, "vllm")) == {
        "method": "eagle3",
        "model": "RedHatAI/Qwen3-8B-speculator.peagle",
        "num_speculative_tokens": 4,
        "parallel_drafting": True,
    }
    biased = "dflash:checkpoint=Dogacel/Qwen3-8B-DSpark,num_nodes=7"
    assert speculative(deployed(biased, "vllm"))["method"] == "dspark"
    for text, reason in ((masked, "no parallel drafting"), (biased, "Markov head")):
        assert reason in (deployed(text, "sglang").refused or "")


def test_blocks_are_told_in_each_engine_s_own_count() -> None:
    """vLLM counts drafted tokens, SGLang slots; both draft chains."""
    text = "dflash:checkpoint=z-lab/Qwen3-8B-DFlash-b16,num_nodes=7"
    found = deployed(text, "vllm")
    assert len(found.commands) == 1
    assert speculative(found)["num_speculative_tokens"] == 7
    assert speculative(found)["method"] == "dflash"
    found = deployed(text, "sglang")
    assert "--to sglang" in found.commands[0]
    assert flags(found)["speculative-dflash-block-size"] == "8"
    assert deployed("dflash:checkpoint=deepseek-ai/dflash_qwen3_8b_block7", "vllm").commands[0].startswith("outrider")
    for engine in ("vllm", "sglang"):
        refused = deployed(text + ",width=4", engine)
        assert "not trees" in (refused.refused or "")
        assert refused.nearest is not None
        assert refused.nearest.method == text


def test_sglang_grows_the_tree() -> None:
    found = flags(deployed("eagle3:checkpoint=AngelSlim/Qwen3-8B_eagle3,width=4,depth=5,num_nodes=16", "sglang"))
    assert found["speculative-num-steps"] == "5"
    assert found["speculative-eagle-topk"] == "4"
    assert found["speculative-num-draft-tokens"] == "17"


def test_llama_converts_what_is_no_gguf_file() -> None:
    found = deployed("eagle3:checkpoint=AngelSlim/Qwen3-8B_eagle3,num_nodes=3", "llama.cpp")
    assert [shlex.split(command)[:2] for command in found.commands] == [
        ["hf", "download"],
        ["python", "convert_hf_to_gguf.py"],
        ["hf", "download"],
        ["python", "convert_hf_to_gguf.py"],
        ["llama-server", "--model"],
    ]
    assert "--target-model-dir models/qwen3-8b" in found.commands[3]
    assert flags(found)["spec-type"] == "draft-eagle3"
    assert any("sentencepiece" in note for note in found.notes)
    beside = deployed("eagle3:checkpoint=AngelSlim/Qwen3-8B_eagle3", "llama.cpp", "qwen.gguf")
    assert "--target-model-dir TARGET_DIRECTORY" in beside.commands[1]
    assert any(note.startswith("TARGET_DIRECTORY is") for note in beside.notes)
    assert not deployed("ngram:min_n=3,max_n=3", "llama.cpp", "qwen.gguf").notes
    both = deployed("draft_model:checkpoint=small.gguf", "llama.cpp", "large.gguf")
    assert [shlex.split(command)[0] for command in both.commands] == ["llama-server"]
    assert flags(both)["model-draft"] == "small.gguf"


REFUSED = [
    ("vllm", "ngram:num_candidates=3", "chains", "ngram"),
    ("vllm", "suffix:mode=tree", "chains", "suffix"),
    ("vllm", "eagle3:checkpoint=a/b,width=3,num_nodes=9", "chains", "eagle3:checkpoint=a/b,num_nodes=6"),
    ("vllm", "eagle3:checkpoint=a/b,tree=0 1 0.0 0.0.0", "chains", "eagle3:checkpoint=a/b,num_nodes=3"),
    ("vllm", "hybrid:checkpoint=a/b,num_nodes=2", "one method", "eagle3:checkpoint=a/b,num_nodes=2"),
    ("vllm", "medusa:checkpoint=a/b", "chains", "medusa:checkpoint=a/b,width=1,num_nodes=5"),
    ("vllm", "draft_model:layers=0,1", "own layers", "ngram"),
    ("sglang", "eagle3:checkpoint=a/b,tree=0 1 0.0", "fixed", "eagle3:checkpoint=a/b,num_nodes=2"),
    ("sglang", "pard:checkpoint=a/b", "mask token", "ngram"),
    ("sglang", "medusa:checkpoint=a/b", "no Medusa", "ngram"),
    ("sglang", "suffix", "no suffix", "ngram"),
    ("llama.cpp", "medusa:checkpoint=a/b", "no Medusa", "ngram"),
    ("llama.cpp", "mtp:checkpoint=a/b", "own GGUF", "ngram"),
    ("llama.cpp", "hybrid:checkpoint=a/b", "worth", "eagle3:checkpoint=a/b,num_nodes=3"),
    ("llama.cpp", "draft_model:checkpoint=a/b,width=2", "chains", "draft_model:checkpoint=a/b"),
]


@pytest.mark.parametrize(("engine", "text", "reason", "nearest"), REFUSED)
def test_what_an_engine_lacks_is_refused_with_the_nearest(engine: str, text: str, reason: str, nearest: str) -> None:
    found = deployed(text, engine)
    assert found.command is None
    assert reason in (found.refused or "")
    assert found.nearest is not None
    assert (found.nearest.method, found.nearest.refused) == (nearest, None)
    assert found.nearest.command in found.shown


def test_a_scripted_method_has_no_nearest() -> None:
    found = deployed("oracle:0.8", "vllm")
    assert (found.command, found.nearest) == (None, None)
    assert "instrument" in (found.refused or "")


def test_every_method_is_deployed_or_refused_everywhere() -> None:
    for name in REGISTRY:
        for engine in ENGINES:
            found = deployed("oracle:0.8" if name == "oracle" else name, engine, "smollm2-135m")
            assert (found.command is None) == (found.refused is not None)
            assert name == "oracle" or found.command or (found.nearest and found.nearest.command)
            known = {"llama.cpp": LLAMA_FLAGS, "sglang": SGLANG_FLAGS}.get(engine)
            assert known is None or flags(found).keys() <= known
            if engine == "llama.cpp" and "spec-type" in flags(found):
                assert flags(found)["spec-type"] in LLAMA_KINDS


def test_an_engine_without_an_adaptive_budget_says_so() -> None:
    assert any("adaptive budget" in note for note in deployed("suffix", "vllm", budget="auto").notes)
    assert not any("adaptive budget" in note for note in deployed("none", "vllm", budget="auto").notes)
    assert "--budget auto" in (deployed("suffix", "outrider", budget="auto").command or "")


def test_a_directory_that_looks_like_a_hub_id_is_not_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    commands = deployed("ngram", "llama.cpp", "models/mine").commands
    assert [shlex.split(command)[:3] for command in commands] == [
        ["python", "convert_hf_to_gguf.py", "models/mine"],
        ["llama-server", "--model", "mine.gguf"],
    ]


def test_other_engines_may_not_read_a_gguf_file() -> None:
    assert any("original checkpoint" in note for note in deployed("suffix", "vllm", "qwen.gguf").notes)
    assert not any("original checkpoint" in note for note in deployed("ngram", "llama.cpp", "qwen.gguf").notes)


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown engine 'vlm'; did you mean 'vllm'"):
        deployed("ngram", "vlm")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model", dtype=torch.bfloat16)


def test_the_commands_for_outrider_run(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "ngram:num_nodes=3,min_n=1"
    found = deployed(text, "outrider", str(tiny), budget="auto")
    words = shlex.split(found.command or "")
    assert words[0] == "outrider"
    assert main([*words[1:], "--max-new-tokens", "4"]) == 0
    answer = capsys.readouterr().out
    plain = outrider.Engine(
        outrider.load_target(str(tiny)), outrider.load_proposer("none", outrider.load_target(str(tiny)))
    )
    assert answer == plain.generate(["Why is the sky blue?"], outrider.SamplingParams(max_tokens=4))[0].text + "\n"
    assert method_specs([found.method])[0].settings == method_specs([text])[0].settings
    assert found.recipe is not None
    config = configured(tomllib.loads(found.recipe))
    assert (config.target, config.methods, config.budgets) == (str(tiny), ("none", found.method), ("auto",))
    again = "\n".join(found.lines).replace("])[0]", "], outrider.SamplingParams(max_tokens=4))[0]")
    exec(again, {})
    assert capsys.readouterr().out == answer


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_a_trained_head_is_exported_by_the_command_before(
    engine: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    head = tmp_path / "head"
    head.mkdir()
    write_native(head, random_checkpoint(outrider.load_target(str(tiny)), 3), torch.bfloat16)
    monkeypatch.chdir(tmp_path)
    found = deployed("eagle3:checkpoint=head,num_nodes=3", engine, str(tiny))
    export, serve = found.commands
    assert main(shlex.split(export)[1:]) == 0
    printed = capsys.readouterr().out
    # the export names its own directory in full
    assert serve.replace("exports/", f"{tmp_path}/exports/") in printed.splitlines()
