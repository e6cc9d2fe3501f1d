"""Code of a checkpoint runs only where it was asked for: nowhere in the repository is the answer left to a question."""

import ast
import inspect
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers

import outrider
from outrider import CheckpointError, ConfigError, load_target
from outrider.cli import COMMANDS, _named
from outrider.formats.foreign import reading
from outrider.formats.tokenizer import load_tokenizer
from outrider.targets.deferred import DeferredTarget
from outrider.testing.directory import write_tiny_model

ROOT = Path(outrider.__file__).parents[2]
FILES = sorted(
    file for folder in ("src", "benchmarks", "recipes", "examples") for file in (ROOT / folder).rglob("*.py")
)
LOADERS = {"load_dataset", "pipeline", "load_custom_generate", "get_class_from_dynamic_module"}


def could_run_code(call: ast.Call) -> bool:
    """Whether this is `AutoSomething.from_...`, or another function that may run what it downloads."""
    names = ast.unparse(call.func).split(".")
    auto = len(names) > 1 and names[-2].startswith("Auto") and names[-1].startswith("from_")
    return auto or names[-1] in LOADERS


def test_every_call_that_could_run_code_says_whether_it_may() -> None:
    found, silent = 0, []
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and could_run_code(node):
                found += 1
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                if given.get("trust_remote_code", "None") in ("None", "True"):
                    silent.append(f"{file.relative_to(ROOT)}:{node.lineno}")
    assert silent == []
    assert found >= 8


def test_no_other_class_of_transformers_reads_a_checkpoint() -> None:
    """`from_pretrained` of a class that is written out here, and runs no code."""
    known = {"AutoTokenizer", "AutoConfig", "AutoModelForCausalLM", "GenerationConfig"}
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr == "from_pretrained":
                assert ast.unparse(node.value).split(".")[-1] in known, f"{file}:{node.lineno}"
    assert "resolve_trust_remote_code" not in inspect.getsource(transformers.GenerationConfig)


def test_nothing_in_the_package_asks_a_question() -> None:
    for file in (ROOT / "src").rglob("*.py"):
        if file.name == "chat.py" and file.parent.name == "commands":  # whose input is the conversation
            continue
        names = [
            node.id for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Name)
        ]
        assert "input" not in names, file


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("drafters", "plan", "train")])
def test_the_flag_of_commands_that_load_models_is_off(name: str) -> None:
    fields = _named(COMMANDS[name]).__dataclass_fields__
    if "target" in fields:
        assert fields["trust_remote_code"].default is False  # so that the bare flag turns it on


def test_train_has_the_flag_and_keeps_it_out_of_its_record() -> None:
    from outrider.cli.commands.train import OWN, TrainMethod

    assert TrainMethod.trust_remote_code is False
    assert "trust_remote_code" in OWN


class AskedError(AssertionError):
    """Standard input was read."""


class CompletionRequest:
    """A standard input that nobody may read."""

    def __getattr__(self, name: str) -> Any:
        raise AskedError(name)


@pytest.fixture
def marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory for marks that code of a checkpoint leaves; questions are failures."""
    monkeypatch.setattr("builtins.input", CompletionRequest())
    monkeypatch.setattr(sys, "stdin", CompletionRequest())
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setenv("OUTRIDER_TEST_MARKS", str(tmp_path))
    return tmp_path


def mark(name: str) -> str:
    return f"import os, pathlib\n(pathlib.Path(os.environ['OUTRIDER_TEST_MARKS']) / '{name}').touch()\n"


def with_own_tokenizer(directory: Path) -> Path:
    write_tiny_model(directory)
    (directory / "own_tokenizer.py").write_text(
        f"{mark('tokenizer.ran')}from transformers import PreTrainedTokenizerFast\n"
        "class OwnTokenizer(PreTrainedTokenizerFast):\n    pass\n"
    )
    file = directory / "tokenizer_config.json"
    config = json.loads(file.read_text()) | {
        "tokenizer_class": "OwnTokenizer",
        "auto_map": {"AutoTokenizer": [None, "own_tokenizer.OwnTokenizer"]},
    }
    file.write_text(json.dumps(config))
    return directory


def with_own_model(directory: Path, model_type: str) -> Path:
    write_tiny_model(directory)
    (directory / "own_model.py").write_text(
        f"{mark('model.ran')}from transformers import LlamaConfig, LlamaForCausalLM\n"
        f"class OwnConfig(LlamaConfig):\n    model_type = '{model_type}'\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    file = directory / "config.json"
    auto_map = {"AutoConfig": "own_model.OwnConfig", "AutoModelForCausalLM": "own_model.OwnModel"}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_type": model_type, "auto_map": auto_map}))
    return directory


@pytest.mark.parametrize("backend", ["auto", "hf"])
def test_a_tokenizer_of_the_checkpoints_own(marked: Path, backend: Any) -> None:
    directory = with_own_tokenizer(marked / "model")
    with pytest.raises(CheckpointError, match=r"needs Python code that comes with it.*--trust-remote-code"):
        load_target(str(directory), dtype="float32", backend=backend)
    assert not (marked / "tokenizer.ran").exists()
    target = load_target(str(directory), dtype="float32", backend=backend, trust_remote_code=True)
    assert type(target.tokenizer).__name__ == "OwnTokenizer"
    assert (marked / "tokenizer.ran").exists()
    assert target.spec.trusts_code


def test_a_deferred_target_and_a_bare_tokenizer(marked: Path) -> None:
    directory = with_own_tokenizer(marked / "model")
    for load in (lambda: DeferredTarget(str(directory), dtype="float32"), lambda: load_tokenizer(directory)):
        with pytest.raises(CheckpointError, match="needs Python code"):
            load()
    assert not (marked / "tokenizer.ran").exists()
    deferred = DeferredTarget(str(directory), dtype="float32", trust_remote_code=True)
    assert type(deferred.loaded.tokenizer).__name__ == "OwnTokenizer"


def test_a_model_of_the_checkpoints_own(marked: Path) -> None:
    directory = with_own_model(marked / "model", "not_in_transformers")
    with pytest.raises(CheckpointError, match="needs Python code"):
        load_target(str(directory), dtype="float32")
    with pytest.raises(CheckpointError, match="needs Python code"):
        DeferredTarget(str(directory), dtype="float32")
    assert not (marked / "model.ran").exists()
    target: Any = load_target(str(directory), dtype="float32", trust_remote_code=True)
    assert type(target.model).__name__ == "OwnModel"
    assert DeferredTarget(str(directory), dtype="float32", trust_remote_code=True).spec.num_layers > 0


def test_own_code_beside_a_known_family_is_left_alone_unless_it_is_trusted(marked: Path) -> None:
    directory = with_own_model(marked / "own", "llama")
    assert not load_target(str(directory), dtype="float32").spec.trusts_code
    assert not (marked / "model.ran").exists()
    target: Any = load_target(str(directory), dtype="float32", trust_remote_code=True)
    assert type(target.model).__name__ == "OwnModel"
    assert (marked / "model.ran").exists()


@pytest.mark.parametrize("given", ["yes", 1, None])
def test_trust_is_a_bool(given: Any) -> None:
    with pytest.raises(ConfigError, match=r"trust_remote_code=.* must be True or False"):
        load_target("smollm2-135m", trust_remote_code=given)


class PanicException(BaseException):
    """Named like what the Rust libraries raise."""


def test_a_panic_is_one_sentence_and_an_interrupt_passes() -> None:
    sentence = r"a cannot be read \(PanicException: no message\); mend it"
    with pytest.raises(CheckpointError, match=sentence), reading("a cannot be read", "a", False, "mend it"):
        raise PanicException
    with pytest.raises(KeyboardInterrupt), reading("a", "a", False, "mend it"):
        raise KeyboardInterrupt
    with pytest.raises(ConfigError, match="ours"), reading("a", "a", False, "mend it"):
        raise ConfigError("ours")
