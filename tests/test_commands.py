"""Every command of README and docs, typed as printed and in their order, in one folder: on the tiny model
with less work, on a model that is not here by its flags alone."""

import glob
import importlib
import re
import shlex

import pytest
from conftest import ROOT
from PIL import Image
from scripts import run_script

PAGES = ["README.md", *sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("*.md"))]
# What makes a command small: the last of two equal flags counts.
SMALL = {
    "train.py": "--steps 2 --eval_size 2 --prompts 2 --group 4 --micro_batch 8 --threads 1",
    "eval.py": "--limit 2 --threads 1",
    "select_data.py": "--limit 24 --k 2 --threads 1",
    "bench.py": "--prompts 2 --group 4 --micro_batch 4 --repeats 1 --threads 1",
    "toy.rehearsal": "--rows 60",
}
# Models and benchmarks that are not here, folders that only a run with them would leave, long measurements.
ELSEWHERE = re.compile(r"qwen|ChenShawn|vstar|--data mine|bench\.py --")
# What no test can type: an installation, other people's programs, hours, what stands for something else.
NOT_TYPED = re.compile(
    r"bash run\.sh|pytest|python3 -m venv|curl |printf |ssh |python -m http\.server|python -c 'from prompt"
    r"|for data in|done$|vllm |hf |git |python -m study|python -m toy\.make_base"
    r"|.*(?:\b(?:FLAGS|MODEL|FOLDER)\b|runs/A|\$data)"
)
ENDS_IN_AN_ERROR = "v.crop((9, 9, 3, 3))"  # as its sentence says: what the model is told
SHELL = re.compile(r"```bash\n(.*?)```", re.S)
OTHERS = re.compile(r"^    ((?:python|torchrun) .*)$|`((?:\.venv/bin/)?(?:python|torchrun) [^`]+)`", re.M)


def commands_of(page: str) -> list[str]:
    """The commands of a page, without remarks, and without what stands for the environment."""
    text = (ROOT / page).read_text()
    lines = [line for block in SHELL.findall(text) for line in block.splitlines()]
    lines += [indented or inline for indented, inline in OTHERS.findall(SHELL.sub("", text))]
    commands = (re.sub(r"\s+#\s.*$|\.venv/bin/", "", line).strip() for line in lines)
    return [command for command in commands if command]


def test_every_page_was_read():
    assert len(commands_of("README.md")) >= 15
    assert sum(len(commands_of(page)) for page in PAGES) >= 60


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Where all is typed: with the first run that README asks for, pictures, and rows of one's own."""
    place = tmp_path_factory.mktemp("typed")
    (place / "mine").mkdir()
    (place / "selected").mkdir()
    Image.new("RGB", (80, 60)).save(place / "mine" / "kitchen.jpg")
    Image.new("RGB", (80, 60)).save(place / "photo.jpg")
    for prompt in ("deepeyes", "direct", "yesno"):
        (place / f"{prompt}.txt").write_text("{question}")
    done = run_script("train.py", *SMALL["train.py"].split(), cwd=place)
    assert done.returncode == 0, done.stderr
    return place


TYPED = set()  # pages repeat one another
SLOW = [pytest.param(page, marks=pytest.mark.slow) for page in PAGES[1:]]


def read(command: str, place) -> tuple[str, list[str]]:
    """The script or module of a command, and all words from there on; a star is read as a shell reads it."""
    command = command.replace("checkpoint-120", "checkpoint-2").replace("--seeds 0,1,2", "--seeds 0,1")
    words = shlex.split(command)
    words = [name for word in words for name in (sorted(glob.glob(word, root_dir=place)) or [word])]
    assert words[0] in ("python", "torchrun"), command
    start = next(i for i, word in enumerate(words) if word.endswith(".py") or word in ("-m", "-c"))
    return words[start + 1] if words[start] == "-m" else words[start], words[start:]


@pytest.mark.parametrize("page", PAGES)
def test_flags_as_printed(page, place, monkeypatch):
    """The flags of each command are known, and fit one another."""
    monkeypatch.chdir(place)
    settled = {"train.py": "training.settle", "eval.py": "evaluation.settle"}
    for command in commands_of(page):
        if NOT_TYPED.match(command) or "--resume" in command or "--rescore" in command:
            continue
        script, words = read(command, place)
        if script in ("train.py", "eval.py", "select_data.py", "bench.py", "doctor.py"):
            module = importlib.import_module(settled.get(script, script.removesuffix(".py")))
            more = [""] if script in settled else []
            out = ["--out", "runs/another"] if script == "train.py" else []
            module.read_config(words[1:] + out, *more)


@pytest.mark.parametrize("page", [PAGES[0], *SLOW])
def test_commands_as_printed(page, place):
    for command in commands_of(page):
        if NOT_TYPED.match(command) or ELSEWHERE.search(command) or command in TYPED:
            continue
        TYPED.add(command)
        script, words = read(command, place)
        more = [] if "--plan" in words else SMALL.get(script, "").split()
        done = run_script(*words, *more, cwd=place)
        if ENDS_IN_AN_ERROR in command:
            assert "the corners are swapped" in done.stderr.strip().splitlines()[-1]
            assert "(900.0, 100.0, 1000.0, 400.0)" in done.stdout
            continue
        assert done.returncode == 0, f"{command}\n{done.stdout[-1500:]}{done.stderr[-1500:]}"
        for flag in ("--out", "--json"):
            if flag in words:
                assert (place / words[words.index(flag) + 1]).exists(), command
