"""Documents for a corpus: text files, directories of them, and JSON lines, as token ids.

    notes.md            one document
    src/                every text file below it, in the order of their names; names that begin with a dot are left out
    traffic.jsonl       one document a line: a string, {"text": ...}, or {"messages": [...]}, of which the assistant's

Below a directory every file is one document, and files that are not UTF-8 text are left out and counted. A named file
that holds no text is an error.

Example: `list(read_documents([Path("src")]))` yields `Document("src/app.py", "import ...")`.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn

from outrider.errors import ConfigError
from outrider.kernels.compiled import Int32Array, as_tokens
from outrider.records.codec import parsed
from outrider.records.progress import Listener, Progress, unheard
from outrider.requests.detokenize import guarded

__all__ = ["Document", "Skipped", "files_below", "read_documents", "tokenized"]

PLAIN: Final = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
LARGEST_PIECE: Final = 1 << 20
"""Characters that are tokenized at once; longer documents are cut at the end of a line."""


class Document(NamedTuple):
    """A text and where it stands."""

    place: str
    text: str


class Skipped(NamedTuple):
    """A file of a directory that holds no text."""

    place: str


def files_below(paths: Sequence[Path]) -> list[tuple[Path, bool]]:
    """Return the files to read, and whether the user named each.

    Raises:
        ConfigError: for a path where nothing is.
    """
    found: list[tuple[Path, bool]] = []
    for path in paths:
        if path.is_dir():
            below = (file for file in sorted(path.rglob("*")) if file.is_file())
            found += [(file, False) for file in below if not _is_hidden(file.relative_to(path))]
        elif path.is_file():
            found.append((path, True))
        else:
            raise ConfigError(f"{path} is no file and no directory; give text files, .jsonl files or directories")
    return found


def read_documents(paths: Sequence[Path], listen: Listener = unheard) -> Iterator[Document | Skipped]:
    """Yield the documents below these paths, and the files left out.

    Raises:
        ConfigError: for a named file that holds no text, and for a line of JSON of another form.
    """
    files = files_below(paths)
    for place, (file, is_named) in enumerate(files):
        listen(Progress(place, len(files), f"reading {file.name}"))
        try:
            text = file.read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            text = "\0"
        if "\0" in text:
            if is_named:
                raise ConfigError(f"{file} is not text in UTF-8; leave it out, or convert it")
            yield Skipped(str(file))
        elif file.suffix == ".jsonl" and is_named:
            yield from _lines(file, text)
        else:
            yield Document(str(file), text)


def tokenized(tokenizer: Any, texts: Sequence[str]) -> list[Int32Array]:
    """Return the token ids of each text, without special tokens at its ends.

    Raises:
        ConfigError: if the tokenizer cannot read them.
    """
    pieces = [list(_pieces(text)) for text in texts]
    given = [piece for parts in pieces for piece in parts]
    ids = iter(guarded(lambda: tokenizer(given, **PLAIN)["input_ids"], _refuse) if given else [])
    return [as_tokens([token for _ in parts for token in next(ids)]) for parts in pieces]


def _refuse(error: Exception) -> NoReturn:
    raise ConfigError(f"the tokenizer cannot read these documents ({type(error).__name__}: {error})") from error


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _lines(file: Path, text: str) -> Iterator[Document]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            place = f"{file}, line {number}"
            for part in _texts(parsed(line, place), place):
                yield Document(place, part)


def _texts(record: Any, place: str) -> list[str]:
    """Return the texts of one record."""
    if isinstance(record, str):
        return [record]
    if isinstance(record, dict) and isinstance(record.get("text"), str):
        return [record["text"]]
    messages = record.get("messages") if isinstance(record, dict) else None
    if isinstance(messages, list) and all(isinstance(one, dict) for one in messages):
        contents = [one.get("content") for one in messages if one.get("role") == "assistant"]
        return [content for content in contents if isinstance(content, str)]
    raise ConfigError(f'{place} is neither a string nor an object with "text" or "messages"; write one of these')


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > LARGEST_PIECE:
        end = text.rfind("\n", start, start + LARGEST_PIECE) + 1 or start + LARGEST_PIECE
        yield text[start:end]
        start = end
    yield text[start:]
