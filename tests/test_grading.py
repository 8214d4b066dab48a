"""What each benchmark takes as right: rows as the Hub has them, and answers that people and models give.

The rules are the official ones, by their code: VLMEvalKit, lmms-eval, and each benchmark's own repository.
To add a form, add it to the right or to the wrong answers of a row.

looking_answers.jsonl was written by someone who knew the official rules and public columns, and had not seen
ours: right and wrong answers to four benchmarks, decided by the official code, and where that asks a language
model, by a careful reader. "lost" are right ones that our rules do not pay.
"""

import json
from collections import Counter
from pathlib import Path

import pytest
from test_eval import reply

from benchmarks import BENCHMARKS, GROUNDING, grade

MATHVISTA = {"question": "How many?", "choices": None, "unit": None, "metadata": {"task": "chart"}}
MATHVERSE = {
    "question_for_eval": "How large?",
    "problem_version": "Text Lite",
    "problem_index": "1",
}
MATHVISION = {"subject": "algebra", "level": 1, "question": "How many? <image1>"}
DYNAMATH = {"id": "1", "subject": "algebra", "question": "What is it?"}
WEMATH = {"ID": 1, "key": "2steps_1", "question": "Which?"}
MME = {
    "question": "How many tricycles?",
    "category": "Perception/Autonomous_Driving",
    "multi-choice options": [
        "(A) 1", "(B) 2", "(C) 3", "(D) 4", "(E) The image does not feature tricycles.",
    ],
}  # fmt: skip
HRBENCH = {
    "question": "Which colour?", "A": "red", "B": "dark red", "C": "not red", "D": "blue",
    "category": "single", "cycle_category": "0",
}  # fmt: skip

# what is probed, benchmark, row, right answers, wrong answers
CORPUS = [
    (
        "a colour inside another, and one denied", "hrbench4k", HRBENCH | {"answer": "A"},
        ["A", "(A)", "A.", "A. red", "red", "Red.", "**A**", r"\boxed{A}", "The answer is A",
         "Option A: red"],
        ["B", "dark red", "not red", "C. not red", "A or B", "not A", "blue", "", None, "none"],
    ),
    (
        "an option that denies", "hrbench4k", HRBENCH | {"answer": "C"},
        ["C", "C. not red", "not red", "The answer is C.", "(C) not red"],
        ["A", "red", "not C", "B. not red"],
    ),
    (
        "numbers that are options", "mme-realworld-lite", MME | {"answer": "B"},
        ["B", "2", "(B) 2", "B. 2", "The answer is (B)", "(B)"],
        ["A", "1", "3", "2 or 3", "(A) 2", "C. 3", "E"],
    ),
    (
        "what is not there", "mme-realworld-lite", MME | {"answer": "E"},
        ["E", "(E)", "(E) The image does not feature tricycles.", "The image does not feature tricycles",
         "E. The image does not feature tricycles"],
        ["A", "0", "The image features tricycles", "not E"],
    ),
    (
        "options in columns, as VLMEvalKit reads them", "treebench",
        {"question": "Which?", "A": "red", "B": "dark red", "C": "None", "D": "blue", "answer": "C",
         "category": "Perception/Attributes", "target_instances": "[[1, 2, 30, 40]]"},
        ["C", "c", "(C)", "C. None", "None", "The answer is C"],
        ["A", "B", "D", "red", "dark red", "A or C", "not C", "", None],
    ),
    (
        "options in one column, as the authors' script reads them", "treebench",
        {"question": "Which?", "multi-choice options": "A. 1\nB. 12\nC. 21\nD. 2", "answer": "B",
         "category": "Reasoning/Ordering", "target_instances": "[[1, 2, 30, 40]]"},
        ["B", "12", "B. 12", "**B**"],
        ["A", "1", "2", "21", "C. 12", "1 or 2", None],
    ),
    (
        "a sign's words", "visualprobe-hard",
        {"problem": "<image>\nWhat is on the sign?", "solution": "NO ENTRY", "data_source": "hard"},
        ["NO ENTRY", "no entry", "No entry.", "The answer is NO ENTRY."],
        ["ENTRY", "NO", "no exit", "", None],
    ),
    (
        "choices below a question", "zoombench",
        {"query": "<image>How many? Select from the following choices.\n(A) 0\n(B) 2\n(C) 1\n(D) 3",
         "response": "C", "question_type": "mcq", "bbox": [1, 2, 30, 40]},
        ["C", "(C)", "(C) 1", "1", "The answer is C."],
        ["A", "0", "2", "B. 1", "3 or 1", "", None],
    ),
    (
        "a number", "zoombench",
        {"query": "<image>How many lamps?", "response": "3", "question_type": "blank", "bbox": None},
        ["3", "3.0", "three", "The answer is 3."],
        ["2", "13", "3 or 4", "none", "", None],
    ),
    (
        "no, by the first sentence", "pope",
        {"question": "Is there a cup?", "answer": "no", "category": "random"},
        ["No", "no.", "No, there is no cup.", "There is no cup.", "It is not there. Yes.", "**No**"],
        ["yes", "Yes.", "There is a cup.", "Yes. No cup.", "maybe", "nothing", "", None],
    ),
    (
        "yes, by the first sentence", "pope",
        {"question": "Is there a cup?", "answer": "yes", "category": "random"},
        ["Yes", "yes.", "Yes, there is a cup.", "There is a cup.", "maybe", "Yes. There is no dog.", "是"],
        ["no", "No.", "There is no cup.", "not really", "", None],
    ),
    (
        "a whole number", "mathvista",
        MATHVISTA | {"answer": "14", "answer_type": "integer", "precision": 0.0},
        ["14", "14.0", "14 years", "14 years (from 1980 to 1994)", "1994 - 1980 = 14", "about 14",
         "The answer is 14.", "**14**", r"\boxed{14}", "14%", "There are 14 of 20, so 14",
         "In 2015, 14 were built.", "Out of 20, 14", "From 1980 to 1994, 14 years"],
        ["not 14", "It isn't 14", "12, not 14", "13 - 14", "12, 13, 14",
         "41", "1994", "13 or 14", "13 and 14", "14 and 13", "fourteen or so", "-14", "", None],
    ),
    (
        "a count in words", "mathvista",
        MATHVISTA | {"answer": "2", "answer_type": "integer", "precision": 0.0},
        ["2", "two", "Two.", "There are two dogs.", "two dogs"],
        ["three", "two or three", "two and three", "someone", "none", "twenty-two", "two hundred",
         "minus two", "not two", "√2", "½", "half of two"],
    ),
    (
        "a number to one decimal", "mathvista",
        MATHVISTA | {"answer": "0.8", "answer_type": "float", "precision": 1.0},
        ["0.8", ".8", "0.75", r"\frac{3}{4}", "3/4", "0.80 m", "x = 0.8"],
        ["0.7", "8", "0.9", "0.8 or 0.9", ""],
    ),
    (
        "options in words, one with no", "mathvista",
        MATHVISTA | {"answer": "no change", "answer_type": "text", "precision": None,
                     "choices": ["rise", "fall", "no change"]},
        ["C", "no change", "C. no change", "(C)", "No change."],
        ["A", "rise", "change", "not C", "rise or fall"],
    ),
    (
        "two options with the same text", "mathvista",
        MATHVISTA | {"answer": "3", "answer_type": "text", "precision": None, "choices": ["3", "3", "4"]},
        ["A", "B", "3"], ["C", "4"],
    ),
    (
        "a free answer with its label and unit", "mathverse",
        MATHVERSE | {"query_cot": "Question:How large?", "question_type": "free-form",
                     "answer": r"Area $=113.1 \mathrm{~cm}^{2}$"},
        ["113.1", "113.1 cm2", r"113.1 \text{ cm}^2", "Area = 113.1", "The area is 113.1 cm²"],
        ["13.1", "113", "113.1 or 114", "the area"],
    ),
    (
        "degrees", "mathverse",
        MATHVERSE | {"query_cot": "Question:How large?", "question_type": "free-form", "answer": "60°"},
        ["60", "60°", r"60^\circ", "60 degrees", r"\angle A = 60^\circ"], ["30", "160", "60 or 120"],
    ),
    (
        "choices within the question", "mathverse",
        MATHVERSE | {"query_cot": "Question:How large?\nChoices:\nA:20°\nB:40°\nC:60°\nD:80°",
                     "question_type": "multi-choice", "answer": "C"},
        ["C", "C:60°", "60°", "(C)", "The answer is C"], ["A", "B:40°", "40°", "A or C", "not C"],
    ),
    (
        "an option's text as gold", "mathverse",
        MATHVERSE | {"query_cot": r"Question:Choices: A:090^\circ T B:180^\circ T",
                     "question_type": "multi-choice", "answer": r"090^\circ T"},
        ["A", "A.", "(A)"], ["B", "(B)"],
    ),
    (
        "options that are drawn", "mathvision",
        MATHVISION | {"options": ["A", "B", "C", "D", "E"], "answer": "B"},
        ["B", "(B)", "The answer is B"], ["A", "AB", "A or B", "not B", ""],
    ),
    (
        "options with texts", "mathvision",
        MATHVISION | {"options": ["1", "2", "3"], "answer": "B"},
        ["B", "2", "B. 2"], ["1", "C", "3", "2 or 3"],
    ),
    (
        "a free number", "mathvision", MATHVISION | {"options": [], "answer": "12.5"},
        ["12.5", r"\frac{25}{2}", "25/2", "12.50", "x = 12.5", "12.5 cm"],
        ["12", "12.6", "-12.5", "12 or 12.5"],
    ),
    (
        "a formula", "mathvision", MATHVISION | {"options": [], "answer": r"2\sqrt{3}"},
        [r"2\sqrt{3}", "2√3", r"\sqrt{12}", "√12", "3.4641"], [r"\sqrt{3}", "√3", "2", r"3\sqrt{2}"],
    ),
    (
        "a power", "mathvision", MATHVISION | {"options": [], "answer": "100"},
        ["100", "10²", "10^2", "10^{2}"], ["10", "102", "10³", "√100 cm²x"],
    ),
    (
        "the letter, never two", "wemath",
        WEMATH | {"option": "A. 3; B. 4; C. 4; D. No correct answer", "answer": "B"},
        ["B", "(B)", "B. 4", "The answer is B."], ["A", "C", "C. 4", "4", "3", "B or C"],
    ),
    (
        "options with separators in them", "wemath",
        WEMATH | {"option": "A. Shape ;C.; B．2; C. No correct answer;", "answer": "A"},
        ["A", "(A)", "The answer is A"], ["B", "C", "2", "No correct answer"],
    ),
    (
        "a float to a thousandth", "dynamath",
        DYNAMATH | {"answer_type": "float", "ground_truth": "3.1416"},
        ["3.142", r"\pi", "π", "3.1416", "x = 3.1416", "pi"], ["3.14", "3", "3.141 or 3.142", ""],
    ),
    (
        "a month, word for word", "dynamath",
        DYNAMATH | {"answer_type": "text", "ground_truth": "May"},
        ["May", "may.", "It is May", "in May", "**May**"], ["maybe", "ay", "March", "not May", ""],
    ),
    (
        "several words", "dynamath",
        DYNAMATH | {"answer_type": "text", "ground_truth": "even function"},
        ["even function", "Even function.", "It is an even  function"], ["function", "even", "odd function"],
    ),
    (
        "several letters", "logicvista", {"question": "Which two?", "answer": "A, C"},
        ["A, C", "C, A", "A and C", "AC", "The answers are A and C", "Both A and C", "(A) and (C)"],
        ["A", "C", "A, B", "A, B, C", "A or C", ""],
    ),
    (
        "a letter beyond E", "logicvista", {"question": "Which?", "answer": "H"},
        ["H", "(H)", "The answer is H.", "h", "答案是H"], ["A", "GH", "not H", "G or H"],
    ),
]  # fmt: skip
ROWS = [(name, str(row), answer) for _, name, row, right, wrong in CORPUS for answer in (*right, *wrong)]


def test_the_corpus_has_no_row_twice_and_every_benchmark_with_a_rule_of_its_own():
    assert len(set(ROWS)) == len(ROWS) >= 250
    own = BENCHMARKS.keys() - GROUNDING.keys()
    same_rule = {"vstar", "hrbench8k", "mme-realworld", "visualprobe-easy", "visualprobe-medium"}
    assert {name for name, *_ in ROWS} == own - same_rule


@pytest.mark.parametrize("probe, name, row, right, wrong", CORPUS, ids=[row[0] for row in CORPUS])
def test_corpus(probe, name, row, right, wrong):
    sample = BENCHMARKS[name].make(row)

    def is_right(answer):
        return grade(name, reply(sample, answer))["right"]

    assert [answer for answer in right if not is_right(answer)] == []
    assert [answer for answer in wrong if is_right(answer)] == []


STRANGERS = (Path(__file__).parent / "looking_answers.jsonl").read_text(encoding="utf-8")
STRANGERS = list(map(json.loads, STRANGERS.splitlines()))


@pytest.mark.parametrize("row", STRANGERS, ids=[f"{i}-{row['benchmark']}" for i, row in enumerate(STRANGERS)])
def test_answers_by_someone_who_had_not_seen_our_rules(row):
    sample = BENCHMARKS[row["benchmark"]].make(row["row"])
    paid = {}
    for verdict in ("right", "lost", "wrong"):
        answers = row[verdict]
        paid[verdict] = [a for a in answers if grade(row["benchmark"], reply(sample, a))["right"]]
    assert paid == {"right": row["right"], "lost": [], "wrong": []}


def test_at_least_sixty_right_and_wrong_answers_of_each():
    counts = {verdict: Counter() for verdict in ("right", "lost", "wrong")}
    for row in STRANGERS:
        for verdict, counter in counts.items():
            counter[row["benchmark"]] += len(row[verdict])
    assert min(counts["right"].values()) >= 60
    assert min(counts["wrong"].values()) >= 60
    assert counts["lost"].total() <= 15 and counts["right"].total() >= 300
