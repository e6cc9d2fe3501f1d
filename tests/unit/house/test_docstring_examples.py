"""Examples in docstrings do what they show."""

import doctest
import re
from importlib import import_module
from pathlib import Path

import pytest
from prose import SOURCE

PROMPT = re.compile(r"^ *>>> ", re.MULTILINE)
COUNTS = {
    path: count
    for path in sorted(SOURCE.rglob("*.py"))
    if (count := len(PROMPT.findall(path.read_text(encoding="utf-8"))))
}


@pytest.mark.parametrize("path", COUNTS, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_the_examples_of_a_module_run(path: Path) -> None:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    module = import_module(".".join(part for part in parts if part != "__init__"))
    runner, said = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS), list[str]()
    for found in doctest.DocTestFinder().find(module):
        runner.run(found, out=said.append)
    assert (runner.tries, runner.failures) == (COUNTS[path], 0), "".join(said)
