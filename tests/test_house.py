"""The rules of the house: docstring examples hold, files are easy to read, imports go one way, and the README
names what exists."""

import ast
import doctest
import importlib
import io
import re
import subprocess
import sys
import tokenize
from dataclasses import fields
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from conftest import ROOT

from bench import BenchConfig
from config import EvalConfig, TrainConfig
from doctor import DoctorConfig
from runlog.print_trajectory import ViewConfig
from select_data import SelectConfig

# Whoever stands above may import what stands below: the rooms of the house, folders and scripts.
ROOMS = [
    *("report", "doctor", "bench", "study", "train", "eval", "select_data"),
    *("benchmarks", "training", "machine", "evaluation", "rollout", "runlog", "options", "reward"),
    *("data", "loading", "toy", "model", "engine", "tools", "grading", "config", "safe"),
]
FOLDERS = [ROOT] + [ROOT / name for name in ROOMS if (ROOT / name).is_dir()]
FILES = [path for folder in FOLDERS for path in sorted(folder.glob("*.py"))]
MODULES = {}
for path in FILES:
    parts = path.relative_to(ROOT).with_suffix("").parts
    MODULES[".".join(parts).removesuffix(".__init__")] = path
FILES.append(ROOT / "roads/verl/zoom_loop.py")  # runs where verl is installed: no room of this house
FIRST_EVENING = ("tools.py", "reward.py", "rollout.py", "train.py", "toy/world.py")


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_pure_functions_have_examples():
    names = "tools options.toolbox reward grading.answers runlog.summary evaluation.scores engine.families"
    names += " engine.shared_prefix data select_data eval options.controls train benchmarks.record"
    names = [*names.split(), "runlog.health", "loading.fields", "loading.images"]
    names += [f"grading.{name}" for name in ("boxes", "correct", "golds", "sentences")]
    runs = [doctest.testmod(importlib.import_module(name)).attempted for name in names]
    assert all(runs) and sum(runs) >= 30


def count_code(source: str) -> tuple[int, int]:
    """Lines and tokens of code: no blanks, comments or docstrings; tokens are Python's own."""
    no_code = (
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    )
    docstrings = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module) and ast.get_docstring(node):
            docstrings |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    lines = set()
    tokens = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in no_code and token.start[0] not in docstrings:
            tokens += 1
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines), tokens


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_not_dense(path):
    """At most twelve tokens a line: a line that holds three assignments is not shorter to read."""
    lines, tokens = count_code(path.read_text())
    assert tokens <= 12 * lines


def test_code_is_not_dense_over_all():
    lines, tokens = map(sum, zip(*(count_code(path.read_text()) for path in FILES)))
    assert tokens <= 10 * lines, (lines, tokens)


def test_the_method_is_read_in_one_evening():
    sources = [(ROOT / name).read_text() for name in FIRST_EVENING]
    data = (ROOT / "data.py").read_text()
    sample = next(node for node in ast.parse(data).body if getattr(node, "name", "") == "Sample")
    sources.append(ast.get_source_segment(data, sample))
    lines, tokens = map(sum, zip(*map(count_code, sources)))
    assert lines <= 1300 and tokens <= 12_500, (lines, tokens)


def test_no_line_is_wide():
    files = [*FILES, *(ROOT / "tests").glob("*.py")]
    wide = []
    for path in files:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if len(line) > 110:
                wide.append(f"{path.name}, line {number}")
    assert not wide


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_are_short_and_assign_one_thing_at_a_time(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, f"{path.name}: {node.name}"
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple):
            assert not isinstance(node.value, ast.Tuple), f"{path.name}, line {node.lineno}"


def imported_modules(path: Path) -> set[str]:
    """The modules of this project that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found & set(MODULES)


def room_of(module: str) -> str:
    return module.partition(".")[0]


def test_every_script_and_folder_is_a_room():
    assert {room_of(name) for name in MODULES} == set(ROOMS)


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_down_the_house(name):
    """From room to room downwards only; inside a room without a circle."""
    for module in imported_modules(MODULES[name]):
        above, below = room_of(name), room_of(module)
        if above != below:
            assert ROOMS.index(above) < ROOMS.index(below), f"{name} imports {module}"


@pytest.mark.parametrize("room", [room for room in ROOMS if (ROOT / room).is_dir()])
def test_no_room_holds_a_circle(room):
    inside = {name: imported_modules(path) for name, path in MODULES.items() if room_of(name) == room}
    graph = {name: {m for m in found if m in inside and m != name} for name, found in inside.items()}
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def test_a_training_run_imports_no_benchmark():
    code = "import sys, train; print([n for n in sys.modules if n == 'eval' or n.startswith('benchmarks')])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def commands(text: str, script: str) -> list[str]:
    """The lines of a text in which a script is called, continued ones whole, comments apart."""
    whole = text.replace("\\\n", " ")
    lines = re.findall(rf"^.*python {script}\.py.*$", whole, re.M)
    return [line.split("#")[0] for line in lines]


SCRIPTS = {
    "train": TrainConfig,
    "eval": EvalConfig,
    "select_data": SelectConfig,
    "rollout": ViewConfig,
    "doctor": DoctorConfig,
    "bench": BenchConfig,
}
TEXTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_readme_shows_how_each_script_is_called():
    text = (ROOT / "README.md").read_text()
    for script in ("train", "eval", "select_data", "rollout"):
        assert commands(text, script), script


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_text()
    assert len(text.encode()) <= 10_240 and text.count("\n") <= 170


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_texts_name_flags_and_files_that_exist(path):
    text = path.read_text()
    for script, kind in SCRIPTS.items():
        known = {f"--{each.name}" for each in fields(kind)} | {"--help"}
        for line in commands(text, script):
            flags = re.findall(r"--[a-z_-]+", line)
            assert {"--" + flag[2:].replace("-", "_") for flag in flags} <= known, line
    for name in re.findall(r"`((?:[a-z]+/)?[a-z_]+\.py)`", text):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):  # links to files, with no scheme in them
        assert (path.parent / name).exists(), name
