"""Benchmarks in their public layouts, scored as by hand; arms, statistics, resuming, the page."""

import base64
import csv
import io
import json
import math
import os
import re
import signal
import time
import weakref
from dataclasses import replace

import datasets
import pytest
from conftest import both_families, call
from datasets import Dataset, Features, Sequence, Value
from PIL import Image
from scripts import Script, run_script

import eval
import rollout as rollouts
import tools
from benchmarks import BENCHMARKS, IMAGE_COLUMNS, grade, load_benchmark
from benchmarks.grounding import GROUNDING
from benchmarks.record import lettered_options
from config import ARMS, Limits, rollout_limits
from data import Sample, load
from engine.slots import SlotEngine
from eval import (
    by_halves,
    load_questions,
    make_result,
    pick_samples,
    read_config,
    result_text,
    shuffle_options,
)
from evaluation.scores import (
    answer_records,
    compare_arms,
    make_record,
    mcnemar,
    shows_all,
    summarise,
    summarise_by_kind,
    wilson,
)
from grading.answers import find_answer, last_number, letters
from grading.boxes import answer_box
from model import load_model
from rollout import Trajectory, ZoomEnv, rollout

PICTURE = Image.new("RGB", (400, 200), (90, 120, 30))


def png(image=PICTURE) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


CODED = base64.b64encode(png()).decode()


def table(folder, name: str, rows: list[dict], **kinds):
    """A parquet file; kinds: columns whose type is not told by their values, images for instance."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    plain = Dataset.from_list([{k: v for k, v in row.items() if k not in kinds} for row in rows]).features
    Dataset.from_list(rows, Features({**plain, **kinds})).to_parquet(str(folder / name))


IMAGE = datasets.Image()


def reply(sample: Sample, answer: str | None, look=(392, 196)) -> Trajectory:
    """A finished trajectory of a policy that says this; look: the size at which the image was shown."""
    text = "" if answer is None else f"<think>The answer is A.</think><answer>{answer}</answer>"
    if not sample.tool and answer is not None:
        text = f"<think>Is it A? 17?</think> \\boxed{{{answer}}}"
    found = find_answer(text, boxed=not sample.tool)
    return Trajectory(
        sample,
        [1],
        [2],
        [1],
        [0.0],
        [Image.new("RGB", look)],
        [text],
        answer=found,
        stop="answer",
    )


def record(name: str, trajectory: Trajectory, arm: str, repeat: int = 0, judge=None) -> dict:
    return make_record(trajectory, grade(name, trajectory, judge), arm, repeat)


def score(name: str, samples, answers) -> dict:
    """eval.json of a policy that gives these answers."""
    records = [record(name, reply(s, a), "off") for s, a in zip(samples, answers, strict=True)]
    return make_result(name, json.loads(json.dumps(records)), {"repeats": 1})


def accuracy(result) -> float:
    return result["arms"]["off"]["all"]["accuracy"]


def letter(sample: Sample) -> str:
    return chr(65 + sample.options.index(sample.answer))


# What may be said for the right option of a multiple-choice question, and what may not
RIGHT = [
    letter,
    lambda s: letter(s).lower(),
    lambda s: f"({letter(s)})",
    lambda s: f"{letter(s)}. {s.answer}",
    lambda s: f"The answer is {letter(s)}",
    lambda s: f"**{letter(s)}**",
    lambda s: s.answer,
]
WRONG = [
    lambda s: None,
    lambda s: " ",
    lambda s: " or ".join(s.options),
    lambda s: chr(65 + (s.options.index(s.answer) + 1) % len(s.options)),
    lambda s: "none of them",
]


def make_vstar(folder):
    for i in range(12):
        category = "direct_attributes" if i < 8 else "relative_position"
        colours = (
            ["red", "green", "blue", "yellow"]
            if i < 8
            else ["It is left of the cup.", "It is right of the cup."]
        )
        (folder / category).mkdir(exist_ok=True, parents=True)
        PICTURE.save(folder / category / f"sa_{i}.jpg")
        row = {
            "target_object": ["cup"],
            "bbox": [[10, 20, 30, 40]],
            "question": "What colour is the cup?",
        }
        (folder / category / f"sa_{i}.json").write_text(json.dumps(row | {"options": colours}))


def make_hrbench(folder, size="4k"):
    rows = []
    for instance in range(4):
        options = ["red", "green", "blue", "black"]
        for cycle in range(4):
            turned = options[cycle:] + options[:cycle]
            row = dict(zip("ABCD", turned)) | {
                "answer": "ABCD"[turned.index("red")],
                "image": CODED,
            }
            row |= {"index": len(rows), "question": f"Which colour has bag {instance}?"}
            rows.append(
                row
                | {
                    "category": "single" if instance < 2 else "cross",
                    "cycle_category": str(cycle),
                }
            )
    table(folder, f"hr_bench_{size}.parquet", rows)


def make_mme(folder):
    options = [
        "(A) one",
        "(B) two",
        "(C) three",
        "(D) four",
        "(E) The image does not feature it.",
    ]
    rows = []
    for i in range(12):
        row = {
            "index": i,
            "bytes": CODED,
            "question": "How many?",
            "multi-choice options": options,
        }
        category = ["Perception/OCR with Complex Context", "Reasoning/Monitoring"][i % 2]
        rows.append(row | {"answer": "ABCDE"[i % 5], "category": category, "l2-category": "x"})
    table(folder, "data/train-00000-of-00001.parquet", rows)


TREEBENCH = (  # category, the text's ending, what holds the options
    ("Perception/Attributes", "", {"A": "red", "B": "None", "C": "blue", "D": "black"}),
    ("Reasoning/Ordering", "", {"multi-choice options": "A. red\nB. green\nC. blue\nD. black"}),
    ("Perception/OCR", "\nA. red\nB. green\nC. blue\nD. black", {}),
)


def make_treebench(folder):
    """As VLMEvalKit reads the options, as the authors' script does, and as OCR has them."""
    rows = []
    for i in range(12):
        category, ending, options = TREEBENCH[i % 3]
        row = {
            "index": str(i),
            "question": f"Which\tcolour?{ending}",
            "image": CODED,
            "answer": "ABCD"[i % 4],
        }
        row |= dict.fromkeys(("A", "B", "C", "D", "multi-choice options"), "") | options
        rows.append(
            row | {"category": category, "target_instances": "[[10, 20, 110, 120], [200, 20, 300, 90]]"}
        )
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "TreeBench.tsv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)


def make_visualprobe(folder, name="val.json"):
    (folder / "data").mkdir(parents=True)
    rows = []
    for i in range(12):
        (folder / f"data/{i}.jpg").write_bytes(png())
        row = {"images": [f"data/{i}.jpg"], "doc_id": f"hard_{i}", "problem": "<image>\nWhat is on the sign?"}
        rows.append(
            row | {"solution": ["STOP", "12", "a red cup"][i % 3], "data_source": "visual_probe_hard"}
        )
    (folder / name).write_text(json.dumps(rows))


def make_zoombench(folder):
    rows = []
    for i in range(24):
        choices = "Select from the following choices.\n(A) 0\n(B) 2\n(C) 1\n(D) 3"
        query, response, kind = [
            (f"<image>How many lamps are there? {choices}", "ABCD"[i // 2 % 4], "mcq"),
            ("<image>How many lamps are there?", str(i), "blank"),
        ][i % 2]
        row = {"id": str(i), "query": query, "response": response, "question_type": kind}
        rows.append(row | {"bbox": [10, 20, 110, 120], "image": PICTURE, "crop_image": PICTURE})
    table(folder, "data/test.parquet", rows, image=IMAGE, crop_image=IMAGE)


def make_pope(folder):
    rows = []
    for i in range(12):
        row = {"id": str(i), "question_id": str(i), "question": "Is there a cup in the image?"}
        row |= {
            "answer": "yes" if i % 2 else "no",
            "image_source": "COCO_val2014_1",
            "image": PICTURE,
        }
        rows.append(row | {"category": ["adversarial", "popular", "random"][i % 3]})
    table(folder, "data/test-00000-of-00001.parquet", rows, image=IMAGE)
    table(folder, "Full/random-00000-of-00001.parquet", rows[:3], image=IMAGE)


def make_referring(folder, split="testA"):
    row = {
        "question_id": "1",
        "image": PICTURE,
        "question": "Describe it.",
        "answer": ["left cup", "the {red} one"],
    }
    row |= {
        "segmentation": [1.0, 2.0],
        "bbox": [100.0, 50.0, 100.0, 100.0],
        "iscrowd": 0,
        "file_name": "x.jpg",
    }
    table(
        folder,
        f"data/{split}-00000-of-00001.parquet",
        [row, row | {"answer": ["a", "b"]}],
        image=IMAGE,
    )


def make_reasonseg(folder):
    mask = [[50 <= y < 150 and 100 <= x < 200 for x in range(400)] for y in range(200)]
    row = {
        "image": PICTURE,
        "text": "what one drinks from",
        "mask": mask,
        "image_id": "1",
        "ann_id": "1",
    }
    row |= {"img_height": 200, "img_width": 400}
    table(
        folder,
        "data/test-00000-of-00001.parquet",
        [row] * 4,
        image=IMAGE,
        mask=Sequence(Sequence(Value("bool"))),
    )


MATHVISTA = [  # question type, choices, answer type, precision, gold, right answers, wrong answers
    ("multi_choice", ["3 cm", "4 cm"], "text", None, "4 cm", ["4 cm", "4 CM."], ["3 cm", "A or B"]),
    ("free_form", None, "integer", 0.0, "1200", ["1,200", "1200 cm", "x = 1200"], ["120", "twelve"]),
    ("free_form", None, "integer", 0.0, "45", ["45%", r"\text{45}", "45."], ["4.5", None]),
    ("free_form", None, "float", 1.0, "0.8", ["0.75", r"\frac{3}{4}", "3/4", "0.8"], ["0.7", ""]),
    ("free_form", None, "float", 2.0, "12.34", ["12.341", "$12.34$"], ["12.3", "12.351"]),
    ("free_form", None, "list", None, "[1, 2]", ["[1, 2]", "1 and 2"], ["[2, 1]", "[1, 2, 3]"]),
]  # fmt: skip


def make_mathvista(folder):
    rows, answers = [], []
    for kind, choices, answer_type, precision, gold, right, wrong in MATHVISTA:
        for answer in [(a, True) for a in right] + [(a, False) for a in wrong]:
            row = {
                "pid": str(len(rows)),
                "question": "How much?",
                "image": "images/1.jpg",
                "decoded_image": PICTURE,
            }
            row |= {
                "choices": choices,
                "unit": None,
                "precision": precision,
                "answer": gold,
                "query": "Hint ...",
            }
            row |= {
                "question_type": kind,
                "answer_type": answer_type,
                "metadata": {"task": "geometry", "split": "testmini"},
            }
            rows.append(row)
            answers.append(answer)
    types = {
        "unit": Value("string"),
        "precision": Value("float64"),
        "choices": Sequence(Value("string")),
    }
    table(
        folder,
        "data/testmini-00000-of-00001-725687bf7a18d64b.parquet",
        rows,
        decoded_image=IMAGE,
        **types,
    )
    return answers


def make_mathverse(folder):
    cases = [
        ("multi-choice", "B", "B", True),
        ("multi-choice", "B", "B. 12 cm", True),
        ("multi-choice", "B", "a", False),
    ]
    cases += [
        ("multi-choice", "B", "A, B", False),
        ("multi-choice", "B", "The answer is B", True),
    ]
    cases += [
        ("free-form", r"\frac{1}{2}", "0.5", True),
        ("free-form", "60°", "60", True),
        ("free-form", "12", "13", False),
    ]
    rows = []
    for i, (kind, gold, _, _) in enumerate(cases):
        row = {
            "sample_index": str(i),
            "problem_index": "1",
            "question": "",
            "image": PICTURE,
            "answer": gold,
        }
        row |= {
            "problem_version": ["Text Dominant", "Vision Only"][i % 2],
            "question_type": kind,
            "query_wo": "x",
        }
        row |= {
            "metadata": {"subject": "Plane"},
            "query_cot": "Reason first.\nQuestion:How long is AB?",
        }
        rows.append(row | {"question_for_eval": "How long is AB?"})
    table(folder, "testmini.parquet", rows, image=IMAGE)
    table(folder, "testmini_text_only.parquet", rows[:1], image=IMAGE)
    return [case[2:] for case in cases]


def make_mathvision(folder):
    cases = [
        (["1", "2", "3"], "B", "2", True),
        (["1", "2", "3"], "B", "b", True),
        (["1", "2", "3"], "B", "3", False),
    ]
    cases += [
        (["A", "B", "C", "D", "E"], "C", "C", True),
        (["A", "B", "C", "D", "E"], "C", "D", False),
    ]
    cases += [
        ([], r"\frac{\pi}{4}", r"\pi/4", True),
        ([], "3.14", "3.1416", True),
        ([], "12", "21", False),
    ]
    rows = []
    for i, (options, gold, _, _) in enumerate(cases):
        row = {
            "id": str(i),
            "question": "<image1>Which one?",
            "options": options,
            "answer": gold,
        }
        row |= {"image": "images/1.jpg", "decoded_image": PICTURE, "solution": None}
        rows.append(row | {"level": 1 + i % 5, "subject": "algebra"})
    types = {"options": Sequence(Value("string")), "solution": Value("string")}
    table(
        folder,
        "data/test-00000-of-00001-3532b8d3f1b4047a.parquet",
        rows,
        decoded_image=IMAGE,
        **types,
    )
    table(folder, "data/testmini-00000-of-00001.parquet", rows[:1], decoded_image=IMAGE, **types)
    return [case[2:] for case in cases]


# problem -> which of its questions are right, the composite last: IG, CM, RM (loose CM), IK, RM (loose RM)
WEMATH = {
    "2steps_1": (1, 1, 0),
    "2steps_2": (1, 1, 1),
    "2steps_3": (0, 1, 1),
    "3steps_4": (1, 0, 1, 0),
    "2steps_5": (0, 0, 1),
}


def make_wemath(folder):
    rows, right = [], []
    for name, marks in WEMATH.items():
        steps = name[:6]
        for i, mark in enumerate(marks):
            key = f"{steps}_multi" if i == len(marks) - 1 else f"{steps}_{i + 1}"
            row = {
                "ID": name,
                "split": "testmini",
                "knowledge concept": "x",
                "question": "How long?",
                "key": key,
            }
            row |= {
                "option": "A. 2 cm; B. 3; 4 cm; C. 5 cm;",
                "answer": "B",
                "image_path": PICTURE,
            }
            rows.append(row | {"question number": len(rows), "knowledge concept description": "y"})
            right.append(bool(mark))
    table(folder, "data/testmini-00000-of-00001.parquet", rows, image_path=IMAGE)
    return right


def make_dynamath(folder):
    for variant in range(1, 11):
        rows, golds = (
            [],
            [("3.1416", "float"), ("B", "multiple choice"), ("even function", "text")],
        )
        for i, (gold, kind) in enumerate(golds):
            row = {
                "id": str(i),
                "question": "How much?",
                "image": "images/1.png",
                "decoded_image": PICTURE,
            }
            row |= {"ground_truth": gold, "answer_type": kind, "subject": "solid   geometry"}
            rows.append(row | {"knowledge_level": "high school"})
        name = f"data/sample{variant}-00000-of-00001.parquet"
        table(folder, name, rows, decoded_image=IMAGE)


LOGICVISTA = {
    "v1_0": ("B", "(B)", True), "v1_1": ("A, C", "C and A", True), "v1_2": ("B, D", "B", False),
    "v1_20": ("3", "3", True), "v1_21": ("I", "i", True), "v1_22": ("A", "A cat", False),
    "v1_382": ("", "A", None),
}  # fmt: skip


def make_logicvista(folder):
    (folder / "data" / "images").mkdir(parents=True)
    PICTURE.save(folder / "data" / "images" / "1.png")
    row = {
        "imagename": "1.png",
        "skill": ["inductive"],
        "broad_capability": [],
        "reasoning": "",
    }
    row |= {"specific_capability": [], "imagesource": "", "sourcelink": "", "liscenced": "no"}
    rows = {
        key: row | {"question": "Which comes next?" if gold else "", "answer": gold}
        for key, (gold, _, _) in LOGICVISTA.items()
    }
    (folder / "data" / "dataset.json").write_text(json.dumps(rows))


BUILD = {
    "vstar": make_vstar, "hrbench4k": make_hrbench, "hrbench8k": lambda f: make_hrbench(f, "8k"),
    "mme-realworld-lite": make_mme, "pope": make_pope, "refcoco": make_referring, "refcoco+": make_referring,
    "refcocog": lambda f: make_referring(f, "test"), "reasonseg": make_reasonseg, "mathvista": make_mathvista,
    "mathverse": make_mathverse, "mathvision": make_mathvision, "wemath": make_wemath,
    "dynamath": make_dynamath, "logicvista": make_logicvista, "mme-realworld": make_mme,
    "treebench": make_treebench, "visualprobe-easy": make_visualprobe, "visualprobe-medium": make_visualprobe,
    "visualprobe-hard": make_visualprobe, "zoombench": make_zoombench,
}  # fmt: skip


@pytest.fixture
def built(tmp_path, monkeypatch):
    """built(name): the questions of a benchmark in its public layout, and what the writer returned."""
    monkeypatch.chdir(tmp_path)

    def build(name):
        said = BUILD[name](tmp_path / name)
        return load_benchmark(name, str(tmp_path / name)), said

    return build


def test_every_benchmark_has_its_files_here():
    assert set(BUILD) == set(BENCHMARKS), "a benchmark's files in BUILD let these tests hold it, too"


@pytest.mark.parametrize("name", BUILD)
def test_every_benchmark_loads_with_its_pictures_and_distinct_ids(built, name, capsys):
    samples, _ = built(name)
    assert len({s.id for s in samples}) == len(samples) >= 3
    assert all(s.open().size == PICTURE.size for s in samples)
    assert all("<image" not in s.question and s.meta["kind"] for s in samples)
    count = BENCHMARKS[name].questions
    assert not count or f"{count} in the public copy" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["vstar", "mme-realworld-lite", "hrbench4k", "hrbench8k", "treebench"])
def test_multiple_choice_is_scored_as_by_hand(built, name):
    samples = [shuffle_options(sample, 0) for sample in built(name)[0]]
    said = RIGHT + WRONG
    answers = [said[i % len(said)](s) for i, s in enumerate(samples)]
    expected = sum(i % len(said) < len(RIGHT) for i in range(len(samples))) / len(samples)
    assert accuracy(score(name, samples, answers)) == pytest.approx(expected)


def test_a_policy_that_always_says_a_is_exposed(tmp_path, monkeypatch):
    """In the official order of V* it is perfect; shuffled it is at chance, and shows its favourite."""
    monkeypatch.chdir(tmp_path)
    make_vstar(tmp_path)
    for i in range(100, 400):
        for end in ("jpg", "json"):
            copy = tmp_path / "direct_attributes" / f"sa_{i}.{end}"
            copy.write_bytes((tmp_path / "direct_attributes" / f"sa_0.{end}").read_bytes())
    argv = ["--model", "tiny", "--data", "vstar", "--root", str(tmp_path)]
    official, shuffled_ = (load_questions(read_config(argv + more)) for more in (["--official_order"], []))
    assert all(s.options[0] == s.answer for s in official)
    assert [s.options for s in shuffled_] == [
        s.options for s in load_questions(read_config(argv))
    ]  # the same each time
    assert accuracy(score("vstar", official, ["A"] * len(official))) == 1.0
    attributes = [s for s in shuffled_ if s.meta["kind"] == "direct_attributes"]
    result = score("vstar", attributes, ["A"] * len(attributes))
    low, high = result["arms"]["off"]["all"]["interval"]
    assert low < 0.25 < high and result["arms"]["off"]["all"]["favourite"] == 1.0


@pytest.mark.parametrize("name", ["treebench", "zoombench"])
def test_letters_by_the_official_rule(built, name):
    """Of a lettered question: the letter of the gold is right, each other one wrong."""
    samples = [sample for sample in built(name)[0] if sample.options]
    right, wrong = [], []
    for sample in samples:
        for said in "ABCD":
            found = right if said == letter(sample) else wrong
            for form in (said, said.lower(), f" {said} ", f"{said}\n", f"\t{said.lower()}"):
                found.append(record(name, reply(sample, form), "off")["right"])
    assert len(right) >= 60 and all(right)
    assert len(wrong) >= 60 and not any(wrong)


@pytest.mark.parametrize("name", ["visualprobe-hard", "zoombench"])
def test_short_answers_by_rules(built, name):
    """What is equal to the gold is right; another word or number is wrong, and so is silence."""
    samples = [sample for sample in built(name)[0] if not sample.options]
    assert len(samples) >= 12 and len({sample.answer for sample in samples}) >= 3
    for sample in samples:
        gold = sample.answer
        for said in (gold, gold.lower(), f" {gold} ", f"{gold}.", f"The answer is {gold}."):
            assert record(name, reply(sample, said), "off")["right"], said
        for said in ("GIVE WAY", "117", "a blue cup", " ", None):
            assert not record(name, reply(sample, said), "off")["right"], said


def test_treebench_means_the_best_box_of_each_target(built):
    """As the authors' script: over a question's targets, the IoU of the best box; none without a box."""
    samples = built("treebench")[0]
    records = []
    for i, sample in enumerate(samples):
        trajectory = reply(sample, "A")
        if i == 0:  # one target hit, half of the other
            for region in ((10, 20, 110, 120), (200, 20, 300, 55)):
                trajectory.calls.append(tools.Call(tools.TOOL, region=region))
        records.append(record("treebench", trajectory, "on"))
    scores = make_result("treebench", json.loads(json.dumps(records)), {"repeats": 1})["scores"]["on"]
    assert scores["mean IoU"] == pytest.approx((1 + 0.5) / 2 / len(samples))
    assert "task Reasoning/Ordering" in scores


def test_an_option_that_is_missing_shifts_no_letter():
    row = {"question": "Which?", "category": "Perception/Attributes", "target_instances": ""}
    row |= {"A": "red", "B": "", "C": "blue", "D": "green"}
    sample = BENCHMARKS["treebench"].make(row | {"answer": "C"})
    assert (sample.answer, sample.options, sample.boxes) == ("blue", ("red", "blue", "green"), ())
    with pytest.raises(KeyError):
        BENCHMARKS["treebench"].make(row | {"answer": "B"})
    records = [record("treebench", reply(replace(sample, id="1", image=png()), "B"), "on")]
    assert "mean IoU" not in make_result("treebench", records, {"repeats": 1})["scores"]["on"]


def test_a_second_column_of_images_is_not_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_zoombench(tmp_path)
    file = tmp_path / "data/test.parquet"
    rows = Dataset.from_parquet(str(file)).cast_column("crop_image", datasets.Image(decode=False))
    broken = rows.map(lambda row: {"crop_image": {"path": None, "bytes": b"no image"}})
    broken.cast_column("crop_image", IMAGE).to_parquet(str(file))
    assert len(load_benchmark("zoombench", str(tmp_path))) == 24


def test_visualprobe_trains(tmp_path, monkeypatch):
    """Its training rows, from a folder; what it downloads is said where there is none."""
    monkeypatch.chdir(tmp_path)
    make_visualprobe(tmp_path / "probe", "train.json")
    samples = load("visualprobe", root=str(tmp_path / "probe"))
    assert {sample.answer for sample in samples} == {"STOP", "12", "a red cup"}
    assert samples[0].open().size == PICTURE.size and samples[0].tool
    with pytest.raises(ValueError, match="holds no train.json"):
        load("visualprobe", root=str(tmp_path))


def test_hrbench_means_its_cycles(built):
    samples, _ = built("hrbench4k")
    scores = score("hrbench4k", samples, ["A"] * 16)["scores"]["off"]
    assert scores == {"mean of cycles": 0.25, "all cycles right": 0.0}
    answers = [s.answer if s.meta["kind"] == "FSP" else "x" for s in samples]
    result = score("hrbench4k", samples, answers)
    assert result["scores"]["off"] == {"mean of cycles": 0.5, "all cycles right": 0.5}
    assert result["arms"]["off"]["FSP"]["accuracy"] == 1.0 and result["arms"]["off"]["FCP"]["accuracy"] == 0.0
    assert (
        len({s.meta["group"] for s in samples}) == 4 and len(pick_samples(samples, 5, 0)) == 8
    )  # whole groups


def test_pope_exposes_one_that_always_says_yes(built):
    samples, _ = built("pope")
    assert len(samples) == 12  # the split files beside the whole are not counted again
    scores = score("pope", samples, ["Yes, there is."] * 12)["scores"]["off"]
    for split in ("adversarial", "popular", "random"):
        assert scores[f"{split}: yes ratio"] == scores[f"{split}: recall"] == 1.0
        assert scores[f"{split}: precision"] == 0.5 and scores[f"{split}: F1"] == pytest.approx(2 / 3)
    assert scores["mean accuracy of splits"] == 0.5
    perfect = score("pope", samples, [s.answer.upper() + "." for s in samples])["scores"]["off"]
    assert (
        perfect["mean accuracy of splits"] == perfect["random: F1"] == 1.0
        and perfect["random: yes ratio"] == 0.5
    )
    unsure = score("pope", samples, ["maybe"] * 12)["scores"]["off"]  # officially all but a no is a yes
    assert unsure["mean accuracy of splits"] == 0.5 and unsure["popular: yes ratio"] == 1.0
    first = ["I do not see one. Yes."] * 12  # the first sentence counts
    denied = score("pope", samples, first)["scores"]["off"]
    assert denied["popular: yes ratio"] == 0.0
    silent = score("pope", samples, [None] * 12)["scores"]["off"]
    assert silent["mean accuracy of splits"] == 0.0 == silent["popular: yes ratio"]


@pytest.mark.parametrize("name", GROUNDING)
def test_grounding_rescales_boxes_and_means_iou(built, name):
    """The image is 400 x 200, shown at 196 x 98; the target is (100, 50) to (200, 150)."""
    samples, _ = built(name)
    assert len(samples) == 4 and samples[0].boxes == ((100.0, 50.0, 200.0, 150.0),)
    half = 196 / 400
    target = [round(v * half, 1) for v in (100, 50, 200, 150)]
    upper = [
        *target[:3],
        round(100 * half, 1),
    ]  # its upper half: IoU 0.5, a shade less when rounded
    said = [
        f'{{"bbox_2d": {target}}}',
        str(target),
        f"somewhere, {[1, 2, 30, 40]} or {target}",
        "there",
    ]
    records = [record(name, reply(s, a, look=(196, 98)), "off") for s, a in zip(samples, said)]
    assert [r["right"] for r in records] == [True, True, False, False]
    assert records[0]["box_iou"] > 0.99 and records[3]["box_iou"] == 0.0
    scores = make_result(name, records, {})["scores"]["off"]
    assert scores["accuracy at IoU 0.5"] == 0.5
    assert scores["mean IoU"] == pytest.approx((records[0]["box_iou"] * 2 + records[2]["box_iou"]) / 4)
    assert 0.48 < record(name, reply(samples[0], str(upper), look=(196, 98)), "off")["box_iou"] < 0.52


@pytest.mark.parametrize("name", ["mathvista", "mathverse", "mathvision"])
def test_mathematics_is_scored_as_by_hand(built, name):
    samples, said = built(name)
    samples = [shuffle_options(s, 0) if name != "mathvision" else s for s in samples]
    assert not any(s.tool for s in samples)
    got = [
        record(name, reply(s, answer), "off")["right"] for s, (answer, _) in zip(samples, said, strict=True)
    ]
    assert got == [right for _, right in said]
    by = {"mathvista": "type", "mathverse": "type", "mathvision": "level"}[name]
    assert f"mean over {by}s" in score(name, samples, [a for a, _ in said])["scores"]["off"]


def test_mathverse_asks_what_stands_in_the_picture_alone(built):
    assert all(s.question.startswith("How long is AB?") for s in built("mathverse")[0])


def test_wemath_counts_problems_four_ways(built):
    """IG 1, IK 1, CM strict 1; of two right composites with a wrong step one is loosely mastered."""
    samples, right = built("wemath")
    assert samples[0].options == ("2 cm", "3; 4 cm", "5 cm") and samples[0].answer == "3; 4 cm"
    scores = score("wemath", samples, [letter(s) if r else "Z" for s, r in zip(samples, right)])["scores"][
        "off"
    ]
    expected = {
        "strict": (1 + 0.5) / 5,
        "loose": (2 + 0.5) / 5,
        "IK": 0.2,
        "IG": 0.2,
        "CM strict": 0.2,
    }
    expected |= {"CM loose": 0.4, "RM strict": 2 / 3, "RM loose": 1 / 3}
    assert scores == pytest.approx(expected)
    assert len(pick_samples(samples, 4, 0)) >= 4 and all(
        len([s for s in pick_samples(samples, 4, 0) if s.meta["group"] == name]) in (0, len(marks))
        for name, marks in WEMATH.items()
    )


def test_dynamath_average_and_worst_case(built):
    samples, _ = built("dynamath")
    assert len(samples) == 30 and {s.meta["kind"] for s in samples} == {"solid geometry"}
    right = {"float": r"\pi", "multiple choice": "(b)", "text": "It is an Even function."}
    answers = [right[s.meta["type"]] for s in samples]
    assert score("dynamath", samples, answers)["scores"]["off"] == {
        "average case": 1.0,
        "worst case": 1.0,
    }
    answers[0], answers[1] = (
        "3.14",
        "",
    )  # off by more than 0.001; and none
    scores = score("dynamath", samples, answers)["scores"]["off"]
    assert scores == pytest.approx({"average case": 28 / 30, "worst case": 1 / 3})
    wrong = {"float": "3", "multiple choice": "a", "text": "function"}  # a part of the gold is not the gold
    assert score("dynamath", samples, [wrong[s.meta["type"]] for s in samples])["scores"]["off"] == {
        "average case": 0.0,
        "worst case": 0.0,
    }


def test_logicvista_compares_sets_of_letters(built, tmp_path):
    samples, _ = built("logicvista")
    cases = [case for case in LOGICVISTA.values() if case[2] is not None]
    got = [
        record("logicvista", reply(s, said), "off")["right"]
        for s, (_, said, _) in zip(samples, cases, strict=True)
    ]
    assert got == [right for *_, right in cases]
    assert "v1_382" in (tmp_path / "runs" / "bad-rows-logicvista.jsonl").read_text()


MATHVERSE = {"problem_version": "Text Lite", "problem_index": "1", "question_for_eval": "How large?"}


@pytest.mark.parametrize(
    "kind, query, gold, said, right",
    [
        ("free-form", "How large?", r"Area $=113.1 \mathrm{~cm}^{2}$", "113.1", True),
        ("free-form", "How large?", r"Area $=113.1 \mathrm{~cm}^{2}$", "113.1 cm2", True),
        ("free-form", "How large?", r"Area $=113.1 \mathrm{~cm}^{2}$", "13.1", False),
        ("multi-choice", r"Choices: A:090^\circ T B:180^\circ T", r"090^\circ T", "A", True),
        ("multi-choice", r"Choices: A:090^\circ T B:180^\circ T", r"090^\circ T", "B", False),
        ("multi-choice", "Choices: A:1 B:2 C:3", "BC", "B", False),  # no substring of the labels
    ],
)
def test_golds_of_mathverse(kind, query, gold, said, right):
    """Labels, units in LaTeX, and option texts, as they stand in real rows."""
    row = MATHVERSE | {"query_cot": f"Question:{query}", "question_type": kind, "answer": gold}
    sample = BENCHMARKS["mathverse"].make(row)
    assert record("mathverse", reply(sample, said), "off")["right"] == right


def test_a_question_that_is_the_picture_alone_counts():
    row = {"question": "<image1>", "options": [], "answer": "3", "subject": "algebra", "level": 1}
    assert BENCHMARKS["mathvision"].make(row).question.strip()


def test_seal_says_what_it_needs_before_it_fetches():
    with pytest.raises(ValueError, match="needs --root.*COCO"):
        load("seal")


@pytest.mark.parametrize("name", BUILD)
def test_a_wrong_folder_is_told_what_is_expected(name, tmp_path):
    (tmp_path / "notes.txt").write_text("not a benchmark")
    with pytest.raises(ValueError) as found:
        load_benchmark(name, str(tmp_path))
    said = str(found.value)
    pattern = BENCHMARKS[name].files[0]
    assert f"{tmp_path} holds no {pattern}" in said and name in said and "\n" not in said


@pytest.mark.parametrize("name", BUILD)
def test_a_column_that_is_missing_is_named(name, tmp_path, monkeypatch):
    """Each column that a benchmark needs, taken from its files, one at a time."""
    monkeypatch.chdir(tmp_path)
    for column in (*BENCHMARKS[name].columns, "picture"):
        folder = tmp_path / column
        BUILD[name](folder)
        without(folder, column)
        with pytest.raises(ValueError) as found:
            load_benchmark(name, str(folder))
        said = str(found.value)
        if column == "picture":
            column = {"vstar": "no image beside", "logicvista": "imagename"}.get(name, "image")
        where = "direct_attributes-sa_0" if name == "vstar" else str(folder)
        assert column in said and where in said and "\n" not in said


def without(folder, column: str) -> None:
    """Take a column, or the images, out of all files of a benchmark."""
    images = IMAGE_COLUMNS if column == "picture" else (column,)
    for file in folder.rglob("*.parquet"):
        rows = Dataset.from_parquet(str(file))
        present = [name for name in images if name in rows.column_names]
        rows.remove_columns(present).to_parquet(str(file))
    for file in folder.rglob("*.tsv"):
        with open(file, newline="") as kept:
            rows = list(csv.DictReader(kept, delimiter="\t"))
        with open(file, "w", newline="") as kept:
            writer = csv.DictWriter(
                kept, [key for key in rows[0] if key not in images], delimiter="\t", extrasaction="ignore"
            )
            writer.writeheader()
            writer.writerows(rows)
    for file in folder.rglob("*.json"):
        content = json.loads(file.read_text())
        listed = (
            content if isinstance(content, list) else content.values() if "v1_0" in content else [content]
        )
        for row in listed:
            for name in ("imagename", "images") if column == "picture" else (column,):
                row.pop(name, None)
        file.write_text(json.dumps(content))
    for file in folder.rglob("*.jpg") if column == "picture" else ():
        file.unlink()


@pytest.mark.parametrize("name", BUILD)
def test_a_truncated_file_is_named(name, tmp_path, monkeypatch, capsys):
    """As a download that was broken off leaves it. Of lines of text, the last one is broken, and named."""
    monkeypatch.chdir(tmp_path)
    BUILD[name](tmp_path / name)
    for file in (tmp_path / name).rglob("*"):
        if file.suffix in (".parquet", ".json", ".tsv"):
            content = file.read_bytes()
            file.write_bytes(content[: len(content) // 2])
    if name == "treebench":
        assert len(load_benchmark(name, str(tmp_path / name))) < 12
        assert "1 bad rows left out" in capsys.readouterr().out
        return
    with pytest.raises(ValueError) as found:
        load_benchmark(name, str(tmp_path / name))
    said = str(found.value)
    assert re.search(r"(\.parquet|\.json|\.tsv)", said) and "\n" not in said, said


@pytest.mark.parametrize(
    "hostile",
    ["[1,2,3", "[" * 5000, "1e999, 2, 3, 4", "[9" + "9" * 5000 + ",1,1,1]", "[nan, 1, 2, 3]"],
)
def test_hostile_boxes_and_numbers_are_no_boxes(hostile):
    assert answer_box(hostile, (100, 100), (100, 100)) is None
    began = time.time()
    last_number(hostile), letters(hostile)
    assert time.time() - began < 1


def test_letters_are_found_in_linear_time():
    began = time.time()
    for text in ("A" * 990, "a, " * 330, "answer is " * 99, "(" * 990, "and" * 330):
        letters(text)
    assert time.time() - began < 1


@both_families
def test_boxes_on_a_picture_of_8000_pixels(processor):
    """A call and an answer in the model's frame (the shown one of a 12-megapixel first look, or 0 to 1,000)
    land to the pixel."""
    image = Image.new("RGB", (8000, 6000))
    image.paste((200, 30, 40), (4567, 1234, 4767, 1384))  # the target
    sample = Sample("big", image, "Where?", "x", boxes=((4567.0, 1234.0, 4767.0, 1384.0),))
    limits = Limits(12_000_000, 400 * 784, max_turns=3, max_turn_tokens=200, max_tokens=99999)
    env = ZoomEnv(processor, limits, seed=0)
    (i,) = env.reset(sample, [])
    shown = env.views[i].shown
    side = processor.family.token_side
    assert shown[0] * shown[1] <= 12_000_000 < (shown[0] + side) * (shown[1] + side)
    frame = processor.family.frame or shown
    sx, sy = frame[0] / 8000, frame[1] / 6000
    box = [v * s for v, s in zip((4567, 1234, 4767, 1384), (sx, sy, sx, sy))]
    ids = processor.tokenizer(call(*box), add_special_tokens=False)["input_ids"]
    crops = env.step(i, ids, [0.0] * len(ids)).images
    assert env.trajectories[i].boxes == [(4567.0, 1234.0, 4767.0, 1384.0)] and len(crops) == 1
    colours = crops[0].getcolors(maxcolors=crops[0].width * crops[0].height)
    assert colours == [(crops[0].width * crops[0].height, (200, 30, 40))]  # not one pixel of what is around
    said = answer_box(str([round(v, 3) for v in box]), frame, (8000, 6000))
    assert said == pytest.approx(sample.boxes[0], abs=0.01)
    whole = [
        round(v) for v in box
    ]  # whole pixels are off by less than two of the original, whole thousandths by half of one
    most = max(2, 0.5 / sx)
    said = answer_box(str(whole), frame, (8000, 6000))
    assert said == pytest.approx(sample.boxes[0], abs=most)


def test_pairs_and_their_test():
    marks = {"on": "111100", "off": "100010"}
    rows = [
        {"arm": arm, "repeat": 0, "id": str(i), "right": mark == "1", "meta": {}}
        for arm in marks
        for i, mark in enumerate(marks[arm])
    ]
    found = compare_arms(rows, "on", "off")
    assert (found["gain"], found["harm"]) == (0.5, pytest.approx(1 / 6)) and found["n"] == 6
    assert found["p"] == pytest.approx(2 * (1 + 4) / 16)
    assert mcnemar(5, 5) == 1.0 and mcnemar(20, 0) == pytest.approx(2 / 2**20)


def test_repeats_are_averaged_and_passed():
    sample = Sample("1", b"", "?", "A", options=("A", "B"))
    rows = [record("", reply(sample, a), "on", k) for k, a in enumerate(["A", "B", None, "A"])]
    found = summarise(rows)
    assert (
        found["accuracy"] == 0.5 and found["pass"] == 1.0 and found["n"] == 1 and found["unanswered"] == 0.25
    )


def test_places_are_shuffled_like_any_option():
    """Only options that point at others stay; "above the sign" points at nothing."""
    for options in (
        ("It is above the sign.", "It is below the sign."),
        ("both hands", "left hand", "right hand"),
    ):
        orders = {
            shuffle_options(Sample(str(i), b"", "?", options[0], options=options), 0).options
            for i in range(99)
        }
        assert len(orders) == math.factorial(len(options))


def test_whole_means_all_there_is_to_read():
    sample = Sample("1", b"", "?", "yes", boxes=((0, 0, 10, 10), (50, 50, 60, 60)))
    one = reply(sample, "yes")
    assert shows_all(one) is None
    one.calls.append(tools.Call(region=(0.0, 0.0, 20.0, 20.0)))
    assert shows_all(one) is False
    one.calls.append(tools.Call(region=(40.0, 40.0, 70.0, 70.0)))
    assert shows_all(one) is True


def test_one_failure_does_not_lose_the_rest():
    def ask(samples):
        if any(s == "bad" for s in samples):
            raise RuntimeError("out of memory")
        return [s.upper() for s in samples]

    good, bad = by_halves(ask, ["a", "b", "bad", "c", "d"])
    assert good == ["A", "B", "C", "D"] and bad == [("bad", "RuntimeError: out of memory")]
    assert by_halves(lambda samples: 1 / len(samples), []) == ([], [])  # nothing is left to ask


def test_memory_of_a_failed_attempt_is_free_before_the_next():
    """What the failed call had built is gone when its halves are tried: else out of memory is final."""

    class Cache:
        pass

    alive = weakref.WeakSet()

    def ask(samples):
        assert not alive
        cache = Cache()
        alive.add(cache)
        if len(samples) > 1:
            raise MemoryError
        return [s.upper() for s in samples]

    assert by_halves(ask, list("abcd")) == (["A", "B", "C", "D"], [])


@pytest.mark.parametrize(
    "options, answers, right",
    [
        (
            ("$6 m$", "$12 m$"),
            ["B", "12 m", "$12 m$"],
            [True, True, True],
        ),  # texts in formula marks
        (
            ("F", "D", "B", "I"),
            ["D", "(D)", "I", "B"],
            [True, True, True, False],
        ),  # texts that are letters
        (("x", "y", "x"), ["C", "A", "B"], [True, True, False]),  # two that say the same
        (("-5", "5"), ["A", "-5", r"\boxed{A}"], [False, False, False]),
    ],
)
def test_options_of_every_kind(options, answers, right):
    """The gold is the last option; letters mean labels first, texts second."""
    sample = Sample("1", b"", "?", options[-1], options=options)
    assert [record("", reply(sample, a), "on")["right"] for a in answers] == right
    assert shuffle_options(sample, 1).answer == sample.answer


def test_options_that_name_each_other_are_not_shuffled():
    kept = (
        ("A", "B", "C or D"),
        ("red", "green", "none of the above"),
        ("F", "D", "B", "I"),
        ("left", "both"),
    )
    for options in kept:
        for i in range(9):
            assert (
                shuffle_options(Sample(str(i), b"", "?", options[0], options=options), 0).options == options
            )


@pytest.mark.parametrize(
    "said, value",
    [
        (r"12\text{ cm}^2", 12), ("12 m3", 12), (r"1.2\times 10^3", 1200), ("1.5e3", 1500),
        ("\u22123", -3), ("- 3", -3), ("2π", 6.2832), ("pi/4", 0.7854),
        (r"2\sqrt{3}", 3.4641), (r"\frac{2\pi}{3}", 2.0944), (r"\frac{\pi}{4}", 0.7854),
        ("3 1/2", 3.5), (r"3\frac{1}{2}", 3.5), ("1{,}200", 1200), ("5 m/s^2", 5), (r"x=\pi", 3.1416),
        ("45%", 45),
        (r"45\%", 45), ("60°", 60), (r"60^\circ", 60), ("1 or 2 or 3", None), ("1/0", None), ("", None),
        ("9^9^9^9^9", None),
    ],
)  # fmt: skip
def test_numbers_in_answers(said, value):
    found = last_number(said)
    assert found is None if value is None else found == pytest.approx(value, abs=1e-4)


def test_option_texts_keep_their_signs():
    assert lettered_options(["A. -5", "B. >", "(C) $5.00", "D. -7°C"], "A")[1] == (
        "-5",
        ">",
        "$5.00",
        "-7°C",
    )


@pytest.mark.parametrize(
    "form",
    ["[{}, {}, {}, {}]", "({},{}),({},{})", "{}, {}, {}, {}", "x1={}, y1={}, x2={}, y2={}"],
)
def test_boxes_are_read_in_the_forms_models_use(form):
    said = form.format(10, 20, 30, 40)
    assert answer_box(said, (100, 100), (100, 100)) == (10, 20, 30, 40)
    beside = answer_box(f"2 cups: {said}", (100, 100), (100, 100))
    assert beside == (
        (10, 20, 30, 40) if said.startswith("[") else None
    )  # only brackets tell a box from others


def test_groups_count_once_in_intervals_and_pairs(built):
    """Four rotations of a question are one question: the interval is that of 4, not of 16, and so is p."""
    samples, _ = built("hrbench4k")
    on = [record("hrbench4k", reply(s, s.answer), "on") for s in samples]
    off = [record("hrbench4k", reply(s, None), "off") for s in samples]
    result = make_result("hrbench4k", on + off, {})
    assert result["arms"]["on"]["all"]["interval"] == wilson(1.0, 4)
    assert (
        result["paired"]["on against off"]["p"] == mcnemar(4, 0)
        and result["paired"]["on against off"]["n"] == 16
    )


def test_scores_are_means_over_repeats(built):
    samples, right = built("wemath")
    rows = []
    for repeat, marks in enumerate((right, [True] * len(right))):
        said = [letter(s) if mark else "Z" for s, mark in zip(samples, marks)]
        rows += [record("wemath", reply(s, a), "off", repeat) for s, a in zip(samples, said)]
    scores = make_result("wemath", rows, {})["scores"]["off"]
    assert scores["strict"] == pytest.approx((0.3 + 1.0) / 2) and scores["CM strict"] == pytest.approx(
        (0.2 + 1) / 2
    )


def test_an_arm_without_a_kind_has_a_gap_in_the_table():
    sample = Sample("1", b"", "?", "A", meta={"kind": 3})
    other = Sample("2", b"", "?", "A", meta={"kind": "x"})
    rows = [
        record("", reply(sample, "A"), "on"),
        record("", reply(other, "A"), "on"),
        record("", reply(other, "A"), "off"),
    ]
    text = result_text(make_result("toy", rows, {"repeats": 1}))
    assert "3" in text.splitlines()[0] and " - " in text.splitlines()[2]


def test_the_table_has_the_names_of_eval_json():
    """Its columns are keys of a summary, or kinds; the other figures are on the page."""
    sample = Sample("1", b"", "?", "A", boxes=((0, 0, 10, 10),), meta={"kind": "read"})
    sample.meta["others"] = [[[20, 20, 30, 30], "B"]]
    zoomed = reply(sample, "B")
    zoomed.calls.append(tools.Call(tools.TOOL, region=(0, 0, 10, 20)))
    zoomed.stop = "budget"
    result = make_result("toy", [record("", zoomed, "on"), record("", zoomed, "swap")], {"repeats": 1})
    text = result_text(result)
    titles, on, swap, legend, *others = text.splitlines()
    assert titles.split() == ["arm", "n", "all", "read", "interval", "iou", "cut"]
    cells = [*["0.000", "(1.00)"] * 2, "0.000-0.793", "0.50", "1.00"]
    assert on.split() == ["on", "1", *cells] and swap.split() == ["swap", "1", *cells]
    assert {"interval", "iou", "cut", "tool_rate"} <= result["arms"]["on"]["read"].keys()
    assert legend.startswith("accuracy (tool_rate)") and len(legend) < 110
    assert result["arms"]["swap"]["read"]["says_shown"] == 1.0
    said = "swap: shown another tile's crop, it says that one's letter: 1.00 (says_shown of read)"
    assert said in others
    assert "says_shown" not in result_text(make_result("toy", [record("", zoomed, "on")], {"repeats": 1}))


def test_a_judge_hears_what_rules_cannot_read():
    """MathVerse: the judge is told the question in the image. A wrong letter is no case for it."""
    asked = []

    def judge(question, gold, said):
        asked.append(question)
        return True

    meta = {"type": "free-form", "asked": "How long is AB?"}
    free = Sample("1", b"", "As shown.", "a bearing of 60 degrees", tool=False, meta=meta)
    assert record("mathverse", reply(free, "N 60 E"), "off", 0, judge)["right"] and asked == [
        "How long is AB?"
    ]
    choice = Sample("1", b"", "As shown.", "B", tool=False, meta={"type": "multi-choice", "asked": "?"})
    assert not record("mathverse", reply(choice, "C"), "off", 0, judge)["right"] and len(asked) == 1


def test_shuffling_keeps_the_gold_and_the_set():
    sample = Sample("x", b"", "?", "b", options=("a", "b", "c", "d"))
    orders = {
        shuffle_options(Sample(str(i), b"", "?", "b", options=sample.options), 0).options for i in range(200)
    }
    assert len(orders) == 24 and all(set(order) == set(sample.options) for order in orders)


# --------------------------------------------------------------------------------------------------
# The command itself, with the tiny base.


def command(*argv, **more):
    return run_script("eval.py", *argv, **more)


def test_the_command_scores_resumes_and_shows(tmp_path):
    """Killed in the middle and started again it asks each question once, and ends the same."""
    argv = ["--limit", "24", "--arms", "on,blank", "--batch", "4", "--threads", "1"]
    whole = command(*argv, "--out", "whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    for said in (
        "on against blank",
        "McNemar",
        "protocol: model tiny",
        "look_pixels 12544",
        "prompts ",
        "commit ",
        "page:",
    ):
        assert said in whole.stdout
    process = Script("eval.py", *argv, "--out", "cut", cwd=tmp_path)
    records = tmp_path / "cut" / "records.jsonl"
    while process.poll() is None and not (records.exists() and records.read_text().count("\n") >= 8):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    with records.open("a") as file:
        file.write('{"arm": "on", "half a li')
    again = command(*argv, "--out", "cut", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    rows = [json.loads(line) for line in records.read_text().splitlines()]
    assert len({(r["arm"], r["id"]) for r in rows}) == len(rows) == 48
    one, other = (json.loads((tmp_path / name / "eval.json").read_text()) for name in ("whole", "cut"))
    for result in (one, other):  # all but the clock
        for kinds in result["arms"].values():
            assert all(summary.pop("seconds") > 0 for summary in kinds.values())
    assert one["arms"] == other["arms"] and one["paired"] == other["paired"]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "args.json").write_text("{}")
    assert "folder of another run" in command(*argv, "--out", "run", cwd=tmp_path).stderr
    shown = [json.loads(line) for line in (tmp_path / "cut" / "trajectories.jsonl").read_text().splitlines()]
    assert len({(row["arm"], row["id"]) for row in shown}) == len(shown)
    other_protocol = command(*argv, "--seed", "5", "--out", "cut", cwd=tmp_path)
    assert other_protocol.returncode == 2 and "another protocol (seed differ)" in other_protocol.stderr
    page = (tmp_path / "whole" / "report.html").read_text()
    assert "blank" in page and "Run health" not in page and page.count('"arm"') >= 48


def test_a_benchmark_through_the_command(tmp_path):
    make_vstar(tmp_path / "vstar")
    (tmp_path / "vstar" / "direct_attributes" / "sa_3.jpg").write_bytes(b"not an image")
    argv = [
        "--model",
        "tiny",
        "--data",
        "vstar",
        "--root",
        str(tmp_path / "vstar"),
        "--arms",
        "off,on",
        "--repeats",
        "2",
        "--threads",
        "1",
    ]
    done = command(*argv, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "runs" / "eval-tiny-vstar"
    result = json.loads((out / "eval.json").read_text())
    assert result["arms"]["on"]["all"]["n"] == 11 and result["protocol"]["temperature"] == 1.0
    for said in (
        "sa_3",
        "12 questions here, 191 in the public copy",
        "DeepEyes-7B 90.1",
        "not measured here",
        "unlike theirs in: model tiny, look_pixels 12544 (paper: 12845056)",
        "avg@2",
        " s an answer",
        "one greedy answer a question",
    ):
        assert said in done.stdout, said
    assert len((out / "records.jsonl").read_text().splitlines()) == 11 * 2 * 2


def test_the_papers_protocol(tmp_path):
    """Its pixels, turns, tokens and order; what is given by hand wins; the question as in the file."""
    make_vstar(tmp_path)
    argv = ["--model", "tiny", "--data", "vstar", "--root", str(tmp_path)]
    config = read_config([*argv, "--protocol", "paper", "--max_turns", "6"])
    assert config.look_pixels == config.crop_pixels == 16384 * 28 * 28
    assert (config.max_turns, config.max_turn_tokens, config.temperature) == (6, 10240, 0)
    samples = load_questions(config)
    assert all(sample.options[0] == sample.answer for sample in samples)
    assert samples[0].question == "What colour is the cup?"
    assert load_questions(read_config(argv))[0].question.endswith("with the letter of the right option.")
    assert read_config(argv).look_pixels < config.look_pixels


def test_in_the_papers_protocol_a_judge_decides_what_is_no_letter():
    sample = Sample("1", b"", "Which?", "red", options=("red", "blue"))
    asked = []

    def judge(question, gold, said):
        asked.append(said)
        return said == "the crimson one"

    def is_right(answer):
        return grade("vstar", reply(sample, answer), judge, "paper")["right"]

    said = ("A", "A.", "B", "I think A. red", "red", "the crimson one")
    assert [is_right(answer) for answer in said] == [True, True, False, True, False, True]
    assert asked == ["red", "the crimson one"]
    long = reply(sample, None)
    long.answer = "I look. " * 200 + "So the answer is A."
    assert grade("vstar", long, None, "paper")["right"]
    twice = Sample("2", b"", "Which?", "red", options=("red", "red", "blue"))
    assert grade("vstar", reply(twice, "B"), judge, "paper")["right"]


@pytest.mark.parametrize(
    "turn, stop, said",
    [
        ("B", "no_call", "B"),
        ("<think>A? No.</think> B", "no_call", "B"),
        ("<think>A?</think><answer>B</answer>", "no_call", "B"),  # where a box was expected
        (r"<think>A?</think> so \boxed{B}", "no_call", "B"),
        ("<think>A? Let me", "length", None),
        ('<think>A</think><tool_call>{"bbox_2d": [1, 2, 30, 40]}</tool_call>', "turns", None),
        ("<think>A</think>", "no_call", None),
    ],
)
def test_what_a_model_says_in_its_own_words(turn, stop, said):
    """Not what it only thought, nor a call that was left over, nor the half of a thought."""
    t = Trajectory(Sample("1", PICTURE, "?", "B"), [1], turns=["<think>x</think>", turn], stop=stop)
    assert eval.last_message(t) == said


def test_another_models_words(processor, tmp_path):
    """The prompt is the file's, and the suffix stands in every crop's turn, as that model was trained."""
    file = tmp_path / "words.txt"
    file.write_text("You look closely.\n\n# Tools\n{...}\n---\nQuestion: {question}\nLook, then answer.\n")
    PICTURE.save(tmp_path / "a.png")
    row = {"image": "a.png", "question": "What is it?", "answer": "red"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    argv = ["--data", str(tmp_path), "--split", "all", "--arms", "on", "--prompt", str(file)]
    (sample,) = load_questions(read_config(argv))
    limits = Limits(112 * 112, 112 * 112, max_turns=3, max_turn_tokens=200, max_tokens=999)
    env = ZoomEnv(processor, limits, seed=0)
    (i,) = env.reset(sample, [])
    decode = processor.tokenizer.decode
    prompt = re.sub(r"(<\|image_pad\|>)+", "*", decode(env.trajectories[i].prompt_ids))
    system = "<|im_start|>system\nYou look closely.\n\n# Tools\n{...}<|im_end|>\n<|im_start|>user\n"
    question = "Question: What is it?\nLook, then answer.<|im_end|>\n<|im_start|>assistant\n"
    assert prompt == f"{system}<|vision_start|>*<|vision_end|>\n{question}"
    ids = processor.tokenizer(call(0, 0, 60, 60), add_special_tokens=False)["input_ids"]
    crop = decode(env.step(i, ids, [0.0] * len(ids)).ids)
    assert "<|vision_end|>\nLook, then answer.</tool_response>" in crop
    protocols = []
    for each in (argv, argv[:-2]):
        config = read_config(each)
        protocols.append(eval.make_protocol(config, load_questions(config)))
    assert protocols[0]["prompts"] != protocols[1]["prompts"]


def test_asking_about_a_picture_of_ones_own(tmp_path):
    PICTURE.save(tmp_path / "photo.jpg")
    done = command(
        "--model",
        "tiny",
        "--ask",
        "photo.jpg",
        "What letter is on the red tile?",
        "--threads",
        "1",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "answer:" in done.stdout
    page = re.search(r"page:\s+(\S+)", done.stdout)[1]
    assert "What letter is on the red tile?" in (tmp_path / page).read_text()


@pytest.mark.parametrize(
    "argv, said",
    [
        (["--ask", "nowhere.jpg", "What?"], "no such image"),
        (["--ask", "a.png", "What?"], "--model: which?"),
        (["--arms", "on,sideways"], "unknown arm sideways"),
        (["--repeats", "2", "--temperature", "0"], "greedy"),
        (["--limit", "0"], "--limit"),
        (["--temperature", "-1"], "--temperature"),
        (["--temperature", "nan"], "--temperature"),
        (["--engine", "warp"], "--engine"),
        (["--quantize", "4bits"], "--quantize"),
        (["--lim", "5"], "unrecognized arguments"),
        (["--look_pixels", "5"], "look_pixels must be between"),
        (["--data", "DATA", "--arms", "oracle"], "no arm is left"),
        (["--data", "vstar", "--root", "/nowhere"], "--model: which?"),
        (["--data", "vstar", "--root", "/nowhere", "--model", "tiny"], "no such folder"),
        (["--prompt", "/nowhere.txt"], "--prompt /nowhere.txt: can't be read"),
        (["--prompt", "DATA/rows.jsonl", "--arms", "on"], "must hold {question} once"),
        (["--prompt", "DATA/special.txt", "--arms", "on"], "no special tokens"),
        (["--prompt", "DATA/words.txt"], "--prompt needs --arms"),
    ],
)
def test_mistakes_are_one_line(argv, said, tmp_path, here):
    PICTURE.save(tmp_path / "a.png")
    row = {"image": "a.png", "question": "What?", "answer": "x"}
    lines = [json.dumps(row | {"id": str(i)}) + "\n" for i in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(lines))
    (tmp_path / "words.txt").write_text("{question}")
    (tmp_path / "special.txt").write_text("<|vision_start|>{question}")
    argv = [word.replace("DATA", str(tmp_path)) for word in argv]
    done = here("eval.py", *argv, cwd=tmp_path)
    assert done.returncode == 2 and said in done.stderr.strip().splitlines()[-1]


def test_reasoning_is_asked_without_the_zoom_by_default():
    assert read_config(["--model", "tiny", "--data", "mathvista"]).arms == "off"
    assert read_config(["--model", "tiny", "--data", "mathvista", "--zoom"]).arms == "on,off"
    assert read_config(["--model", "tiny", "--data", "vstar"]).limit == 0 and math.isclose(
        read_config([]).temperature, 0
    )


def test_arms_differ_in_the_crop_alone():
    """The same questions; forced calls deliver crops where the base would not zoom by itself."""
    model, processor = load_model("tiny", device="cpu")
    samples = eval.load("toy", split="test", limit=16, seed=3)
    limits = {
        "max_turns": 3,
        "max_turn_tokens": 48,
        "max_tokens": 320,
        "look_pixels": 112 * 112,
        "crop_pixels": 134 * 134,
    }
    result = {}
    for arm in ("on", "forced"):
        records = answer_records(model, processor, samples, arm, **limits)
        result[arm] = summarise_by_kind(records)
    assert result["on"]["all"]["n"] == result["forced"]["all"]["n"] == 16
    assert result["forced"]["all"]["tool_rate"] > 0.8 > result["on"]["all"]["tool_rate"]


def make_eager(model, processor) -> None:
    """Let the base, which rarely zooms by itself, open a call at the start of about half of its turns."""
    call, think = processor.tokenizer.convert_tokens_to_ids(["<tool_call>", "<think>"])

    def nudge(head, inputs, logits):
        starts = logits.argmax(-1) == think
        # No reason, but the same one in every arm, and for any base.
        wants = (50 * inputs[0].sum(-1)) % 1 < 0.5
        logits[..., call] += 100.0 * (starts & wants)

    model.lm_head.register_forward_hook(nudge)


@pytest.mark.parametrize("engine, kept", [("slots", 2**16), ("generate", 0)])
def test_arms_take_over_what_is_the_same(engine, kept, monkeypatch):
    """The first look and the greedy first turn of "on", where the model is told the same; answers stay. kept:
    pixels of the looks that are taken over; those of real models are larger."""
    monkeypatch.setattr(rollouts, "SMALL_PIXELS", kept)
    model, processor = load_model("tiny", device="cpu")
    samples = eval.load("toy-mixture", split="test", limit=12, seed=3)
    samples += [replace(samples[0], id="plain", tool=False)]
    make_eager(model, processor)
    limits = rollout_limits(read_config([])) | {"engine": engine}
    known = {}
    for arm in ARMS:
        alone = answer_records(model, processor, samples, arm, **limits)
        shared = answer_records(model, processor, samples, arm, known=known, **limits)
        assert shared == alone, arm
        assert sum(record["boxes"] != [] for record in alone) >= (0 if arm == "off" else 3)
    assert known.keys() == {sample.id for sample in samples}


def test_a_first_turn_that_is_known_is_not_written_again(monkeypatch):
    model, processor = load_model("tiny", device="cpu")
    samples = eval.load("toy", split="test", limit=8, seed=3)
    limits = rollout_limits(read_config([])) | {"engine": "slots", "threads": 1}
    make_eager(model, processor)
    written = []
    sample_tokens = SlotEngine.next_tokens

    def count(engine, *given):
        written.append(len(engine.live))
        return sample_tokens(engine, *given)

    monkeypatch.setattr(SlotEngine, "next_tokens", count)
    known = {}
    answer_records(model, processor, samples, "on", known=known, **limits)
    all_tokens = sum(written)
    written.clear()
    answer_records(model, processor, samples, "blank", known=known, **limits)
    assert 0 < sum(written) < 0.7 * all_tokens
    with pytest.raises(ValueError, match="greedy rollout of group 1"):
        rollout(model, processor, samples, known=known, temperature=1.0)
