"""Damaged files that Outrider keeps for itself: corpora of tokens, and compiled kernels."""

import os
import random
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from benchmarks.fuzz.heads import target, text, written
from benchmarks.fuzz.mutate import mutate_bytes, mutate_text

import outrider
from outrider.kernels.compile_cache import SUFFIX
from outrider.proposers.corpus.store import Corpus, Vocabulary, joined, write_corpus

PROGRAM = """
import numba
from outrider.kernels.compiled import compiled

@compiled
def doubled(number):
    return 2 * number

assert doubled(21) == 42
print(sum(doubled.stats.cache_hits.values()))
"""


@cache
def _corpus() -> Path:
    """Return a whole corpus of the target's own vocabulary, made once in a process."""
    path = Path(tempfile.mkdtemp(prefix="fuzz-corpus-")) / "x.corpus"
    texts = [list(text()) * 2, [5, 77, 130, 9, 200, *text()], [7] * 30, list(range(40))]
    write_corpus(path, joined(texts), Vocabulary.of(target().spec.vocab_size, target().tokenizer))
    return path


def corpus(rng: random.Random, directory: Path) -> None:
    """Damage a corpus, then draft from it, look at it, and add to it."""
    path = directory / "x.corpus"
    data = _corpus().read_bytes()
    split = rng.choice((8, 200, len(data) // 2))
    match rng.randrange(4):
        case 0:
            data = mutate_text(data, rng)
        case 1:
            data = mutate_bytes(data[:split], rng) + data[split:]
        case _:
            data = data[:split] + mutate_bytes(data[split:], rng)
    path.write_bytes(data)
    settings = {"corpus": str(path), "mode": rng.choice(("path", "tree"))}
    settings |= {"save": str(path)} if rng.random() < 0.3 else {}
    proposer = outrider.load_proposer("suffix", target(), **settings)
    assert written(proposer) == text(), "a damaged corpus changed the text"
    found = Corpus.open(path)
    assert found.check() in (True, False)
    assert len(found.documents()) == found.num_documents


@cache
def _kernels() -> Path:
    """Return a cache with one kernel and the program that compiles it, made once in a process."""
    directory = Path(tempfile.mkdtemp(prefix="fuzz-kernel-")) / "made"
    directory.mkdir()
    (directory / "program.py").write_text(PROGRAM, encoding="utf-8")
    assert _hits(directory) == 0
    assert _hits(directory) == 1
    return directory


def _hits(directory: Path) -> int:
    environment = os.environ | {"NUMBA_CACHE_DIR": str(directory / "cache")}
    command = [sys.executable, str(directory / "program.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout)


def kernel(rng: random.Random, directory: Path) -> None:
    """Damage a compiled kernel; it is compiled again, and then kept again."""
    copy = directory / "made"  # kernels are kept by the name of their source's folder
    shutil.copytree(_kernels(), copy)
    [file] = copy.rglob(f"*{SUFFIX}")
    data = file.read_bytes()
    damaged = rng.choice((mutate_text, mutate_bytes, mutate_bytes))(data, rng)
    file.write_bytes(damaged)
    assert _hits(copy) == (damaged == data)
    assert _hits(copy) == 1
