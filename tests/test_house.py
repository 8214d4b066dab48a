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
from pathlib import Path

import pytest
from conftest import ROOT

import eval
import rollout
import select_data
import train

FOLDERS = [ROOT] + [ROOT / name for name in ("fast", "benchmarks", "toy", "claims", "safe")]
FILES = [path for folder in FOLDERS for path in sorted(folder.glob("*.py"))]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in FILES
}
# Whoever stands above may import what stands below.
ORDER = [
    "doctor",
    "fast.trial",
    "bench",
    "study",
    "claims.page",
    "claims.figures",
    "claims.verdicts",
    "claims.stored",
    "claims.runs",
    "claims.bases",
    "claims.arms",
    "claims.seeds",
    "claims",
    "toy.make_base",
    "train",
    "eval",
    "ask",
    "select_data",
    "benchmarks",
    "benchmarks.looking",
    "benchmarks.grounding",
    "benchmarks.reasoning",
    "benchmarks.record",
    "safe.ends",
    "safe.seeds",
    "report",
    "compare",
    "story",
    "pace",
    "switches",
    "plan",
    "safe.trainer",
    "safe.memory",
    "safe.signals",
    "heldout",
    "scores",
    "stats",
    "runs",
    "rollout",
    "show",
    "judge",
    "reward",
    "controls",
    "fast.packed",
    "fast.lanes",
    "fast.slots",
    "fast.lora",
    "fast.graph",
    "fast",
    "model",
    "families",
    "toolbox",
    "tools",
    "answers",
    "safe.formulas",
    "data",
    "safe.checkpoints",
    "safe.lock",
    "safe",
    "knobs",
    "toy.world",
    "toy.variants",
    "boxes",
    "toy",
]
FIRST_EVENING = ("tools.py", "reward.py", "rollout.py", "train.py", "toy/world.py")


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_pure_functions_have_examples():
    names = "tools toolbox reward answers report story scores families fast.packed data select_data eval"
    names = [*names.split(), "controls", "train", "benchmarks.record", "benchmarks.grounding"]
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
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module) and ast.get_docstring(
            node
        ):
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
    """At most ten tokens a line: a line that holds three assignments is not shorter to read."""
    lines, tokens = count_code(path.read_text())
    assert tokens <= 10 * lines


def test_the_method_is_read_in_one_evening():
    sources = [(ROOT / name).read_text() for name in FIRST_EVENING]
    data = (ROOT / "data.py").read_text()
    sample = next(
        node for node in ast.parse(data).body if getattr(node, "name", "") == "Sample"
    )
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


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_down_the_house(name):
    assert set(ORDER) == set(MODULES)
    for module in imported_modules(MODULES[name]):
        assert ORDER.index(module) > ORDER.index(name), f"{name} imports {module}"


def test_a_training_run_imports_no_benchmark():
    code = "import sys, train; print([n for n in sys.modules if n.startswith(('benchmarks', 'eval'))])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_the_readme_names_flags_and_files_that_exist():
    text = (ROOT / "README.md").read_text()
    for script in (train, eval, select_data, rollout):
        known = {f"--{name}" for name in script.Knobs.__dataclass_fields__} | {"--help"}
        lines = re.findall(rf"^.*python {script.__name__}\.py.*$", text, re.M)
        assert lines
        for line in lines:
            flags = re.findall(r"--[a-z_-]+", line.split("#")[0])
            assert {"--" + flag[2:].replace("-", "_") for flag in flags} <= known, line
    for name in re.findall(r"`((?:toy/|tests/|fast/|benchmarks/|claims/|safe/)?[a-z_]+\.py)`", text):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"\]\((docs/[^)]+)\)", text):
        assert (ROOT / name).exists(), name
