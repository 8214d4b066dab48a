"""What a run folder tells: curves, health, runs beside one another; and the page: hostile text,
size, and in a browser its filters and slider."""

import html
import json
import random
import re
import shutil
from functools import partial

import pytest
from PIL import Image
from playwright.sync_api import sync_playwright
from scripts import run_script

from config import TrainConfig
from rollout import rollout
from runlog.compare import same_but_seed
from runlog.curves import PANELS, ZOOM_GAIN, draw_curves
from runlog.health import TROUBLES, health, history
from runlog.render import make_page
from runlog.runs import new_folder, observed_texts, run_args, step_text

HOSTILE = '<script>document.title="owned"</script><img src=x onerror="document.title=1"> \u202ex\x07</script>'
HEALTHY = {"tool_rate": 0.9, "repeats": 0.0, "blind_luck": None, "dead_groups": 0.1, "entropy": 0.3}
HEALTHY |= {"garbage": 0.0, "logp_gap": 1e-5}


def trajectory(step, member, probe=False, zoomed=True, correct=True, kind="read", turns=None, error=False):
    boxes = [[100 + 9 * member, 100, 300, 300]] if zoomed else []
    turns = turns or (["<think> red</think><tool_call>..</tool_call>"] if zoomed else []) + [
        "<answer>A</answer>"
    ]
    look = f"pictures/{'probe-0' if probe else f'{step:05}'}-look.png"
    return {
        "step": step, "member": member, "id": "probe-q" if probe else f"q{step}", "probe": probe,
        "question": "What letter is on the red tile?", "gold": "A", "meta": {"kind": kind},
        "size": [1008, 1008], "targets": [[120, 120, 220, 220]], "turns": turns, "boxes": boxes,
        "errors": ["bad box"] if error else [], "answer": "A" if correct else "X",
        "observations": ["<tool_response>[crop]</tool_response>"] if zoomed else [],
        "stop": "answer", "pictures": [look] + [f"pictures/{step:05}-{member}-1.png"] * zoomed,
        "advantage": None if probe else 1.0 - 2 * (member % 2), "reward": {
            "accuracy": 1.0 * correct, "format": 0.0, "tool": 1.0 * (correct and zoomed),
            "total": 2.0 * correct,
        },
    }  # fmt: skip


def write_run(folder, rows, name="run", seed=0, steps=12, **args):
    """A run's folder: healthy steps of random numbers, these trajectories with their images, its config."""
    run = folder / name
    (run / "pictures").mkdir(parents=True)
    rng = random.Random(seed)
    with (run / "metrics.jsonl").open("w") as file:
        for step in range(1, steps + 1):
            row = {key: rng.random() for panel in PANELS for key in panel.keys if key != ZOOM_GAIN}
            file.write(json.dumps(row | HEALTHY | {"step": step}) + "\n")
    (run / "trajectories.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for row in rows:
        for image in row["pictures"]:
            Image.new("RGB", (112, 112), (rng.randrange(255), 90, 90)).save(run / image)
    args = {"model": "tiny", "data": "toy", "seed": seed, "out": name} | args
    (run / "args.json").write_text(json.dumps(args))
    return run


@pytest.fixture
def make_run(tmp_path):
    return partial(write_run, tmp_path)


def test_a_trouble_is_told_with_its_steps():
    rows = [HEALTHY | {"step": s, "tool_rate": 0.01 if 3 <= s <= 9 else 0.9} for s in range(1, 13)]
    (trouble,) = history(rows)
    assert (trouble["name"], trouble["first"], trouble["last"]) == ("collapse", 3, 9)


def test_a_breakdown_is_told_before_what_comes_of_it():
    """--lr 2e-2 on the toy: nobody zooms from step 3 on, and one token is repeated, but for step 4."""
    garbage = [0.0, 0.0, 0.28, 0.16, 0.24, 0.98, 0.62]
    rows = [
        HEALTHY | {"step": step, "garbage": fraction, "tool_rate": 0.0 if step > 2 else 0.5}
        for step, fraction in enumerate(garbage, 1)
    ]
    assert health(rows[:-1]) == []
    (first, text), (second, _) = health(rows)
    assert (first, second) == ("garbage", "collapse") and "lower --lr" in text
    assert [(t["name"], t["first"]) for t in history(rows)] == [("garbage", 5), ("collapse", 3)]
    # By itself it has to last
    assert health([row | {"tool_rate": 0.5} for row in rows]) == []


def test_the_price_is_named_where_nobody_zooms():
    rows = [HEALTHY | {"step": step, "tool_rate": 0.01} for step in range(21, 26)]
    ((name, text),) = health(rows)
    (trouble,) = history(rows)
    assert name == "collapse" and trouble["text"] == text and "fewer than 5 %" in text
    assert (
        "the price may end the zooming" in text
        and "later --price_from" in text
        and "--bonus conditional" in text
    )


def test_remedies_name_flags_that_exist():
    texts = [text for _, text in TROUBLES.values()] + [panel.remedy for panel in PANELS]
    flags = set(re.findall(r"--(\w+)", " ".join(texts)))
    assert flags and flags <= set(TrainConfig.__dataclass_fields__)


def test_the_steps_line_has_the_names_of_its_row():
    row = HEALTHY | {"step": 7, "reward": 1.25, "accuracy": 0.5, "calls": 1.0, "iou": None, "tokens": 31.5}
    line = step_text(row | {"sec_rollout": 2.14, "sec_train": 1.32}, 160)
    words = "reward 1.25 accuracy 0.50 tool_rate 0.90 calls 1.00 iou - tokens 31.50 dead_groups 0.10"
    assert line.split() == f"step 7/160 {words} rollout 2.1 s update 1.3 s".split()


def test_a_folder_gets_a_number_where_its_name_is_taken(tmp_path, capsys):
    usual = str(tmp_path / "deep" / "run")
    folders = [new_folder(usual, "", lambda folder: folder.exists()) for _ in range(3)]
    assert [folder.name for folder in folders] == ["run", "run-2", "run-3"]
    assert all(folder.is_dir() for folder in folders)
    wanted = str(folders[1])
    assert new_folder(usual, wanted, lambda folder: "") == folders[1]  # as the user wants it
    with pytest.raises(SystemExit) as end:
        new_folder(usual, wanted, lambda folder: "is full")
    assert end.value.code == 2 and f"{wanted} is full; give another --out" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        new_folder("", "/proc/nowhere", lambda folder: "")
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1 and "can't write to the run folder /proc" in said


def test_runs_that_differ_only_in_their_seed_share_a_line(make_run, tmp_path):
    runs = [
        make_run([], f"{bonus}{seed}", seed, bonus=bonus)
        for bonus in ("none", "conditional")
        for seed in (0, 1)
    ]
    groups = same_but_seed(runs)
    assert {name: len(members) for name, members in groups.items()} == {
        "bonus none": 2,
        "bonus conditional": 2,
    }
    draw_curves(runs, tmp_path / "all.png")
    assert (tmp_path / "all.png").stat().st_size > 30_000


def test_runs_of_before_compare_with_runs_of_now(make_run):
    """By the names that flags have now; a flag that was not there had its usual value."""
    old = {"call_price": 0.05, "curiosity": 0.0, "mask_overlong": False, "refill": False, "merge": False}
    runs = [
        make_run([], "old-priced", bonus="priced", **old),
        make_run([], "old-free", 1, bonus="none", **old),
        make_run([], "priced", 2, bonus="none", crop_price=0.05, crop_price_on="right"),
        make_run([], "free", 3, bonus="none", crop_price=0.0, crop_price_on="right"),
        make_run([], "all", 4, bonus="none", crop_price=0.05, crop_price_on="all"),
    ]
    groups = same_but_seed(runs)
    assert {name: [run.name for run in members] for name, members in groups.items()} == {
        "crop_price 0.05, crop_price_on right": ["old-priced", "priced"],
        "crop_price 0.0, crop_price_on right": ["old-free", "free"],
        "crop_price 0.05, crop_price_on all": ["all"],
    }
    assert run_args(runs[0])["crop_price"] == 0.05 and "priced" not in same_but_seed(runs[:1])


def test_a_run_of_before_still_opens(make_run):
    """Rows that lack keys of now: those are not drawn, and nothing else is missing."""
    run = make_run([trajectory(1, 0)], bonus="priced", call_price=0.05)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    for row in rows:
        for key in ("reward_price", "repeats", "garbage", "dead_groups", "logp_gap"):
            row.pop(key, None)
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = make_page(run).read_text()
    assert "dead_groups -" in page and "crop_price 0.05" in page


def test_the_page_stands_alone_and_hostile_text_stays_text(make_run):
    turns = ["<think>" + HOSTILE, "<answer>" + HOSTILE + "x" * 100_000]
    run = make_run([trajectory(1, m, turns=turns) for m in range(2)])
    (run / "eval.json").write_text(json.dumps({"after": {"on": {"all": {
        "n": 1, "accuracy": 0.5, "tool_rate": 1.0, "crops": 1.0, "iou": None, "holds": None}}}}))  # fmt: skip
    page = make_page(run).read_text()
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", page) and "http://" not in page.replace(
        "http://www.w3.org/2000/svg", ""
    )
    assert page.count("<script") == 2 and "<img src=x" not in page  # the model's are escaped
    assert len(page) < 1_000_000 and "0.500" in page
    data = json.loads(html.unescape(re.search(r'id="data">(.*?)</script>', page, re.S)[1]))
    assert data["trajectories"][0]["turns"][0] == "<think>" + HOSTILE


def test_a_run_without_trajectories_or_pictures(make_run):
    run = make_run([trajectory(1, 0)])
    shutil.rmtree(run / "pictures")
    assert make_page(run).exists()
    (run / "trajectories.jsonl").unlink()
    assert make_page(run).exists()


# --------------------------------------------------------------------------------------------------
# In a browser.

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
ARGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
ARGS += ["--disable-sync", "--no-first-run", "--host-resolver-rules=MAP * ~NOTFOUND"]


@pytest.fixture(scope="module")
def browser():
    """The system's Chromium, headless."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine; the page is checked as text alone")
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=ARGS)


class Tab:
    """A page in a fresh tab (a narrow one is a phone's): what it asks for, other than itself and what it
    holds, and what goes wrong, in exceptions and on its console."""

    def __init__(self, browser, file, width=1440, dark=False):
        size = {"width": width, "height": 900}
        scheme = "dark" if dark else "light"
        self.page = browser.new_page(viewport=size, is_mobile=width < 600, color_scheme=scheme)
        self.ask = self.page.evaluate  # the value of an expression; of a promise, what it comes to
        self.requests = []
        self.problems = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.problems.append(message.text))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.goto(file.as_uri())
        known = (file.as_uri(), "data:")
        self.requests = [url for url in self.requests if not url.startswith(known)]


FILTERS = """(() => {
  const choose = (name, value) => {
    const form = byId("filters");
    form.elements[name].value = value;
    form.dispatchEvent(new Event("input"));
    const count = byId("count").textContent;
    form.elements[name].value = "";
    form.dispatchEvent(new Event("input"));
    return count;
  };
  return [["answer", "wrong"], ["answer", "correct"], ["zoomed", "no"], ["step", "2"], ["kind", "glance"],
    ["error", "yes"], ["least", "1.5"]].map(([name, value]) => choose(name, value));
})()"""
SLIDE = """[0, 1].map((step) => {
  byId("when").value = step;
  byId("when").dispatchEvent(new Event("input"));
  return byId("probe-view").lastChild.textContent;
})"""
MORE = """(() => {
  const count = () => document.querySelectorAll("#groups .card").length, before = count();
  byId("more").click();
  return [before, count()];
})()"""


def test_in_a_browser(browser, make_run):
    """Filters, slider, hostile text, and 2,000 trajectories that open within 2 s."""
    rows = [
        trajectory(s, m, zoomed=m % 4 != 0, correct=m % 2 == 0, kind="glance" if s % 2 else "read",
                   error=m == 5, turns=["<think>" + HOSTILE, "<answer>A</answer>"])
        for s in range(1, 251) for m in range(8)
    ]  # fmt: skip
    rows += [trajectory(s, 0, probe=True, correct=s > 1) for s in (1, 10)]
    page = make_page(make_run(rows))
    assert page.stat().st_size < 15_000_000
    tab = Tab(browser, page)
    assert tab.ask("performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd") < 2000
    assert tab.ask("document.title") == "run"
    assert tab.ask("byId('count').textContent").startswith("2000 of 2000 trajectories in 250 groups")
    counts = [int(text.split()[0]) for text in tab.ask(FILTERS)]
    assert counts == [1000, 1000, 500, 8, 1000, 250, 1000]
    before, after = tab.ask(SLIDE)
    assert "step 1" in before and "step 10" not in before and "step 10" in after
    cards, more = tab.ask(MORE)
    assert more > cards > 0
    text = tab.ask("document.querySelector('#groups .turn').textContent")
    assert "<script>" in text and "U+202e" in text and "\u202e" not in text
    assert tab.ask("document.querySelectorAll('img[onerror]').length") == 0
    assert tab.problems == [] and tab.requests == []


def test_the_page_of_scores_in_a_browser(browser, make_run):
    """Arms of one question side by side, named; no curves, no health, no slider; nothing breaks."""
    rows = [trajectory(0, m, zoomed=m != 1) | {"arm": arm} for m, arm in enumerate(("on", "off", "blank"))]
    run = make_run(rows)
    (run / "metrics.jsonl").unlink()
    arms = {"on": {"all": {"accuracy": 0.5, "tool_rate": 1.0, "iou": None, "holds": None}}}
    stored = {
        "protocol": {"model": HOSTILE},
        "arms": arms,
        "paired": {"on against off": {"p": 0.5}},
    }
    (run / "eval.json").write_text(json.dumps(stored))
    tab = Tab(browser, make_page(run))
    names = "[...document.querySelectorAll('#groups .card > strong')].map((e) => e.textContent)"
    assert tab.ask(names) == ["on", "off", "blank"]
    absent = "['probe', 'when', 'health', 'curves'].filter((id) => byId(id) !== null)"
    assert tab.ask(absent) == [] and tab.ask("document.title") == "run"
    cells = "[...document.querySelectorAll('#scores td')].map((e) => e.textContent)"
    assert tab.ask(cells)[:6] == ["0.500", "-", "", "-", "1.00", "-"]
    assert tab.problems == [] and tab.requests == []


def test_the_command(make_run):
    run = make_run([trajectory(1, m) for m in range(4)])
    good = run_script("report.py", run)
    assert good.returncode == 0 and (run / "report.html").exists() and (run / "curves.png").exists()
    bad = run_script("report.py", "/nowhere")
    assert bad.returncode == 2 and "no metrics.jsonl" in bad.stderr


def test_comparing_leaves_the_runs_own_pages_alone(tmp_path):
    """And names runs by what tells them apart, with the health of each."""
    fine = HEALTHY | {"accuracy": 0.5, "acc_zoom": None}
    for name, rate in (("a", 1.0), ("b", 0.01)):
        run = tmp_path / name / "run"
        run.mkdir(parents=True)
        rows = [fine | {"step": step, "tool_rate": rate} for step in range(1, 9)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        make_page(run)
    before = [(tmp_path / name / "run" / "report.html").read_bytes() for name in "ab"]
    page = make_page([tmp_path / "a" / "run", tmp_path / "b" / "run"])
    after = [(tmp_path / name / "run" / "report.html").read_bytes() for name in "ab"]
    assert page == tmp_path / "a" / "compare.html" and before == after
    assert (tmp_path / "a" / "compare.png").exists()
    text = page.read_text()
    assert "<title>a/run, b/run</title>" in text and "b/run: collapse" in text
    assert "a/run: collapse" not in text


def test_observations_stand_after_their_turns(model, processor, samples, script):
    """Also where the first call was opened for the model: the opening belongs to the first turn."""
    script(lambda rng: "10,10,60,60]}}</tool_call>")
    limits = {
        "max_turns": 2,
        "max_turn_tokens": 60,
        "max_tokens": 420,
        "look_pixels": 112 * 112,
    }
    for forced in (True, False):
        t = rollout(model, processor, samples[:1], force_call=forced, crop_pixels=134 * 134, **limits)[0]
        texts = observed_texts(t, processor.tokenizer)
        assert len(texts) == len(t.calls) and all("user" in text for text in texts)
