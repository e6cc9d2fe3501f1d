"""The environment variables: what each takes, and one sentence for what it does not."""

import re
from pathlib import Path

import pytest

import outrider
from outrider.cli import main
from outrider.env import (
    cache_home,
    check_variables,
    cuda_graphs,
    draft_weights,
    gpu_ops,
    num_kernel_threads,
)
from outrider.errors import ConfigError
from outrider.formats.locate import cache_directory

BAD = [
    *(
        ("OUTRIDER_NUM_THREADS", value)
        for value in ("abc", "0", "-1", "1e9", "1000000000", "2.0", "²", "٣", "1 2", " ")
    ),
    ("OUTRIDER_NUM_THREADS", "9" * 5000),
    ("OUTRIDER_DRAFT_WEIGHTS", "int3"),
    ("OUTRIDER_GPU_OPS", "cuda"),
    ("OUTRIDER_API_KEY", "schlüssel"),
    ("OUTRIDER_API_KEY", "two\nlines"),
    ("OUTRIDER_CUDA_GRAPHS", "yes"),
    ("OUTRIDER_CACHE", "~nobody-of-that-name/cache"),
    ("OUTRIDER_CACHE", __file__),
    ("OUTRIDER_CACHE", f"{__file__}/cache"),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_bad_value_is_named_with_its_variable(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=name):
        check_variables()
    assert main(["plan"]) == 2, "whatever the command"
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith(f"outrider: {name}")


def test_good_values_and_empty_ones(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for value, number in (("1", 1), (" 16 ", 16), ("0003", 3), ("1024", 1024), ("", None)):
        monkeypatch.setenv("OUTRIDER_NUM_THREADS", value)
        assert num_kernel_threads() == number
    for name in ("OUTRIDER_DRAFT_WEIGHTS", "OUTRIDER_GPU_OPS", "OUTRIDER_CUDA_GRAPHS", "OUTRIDER_CACHE"):
        monkeypatch.setenv(name, "")
    assert (draft_weights(), gpu_ops(), cuda_graphs()) == ("int8", None, True)
    assert cache_home() == Path.home() / ".cache" / "outrider"
    monkeypatch.setenv("OUTRIDER_DRAFT_WEIGHTS", "target")
    monkeypatch.setenv("OUTRIDER_GPU_OPS", "torch")
    monkeypatch.setenv("OUTRIDER_CUDA_GRAPHS", "0")
    monkeypatch.setenv("OUTRIDER_CACHE", str(tmp_path / "not" / "yet"))
    assert (draft_weights(), gpu_ops(), cuda_graphs()) == ("target", "torch", False)
    assert cache_directory() == tmp_path / "not" / "yet"
    check_variables()


def test_the_documentation_lists_every_variable() -> None:
    source = Path(outrider.__file__).parent
    read = {
        name for path in source.rglob("*.py") for name in re.findall(r'"(OUTRIDER_[A-Z_]+)"', path.read_text("utf-8"))
    }
    read |= set(re.findall(r"OUTRIDER_[A-Z_]*[A-Z]", (source.parents[1] / "Makefile").read_text("utf-8")))
    page = (source.parents[1] / "docs" / "reference" / "environment.md").read_text("utf-8")
    assert read == set(re.findall(r"^\| `(OUTRIDER_[A-Z_]+)`", page, re.MULTILINE))
