"""The rules of the house: docstring examples hold, the code stays small, the README names what exists."""

import ast
import doctest
import importlib
import io
import re
import tokenize

import pytest
from conftest import ROOT

import eval
import select_data
import train

SCRIPTS = sorted(path.stem for path in ROOT.glob("*.py"))
ORDER = [
    "bench",
    "train",
    "eval",
    "benchmarks",
    "select_data",
    "report",
    "reward",
    "rollout",
    "pack",
    "slots",
]
ORDER += ["model", "tools", "data", "knobs"]


@pytest.mark.parametrize("name", [*SCRIPTS, "toy.world", "toy.make_base"])
def test_docstring_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_pure_functions_have_examples():
    runs = [
        doctest.testmod(importlib.import_module(name)).attempted
        for name in (
            "tools",
            "reward",
            "report",
            "model",
            "pack",
            "data",
            "select_data",
            "eval",
            "benchmarks",
        )
    ]
    assert all(runs) and sum(runs) >= 15


def code_lines(source: str) -> int:
    """Lines that hold code: no blanks, comments or docstrings."""
    empty = (
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    )
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in empty:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module) and ast.get_docstring(node):
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines)


def test_the_scripts_stay_small():
    """The training itself, to be read end to end (scores, page and plan apart), and all scripts together."""
    lines = {name: code_lines((ROOT / f"{name}.py").read_text()) for name in SCRIPTS}
    around = ("bench", "benchmarks", "eval", "judge", "plan", "report", "select_data")
    assert sum(count for name, count in lines.items() if name not in around) <= 2000
    assert sum(lines.values()) <= 3760


@pytest.mark.parametrize("path", [*ROOT.glob("*.py"), *(ROOT / "toy").glob("*.py")], ids=lambda p: p.name)
def test_functions_are_short(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, f"{path.name}: {node.name}"


@pytest.mark.parametrize("name", SCRIPTS)
def test_imports_go_down_the_house(name):
    for node in ast.walk(ast.parse((ROOT / f"{name}.py").read_text())):
        modules = [node.module] if isinstance(node, ast.ImportFrom) else []
        modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for module in modules:
            if module in ORDER and name in ORDER:
                assert ORDER.index(module) > ORDER.index(name), f"{name} imports {module}"


def test_the_readme_names_flags_that_exist():
    text = (ROOT / "README.md").read_text()
    for script in (train, eval, select_data):
        known = {f"--{name}" for name in script.Knobs.__dataclass_fields__} | {"--help"}
        lines = re.findall(rf"^.*python {script.__name__}\.py.*$", text, re.M)
        assert lines
        for line in lines:
            flags = re.findall(r"--[a-z_-]+", line.split("#")[0])
            assert {"--" + flag[2:].replace("-", "_") for flag in flags} <= known, line
    for name in re.findall(r"`((?:toy/|tests/)?[a-z_]+\.py)`", text):
        assert (ROOT / name).exists(), name
