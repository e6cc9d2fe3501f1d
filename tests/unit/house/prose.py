"""The rules of our docstrings, as functions over a file's syntax tree; `test_docstrings.py` holds them."""

import ast
import inspect
import re
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

import outrider

SOURCE = Path(outrider.__file__).parent
ROOT = SOURCE.parents[1]
FOLDERS = ("src", "tools", "benchmarks", "dev", "examples")
IMPERATIVES = """
accept accumulate add admit advance allocate alternate answer append apply ask assert assign attach attend average
be begin bind block book build cache call capture cast change check choose clamp clear close collect combine commit
compare compile compress compute concatenate configure connect convert copy count create cut damage debit decide
declare decode define delete derive describe detect detokenise disable discard display divide do download draft draw
drop dump edit emit enable encode end ensure enter enumerate estimate evaluate evict exclude execute exit expand
expect explain export extend extract fail feed fetch fill filter find finish flush follow forbid forget fork format
forward free freeze fuse gather generate get give go group grow guard halt handle hang hash have hide hold identify
ignore import include increase index infer initialise insert install interleave interpolate intersect invert issue
iterate join judge keep kill label launch lay learn let limit link list listen load locate lock log look loop lower
make map mark mask match materialise measure merge mix monitor move multiply name normalise note observe obtain open
order overlap overwrite pack pad parse pass patch pause pick place plan play poll pop predict prefetch prefill
prepare prevent print probe produce profile project propose prune publish pull push put quantise quote raise rank
reach read rebuild receive record recover reduce refuse register reject release remember remove render repeat
rephrase replace request reset resolve restore resume retry return reuse reverse rewrite rotate run save say scale
scan scatter score search see select send separate serialise serve set settle shape shift show shuffle sign simulate
skip sleep slice sort spin split spread stack start step stop store stream strip submit subtract suggest sum swap
synchronise tabulate take tell terminate test throw time tokenise track train transform translate transpose treat
trim try turn undo unload unpack update upload use validate verify visit wait walk warm warn weigh widen withdraw
work wrap write yield zero
"""
"""First words of a function's docstring. Add a verb that is missing; a noun never."""
VERBS = frozenset(IMPERATIVES.split())
NEVER = {"of", "for", "what", "who", "whose", "whom", "where", "when", "how", "whether", "why", "which"}
"""No docstring and no description of a field begins with one of these."""
SECTIONS = ("Args:", "Raises:", "Returns:", "Yields:", ">>>")
"""A docstring may consist of sections alone."""
MOST_WORDS = 200
"""Words of a module docstring; what is longer goes to docs/."""

Function = ast.FunctionDef | ast.AsyncFunctionDef
Classes = dict[str, ast.ClassDef]


def sources() -> list[Path]:
    return sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def classes(paths: list[Path]) -> Classes:
    return {node.name: node for path in paths for node in ast.walk(parse(path)) if isinstance(node, ast.ClassDef)}


def first_word(text: str) -> str:
    found = re.match(r"\W*([A-Za-z]+)", text)
    return found[1].lower() if found and not text.startswith("`") else ""


def docstrings(tree: ast.Module) -> Iterator[str]:
    """What is wrong with the first words of docstrings, and with the length of the module's."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | Function) and (text := ast.get_docstring(node)):
            name, start = getattr(node, "name", "module"), text.splitlines()[0]
            is_property = isinstance(node, Function) and "property" in ast.unparse(node.decorator_list)
            if isinstance(node, Function) and not is_property:
                if first_word(text) not in VERBS and not text.startswith(SECTIONS):
                    yield f"{name} must begin with an imperative: {start!r}"
            elif first_word(text) in NEVER:
                yield f"{name} must begin with a noun phrase: {start!r}"
            if isinstance(node, ast.Module) and len(text.split()) > MOST_WORDS:
                yield f"the module's docstring has {len(text.split())} words"
        for text in attribute_docstrings(node):
            if first_word(text) in NEVER:
                yield f"an attribute must begin with a noun phrase: {text!r}"


def attribute_docstrings(node: ast.AST) -> Iterator[str]:
    body = getattr(node, "body", None)
    for before, after in pairwise(body) if isinstance(body, list) else ():
        value = after.value if isinstance(after, ast.Expr) else None
        if isinstance(before, ast.Assign | ast.AnnAssign) and isinstance(value, ast.Constant):
            yield inspect.cleandoc(str(value.value))


def members(node: ast.ClassDef, known: Classes) -> set[str]:
    """Every name that a class or its bases could have as a field or take as an argument."""
    found = set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.Attribute) and ast.unparse(inner.value) in ("self", "cls"):
            found.add(inner.attr)
        elif isinstance(inner, ast.arg | ast.keyword) and inner.arg:
            found.add(inner.arg)
        elif isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
            found.add(inner.id)
        elif isinstance(inner, ast.FunctionDef):
            found.add(inner.name)
    for base in re.findall(r"\w+", " ".join(map(ast.unparse, node.bases))):
        if base in known and known[base] is not node:
            found |= members(known[base], known)
    return found


def fields(tree: ast.Module, known: Classes) -> Iterator[str]:
    """Documented fields and arguments that do not exist, and those whose description begins with a wrong word."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.ClassDef | Function) or not (text := ast.get_docstring(node)):
            continue
        is_class, section = isinstance(node, ast.ClassDef), ""
        for line in text.splitlines():
            section = line.strip() if line and not line.startswith(" ") else section
            column = re.match(r"`?([a-z_]\w*)`?((?:, `?[a-z_]\w*`?)*)\s{2,}(\S.*)", line) if is_class else None
            argument = re.match(r"    (\w+)((?:, \w+)*): (.*)", line) if section == "Args:" else None
            if row := column or argument:
                names = [row[1], *re.findall(r"\w+", row[2])]
                has = members(node, known) if isinstance(node, ast.ClassDef) else arguments(node)
                yield from (
                    f"{node.name} documents {name!r}, which does not exist" for name in names if name not in has
                )
                if first_word(row[3]) in NEVER:
                    yield f"{node.name}.{row[1]} must begin with a noun phrase: {row[3]!r}"


def arguments(node: Function) -> set[str]:
    return {inner.arg for inner in ast.walk(node.args) if isinstance(inner, ast.arg)}
