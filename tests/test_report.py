"""The page: patterns, advantages, hostile text, size, and in a browser its filters and slider."""

import html
import json
import random
import re
import shutil
import subprocess
import time
from functools import partial

import pytest
from browser import CHROMIUM
from PIL import Image

from rollout import rollout
from runlog import curves
from runlog.compare import same_but_seed
from runlog.curves import draw_curves
from runlog.health import history
from runlog.patterns import patterns
from runlog.render import make_page, spread_out
from runlog.runs import observed_texts

HOSTILE = '<script>document.title="owned"</script><img src=x onerror="document.title=1"> \u202ex\x07</script>'
LETTERS = "ACHX"


def trajectory(step, member, probe=False, zoomed=True, right=True, kind="read", turns=None, error=False):
    boxes = [[100 + 9 * member, 100, 300, 300]] if zoomed else []
    turns = turns or (["<think> red</think><tool_call>..</tool_call>"] if zoomed else []) + [
        "<answer>A</answer>"
    ]
    look = f"pictures/{'probe-0' if probe else f'{step:05}'}-look.png"
    return {
        "step": step, "member": member, "id": "probe-q" if probe else f"q{step}", "probe": probe,
        "question": "What letter is on the red tile?", "gold": "A", "meta": {"kind": kind},
        "size": [1008, 1008], "targets": [[120, 120, 220, 220]], "turns": turns, "boxes": boxes,
        "errors": ["bad box"] if error else [], "answer": "A" if right else "X",
        "observations": ["<tool_response>[crop]</tool_response>"] if zoomed else [],
        "stop": "answer", "pictures": [look] + [f"pictures/{step:05}-{member}-1.png"] * zoomed,
        "advantage": None if probe else 1.0 - 2 * (member % 2), "reward": {
            "accuracy": 1.0 * right, "format": 0.0, "tool": 1.0 * (right and zoomed), "total": 2.0 * right,
        },
    }  # fmt: skip


def write_run(folder, rows, name="run", seed=0, steps=12, **args):
    """A run's folder: healthy steps of random numbers, these trajectories with their images, its config."""
    run = folder / name
    (run / "pictures").mkdir(parents=True)
    rng = random.Random(seed)
    with (run / "metrics.jsonl").open("w") as file:
        for step in range(1, steps + 1):
            keys = {key: rng.random() for panel in curves.PANELS.values() for key in panel[0]}
            healthy = {
                "tool_rate": 0.9,
                "repeats": 0.0,
                "blind_luck": None,
                "dead_groups": 0.1,
                "entropy": 0.3,
            }
            healthy |= {"garbage": 0.0, "logp_gap": 1e-5, "step": step}
            file.write(json.dumps(keys | healthy) + "\n")
    (run / "trajectories.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for row in rows:
        for image in row["pictures"]:
            Image.new("RGB", (112, 112), (rng.randrange(255), 90, 90)).save(run / image)
    (run / "args.json").write_text(
        json.dumps({"model": "tiny", "data": "toy", "seed": seed, "out": name} | args)
    )
    return run


@pytest.fixture
def make_run(tmp_path):
    return partial(write_run, tmp_path)


def test_patterns():
    row = {
        "targets": [[0, 0, 50, 50], [100, 100, 150, 150]],
        "turns": ["a", "b", "c"],
        "answer": "yes",
    }
    assert patterns(row | {"boxes": [[0, 0, 50, 50], [100, 100, 150, 150]]}) == ["comparison"]
    assert patterns(row | {"boxes": [[60, 60, 90, 90], [0, 0, 40, 40]]}) == ["search"]
    assert patterns(row | {"boxes": [[0, 0, 50, 50], [0, 0, 48, 50]]}) == ["confirmation"]
    one = {
        "targets": [[0, 0, 50, 50]],
        "boxes": [[0, 0, 50, 50]],
        "turns": ["the answer is B", "so"],
    }
    assert patterns(one | {"answer": "C"}) == ["correction"] and patterns(one | {"answer": "B"}) == []
    assert patterns(one | {"answer": None, "boxes": [], "turns": []}) == []
    assert (
        patterns(one | {"turns": ["red=A", "so"], "answer": "no"}) == []
    )  # a letter read is no answer taken back
    assert patterns(one | {"turns": ["red=A", "so"], "answer": "left"}) == []


def test_many_groups_are_thinned_evenly_and_probes_kept():
    rows = [trajectory(step, 0) for step in range(100)] + [trajectory(7, 0, probe=True)]
    kept = spread_out(rows, 10)
    assert len(kept) == 11 and [row["step"] for row in kept[:10]] == list(range(0, 100, 10))


def test_a_trouble_is_told_with_its_steps(make_run):
    rows = [{"step": s, "tool_rate": 0.01 if 3 <= s <= 9 else 0.9, "repeats": 0, "blind_luck": None,
             "dead_groups": 0, "entropy": 1, "garbage": 0, "logp_gap": 0} for s in range(1, 13)]  # fmt: skip
    (trouble,) = history(rows)
    assert (trouble["name"], trouble["first"], trouble["last"]) == ("collapse", 3, 9)


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
    assert draw_curves(runs, tmp_path / "all.png").stat().st_size > 30_000


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


def with_probe(page, script: str) -> str:
    """The page and a script of the test's, which needs the page's own nonce to run at all."""
    text = page.read_text()
    nonce = re.search(r"'nonce-(\w+)'", text)[1]
    return text + script.replace("<script>", f'<script nonce="{nonce}">')


PROBE = """
<script>
const problems = [];
window.addEventListener("error", (e) => problems.push(e.message));
const seen = () => document.querySelectorAll("#groups .card").length;
const choose = (name, value) => {
  const f = byId("filters");
  f.elements[name].value = value;
  f.dispatchEvent(new Event("input"));
  return byId("count").textContent;
};
const result = { opened: performance.now(), title: document.title, first: byId("count").textContent };
result.wrong = choose("right", "wrong"); choose("right", "");
result.zoomed = choose("zoomed", "no"); choose("zoomed", "");
result.step = choose("step", "2"); choose("step", "");
result.kind = choose("kind", "glance"); choose("kind", "");
result.error = choose("error", "yes"); choose("error", "");
result.least = choose("least", "1.5"); choose("least", "");
const slide = (place) => {
  byId("when").value = place;
  byId("when").dispatchEvent(new Event("input"));
  return byId("probe-view").lastChild.textContent;
};
result.before = slide(0); result.after = slide(1); result.cards = seen();
if (!byId("more").hidden) byId("more").click();
result.more = seen(); result.text = document.querySelector("#groups .turn").textContent;
result.requests = performance.getEntriesByType("resource").map((e) => e.name);
result.requests = result.requests.filter((name) => !name.startsWith("data:"));
result.problems = problems; result.images = document.querySelectorAll("img[onerror]").length;
document.body.setAttribute("data-result", JSON.stringify(result));
</script>
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine; the page is checked as text above")
def test_in_a_browser(make_run, tmp_path):
    """Filters, slider, hostile text, and 2,000 trajectories that open within 2 s."""
    rows = [
        trajectory(s, m, zoomed=m % 4 != 0, right=m % 2 == 0, kind="glance" if s % 2 else "read",
                   error=m == 5, turns=["<think>" + HOSTILE, "<answer>A</answer>"])
        for s in range(1, 251) for m in range(8)
    ]  # fmt: skip
    rows += [trajectory(s, 0, probe=True, right=s > 1) for s in (1, 10)]
    page = make_page(make_run(rows))
    assert page.stat().st_size < 15_000_000
    tested = tmp_path / "tested.html"
    tested.write_text(with_probe(page, PROBE))
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--dump-dom",
        "--timeout=20000",
    ]
    command += [
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    began = time.time()
    dom = subprocess.run([*command, tested.as_uri()], capture_output=True, text=True, timeout=120).stdout
    result = json.loads(html.unescape(re.search(r'data-result="(.*?)"', dom, re.S)[1]))
    assert result["problems"] == [] and result["requests"] == [] and result["images"] == 0, (
        time.time() - began
    )
    assert result["title"] == "run" and result["opened"] < 2000
    assert result["first"].startswith("2000 of 2000 trajectories in 250 groups")
    assert result["wrong"].startswith("1000 of") and result["zoomed"].startswith("500 of")
    assert result["step"].startswith("8 of") and result["kind"].startswith("1000 of")
    assert result["error"].startswith("250 of") and result["least"].startswith("1000 of")
    assert (
        "step 1" in result["before"]
        and "step 10" not in result["before"]
        and "step 10" in result["after"]
        and result["before"] != result["after"]
    )
    assert result["more"] > result["cards"] > 0
    assert "<script>" in result["text"] and "U+202e" in result["text"] and "\u202e" not in result["text"]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_the_page_of_scores_in_a_browser(make_run, tmp_path):
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
    page = make_page(run)
    ask = """<script>
    const note = (name, value) => document.body.setAttribute("data-" + name, value);
    addEventListener("error", (e) => note("bad", e.message));
    note("seen", [...document.querySelectorAll("#groups .card > strong")].map((e) => e.textContent));
    note("hidden", byId("probe") === null && byId("when") === null);
    </script>"""
    tested = tmp_path / "tested.html"
    tested.write_text(with_probe(page, ask))
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--dump-dom",
        "--timeout=20000",
    ]
    command += [f"--user-data-dir={tmp_path / 'profile'}", tested.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    assert "data-bad" not in dom and 'data-seen="on,off,blank"' in dom and 'data-hidden="true"' in dom
    assert 'id="health"' not in dom and 'id="curves"' not in dom and "<title>run</title>" in dom
    scores = re.search(r">on<small>.*?</tr>", dom, re.S)[0]
    assert "<td>0.500</td>" in scores and "<td>1.00</td>" in scores


def test_the_command(make_run):
    run = make_run([trajectory(1, m) for m in range(4)])
    import sys

    from conftest import ROOT

    good = subprocess.run([sys.executable, "report.py", str(run)], cwd=ROOT, capture_output=True, text=True)
    assert good.returncode == 0 and (run / "report.html").exists() and (run / "curves.png").exists()
    bad = subprocess.run([sys.executable, "report.py", "/nowhere"], cwd=ROOT, capture_output=True, text=True)
    assert bad.returncode == 2 and "no metrics.jsonl" in bad.stderr


def test_comparing_leaves_the_runs_own_pages_alone(tmp_path):
    """And names runs by what tells them apart, with the health of each."""
    fine = dict(tool_rate=1.0, repeats=0.0, blind_luck=None, dead_groups=0.1, entropy=0.3)
    fine |= {"garbage": 0.0, "logp_gap": 0.0, "accuracy": 0.5, "acc_zoom": None}
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
