"""Sentences made of what other libraries raise."""

import pytest

from outrider.errors import CheckpointError, ConfigError, as_error, on_one_line


def test_what_a_library_raises_becomes_one_sentence() -> None:
    with (
        pytest.raises(CheckpointError) as caught,
        as_error(CheckpointError, "a.bin cannot be read", "download it again"),
    ):
        raise KeyError("two\nlines \x1b[31m")
    assert str(caught.value) == "a.bin cannot be read (KeyError: 'two\\nlines \\x1b[31m'); download it again"
    assert isinstance(caught.value.__cause__, KeyError)


def test_our_own_errors_and_signals_pass() -> None:
    with pytest.raises(ConfigError, match="unknown"), as_error(CheckpointError, "x", "y"):
        raise ConfigError("unknown")
    with pytest.raises(KeyboardInterrupt), as_error(CheckpointError, "x", "y"):
        raise KeyboardInterrupt
    with as_error(CheckpointError, "x", "y"):
        pass
    with pytest.raises(CheckpointError, match="no message"), as_error(CheckpointError, "x", "y"):
        raise ValueError


def test_foreign_text_is_one_printable_line() -> None:
    assert on_one_line("a\n  b\tc\x00\x1b[2J") == "a b c\\x00\\x1b[2J"
    assert on_one_line("\ud800é") == "\\ud800é"
    assert len(on_one_line("x" * 1000)) == 203
