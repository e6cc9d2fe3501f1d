"""Docstrings are plain: imperative functions, noun phrases elsewhere, no field that does not exist, short modules."""

import ast

import pytest
from prose import ROOT, classes, docstrings, fields, parse, sources


def test_docstrings_keep_the_rules() -> None:
    paths = sources()
    known = classes(paths)
    wrong = {
        str(path.relative_to(ROOT)): faults
        for path in paths
        if (faults := [*docstrings(parse(path)), *fields(parse(path), known)])
    }
    assert wrong == {}


@pytest.mark.parametrize(
    ("source", "wrong"),
    [
        ('"""What it is."""', "noun phrase"),
        ('"""A module.\n\n' + "word " * 200 + '"""', "202 words"),
        ('def f():\n    """The cost model."""', "imperative"),
        ('def f():\n    """Returns the cost model."""', "imperative"),
        ('def f():\n    """`name`, once more."""', "imperative"),
        ('class A:\n    """Of a slot."""', "noun phrase"),
        ('class A:\n    @property\n    def f(self):\n        """How many."""', "noun phrase"),
        ('A = 1\n"""Where it starts."""', "noun phrase"),
        ('class A:\n    """A step.\n\n    rows   its rows\n    """\n    row: int', "documents 'rows'"),
        ('class A:\n    """A step.\n\n    rows   of each slot\n    """\n    rows: int', "noun phrase"),
        ('def f(x):\n    """Return x.\n\n    Args:\n        y: the number.\n    """', "documents 'y'"),
    ],
)
def test_the_rules_find_what_they_forbid(source: str, wrong: str) -> None:
    tree = ast.parse(source)
    [found] = [*docstrings(tree), *fields(tree, classes_of(tree))]
    assert wrong in found


@pytest.mark.parametrize(
    "source",
    [
        'def f():\n    """Return the cost model."""',
        'def f():\n    """\n    >>> 1\n    1\n    """',
        'class A:\n    @cached_property\n    def f(self):\n        """Nodes of the draft."""',
        'class A:\n    """A step.\n\n    rows, nodes   numbers\n    """\n    rows: int\n    nodes: int',
        'class A(B):\n    """A step.\n\n    rows   its rows\n    """\nclass B:\n    rows: int',
        'class A:\n    """A step.\n\n    Args:\n        size: bytes.\n    """\n    def __init__(self, size): ...',
    ],
)
def test_the_rules_let_plain_docstrings_pass(source: str) -> None:
    tree = ast.parse(source)
    assert [*docstrings(tree), *fields(tree, classes_of(tree))] == []


def classes_of(tree: ast.Module) -> dict[str, ast.ClassDef]:
    return {node.name: node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
