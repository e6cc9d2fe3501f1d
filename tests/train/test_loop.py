"""The loop: exact resuming, and gradients that depend on the texts of a step and nothing else."""

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from toys import Linear, LinearConfig, play, setup, small, texts

from outrider.data.texts import Data, ListedTexts
from outrider.errors import ConfigError, RunError
from outrider.records import files
from outrider.train import checkpoints
from outrider.train.batch import Batch
from outrider.train.checkpoints import newest
from outrider.train.loop import Progress
from outrider.train.objective import Outcome
from outrider.train.run import accelerator, train

NUM_STEPS = 13


class Killed(BaseException):
    """The process is gone."""


def kill_after(step: int) -> Callable[[Progress], None]:
    def listen(at: Progress) -> None:
        if at.step == step:
            raise Killed

    return listen


def weights(directory: Path) -> bytes:
    return (directory / "final" / "model.safetensors").read_bytes()


def log(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    report = play(setup(small()), directory)
    assert report["steps"] == NUM_STEPS
    return directory


@pytest.mark.parametrize("cut", [1, 2, 3, 7, 11, 12])
def test_a_killed_and_resumed_run_ends_with_the_same_bits(cut: int, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        play(setup(small()), tmp_path, listen=kill_after(cut))
    assert not (tmp_path / "final").exists()
    seen: list[int] = []
    play(setup(small()), tmp_path, resume=True, listen=lambda at: seen.append(at.step))
    assert seen == list(
        range((cut - 1) // 2 * 2 + 1, NUM_STEPS + 1)
    )  # a checkpoint every two steps, the killed one lost
    assert weights(tmp_path) == weights(whole)
    assert (tmp_path / "best" / "model.safetensors").read_bytes() == (whole / "best" / "model.safetensors").read_bytes()
    kept = [line["loss"] for line in log(tmp_path) if line["kind"] == "step"]
    assert kept == [line["loss"] for line in log(whole) if line["kind"] == "step"]


def test_a_crash_while_a_checkpoint_is_written_leaves_the_one_before(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text = checkpoints.write_text

    def torn(path: Path, text: str) -> None:
        if path.parent.name == ".step-000006.part":
            raise Killed
        write_text(path, text)

    monkeypatch.setattr(checkpoints, "write_text", torn)
    with pytest.raises(Killed):
        play(setup(small()), tmp_path)
    monkeypatch.undo()
    assert (tmp_path / "checkpoints" / ".step-000006.part" / "optimizer.safetensors").exists()
    assert newest(tmp_path / "checkpoints") == tmp_path / "checkpoints" / "step-000004"
    play(setup(small()), tmp_path, resume=True)
    assert weights(tmp_path) == weights(whole)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_passed_over(name: str, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        play(setup(small()), tmp_path, listen=kill_after(7))
    path = tmp_path / "checkpoints" / "step-000006" / name
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content if name != "state.json" else content[:-9])
    assert newest(tmp_path / "checkpoints") == tmp_path / "checkpoints" / "step-000004"
    play(setup(small()), tmp_path, resume=True)
    assert weights(tmp_path) == weights(whole)


def test_an_interrupted_run_finishes_its_step_and_says_how_to_go_on(whole: Path, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)

    def interrupt(at: Progress) -> None:
        if at.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    sentence = rf"stopped after step 4; resume with: outrider train linear --resume {tmp_path}"
    with pytest.raises(KeyboardInterrupt, match=sentence):
        play(setup(small(checkpoint_every=100)), tmp_path, listen=interrupt)
    assert signal.getsignal(signal.SIGINT) is before
    assert newest(tmp_path / "checkpoints") == tmp_path / "checkpoints" / "step-000004"
    play(setup(small(checkpoint_every=100)), tmp_path, resume=True)
    assert weights(tmp_path) == weights(whole)


def test_a_second_interrupt_ends_at_once(tmp_path: Path) -> None:
    def interrupt(at: Progress) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="stopped at once"):
        play(setup(small()), tmp_path, listen=interrupt)


def test_a_finished_run_resumes_to_the_same_end(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    report = play(setup(small()), tmp_path / "run", resume=True)
    assert report["steps"] == NUM_STEPS
    assert weights(tmp_path / "run") == weights(whole)


def final(tmp_path: Path, name: str, data: Data | None = None, **changes: Any) -> dict[str, torch.Tensor]:
    made = setup(small(**changes), settings=LinearConfig(drop=0.0))
    made = made if data is None else setup(small(**changes), settings=LinearConfig(drop=0.0), data=data)
    play(made, tmp_path / name)
    return load_file(tmp_path / name / "final" / "model.safetensors")


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def test_accumulated_passes_are_one_large_batch(tmp_path: Path) -> None:
    together = final(tmp_path, "together", rows=4)
    apart = final(tmp_path, "apart", rows=1, accumulation=4)
    assert largest_difference(together, apart) < 2e-6
    assert largest_difference(together, final(tmp_path, "other", rows=2)) > 1e-3  # the comparison can fail


def test_it_does_not_matter_how_texts_are_packed(tmp_path: Path) -> None:
    """One step per epoch, however its texts share rows and passes."""
    unpacked = final(tmp_path, "long", row_length=20, rows=1, accumulation=99, epochs=6)
    packed = final(tmp_path, "short", row_length=90, rows=3, accumulation=9, epochs=6)
    assert largest_difference(unpacked, packed) < 2e-6


def test_long_texts_weigh_no_more_than_short_ones(tmp_path: Path) -> None:
    """The first step's loss is the mean of the losses of its texts alone."""
    data = ListedTexts(list(texts(3, seed=5).examples))
    held_out = texts(2, seed=2)
    alone = []
    for index in range(3):
        one = Data(train=ListedTexts([data.examples[index]]), held_out=held_out)
        final(tmp_path, f"alone{index}", one, epochs=1)
        alone.append(log(tmp_path / f"alone{index}")[0]["loss"])
    final(tmp_path, "together", Data(train=data, held_out=held_out), epochs=1, rows=9)
    assert max(alone) - min(alone) > 0.01
    assert log(tmp_path / "together")[0]["loss"] == pytest.approx(sum(alone) / 3, abs=1e-6)


def test_cached_features_train_the_same_bits(whole: Path, tmp_path: Path) -> None:
    said: list[str] = []
    made = setup(small(), features="cached", data_dir=tmp_path / "data")
    play(made, tmp_path / "first", say=said.append)
    assert weights(tmp_path / "first") == weights(whole)
    assert any(line.startswith("capturing features: 0.0 MB in ") for line in said)
    play(setup(small(), features="cached", data_dir=tmp_path / "data"), tmp_path / "second", say=said.append)
    assert any(line.startswith("cached features: 0.0 MB in ") for line in said)
    assert weights(tmp_path / "second") == weights(whole)
    assert len(list((tmp_path / "data").iterdir())) == 2  # of training texts and of held-out ones


def test_bf16_keeps_fp32_weights_and_trains_nearly_the_same(whole: Path, tmp_path: Path) -> None:
    play(setup(small(precision="bf16")), tmp_path)
    stored = load_file(tmp_path / "checkpoints" / f"step-{NUM_STEPS:06d}" / "model.safetensors")
    exact = load_file(whole / "checkpoints" / f"step-{NUM_STEPS:06d}" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
    assert 1e-5 < largest_difference(stored, exact) < 0.1


def test_what_a_run_leaves_behind(whole: Path) -> None:
    lines = log(whole)
    steps = [line for line in lines if line["kind"] == "step"]
    assert [line["step"] for line in steps] == list(range(1, NUM_STEPS + 1))
    assert [line["step"] for line in lines if line["kind"] == "held_out"] == [3, 6, 9, 12, 13]
    assert steps[-1]["tokens"] == 2 * sum(texts(20, seed=1).num_tokens(index) for index in range(20))
    assert steps[0]["learning_rate"] == 0.02
    assert steps[-1]["learning_rate"] < 0.001
    assert sum(line["loss"] for line in steps[-3:]) < sum(line["loss"] for line in steps[:3])
    assert sorted(path.name for path in (whole / "checkpoints").iterdir()) == ["step-000012", "step-000013"]
    assert list((whole / "tensorboard").glob("events*"))
    report = json.loads((whole / "summary.json").read_text())
    assert report["loss_curve"] == [[line["step"], line["loss"]] for line in steps]
    assert report["best_tau"] == max(line["tau"] for line in lines if line["kind"] == "held_out")
    record = json.loads((whole / "config.json").read_text())
    assert record["train"]["learning_rate"] == 0.02
    assert record["provenance"]["hardware"]["cpu"]


def test_a_run_is_resumed_as_what_it_is(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    for changed, sentence in (
        (setup(small(learning_rate=0.5)), r"train.learning_rate=0.02, not 0.5"),
        (setup(small(), settings=LinearConfig(num_depths=3)), r"settings.drop=0.3, not 0.0"),
        (setup(small(), data=Data(train=texts(20, seed=9), held_out=texts(5, seed=2))), r"data.train="),
    ):
        with pytest.raises(RunError, match=f"was started with {sentence}.*resume it unchanged or start a new run"):
            play(changed, run, resume=True)
    with pytest.raises(RunError, match=r"already holds 'best'; resume it with --resume"):
        play(setup(small()), run)
    with pytest.raises(RunError, match=r"holds no training run \(config.json is missing\)"):
        play(setup(small()), tmp_path / "none", resume=True)


def test_two_processes_trees_do_not_share_a_directory(tmp_path: Path) -> None:
    def again(at: Progress) -> None:
        play(setup(small()), tmp_path)

    with pytest.raises(RunError, match="another process is training into"):
        play(setup(small()), tmp_path, listen=again)


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call, calls = Linear.__call__, []

    def broken(self: Linear, batch: Batch, generator: torch.Generator) -> Outcome:
        outcome = call(self, batch, generator)
        calls.append(outcome.loss.requires_grad)
        return outcome._replace(loss=outcome.loss * float("nan")) if sum(calls) == 6 else outcome

    monkeypatch.setattr(Linear, "__call__", broken)
    sentence = r"the loss of step 6 is nan; start a new run with a learning rate below 0.02.*are in .*step-000004"
    with pytest.raises(RunError, match=sentence):
        play(setup(small()), tmp_path)


def test_a_full_disk_keeps_what_was_finished(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file = files.save_file

    def full(tensors: Any, path: Path, metadata: Any) -> None:
        if "step-000004" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        save_file(tensors, path, metadata)

    monkeypatch.setattr(files, "save_file", full)
    with pytest.raises(
        RunError, match=r"cannot be written \(No space left on device\); what was finished before is kept"
    ):
        play(setup(small()), tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000002"]
    monkeypatch.undo()
    play(setup(small()), tmp_path, resume=True)
    assert weights(tmp_path) == weights(whole)


def test_a_text_without_an_answer_changes_nothing(tmp_path: Path) -> None:
    """A step in which nothing is learnt leaves the weights alone, also by weight decay."""
    first, second = texts(2, seed=3).examples
    silent = type(second)(second.tokens_T, torch.zeros_like(second.learn_T))
    data = Data(train=ListedTexts([first, silent]), held_out=texts(2, seed=2))
    final(tmp_path, "run", data, rows=1, epochs=3, weight_decay=0.5)
    losses = [line["loss"] for line in log(tmp_path / "run") if line["kind"] == "step"]
    assert len([loss for loss in losses if loss is None]) == 3
    assert len(losses) == 6


def test_data_must_hold_something(tmp_path: Path) -> None:
    some, none = texts(2, seed=1), ListedTexts([])
    for data, sentence in (
        (Data(train=none, held_out=some), "no text to train on"),
        (Data(train=some, held_out=none), "no text held out"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            play(setup(small(), data=data), tmp_path / "a")
        shutil.rmtree(tmp_path / "a")
    silent = ListedTexts([type(one)(one.tokens_T, one.learn_T & False) for one in some.examples])
    with pytest.raises(ConfigError, match="holds no token that the target wrote"):
        play(setup(small(), data=Data(train=silent, held_out=some)), tmp_path / "b")
    foreign = ListedTexts([type(one)(one.tokens_T + 31, one.learn_T) for one in some.examples])
    with pytest.raises(ConfigError, match=r"holds token \d+ but the target knows 31"):
        play(setup(small(), data=Data(train=foreign, held_out=some)), tmp_path / "c")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rows": 0}, "rows=0 must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate=0.0 must be above 0"),
        ({"beta1": 1.0}, "beta1=1.0 must be from 0 to below 1"),
        ({"warmup_ratio": 1.5}, "warmup_ratio=1.5 must be between 0 and 1"),
        ({"max_tokens": 0}, "max_tokens=0 must be at least 1"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0 must be 0 or more"),
    ],
)
def test_settings_out_of_range(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        small(**changes)


def test_devices() -> None:
    assert accelerator("cpu").device.type == "cpu"
    with pytest.raises(ConfigError, match="device=tpu must be cpu or cuda"):
        accelerator("tpu")


def test_accelerate_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ConfigError, match=r"pip install outrider\[train\]"):
        accelerator()


def test_tensorboard_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processes = accelerator("cpu")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"pip install outrider\[train\]"):
        train(setup(small()), tmp_path, processes)


def test_two_processes_take_the_same_steps_as_one(tmp_path: Path) -> None:
    """Over gloo, as `accelerate launch` starts them."""
    final(tmp_path, "one", accumulation=2)
    script = Path(__file__).with_name("two_processes.py")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    running = []
    for rank in range(2):
        places = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        environment = os.environ | places | {"MASTER_PORT": port, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(script), str(tmp_path / "two")]
        running.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    errors = [one.communicate(timeout=120)[1] for one in running]
    assert [one.returncode for one in running] == [0, 0], errors
    one, two = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("one", "two"))
    assert largest_difference(one, two) < 2e-6
    pairs = zip(log(tmp_path / "one"), log(tmp_path / "two"), strict=True)
    for first, second in pairs:
        if first["kind"] == "step":
            assert first["loss"] == pytest.approx(second["loss"], abs=1e-6)
        else:
            assert first["conditional"] == second["conditional"]
            assert first["num_anchors"] == second["num_anchors"]
