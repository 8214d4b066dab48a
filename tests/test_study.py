"""The table of several seeds against means by hand, and the study: claims judged on planted answers."""

import json
import random
import re
import shutil
import tomllib
from itertools import permutations

import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from scripts import run_script

import study.bases
import study.readme
import study.runs
from config import TrainConfig, as_now, parse
from evaluation.stats import holm, permutation_p
from model import load_model
from safe.files import read_rows
from study import verdicts
from study.arms import ARMS, BASES, PER_SIZE, PLAIN, QUESTIONS, SIZES, Arm, ask, of_size
from study.figures import draw_claims
from study.page import write_page
from study.runs import CURVE_DATA
from study.seeds import table
from study.stored import BASES_ASKED, BEFORE, Stored, by_base
from study.verdicts import FORCED, MIXED, SAMPLED, Finding
from toy import lessons

ON = f"{PLAIN} | on"


def answers(seed: int) -> list[dict]:
    """A run: of four `read` questions one is answered correctly before, two when forced, `seed + 2` after."""
    rows = []
    for when, arm, correct in (
        ("before", "on", 1),
        ("before", "forced", 2),
        ("after", "on", seed + 2),
        ("after", "swap", 0),
        ("after", "forced", seed + 2),
    ):
        for i in range(4):
            row = {"when": when, "arm": arm, "kind": "read", "id": str(i), "right": i < correct}
            row |= {"boxes": [[0, 0, 9, 9]] if when == "after" else [], "iou": None}
            row |= {"holds": True, "says_shown": i > 0 if arm == "swap" else None}
            if arm == "forced":
                row["iou"] = 0.25 * (seed + 1)
            rows.append(row)
    return rows


def cells(text: str, label: str) -> list[str]:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    (found,) = [others for first, *others in rows if first == label]
    return found


def test_the_table_is_the_mean_by_hand():
    text = table([answers(0), answers(1)], ["a", "b"])
    before, forced, first, second, mean = cells(text, "accuracy on `read`")
    assert (before, forced, first, second) == ("0.25", "0.50", "0.50", "0.75")
    low, high = map(float, re.fullmatch(r"0\.62 \((.*) to (.*)\)", mean).groups())
    assert low < 0.5 and high > 0.75  # runs and questions both are few
    assert cells(text, "`tool_rate` on `read`")[0] == "0.00"
    assert cells(text, "`tool_rate` on `read`")[2:4] == ["1.00", "1.00"]
    assert cells(text, "forced zooms on `read`: IoU with the tile")[2:4] == ["0.25", "0.50"]
    shown = cells(text, "another tile's crop instead: says that tile's letter")
    assert shown[2:] == ["0.75", "0.75", "0.75 (0.25 to 1.00)"]
    assert cells(text, "accuracy on `glance`") == ["-"] * 5  # not asked
    other = [row | {"id": f"other {row['id']}"} for row in answers(1)]
    assert cells(table([answers(0), other], ["a", "b"]), "accuracy on `read`")[-1] == "-"  # other questions


def test_the_command(tmp_path):
    for seed in (0, 1):
        (tmp_path / f"{seed}").mkdir()
        lines = [json.dumps(row) + "\n" for row in answers(seed)]
        (tmp_path / f"{seed}" / "answers.jsonl").write_text("".join(lines))
    done = run_script("-m", "study", tmp_path / "0", tmp_path / "1")
    assert done.returncode == 0 and done.stdout.strip() == table([answers(0), answers(1)], ["0", "1"])


@pytest.mark.parametrize("argv", [["/nowhere"], ["--nonsense"]])
def test_a_folder_that_is_no_run_is_one_line(argv, here):
    done = here("study/__main__.py", *argv)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr


# --------------------------------------------------------------------------------------------------
# The study: claims, judged on answers that are planted here.

KINDS = "rrrrccgl" * 10


def line(arm: str, seed: int = 0, asked=(), right=1.0, zooms=1.0, box=(0, 0, 90, 90), **more) -> dict:
    """A stored run in which these fractions of the questions are correct, and zoomed on, with one box."""
    number = len(KINDS)
    answers = {
        "kinds": KINDS,
        "right": "".join(str(int(i < right * number)) for i in range(number)),
    }
    answers["crops"] = "".join(str(int(i < zooms * number)) for i in range(number))
    answers["first"] = [[list(box), [100, 100, 200, 200]]] * number
    return {
        "arm": arm,
        "seed": seed,
        "seconds": 60,
        "asked": dict.fromkeys(asked, answers),
    } | more


def word(lines: list[dict], claim: str) -> str:
    finding = verdicts.Finding("", "", "", "in words")
    table = tomllib.loads(verdicts.CLAIMS.read_text(encoding="utf-8"))[claim]
    verdicts.judge(finding, table, Stored(lines))
    return finding.word


@pytest.mark.parametrize("zooms, expected", [(1.0, "refuted"), (0.05, "supported"), (0.5, "undecided")])
def test_without_a_bonus(zooms, expected):
    lines = [line("no bonus", seed, [ON], zooms=zooms) for seed in range(5)]
    assert word(lines, "without_bonus") == expected


@pytest.mark.parametrize(
    "bonus, none, expected",
    [(0.9, 0.5, "supported"), (0.5, 0.9, "refuted"), (0.9, 0.9, "refuted")],
)
def test_the_bonus_helps_only_if_the_interval_says_so(bonus, none, expected):
    lines = [line("bonus", seed, [ON], right=bonus) for seed in range(5)]
    lines += [line("no bonus", seed, [ON], right=none) for seed in range(5)]
    assert word(lines, "bonus_helps") == expected


def test_boxes_that_are_merely_smaller_are_no_better_aim():
    """The control: boxes with the base's centres at the size of those after training."""
    wide = line("base", 0, [FORCED], box=(0, 0, 300, 300))
    grey = [line("bonus, blank", seed, [FORCED], box=(0, 0, 300, 300)) for seed in range(3)]
    shrunk = [line("bonus", seed, [FORCED], box=(100, 100, 200, 200)) for seed in range(3)]
    assert word([wide, *grey, *shrunk], "aims_better") == "refuted"
    off = line("base", 0, [FORCED], box=(300, 300, 600, 600))
    assert word([off, *grey, *shrunk], "aims_better") == "supported"


def test_a_price_must_hold_in_every_seed():
    """In the planted answers the kinds are mixed evenly: zooms on all of them, `glance` too."""
    sizes = [f"{of_size(size)} | on" for size in (36, 210)]
    asked = [MIXED, *sizes]
    lines = [line("base")] + [line(arm, s, asked) for arm in ("paid", "priced") for s in range(2)]
    assert word(lines, "price_teaches_restraint") == "refuted"

    def selective(answers: dict) -> dict:
        crops = "".join("1" if kind in "rc" else "0" for kind in KINDS)
        return answers | {"crops": crops}

    for each in lines[3:]:
        each["asked"][MIXED] = selective(each["asked"][MIXED])
        each["asked"][sizes[1]] = each["asked"][sizes[1]] | {"crops": "0" * len(KINDS)}
    assert word(lines, "price_teaches_restraint") == "supported"
    lines[-1]["asked"][MIXED] = lines[-1]["asked"][MIXED] | {"right": "0" * len(KINDS)}
    assert word(lines, "price_teaches_restraint") == "refuted"


def zooming_on(kinds: str, arm: str, seeds: int) -> list[dict]:
    """Runs that zoom on these kinds alone, by their first letters, and are right on all."""
    lines = [line(arm, seed, [MIXED]) for seed in range(seeds)]
    crops = "".join("1" if kind in kinds else "0" for kind in KINDS)
    for each in lines:
        each["asked"][MIXED] = each["asked"][MIXED] | {"crops": crops}
    return lines


@pytest.mark.parametrize(
    "dearest, expected",
    [("rc", "supported"), ("r", "refuted"), ("rcg", "refuted"), ("", "refuted")],
)
def test_a_price_has_room_only_if_all_hold(dearest, expected):
    lines = zooming_on("rc", "priced, 0.02", 3) + zooming_on("rc", "priced, 0.1", 3)
    lines += zooming_on("rc", "priced, 0.2", 2) + [
        zooming_on(dearest, "priced, 0.2", 3)[-1]  # one seed of three
    ]
    assert word(lines, "price_has_room") == expected


@pytest.mark.parametrize(
    "paid, unpaid, expected",
    [
        (1.0, 0.05, "supported"),
        (1.0, 0.5, "undecided"),
        (1.0, 1.0, "refuted"),
        (0.5, 0.05, "refuted"),
    ],
)
def test_a_base_that_hardly_calls(paid, unpaid, expected):
    lines = [line("base", 0, [SAMPLED]), line("shy base", 0, [SAMPLED])]
    for seed in range(3):
        lines.append(line("shy", seed, [ON], zooms=paid))
        lines.append(line("shy, no bonus", seed, [ON], zooms=unpaid))
    assert word(lines, "bonus_brings_calls") == expected
    priced = zooming_on("rc" if paid == 1 else "r", "shy, priced", 3)
    held = word(lines[:2] + priced, "price_suits_a_shy_base")
    assert held == ("supported" if paid == 1 else "refuted")
    later = zooming_on("rc" if paid == 1 else "rg", "shy, priced later", 3)
    for each in later:
        each["metrics"] = {"tool_rate_glance": [0.5] * 160}
    held = word(later, "later_price_suits_a_shy_base")
    assert held == ("supported" if paid == 1 else "refuted")


@pytest.mark.parametrize("seeds, expected", [(3, "undecided"), (4, "refuted")])
def test_one_seed_may_fail_of_four_and_none_of_three(seeds, expected):
    lines = [line("no bonus", seed, [ON], zooms=1.0 if seed else 0.5) for seed in range(seeds)]
    assert word(lines, "without_bonus") == expected


@pytest.mark.parametrize("unpriced, expected", [("rc", "refuted"), ("rcg", "supported")])
def test_the_price_is_needed_only_if_it_zooms_without_it(unpriced, expected):
    lines = zooming_on("rc", "priced", 3) + zooming_on(unpriced, "unpriced", 3)
    for each in lines:
        each["metrics"] = {"tool_rate_glance": [0.5] * 120}
    assert word(lines, "price_is_needed") == expected


def test_a_claim_without_answers_is_not_supported():
    lines = [line("shy, priced", 0, [])]
    bases = [line(name, 0, [SAMPLED]) for name in ("base", "shy base")]
    assert word([*bases, *lines], "price_suits_a_shy_base") == "refuted"


@pytest.mark.parametrize(
    "old, new, named",
    [
        ('supported = ["most after <= 0.1"]', 'suported = ["most after <= 0.1"]', "suported"),
        ('supported = ["most after <= 0.1"]', 'supported = ["most afer <= 0.1"]', "afer"),
        ('arm = "no bonus", of = "zooms read"}]', 'arm = "no bonos", of = "zooms read"}]', "no bonos"),
        ('arm = "no bonus", of = "zooms read"}]', 'arm = "no bonus", of = "zoms read"}]', "zoms"),
        ('arm = "no bonus", of = "zooms read"}]', 'arm = "no bonus", off = "zooms read"}]', "off"),
        ('gains = {gained = ["after", "before"]}', 'gains = {gained = ["after", "befor"]}', "befor"),
        ('rows = [{label = "`tool_rate` on `read`"', 'row = [{label = "`tool_rate` on `read`"', "row"),
        ('of = "zooms read"}]', 'of = "zooms reed"}]', "reed"),
        ('of = "centred read @ toy forced"', 'of = "centred read @ toyy forced"', "toyy forced"),
        ('of = "centred read @ toy forced"', 'of = "centred read @ toy swap"', "toy swap"),
        ('of = "metric tool_rate @ last 10"', 'of = "metric tool_rat @ last 10"', "tool_rat"),
        ('supported = ["most after <= 0.1"]', 'supported = ["mst after <= 0.1"]', "mst"),
        ('supported = ["most after <= 0.1"]', 'supported = ["most after =< 0.1"]', "=<"),
        ('pays = ["priced"]', 'pays = ["prized"]', "prized"),
        ('difference = ["selected", "unfiltered"]', 'difference = ["selected", "unfilterd"]', "unfilterd"),
    ],
)
def test_a_misspelt_name_is_an_error_without_any_run(tmp_path, monkeypatch, old, new, named):
    """It must not become a claim that was not tested, or a verdict by what is left."""
    claims = tmp_path / "claims.toml"
    text = verdicts.CLAIMS.read_text()
    assert old in text
    claims.write_text(text.replace(old, new, 1))
    monkeypatch.setattr(verdicts, "CLAIMS", claims)
    with pytest.raises(ValueError, match=rf"claims.toml, \[\w+\].*{named}"):
        verdicts.findings({})


@pytest.mark.parametrize(
    "values, expected", [([0.9, 0.5, 1.0], 0.5), ([0.9, 0.5, 1.0, 1.0], 0.9), ([], None)]
)
def test_most_is_all_seeds_but_one(values, expected):
    assert verdicts.folded("most", verdicts.Row(values), ">=") == expected
    mirrored = verdicts.Row([-value for value in values])
    assert verdicts.folded("most", mirrored, "<=") == (None if expected is None else -expected)


@pytest.mark.parametrize("arm", [arm for arm in ARMS if "priced" in arm.name.replace("unpriced", "")])
def test_a_priced_arm_has_the_flags_of_its_stored_runs(arm):
    """These were made with --bonus priced, and --call_price where it was not 0.05."""
    config, _ = parse(TrainConfig, arm.flags.format(folder="runs").split(), "")
    price = float(arm.name.partition(", ")[2]) if arm.name[-1].isdigit() else 0.05
    for name, value in as_now({"bonus": "priced", "call_price": price}).items():
        assert getattr(config, name) == value


def test_an_unknown_arm_is_named_before_any_run(tmp_path, capsys):
    with pytest.raises(SystemExit):
        study.runs.do_all(tmp_path / "runs", tmp_path / "study.jsonl", 1, ["shy", "prised"])
    assert "'prised'" in capsys.readouterr().err and not (tmp_path / "runs").exists()


def test_the_page_is_made_from_stored_scores_alone(tmp_path):
    """By the command, from a file in which claims have all, some or none of their runs."""
    metrics = {
        "tool_rate": [0.5] * 40,
        "tool_rate_read": [0.9] * 40,
        "accuracy_read": [0.5] * 40,
    }
    metrics["calls"] = [0.4] * 5 + [2.0] * 10 + [1.2] * 25
    lines = [line("base", 0, [ON, FORCED, SAMPLED, *(f"{of_size(s)} | on" for s in SIZES)], zooms=0)]
    lines[0]["skills"] = {"read": 0.9}
    for arm in ("no bonus", "bonus, blank", "no bonus, blank", "no bonus, 3136"):
        lines += [line(arm, seed, [ON, FORCED], metrics=metrics) for seed in range(3)]
    stored = tmp_path / "study.jsonl"
    stored.write_text("".join(json.dumps(each) + "\n" for each in lines))
    done = run_script("-m", "study", "--stored", stored)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "study.md").read_text()
    assert done.stdout.strip() == str(tmp_path / "study.md")
    assert "Without the tool bonus the model stops calling the tool | Table 5 | **refuted** | - |" in text
    assert "**not run**" in text and "**not tested**" in text and "1.00, 1.00, 1.00 | 1.000" in text
    assert "nan" not in text and "None" not in text
    drawn = re.findall(r"!\[.*\]\(([^)]+)\)", text)
    assert "study.png" in drawn and all((tmp_path / name).stat().st_size for name in drawn)
    written = (tmp_path / "study.md").read_bytes()
    run_script("-m", "study", "--stored", stored)
    assert (tmp_path / "study.md").read_bytes() == written


def test_a_row_without_values_is_drawn_as_none(tmp_path):
    """And so is one that counts steps."""
    rows = [("fraction", [0.5]), ("no values", []), ("steps", [7.0])]
    finding = Finding("a claim", "ours", "", word="refuted", dots=rows)
    draw_claims([finding], tmp_path / "study.png")
    assert (tmp_path / "study.png").stat().st_size > 0


def test_the_page_in_docs_is_that_of_the_stored_scores(tmp_path):
    stored = tmp_path / "study.jsonl"
    shutil.copy(ROOT / "docs" / "study.jsonl", stored)
    page = write_page(read_rows(stored), tmp_path)
    assert page.read_text() == (ROOT / "docs" / "study.md").read_text()


@pytest.mark.slow
def test_runs_are_done_once_and_asked(tmp_path, monkeypatch):
    """The real commands on the toy: two short runs, and one more seed when it is called again."""
    arms = [Arm("bonus", "--prompts 2 --group 4", 2, ask("on sampled", "toy"), seeds=2)]
    monkeypatch.setattr(study.runs, "ARMS", arms)
    monkeypatch.setattr(study.runs, "BASES", {"base": ask("forced", "toy")})
    monkeypatch.setattr(study.runs, "QUESTIONS", 6)
    monkeypatch.setattr(study.runs, "measure_skills", lambda model, processor: {"read": 0.5})
    stored = tmp_path / "study.jsonl"
    study.runs.do_all(tmp_path / "runs", stored, 1, [])
    study.runs.do_all(tmp_path / "runs", stored, 2, [])
    base, first, second = map(json.loads, stored.read_text().splitlines())
    assert (base["arm"], first["seed"], second["seed"]) == ("base", 0, 1)
    assert {line["base"] for line in (base, first, second)} == {"base 0"}
    assert len(first["metrics"]["tool_rate"]) == 2
    answers = first["asked"]["toy | on"]
    assert len(answers["kinds"]) == len(answers["right"]) == len(answers["crops"]) == 6
    forced = base["asked"]["toy | forced"]
    assert [bool(box) for box in forced["first"]] == [crops > "0" for crops in forced["crops"]]
    assert any(forced["first"]) and first["asked"]["toy | on"].keys() == {
        "kinds",
        "right",
        "crops",
    }


def test_a_claim_is_judged_by_one_base_and_its_word_on_others_stands_beside():
    """Runs from two bases are never mixed, and the older ones count where newer ones are missing."""
    zooms = {"base 0": 1.0, "base 1": 0.05, None: 0.5}
    lines = []
    for base, rate in zooms.items():
        more = {"base": base} if base else {}
        lines += [line("no bonus", seed, [ON], zooms=rate, **more) for seed in range(5)]
    by_claim = {finding.claim: finding for finding in verdicts.findings(by_base(lines))}
    found = by_claim["Without the tool bonus the model stops calling the tool"]
    assert (found.base, found.word) == ("base 0", "refuted")
    assert found.others == [("base 1", "supported"), (BEFORE, "undecided")]
    assert by_claim["Zooming emerges from outcome reward alone, without a demonstration"].word == "not run"
    lines = [each for each in lines if each.get("base") != "base 0" or each["seed"] > 4]
    (found,) = [f for f in verdicts.findings(by_base(lines)) if f.claim == found.claim]
    assert (found.base, found.word) == ("base 1", "supported")


@pytest.mark.parametrize("second, mean, holds_nothing", [(0.5, 0.4, False), (0.9, 0.2, True)])
def test_an_interval_over_both_bases_is_wide_where_they_differ(second, mean, holds_nothing):
    """Base 0: 0.9 with the bonus and 0.5 without, in every seed. The base before has no part in it."""
    lines = []
    for base, without in {"base 0": 0.5, "base 1": second, BEFORE: 0.1}.items():
        for seed in range(3):
            lines.append(line("bonus", seed, [ON], right=0.9, base=base))
            lines.append(line("no bonus", seed, [ON], right=without, base=base))
    name = "The conditional bonus makes a better model than none"
    found = {finding.claim: finding for finding in verdicts.findings(by_base(lines))}[name]
    text = re.fullmatch(r"difference ([+-].*) \(([+-].*) to ([+-].*)\)", found.both)
    middle, low, high = map(float, text.groups())
    assert middle == pytest.approx(mean) and (low <= 0 < high) == holds_nothing
    alone = [each for each in lines if each["base"] != "base 1"]
    assert not {f.claim: f for f in verdicts.findings(by_base(alone))}[name].both


def test_a_run_that_two_hands_wrote_is_not_kept(tmp_path, capsys):
    rows = [{"step": step, "calls": 1.0} for step in (1, 1, 2, 2)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(SystemExit):
        study.runs.kept_metrics(tmp_path)
    assert "every step once" in capsys.readouterr().err


def test_the_stored_scores_are_whole():
    """Every run once, of an arm that exists, with a value for each of its steps."""
    lines = read_rows(ROOT / "docs" / "study.jsonl")
    keys = [(line.get("base", BEFORE), line["arm"], line["seed"]) for line in lines]
    assert {base for base, _, _ in keys} <= set(BASES_ASKED)
    assert len(keys) == len(set(keys))
    arms = {arm.name: arm for arm in ARMS}
    for line in lines:
        for asked, answers in line["asked"].items():
            number = PER_SIZE if asked.split(" | ")[0] in CURVE_DATA else QUESTIONS
            for key in ("kinds", "right", "crops"):
                assert len(answers[key]) == number, (line["arm"], asked)
        if line["arm"] in BASES:
            wanted = {f"{data} | {way}" for data, way in BASES[line["arm"]]}
            assert set(line["asked"]) == wanted, line["arm"]
            continue
        arm = arms[line["arm"]]
        assert line["steps"] == arm.steps and line["seed"] < arm.seeds, line["arm"]
        assert {len(values) for values in line["metrics"].values()} == {arm.steps}, line["arm"]
        assert set(line["asked"]) == {f"{data} | {way}" for data, way in arm.asked}, line["arm"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 20), min_size=4, max_size=7))
def test_the_exact_p_against_every_order(values):
    """The slow path: all orders of the runs, not only the ways to choose a half of them."""
    half = len(values) // 2

    def apart(order) -> float:
        return abs(sum(order[:half]) / half - sum(order[half:]) / (len(order) - half))

    orders = list(permutations(values))
    slow = sum(apart(order) >= apart(values) - 1e-9 for order in orders) / len(orders)
    p, floor = permutation_p(values[:half], values[half:])
    assert p == pytest.approx(slow) and floor <= p <= 1


def test_holm_against_the_textbook():
    """Holm 1979: sort, multiply by what is left, never fall."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@pytest.mark.slow
def test_a_cold_base_is_made_and_calls_anywhere(tmp_path, monkeypatch):
    """A step of it, from the base's last lessons; made once."""
    usual = lessons.loose_box
    folder = study.bases.make_cold_base(tmp_path / "cold", steps=1)
    assert lessons.loose_box is usual
    model, _ = load_model(str(folder))
    base, _ = load_model("tiny")
    moved = [(one - other).abs().max().item() for one, other in zip(model.parameters(), base.parameters())]
    assert 0 < max(moved) < 0.1
    assert study.bases.make_cold_base(tmp_path / "cold", steps=10**9) == folder
    rng = random.Random(0)
    boxes = [study.bases.box_anywhere(rng, None) for _ in range(200)]
    assert min(box[0] for box in boxes) < 10 and max(box[2] for box in boxes) > 100
    assert all(0 <= x1 < x2 <= 112 and 0 <= y1 < y2 <= 112 for x1, y1, x2, y2 in boxes)


@pytest.mark.slow
def test_a_shy_base_sees_lighter_calls(tmp_path):
    """One step with calls of an eighth of the weight is another step than one with the usual weight."""
    usual = lessons.CALL
    study.bases.make_shy_base(tmp_path / "shy", steps=1)
    assert usual == lessons.CALL
    study.bases.teach(tmp_path / "usual", 1, "CALL", usual)
    shy, _ = load_model(str(tmp_path / "shy"))
    same, _ = load_model(str(tmp_path / "usual"))
    pairs = zip(shy.parameters(), same.parameters())
    assert any((one - other).abs().max() > 1e-6 for one, other in pairs)


# --------------------------------------------------------------------------------------------------
# The README's figures.


def whole_run(seed: int) -> list[dict]:
    """A run of which every arm of the README's table has been asked."""
    rows = answers(seed)
    for row in answers(seed)[:4]:
        for arm in study.readme.CONTROLS.values():
            rows.append(row | {"when": "after", "arm": arm})
        for kind in ("compare", "glance"):
            for when in ("before", "after"):
                rows.append(row | {"when": when, "kind": kind, "id": f"{kind} {row['id']}"})
                rows.append(row | {"when": when, "kind": kind, "id": f"{kind} {row['id']}", "arm": "forced"})
    return rows


def test_the_readmes_table_is_the_mean_by_hand_with_its_lowest_seed():
    text = study.readme.short_table([whole_run(0), whole_run(1)])
    assert "mean of 2 seeds" in text.splitlines()[0]
    before, forced, mean, lowest = cells(text, "`read`")
    assert (before, forced, mean.split()[0], lowest) == ("0.25", "0.50", "0.62", "0.50")
    iou = cells(text, "IoU with its tile (`read`)")
    assert iou[:2] == ["0.25", ""] and iou[3] == "0.25"
    assert "blank crops 0.25, random crops 0.25, no tool 0.25, perfect crops 0.25." in text


def test_a_block_between_marks_is_replaced_and_nothing_else(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("above\n<!-- one -->\nold \\1\n<!-- end -->\nbetween\n<!-- two -->\n<!-- end -->\n")
    study.readme.put(page, "one", "| new \\g<0> |")
    study.readme.put(page, "one", "| new \\g<0> |")
    text = "above\n<!-- one -->\n| new \\g<0> |\n<!-- end -->\nbetween\n<!-- two -->\n<!-- end -->\n"
    assert page.read_text() == text
    with pytest.raises(ValueError, match="no marks <!-- three -->"):
        study.readme.put(page, "three", "")


def test_the_pages_have_the_marks():
    for name, file in (("results", "README.md"), ("table", "docs/results.md")):
        text = (ROOT / file).read_text()
        assert text.count(f"<!-- {name} -->") == 1 and "<!-- end -->" in text.split(f"<!-- {name} -->")[1]
