"""A stranger's files: rows, images, models, adapters, run folders, and what a model writes."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
import zlib
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from conftest import ROOT, call
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scripts import run_script
from test_rollout import random_turn
from test_safe import SMALL

import tools
from config import PRESETS, Limits, TrainConfig
from data import Sample, load, opened
from grading import answers
from grading.answers import formula_value, same_formula
from grading.judge import Judge
from loading.images import MOST_PIXELS
from model import find_model, load_model
from rollout import ZoomEnv, rollout
from runlog.render import make_page
from safe.files import append_rows, write_json

GOOD = {"image": "a.png", "question": "What letter is on the red tile?", "answer": "A"}


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A data set's folder with one image; the working directory is beside it."""
    folder = tmp_path / "mine"
    folder.mkdir()
    Image.new("RGB", (200, 100), (200, 40, 40)).save(folder / "a.png")
    monkeypatch.chdir(tmp_path)
    return folder


def write_rows(folder, *rows) -> None:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "rows.jsonl").write_text("".join(line + "\n" for line in lines))


NESTED = '{"image": "a.png", "question": "?", "answer": ' + "[" * 100_000 + "]" * 100_000 + "}"
HUGE = "1" + "0" * 400


@pytest.mark.parametrize(
    "row, reason",
    [
        (GOOD | {"id": ["a"]}, "id is no text"),
        (GOOD | {"id": "x" * 201}, "id is no text of up to 200"),
        (GOOD | {"source": 5}, "source is no text"),
        (GOOD | {"question": "x" * 8001}, "has 8001 characters"),
        (GOOD | {"question": "half \ud800 of a pair"}, "surrogates not allowed"),
        (GOOD | {"answer": "\udfff"}, "surrogates not allowed"),
        (GOOD | {"meta": [1, 2]}, "meta is no object"),
        (GOOD | {"meta": {"kind": ["read"]}}, "kind is no text"),
        (GOOD | {"tool": "false"}, "tool is 'false'"),
        (GOOD | {"options": [str(i) for i in range(28)]}, "28 options"),
        (GOOD | {"image": "x" * 300 + ".png"}, "File name too long"),
        (GOOD | {"boxes": [[1, 2, "x", 4]]}, "not a box of four numbers"),
        (json.dumps(GOOD)[:-1] + ', "boxes": [[1, 2, 1e999, 4]]}', "not a box of four numbers"),
        (json.dumps(GOOD)[:-1] + f', "boxes": [[1, 2, {HUGE}, 4]]}}', "too large"),
        (NESTED, "brackets in brackets"),
        ("[]", "a row is an object"),
        ('"text"', "a row is an object"),
    ],
)
def test_one_bad_row_costs_itself_alone(mine, row, reason):
    write_rows(mine, GOOD, row, GOOD | {"id": 7})
    samples = load("mine")
    assert len(samples) == 2 and samples[1].id == "7"
    (bad,) = (mine.parent / "runs" / "bad-rows-mine.jsonl").read_text().splitlines()
    assert re.search(reason, json.loads(bad)["reason"]) and "line 2" in bad


def test_kinds_in_some_rows_only_train_and_score(mine):
    rows = [GOOD | {"id": str(i)} for i in range(30)]
    for i in range(0, 30, 3):
        rows[i]["meta"] = {"kind": "sign"}
    write_rows(mine, *rows)
    flags = shlex.split("--model tiny --prompts 2 --group 2 --micro_batch 4 --steps 2 --threads 1")
    done = run_script("train.py", *flags, "--eval_size", 4, "--data", mine, "--out", mine.parent / "r")
    assert done.returncode == 0, done.stderr


# --------------------------------------------------------------------------------------------------
# Images.


def bomb(width: int, height: int) -> bytes:
    """A PNG that says it is so large; its content is a few bytes."""

    def chunk(name: bytes, content: bytes) -> bytes:
        whole = name + content
        return len(content).to_bytes(4) + whole + zlib.crc32(whole).to_bytes(4)

    head = width.to_bytes(4) + height.to_bytes(4) + b"\x01\x00\x00\x00\x00"
    content = zlib.compress(b"\x00" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"


def test_images_that_are_refused(mine):
    (mine / "bomb.png").write_bytes(bomb(24_000, 24_000))
    (mine / "kitchen.jpg").write_bytes(EPS)
    os.mkfifo(mine / "pipe.png")
    (mine / "folder.png").mkdir()
    for name, reason in (
        ("bomb.png", f"more than {MOST_PIXELS:,}"),
        ("kitchen.jpg", "cannot identify"),
        ("pipe.png", "no regular file"),
        ("folder.png", "no regular file"),
    ):
        began = time.time()
        with pytest.raises(ValueError, match=reason):
            Sample("s", str(mine / name), "?", "A").open()
        assert time.time() - began < 5
    with pytest.raises(ValueError, match="lies outside the 200 x 100 pixels"):
        Sample("s", str(mine / "a.png"), "?", "A", boxes=((300.0, 0.0, 400.0, 50.0),)).open()


def test_large_images_are_not_kept_by_a_batch(mine):
    Image.new("L", (9000, 6000)).save(mine / "large.png")
    large = Sample("s", str(mine / "large.png"), "?", "A")
    small = Sample("s", str(mine / "a.png"), "?", "A")
    assert opened(large).image == large.image  # a path still
    assert isinstance(opened(small).image, Image.Image)
    assert opened(Sample("s", str(mine / "none.png"), "?", "A")) is None


def test_a_large_original_is_opened_for_each_crop(mine, processor):
    """Between its crops a running trajectory holds none of its 54 megapixels; the crop is the same."""
    tall = Image.linear_gradient("L").resize((9000, 6000))
    tall.save(mine / "large.png")
    limits = Limits(max_turns=3, max_tokens=900)
    env = ZoomEnv(processor, limits)
    (i,) = env.reset(Sample("s", str(mine / "large.png"), "?", "A"), [])
    assert env.views[i].original is None
    turn = call(20, 20, 60, 60)
    ids = processor.tokenizer(turn, add_special_tokens=False)["input_ids"]
    observation = env.step(i, ids, [0.0] * len(ids))
    assert env.views[i].original is None
    sx = 9000 / env.trajectories[i].images[0].width
    sy = 6000 / env.trajectories[i].images[0].height
    (box,) = env.trajectories[i].boxes
    assert box == (int(20 * sx), int(20 * sy), -int(-60 * sx // 1), -int(-60 * sy // 1))
    wanted = tools.resize(tall.convert("RGB").crop(box), observation.images[0].size)
    assert observation.images[0].tobytes() == wanted.tobytes()


def test_rows_stay_in_their_folder(mine):
    outside = mine.parent / "secret.png"
    Image.new("RGB", (9, 9)).save(outside)
    (mine / "link.png").symlink_to(outside)
    rows = [GOOD | {"image": name} for name in ("../secret.png", str(outside), "link.png")]
    write_rows(mine, GOOD, *rows)
    assert [sample.image for sample in load("mine")] == [str(mine.relative_to(mine.parent) / "a.png")]
    bad = (mine.parent / "runs" / "bad-rows-mine.jsonl").read_text()
    assert bad.count("lies outside the folder") == 3
    assert len(load("mine", allow_outside=True)) == 4


def test_a_page_embeds_its_own_images_alone(tmp_path):
    run_folder = tmp_path / "run"
    (run_folder / "pictures").mkdir(parents=True)
    secret = tmp_path / "secret.png"
    Image.new("RGB", (40, 40), (1, 2, 3)).save(secret)
    (run_folder / "pictures" / "a.png").symlink_to(secret)
    Image.new("RGB", (40, 40), (9, 9, 9)).save(run_folder / "pictures" / "b.png")
    row = {"id": "x", "meta": {}, "question": "<script>alert(1)</script>", "gold": "A"}
    row |= {"targets": [], "size": [40, 40], "turns": ["</script><img src=x onerror=alert(1)>"]}
    row |= {"boxes": [], "errors": [], "observations": [], "answer": "A", "stop": "answer"}
    row |= {"pictures": ["../../secret.png", "a.png", "b.png"], "step": 1, "member": 0}
    row |= {"probe": False, "advantage": 0.0}
    row["reward"] = {"accuracy": 1.0, "format": 0.0, "tool": 0.0, "total": 1.0}
    append_rows(run_folder / "trajectories.jsonl", row)
    flags = {"model": "/home/me/secret-models/qwen", "judge": "http://10.0.0.9/v1", "data": "toy"}
    write_json(run_folder / "args.json", flags)
    text = make_page(run_folder).read_text()
    assert text.count("data:image/webp;base64") == 1
    assert "secret-models" not in text and "10.0.0.9" not in text and "qwen" in text
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    nonce = re.search(r"script-src 'nonce-(\w+)'", policy)[1]
    assert "default-src 'none'" in policy and "unsafe-inline" not in policy.split("script-src")[1]
    scripts = re.findall(r"<script[^>]*>", text)
    assert all(nonce in tag or "application/json" in tag for tag in scripts) and len(scripts) == 2
    assert "<img src=x" not in text and make_page(run_folder).read_text() != text  # a new nonce


# --------------------------------------------------------------------------------------------------
# Models, adapters, run folders.


@pytest.fixture
def adapter(tmp_path):
    """A LoRA checkpoint of the tiny model."""
    model, _ = load_model("tiny", lora=2)
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    return tmp_path / "adapter"


@pytest.mark.parametrize(
    "change, message",
    [
        ({"target_modules": "(a+)+$"}, "not a LoRA on"),
        ({"target_modules": ["q_proj"]}, "not a LoRA on"),
        ({"peft_type": "PROMPT_TUNING"}, "not a LoRA on"),
        ({"modules_to_save": ["visual"]}, "not a LoRA on"),
        ({"base_model_name_or_path": None}, "names no base"),
        ({"base_model_name_or_path": "no-such-base"}, "unknown model"),
    ],
)
def test_adapters_that_are_none_of_ours(adapter, change, message):
    config = json.loads((adapter / "adapter_config.json").read_text())
    write_json(adapter / "adapter_config.json", config | change)
    began = time.time()
    with pytest.raises(ValueError, match=message):
        load_model(str(adapter))
    assert time.time() - began < 10


def test_the_base_of_an_adapter_is_said(adapter, capsys):
    load_model(str(adapter))
    assert f"{adapter} stands on tiny: " in capsys.readouterr().out


def test_no_code_of_a_model_folder_is_run(tmp_path):
    """Neither an unknown family's nor a known one's, whose tokenizer names a class of its own."""
    folder = tmp_path / "model"
    shutil.copytree(PRESETS["tiny"].source, folder)
    code = "open('was-run', 'w')\nclass T:\n    pass\n"
    (folder / "evil.py").write_text(code)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["auto_map"] = {"AutoTokenizer": ["evil.T", "evil.T"]}
    write_json(folder / "tokenizer_config.json", config)
    code = f"import model; model.load_model({str(folder)!r})"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}"],
        cwd=tmp_path, capture_output=True, text=True, input="y\n",
    )  # fmt: skip
    assert not (tmp_path / "was-run").exists() and "[y/N]" not in done.stdout, done.stdout
    config = json.loads((folder / "config.json").read_text())
    write_json(
        folder / "config.json",
        config | {"model_type": "evil", "auto_map": {"AutoConfig": "evil.T"}},
    )
    with pytest.raises(ValueError, match="holds a 'evil'"):
        find_model(str(folder))


@pytest.fixture
def server():
    """server(status, **headers): its URL, and the paths that are asked for; it answers all alike."""
    started = []

    def start(status: int, **headers):
        paths = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                paths.append(self.path)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()

            do_POST = do_GET

            def log_message(self, *args):
                pass

        http = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=http.serve_forever, daemon=True).start()
        started.append(http)
        return f"http://127.0.0.1:{http.server_port}/v1", paths

    yield start
    for http in started:
        http.shutdown()


def test_a_resume_sends_nothing_to_a_judge_that_was_not_asked_for_now(tmp_path, server):
    """Nor the key: the run folder of a stranger may name any server."""
    url, asked = server(500)
    out = tmp_path / "run"
    assert run_script("train.py", *SMALL, "--steps", 1, "--out", out).returncode == 0
    write_json(out / "args.json", json.loads((out / "args.json").read_text()) | {"judge": url})
    done = run_script("train.py", "--out", out, "--resume", "--steps", 2)
    assert done.returncode == 0 and not asked, done.stderr
    done = run_script("train.py", "--out", out, "--resume", "--steps", 3, "--judge", url)
    assert done.returncode == 0 and f"sent to the judge at {url}" in done.stdout


@pytest.mark.parametrize(
    "url", ["http://me:secret@host/v1", "http://host/v1?key=secret", "file:///etc", "host/v1"]
)
def test_urls_that_are_refused(url, tmp_path):
    with pytest.raises(ValueError) as refused:
        Judge(url, tmp_path / "judge.jsonl")
    assert "secret" not in str(refused.value)


def test_redirects_are_not_followed(tmp_path, server):
    url, asked = server(307, Location="/elsewhere")
    judge = Judge(url, tmp_path / "judge.jsonl", tries=1)
    assert judge("Which?", "a dog", "a hound") is False and judge.missed == 1
    assert asked and "/elsewhere" not in asked


@pytest.mark.parametrize(
    "change, message",
    [
        ({"evil": 1}, "has the flag 'evil'"),
        ({"lr": "fast"}, "lr is 'fast', and should be of type float"),
        ({"steps": None}, "steps is None"),
        ({"plan": "yes"}, "plan is 'yes'"),
        ({"refill": "yes"}, "has the flag 'refill'"),
        (
            {"mask_overlong": True},
            "has the flag 'mask_overlong'",
        ),  # a run of before
    ],
)
def test_flags_of_a_strangers_run(tmp_path, change, message, here):
    write_json(tmp_path / "args.json", asdict(TrainConfig()) | change)
    done = here("train.py", "--out", tmp_path, "--resume")
    assert done.returncode == 2 and message in done.stderr.strip().splitlines()[-1]


def test_a_file_of_flags_is_not_read(tmp_path):
    """HfArgumentParser would read SCRIPT.args beside the script."""
    for name in ("config.py", "train.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "train.args").write_text("--steps 7")
    code = "import sys; sys.argv = ['train.py']; from training.settle import read_config; "
    code += "print(read_config([]).steps)"
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.stdout.split()[-1] == str(TrainConfig().steps), done.stderr


# --------------------------------------------------------------------------------------------------
# What a model writes.


@pytest.mark.parametrize(
    "text", [r"\frac{9!!!}{2}", r"\log(10^{10^{9}})", "9" * 190 + "!", r"2^{2^{2^{2^{99}}}}"]
)
def test_formulas_that_never_end(text):
    began = time.time()
    assert formula_value(text) is None or isinstance(formula_value(text), float)
    assert same_formula(text, r"\frac{1}{2}") is False
    assert time.time() - began < 25
    assert formula_value(r"\frac{3}{2}") == 1.5  # the next one is read


CALL = '{"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [1,2,30,40]}}'
TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<answer>", "</answer>")
PIECES = [*TAGS, CALL, '{"name": "image_zoom_in_tool"}', "[1, 2, 3, 4]", "[" * 50, "{" * 50]
PIECES += ["<|image_pad|>", "<|im_end|>", "1e999", "-1", "NaN", "١٢٣", HUGE, "\x00", "\u202e"]
PIECES += [
    "\ud800",
    "\\boxed{",
    "<script>",
    "&lt;",
    "yes",
    "not A",
    "A or B",
    "3/4",
    "=",
    "\n",
    " ",
]
TEXT = st.lists(st.sampled_from(PIECES) | st.text(max_size=8), max_size=30).map("".join)
CASES = int(os.environ.get("FUZZ_CASES", 700))


NUMBER = st.integers(-50, 900) | st.floats() | st.sampled_from([10**400, "1e999", "NaN", "\u0663"])
WRITTEN = st.lists(NUMBER, max_size=5).map(lambda box: call(*box))


@settings(max_examples=CASES, deadline=2000)
@given(st.lists(TEXT | WRITTEN, max_size=3).map("".join), st.integers(1, 400), st.integers(1, 400))
def test_any_text_is_a_call_or_a_named_error(text, width, height):
    """And a crop is inside the image and within its budget."""
    check_text(text, width, height)


def check_text(text: str, width: int, height: int) -> bool:
    """Was a crop cut? width, height: of the look, half of the image's."""
    view = tools.View(Image.new("RGB", (width * 2, height * 2)), (width, height))
    try:
        crop, region = view.crop(tools.parse_call(text))
    except tools.ZoomError as error:
        assert str(error)
        return False
    x1, y1, x2, y2 = region
    assert 0 <= x1 < x2 <= width * 2 and 0 <= y1 < y2 <= height * 2
    assert crop.size == (x2 - x1, y2 - y1)
    return True


@settings(max_examples=CASES, deadline=2000)
@given(st.integers(60, 400), st.integers(60, 400), st.data())
def test_a_good_call_after_any_text_is_a_crop(width, height, data):
    x = data.draw(st.integers(-20, width - 40))
    y = data.draw(st.integers(-20, height - 40))
    box = (x, y, data.draw(st.integers(x + 39, 900)), data.draw(st.integers(y + 39, 900)))
    assert check_text(data.draw(TEXT) + call(*box), width, height)


@settings(max_examples=CASES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(TEXT | WRITTEN, max_size=4))
def test_books_are_right_whatever_is_written(processor, turns):
    """As many pads as images have tokens, and every list as long as the tokens."""
    limits = Limits(max_turns=4, max_tokens=600, tools="zoom,rotate")
    env = ZoomEnv(processor, limits)
    (i,) = env.reset(Sample("s", Image.new("RGB", (300, 200)), "?", "A"), [])
    trajectory = env.trajectories[i]
    for turn in turns:
        turn = turn.encode(errors="replace").decode()  # tokens never decode to half a surrogate pair
        ids = processor.tokenizer(turn, add_special_tokens=False)["input_ids"]
        ids = [token for token in ids if token not in env.banned_ids][: env.tokens_left(i)]
        if not ids or env.step(i, ids, [0.0] * len(ids)) is None:
            break
    pads = trajectory.completion_ids.count(processor.image_token_id)
    assert pads == sum(map(processor.family.tokens, trajectory.images[1:]))
    assert len(trajectory.images) == 1 + trajectory.delivered
    length = len(trajectory.completion_ids)
    assert len(trajectory.sampled) == len(trajectory.logprobs) == length <= limits.max_tokens


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
VALUE = st.recursive(PLAIN, lambda v: st.lists(v) | st.dictionaries(st.text(), v), max_leaves=8)
KEYS = ("id", "question", "answer", "options", "boxes", "meta", "tool", "source", "image")


@settings(
    max_examples=min(CASES, 20_000),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.dictionaries(st.sampled_from(KEYS), VALUE))
def test_any_row_is_a_sample_or_is_named(mine, changed):
    write_rows(mine, GOOD, GOOD | changed)
    for sample in load(str(mine)):
        assert sample.text().encode() and isinstance(sample.meta, dict)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "F"])
@pytest.mark.parametrize("size", [(1, 1), (1, 10_000), (10_000, 1), (300, 200)])
def test_a_random_policy_on_images_of_every_shape_and_mode(script, model, processor, size, mode):
    """What comes of its calls is a crop or an error; the trajectory ends, its books are right."""
    script(random_turn)
    limits = {"max_turns": 3, "max_turn_tokens": 40, "max_tokens": 300, "engine": "slots"}
    limits |= {"look_pixels": 112 * 112, "crop_pixels": 112 * 112}
    sample = Sample("s", Image.new(mode, size), "?", "A")
    for trajectory in rollout(model, processor, [sample], group=4, **limits):
        assert trajectory.stop and len(trajectory.images) == 1 + trajectory.delivered
        for x1, y1, x2, y2 in trajectory.boxes:
            assert 0 <= x1 < x2 <= size[0] and 0 <= y1 < y2 <= size[1]
        for image in trajectory.images[1:]:
            assert image.width * image.height <= 4 * 56 * 56 + 112 * 112


@settings(max_examples=CASES, deadline=None)
@given(TEXT, TEXT)
def test_any_answer_is_right_or_wrong(said, gold):
    options = ("red", gold or "x", "blue")
    for read in (
        lambda: answers.unwrap(said),
        lambda: answers.option_index(said, options),
        lambda: answers.yes_or_no(said),
        lambda: answers.normalise(answers.without_lead(said)),
        lambda: answers.count_boxed([said]),
        lambda: answers.find_answer(said),
    ):
        read()


@pytest.mark.parametrize(
    "piece",
    ["<tool_call>", "<answer>", "[", "{", "(", "the answer is ", "not ", "1,", "\\boxed{"],
)
def test_time_grows_with_the_text_alone(piece):
    """A megabyte of the same, in linear time."""
    seconds = []
    for size in (100_000, 1_000_000):
        text = piece * (size // len(piece))
        began = time.perf_counter()
        tools.find_call(text)
        answers.find_answer(text)
        answers.unwrap(text[:1000])
        seconds.append(time.perf_counter() - began)
    assert seconds[1] < max(2.0, 30 * seconds[0])
