"""The page's top in a browser, at a desk's width and a phone's, in the light and in the dark; and what its
sentence says over all that can come out of a run."""

import io
import json

import pytest
from PIL import Image
from test_report import HOSTILE, Tab, browser, trajectory, write_run  # noqa: F401  (browser is a fixture)

from runlog.box_plot import around_target, box_clouds
from runlog.curves import ZOOM_GAIN, series, small_curves
from runlog.render import make_page
from runlog.summary import asked, sentence

NBSP = "\u00a0"
ARGS = {"model": "tiny", "data": "toy", "steps": 40, "prompts": 16, "group": 8, "tool": "on"}
SIZES = [(1440, False), (1440, True), (390, False), (390, True)]


def arm(accuracy, tool_rate=1.0, spread=0.03, n=500):
    interval = [max(0.0, accuracy - spread), min(1.0, accuracy + spread)]
    scores = {"n": n, "accuracy": accuracy, "interval": interval, "tool_rate": tool_rate}
    return {"all": scores | {"iou": 0.5, "holds": 0.9, "cut": 0.0, "unanswered": 0.0}}


def steps(tool_rate, accuracy=(0.3, 0.9), last=40):
    """Rows of metrics.jsonl in which both go from the one value to the other in a few steps."""
    rows = []
    for step in range(1, last + 1):
        done = min(1.0, (step - 1) / 10)
        row = {"step": step, "tool_rate": tool_rate[0] + done * (tool_rate[1] - tool_rate[0])}
        rows.append(row | {"accuracy": accuracy[0] + done * (accuracy[1] - accuracy[0])})
    return rows


def scored(before, after, blank=None, **fields):
    after = {"on": after} | ({"blank": blank} if blank else {})
    return {"before": {"on": before}, "after": after, "steps": 40} | fields


# --------------------------------------------------------------------------------------------------
# The sentence.


def test_the_sentence_of_a_run_that_learned():
    stored = scored(arm(0.42, 0.0), arm(0.94, 1.0, 0.02), arm(0.43))
    lead, numbers = sentence(ARGS, steps((0.3, 1.0)), stored)
    assert lead == "It learned to zoom"
    assert numbers == (
        "accuracy 42 → 94 % (92 to 96), tool_rate 0 → 100 %, accuracy with blank crops 43 %: it looks"
    )
    assert asked(ARGS, stored) == (
        "tiny on toy, 40 steps of 16 questions with 8 trajectories each. Scored on 500 held-out questions;"
        " in brackets the 95 % interval."
    )
    assert "Scored on 1 held-out question;" in asked(ARGS, scored(LOW, arm(0.94, n=1)))
    few = scored(arm(0.42, 0.0), arm(0.94, 1.0, n=6))
    assert sentence(ARGS, steps((0.3, 1.0)), few)[0] == "Scored on 6 questions: too few to tell"


LOW = arm(0.42, 0.0)
OUTCOMES = {
    "zooms, no gain": (
        ((0.3, 1.0), scored(LOW, arm(0.44), arm(0.30))),
        "It learned to zoom, with no clear gain",
        ": it looks",
    ),
    "doesn't look": (
        ((0.3, 1.0), scored(LOW, arm(0.70), arm(0.69))),
        "It zooms, but does not look",
        "accuracy with blank crops 69 %, as good: it does not look",
    ),
    "can't say": (
        ((0.3, 1.0), scored(LOW, arm(0.60, 1.0, 0.1), arm(0.50, 1.0, 0.1))),
        "It learned to zoom, and got better",
        "too few questions to say whether it looks",
    ),
    "collapsed": (
        ((0.4, 0.0), scored(LOW, arm(0.43, 0.01), arm(0.43, 0.01))),
        "It stopped zooming, with no clear gain",
        "accuracy 42 → 43 % (40 to 46), tool_rate 0 → 1 %",
    ),
    "never tried": (
        ((0.01, 0.0), scored(LOW, arm(0.60, 0.0))),
        "It did not learn to zoom, and got better",
        "tool_rate 0 → 0 %",
    ),
    "got worse": (
        ((0.9, 0.9), scored(arm(0.8, 0.9), arm(0.5, 0.95))),
        "It zooms as often as before, and got worse",
        "accuracy 80 → 50 %",
    ),
    "zooms less": (
        ((1.0, 0.5), scored(arm(0.9, 1.0), arm(0.95, 0.4, 0.01))),
        "It learned to zoom less, and got better",
        "tool_rate 100 → 40 %",
    ),
    "by the paired test": (
        ((0.3, 1.0), scored(LOW, arm(0.45), paired={"on": {"p": 0.01}})),
        "It learned to zoom",
        "accuracy 42 → 45 %",
    ),
    "not scored": (
        ((0.3, 1.0), {"before": {"on": LOW}}),
        "Not scored after training",
        "40 of 40 steps, accuracy 30 → 90 %, tool_rate 30 → 100 % while training",
    ),
    "no scores, and no zoom": (
        ((0.3, 0.0), {}),
        "Not scored after training, and it does not zoom",
        "tool_rate 30 → 0 % while training",
    ),
}


@pytest.mark.parametrize("name", OUTCOMES)
def test_the_sentence_says_what_came_out(name):
    (tool_rate, stored), lead, ending = OUTCOMES[name]
    words, numbers = sentence(ARGS, steps(tool_rate), stored)
    assert words == lead.replace("It learned to zoom, and got better", "It learned to zoom")
    assert ending in numbers
    assert ("it looks" in numbers) == ("it looks" in ending)


def test_the_sentence_of_runs_that_are_not_done_have_no_tool_or_nothing():
    lead, numbers = sentence(ARGS, steps((0.3, 1.0), last=12), {"before": {"on": LOW}})
    assert lead == "Still training" and numbers.startswith("12 of 40 steps, accuracy 30 → ")
    # Scored after 40 steps, then prolonged
    done = scored(LOW, arm(0.9), arm(0.4))
    lead, _ = sentence(ARGS | {"steps": 80}, steps((0.3, 1.0), last=50), done)
    assert lead == "Still training"
    assert sentence(ARGS, [], {}) == ("Nothing to tell yet", "no step is done")
    assert sentence({}, [], {}) == ("", "")
    off = {"before": {"off": LOW}, "after": {"off": arm(0.43, 0.0)}, "steps": 40}
    rows = [row | {"tool_rate": None} for row in steps((0.0, 0.0))]
    lead, numbers = sentence(ARGS | {"tool": "off"}, rows, off)
    assert lead == "Trained without the zoom, with no clear gain"
    assert numbers == "accuracy 42 → 43 % (40 to 46)"


def test_the_sentence_of_scores_without_training():
    arms = {"on": arm(0.94, 1.0, 0.02), "off": arm(0.45, 0.0), "blank": arm(0.43)}
    lead, numbers = sentence({}, [], {"arms": arms})
    assert lead == "The zoom helps"
    assert numbers == (
        "accuracy 94 % (92 to 96) with the zoom, 45 % without, tool_rate 100 %, accuracy with blank crops"
        " 43 %: it looks"
    )
    alike = {"on": arm(0.5), "off": arm(0.5), "blank": arm(0.3)}
    assert sentence({}, [], {"arms": alike})[0] == "The zoom brings no clear gain"
    harm = {"on": arm(0.4), "off": arm(0.6)}
    assert sentence({}, [], {"arms": harm})[0] == "The zoom does harm"
    idle = {"on": arm(0.5, 0.0), "off": arm(0.5, 0.0), "blank": arm(0.5, 0.0)}
    lead, numbers = sentence({}, [], {"arms": idle})
    assert lead == "It does not zoom" and "blank" not in numbers
    assert sentence({}, [], {"arms": {"off": arm(0.5)}})[0] == "Asked with no zoom on offer"
    assert sentence({}, [], {"arms": {"on": arm(0.5)}})[0] == "Asked with the zoom on offer"
    # An eval.json of before: no intervals, no n
    bare = {"on": {"all": {"accuracy": 0.5, "tool_rate": 1.0}}}
    assert sentence({}, [], {"arms": bare})[1] == "accuracy 50 %, tool_rate 100 %"


# --------------------------------------------------------------------------------------------------
# Curves and boxes.


def test_points_that_rest_on_few_trajectories_are_left_out(tmp_path):
    """Of 128, 7 are too few and 8 are not; where the number is unknown, all are kept."""
    run = write_run(tmp_path, [], steps=3, prompts=16, group=8)
    rates = [121 / 128, 120 / 128, 7 / 128]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    text = "".join(json.dumps(row | {"tool_rate": rate}) + "\n" for row, rate in zip(rows, rates))
    (run / "metrics.jsonl").write_text(text)
    kept = [[row[k] is not None for k in ("acc_no_zoom", "acc_zoom", "iou")] for row in series(run)]
    assert kept == [[False, True, True], [True, True, True], [True, False, False]]
    # What is made of the two is left out with either
    assert [row[ZOOM_GAIN] is None for row in series(run)] == [True, False, True]
    (run / "args.json").write_text("{}")
    assert all(row["acc_no_zoom"] is not None for row in series(run))


def test_curves_have_gaps_where_there_is_no_value():
    rows = [
        {"step": s, "accuracy": 0.5, "tool_rate": None, "iou": v}
        for s, v in enumerate([None, 0.2, None, 0.4])
    ]
    accuracy, aim = small_curves(rows)  # no tool, no tool_rate
    assert (accuracy["key"], accuracy["text"], aim["key"]) == ("accuracy", "50 → 50 %", "iou")
    assert aim["thin"].count("M") == 2 and aim["text"] == "0.20 → 0.40"


def test_boxes_around_their_target():
    rows = [trajectory(s, m) for s in range(1, 10) for m in range(4)]
    rows += [trajectory(9, 0, probe=True)]
    clouds = box_clouds(rows)
    assert [(c["name"], c["first"], c["last"], c["count"]) for c in clouds] == [
        ("early", 1, 3, 12), ("middle", 4, 6, 12), ("late", 7, 9, 12)
    ]  # fmt: skip
    assert clouds[0]["touch"] == 1.0 and 0 < clouds[0]["iou"] < 1
    assert clouds[0]["boxes"][0] == around_target((100, 100, 300, 300), [(120, 120, 220, 220)])
    assert [c["name"] for c in box_clouds(rows[:8])] == ["early", "late"]
    assert box_clouds([trajectory(1, 0, zoomed=False)]) == [] == box_clouds([])
    # Of two targets, the one it touches; of none, the nearest
    two = [(0, 0, 100, 100), (500, 500, 600, 600)]
    assert around_target((500, 500, 600, 600), two) == (-0.5, -0.5, 0.5, 0.5)
    assert around_target((400, 400, 450, 450), two) == (-1.5, -1.5, -1.0, -1.0)


# --------------------------------------------------------------------------------------------------
# In a browser.


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def page(folder):
    """Of a run that learned: a question is wrong without a zoom at first, and correct with one at last."""
    rows = [trajectory(s, m, zoomed=s > 1 or m > 4) for s in (1, 11, 21, 31) for m in range(8)]
    turns = ["<think>" + HOSTILE, "<answer>A</answer>"]
    for s in (1, 11, 21, 31):
        rows.append(trajectory(s, 0, probe=True, zoomed=s > 1, correct=s > 1, turns=turns))
        rows.append(trajectory(s, 1, probe=True) | {"id": "other", "question": "And this?"})
    run = write_run(folder, rows, "learned", steps=40)
    (run / "args.json").write_text(json.dumps(ARGS))
    stored = scored(LOW, arm(0.94, 1.0, 0.02), arm(0.43))
    stored["after"]["oracle"] = arm(0.98)
    (run / "eval.json").write_text(json.dumps(stored))
    return make_page(run)


@pytest.fixture(scope="module")
def page_of_scores(folder):
    """Of eval.py: arms, and no training."""
    rows = [trajectory(0, m) | {"arm": name} for m, name in enumerate(("on", "off"))]
    run = write_run(folder, rows, "scores")
    (run / "metrics.jsonl").unlink()
    (run / "args.json").unlink()
    arms = {"on": arm(0.94, 1.0, 0.02), "off": arm(0.45, 0.0), "blank": arm(0.43)}
    protocol = {"model": "/home/me/secret/qwen", "data": "toy", "long": "x" * 300}
    (run / "eval.json").write_text(json.dumps({"protocol": protocol, "arms": arms}))
    return make_page(run)


@pytest.fixture(scope="module")
def page_of_several(folder):
    runs = []
    for name in ("one", "two"):
        rows = [trajectory(s, m, probe=m == 3) for s in (1, 11) for m in range(4)]
        run = write_run(folder, rows, name, lr=len(name))
        stored = scored(LOW, arm(0.94, 1.0, 0.02), arm(0.43))
        (run / "eval.json").write_text(json.dumps(stored))
        runs.append(run)
    return make_page(runs)


# What sticks out of the screen, except inside a box that scrolls by itself
WIDER = """(() => {
  document.querySelectorAll("details").forEach((element) => { element.open = true; });
  const inside = (e) => e.parentElement?.closest(".scroll, .members, details:not([open])");
  const wide = [...document.body.querySelectorAll("*")].filter((e) => !inside(e)
    && (e.getBoundingClientRect().right > innerWidth + 0.5 || e.getBoundingClientRect().left < -0.5));
  return [innerWidth, document.documentElement.scrollWidth, wide.map((e) => e.outerHTML.slice(0, 90))];
})()"""


def assert_fits(browser, page, width, dark) -> Tab:  # noqa: F811
    """No element wider than the screen, no request, nothing on the console, no slab of white in the dark."""
    tab = Tab(browser, page, width, dark)
    inner, whole, wide = tab.ask(WIDER)
    assert inner == width and whole <= width and wide == []
    image = Image.open(io.BytesIO(tab.page.screenshot(full_page=True)))
    assert image.width == width
    blocks = image.convert("L").reduce(24)  # each pixel now is the mean of 24 x 24
    brightest = max(blocks.tobytes())
    assert brightest < 190 if dark else brightest > 240
    assert tab.requests == [] and tab.problems == []
    return tab


@pytest.mark.parametrize("width, dark", SIZES)
def test_the_page_of_a_run(browser, page, width, dark):  # noqa: F811
    tab = assert_fits(browser, page, width, dark)
    text = tab.ask("document.body.innerText").replace(NBSP, " ")
    assert "It learned to zoom: accuracy 42 → 94 % (92 to 96), tool_rate 0 → 100 %," in text
    assert "tool_rate: fraction of trajectories that zoomed" in text
    order = [
        "It learned to zoom",
        "One question",
        "While it trained",
        "Its boxes",
        "Health\n",
        "Scores\n",
    ]
    order += ["Groups, newest first", "step 31", "step 1\n"]
    places = [text.index(order[0])]
    for words in order[1:]:
        places.append(text.index(words, places[-1] + 1))
    assert places == sorted(places)
    # Curves: in the page's own colours, and legible
    curves = tab.ask("""[...document.querySelectorAll(".curve")].map((e) => ({
      wide: e.querySelector("svg").clientWidth, high: e.querySelector("svg").clientHeight,
      stroke: getComputedStyle(e.querySelector(".thick")).stroke, own: getComputedStyle(e).color,
      font: Math.min(
        ...[...e.querySelectorAll("span, b")].map((t) => parseFloat(getComputedStyle(t).fontSize))
      ),
    }))""")
    assert len(curves) == 3
    for curve in curves:
        assert curve["wide"] >= 280 and curve["high"] >= 80 and curve["font"] >= 12
        assert curve["stroke"] == curve["own"]


FIRST_AND_LAST = """[...document.querySelectorAll("#probe-view .end")].map((e) => ({
  text: e.innerText, look: e.querySelectorAll(".look img[src^=data]").length,
  boxes: e.querySelectorAll(".look svg text").length, crops: e.querySelectorAll(".crops img").length,
  left: e.getBoundingClientRect().left, top: e.getBoundingClientRect().top,
}))"""


@pytest.mark.parametrize("width", [1440, 390])
def test_one_question_first_and_last_and_what_lies_between(browser, page, width):  # noqa: F811
    tab = Tab(browser, page, width)
    assert tab.ask("byId('probe').selectedOptions[0].text") == "What letter is on the red tile?"
    first, last = tab.ask(FIRST_AND_LAST)
    assert first["top"] == last["top"] and first["left"] < last["left"]  # side by side
    assert "first step 1" in first["text"] and "wrong: X (gold: A)" in first["text"]
    assert "last step 31" in last["text"] and "correct: A (gold: A)" in last["text"]
    assert (first["look"], first["boxes"], first["crops"]) == (1, 0, 0) and "no zoom" in first["text"]
    assert (last["look"], last["boxes"], last["crops"]) == (1, 1, 1)
    if width == 1440:  # with no scrolling
        assert tab.ask("byId('probe-view').getBoundingClientRect().bottom") < 900
    # Play begins anew, runs through the steps and stops; a second press pauses
    watch = """new Promise((done) => {
      const seen = [], step = byId("probe-step");
      new MutationObserver(() => seen.push(step.textContent)).observe(step, { childList: true });
      const usual = setInterval;
      setInterval = (what, time) => usual(what, 30);
      byId("play").click();
      const wait = (left) => setTimeout(() => {
        const label = byId("play").textContent;
        if (!label.includes("Play") && left) return wait(left - 1);
        setInterval = usual;
        done([seen, label]);
      }, 100);
      wait(100);
    })"""
    seen, label = tab.ask(watch)
    assert seen == ["1", "11", "21", "31"] and "Play" in label
    press = "byId('play').click(); "
    state = "[byId('probe-step').textContent, byId('play').textContent]"
    step, label = tab.ask(press + state)
    assert step == "1" and "Pause" in label
    step, label = tab.ask(press + state)
    assert step == "1" and "Play" in label
    slide = "byId('when').value = 2; byId('when').dispatchEvent(new Event('input')); "
    assert tab.ask(slide + state)[0] == "21"
    choose = "byId('probe').value = 'other'; byId('probe').dispatchEvent(new Event('input'));"
    first, last = tab.ask(choose + FIRST_AND_LAST)
    assert "correct: A" in first["text"] and last["crops"] == 1
    assert tab.problems == []


def test_a_run_that_is_new_and_unwell_says_so_in_a_word(browser, folder):  # noqa: F811
    run = write_run(folder, [trajectory(1, 0, probe=True)], "unwell")
    (run / "args.json").write_text(json.dumps(ARGS))
    rows = [json.loads(line) | {"tool_rate": 0.0} for line in (run / "metrics.jsonl").open()]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tab = Tab(browser, make_page(run), 390)
    health = tab.ask("document.querySelector('#health').innerText")
    assert "Unwell: collapse (steps 1 to 12)" in health and "--group" not in health  # folded
    assert "raise --group" in tab.ask("document.querySelector('#health').textContent")
    title = tab.ask("document.querySelector('h1').innerText")
    assert title.startswith("Still training, and it does not zoom: 12 of 40 steps")
    # One stored step is shown alone, and has nothing to run through
    assert len(tab.ask(FIRST_AND_LAST)) == 1 and tab.ask("byId('through').hidden")
    assert tab.problems == []


def test_a_run_of_no_steps(browser, folder):  # noqa: F811
    run = folder / "new"
    run.mkdir()
    (run / "args.json").write_text(json.dumps(ARGS))
    tab = Tab(browser, make_page(run), 390, dark=True)
    assert "Nothing to tell yet: no step is done" in tab.ask("document.body.innerText")
    assert tab.problems == []


@pytest.mark.parametrize("width, dark", [(1440, True), (390, True), (390, False)])
def test_the_page_of_scores(browser, page_of_scores, width, dark):  # noqa: F811
    """Nothing of training; the sentence says what the arms say."""
    tab = assert_fits(browser, page_of_scores, width, dark)
    text = tab.ask("document.body.innerText").replace(NBSP, " ")
    assert "The zoom helps: accuracy 94 % (92 to 96) with the zoom, 45 % without" in text
    assert "qwen on toy. Scored on 500 questions" in text and "secret" not in text
    assert "every crop blank" in text and "0.920 to 0.960" in text  # what an arm is; its interval
    for absent in ("While it trained", "One question", "Its boxes", "Health", "newest first"):
        assert absent not in text


@pytest.mark.parametrize("width, dark", [(1440, True), (390, True)])
def test_the_page_of_several_runs(browser, page_of_several, width, dark):  # noqa: F811
    tab = assert_fits(browser, page_of_several, width, dark)
    text = tab.ask("document.body.innerText").replace(NBSP, " ")
    assert text.count("It learned to zoom: accuracy 42 → 94 %") == 2  # one sentence a run
    assert "one: Well" in text and "two: Well" in text and "of one" in text
