"""Golds as the paper's rows have them: sentences, letters and choices in the question, leads of their own."""

import gzip
import json
from pathlib import Path
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data import Sample, load, with_options
from grading.correct import is_correct
from grading.golds import read_gold, split_choices
from grading.sentences import says_same
from select_data import write_selected

# question, gold sentence, answers that say the same, answers that do not
SENTENCES = [
    (
        "What is the color of the boy's shirt?",
        "The color of the boy's shirt is red.",
        ["red", "Red.", "It is red.", "The shirt is red.", "The boy's shirt is red", "the color is red",
         "A red shirt", "The boy wears a red shirt.", "His shirt is red",
         "The person's shirt appears to be red",
         "The shirt is red, because the zoom shows it."],
        ["blue", "not red", "The shirt is blue", "red or blue", "The shirt is not red.",
         "red and blue", "", "dark",
         "The boy's shirt", "It could be red or green", "dark red"],
    ),
    (
        "Is the dog on the left or right side of the cat?",
        "The dog is on the left side of the cat.",
        ["left", "Left side", "on the left", "The dog is on the left.", "It is to the left of the cat",
         "The dog is left of the cat", "the left-hand side"],
        ["right", "The dog is on the right side of the cat.", "The cat is on the left side of the dog.",
         "left or right", "not on the left", "The cat is on the left",
         "The dog is on the left side of the tree."],
    ),
    (
        "Is the dog on the left side of the picture?",
        "No, the dog is on the right side.",
        ["No", "no.", "No, it is on the right.", "on the right", "The dog is on the right side"],
        ["Yes", "left", "yes, it is", "The dog is on the left side"],
    ),
    (
        "Is there a dog?",
        "Yes, there is a dog in the picture.",
        ["Yes", "yes, there is", "There is a dog."],
        ["No", "There is no dog"],
    ),
    (
        "What is the man holding?",
        "The man is holding a baseball bat.",
        ["a baseball bat", "baseball bat", "He is holding a baseball bat.",
         "The person is holding a baseball bat"],
        ["a bat and a ball", "a tennis racket", "The man is holding a baseball glove", "nothing", "a ball"],
    ),
    (
        "How many cups are on the table?",
        "There are two cups on the table.",
        ["2", "two", "There are 2 cups", "two cups", "Two cups are on the table"],
        ["3", "three cups", "There are three cups on the table", "two or three"],
    ),
    (
        "What is the material of the countertop?",
        "The countertop is made of dark brown wood.",
        ["dark brown wood", "It is made of dark brown wood"],
        ["light brown wood", "wood and metal", "brown wood or stone"],
    ),
    (
        "Is the flag blue and yellow or red and yellow?",
        "The color of the flag is blue and yellow.",
        ["blue and yellow", "It is blue and yellow", "yellow and blue"],
        ["red and yellow", "blue", "The flag is red and yellow."],
    ),
    (
        "What animal is sitting on the bench?",
        "A cat is sitting on the bench.",
        ["a cat", "cat", "The animal is a cat", "It is a cat.", "A cat is sitting there"],
        ["a dog", "two cats and a dog", "no cat"],
    ),
    (
        "Is the bicycle on the left or right side of the bench?",
        "The bicycle is on the right side of the bench.",
        ["The bench is on the left side of the bicycle.", "The bench is to the left of the bicycle", "right"],
        ["The bench is on the right side of the bicycle.", "The bicycle is left of the bench",
         "The tree is on the left side of the bicycle.", "The bench is not on the left of the bicycle."],
    ),
    (
        "Is the red car on the left or right side of the police car?",
        "The red car is on the left side of the police car.",
        ["left", "The police car is on the right side of the red car."],
        ["The red car is on the right side of the police car.", "The police car is left of the red car."],
    ),
    (
        "Does the red house have two or four windows?",
        "The red house has four windows.",
        ["Four", "4", "Four, not two.", "It has four windows."],
        ["two", "2", "four or two", "five"],
    ),
    (
        "What number is on the jersey of the player?",
        "The number on the jersey of the player is 17.",
        ["17", "seventeen", "It is seventeen."],
        ["seven", "71", "seventy"],
    ),
    (
        "How many people are on the bench?",
        "There are three people on the bench.",
        ["The number of people on the bench is 3.", "three"],
        ["The number of people on the bench is 4.", "The number of dogs on the bench is 3."],
    ),
    (
        "What is the woman doing?",
        "The woman is riding a bicycle.",
        ["riding a bicycle", "She is riding a bicycle", "The woman is riding a bicycle."],
        ["walking", "riding a horse", "The man is riding a bicycle"],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("question", "gold", "same", "other"), SENTENCES, ids=[row[0] for row in SENTENCES])
def test_a_sentence_is_said_in_other_words(question, gold, same, other):
    sample = Sample("1", b"", question, gold)
    assert [said for said in same if not is_correct(said, sample)] == []
    assert [said for said in other if is_correct(said, sample)] == []


# 480 rows of the three kinds by writers who had not seen the rules: forms that a fair reader takes for the
# gold, and forms that none does. At first sight 0.90, 0.91, 0.92 and, of the last 120 rows, 0.96 of the right
# forms were paid, and 0.006 to 0.019 of the wrong ones; the rules were bettered after each.
FORMS = gzip.decompress((Path(__file__).parent / "forms.json.gz").read_bytes()).decode().splitlines()
FORMS = list(map(json.loads, FORMS))
# "No" with more behind it, and a part of an option.
PAID_ALL_THE_SAME = {"No, there are two clocks on the wall.", "Virginia"}


@pytest.mark.parametrize("kind", ["vstar", "chart", "thinklite"])
def test_forms_that_others_wrote(kind):
    paid = []
    wrong = set()
    for row in FORMS:
        if row["kind"] != kind:
            continue
        sample = Sample("1", b"", row["question"], row["gold"], tool=kind != "thinklite")
        sample = with_options(sample)
        paid += [is_correct(form, sample) for form in row["right"]]
        wrong |= {form for form in row["wrong"] if is_correct(form, sample)}
    assert len(paid) >= 800 and fmean(paid) >= 0.95
    assert wrong <= PAID_ALL_THE_SAME


COLOURS = ["red", "blue", "green", "yellow", "black", "white", "purple", "orange", "brown", "gray", "pink"]
THINGS = [
    "car",
    "umbrella",
    "woman's handbag",
    "traffic light",
    "boat on the left",
    "dog's collar",
    "old bus",
]
LEADS = [
    "{}",
    "It is {}.",
    "The {thing} is {}.",
    "The color of the {thing} is {}.",
    "I think it is {}",
    "**{}**",
]


@given(st.sampled_from(THINGS), st.sampled_from(COLOURS), st.sampled_from(COLOURS), st.sampled_from(LEADS))
def test_the_value_decides_whatever_stands_before_it(thing, colour, other, lead):
    """Any lead with the gold's own word is correct; any exchanged word is wrong."""
    question = f"What is the color of the {thing}?"
    gold = f"The color of the {thing} is {colour}."
    said = lead.replace("{thing}", thing).format(other)
    assert says_same(said, gold, question) == (other == colour)


@given(st.text(max_size=200))
def test_any_text_is_read_without_an_error(text):
    says_same(text, "The color of the car is red.", text)
    says_same("red", text, "What is it?")
    read_gold(text, text)


HEAD = "Which country is shaded?"
CHOICES = ("Malta", "Cyprus", "Iceland")
LAYOUTS = [
    "{head}\nA. {0}\nB. {1}\nC. {2}",
    "{head}\nA) {0}\nB) {1}\nC) {2}",
    "{head}\n(A) {0}\n(B) {1}\n(C) {2}\n",
    "{head}\nChoices:\n(A) {0}\n(B) {1}\n(C) {2}",
    "{head}\nOptions:\nA: {0}\nB: {1}\nC: {2}",
    "{head} Choices: A:{0} B:{1} C:{2}",
    "{head} Options: (A) {0}, (B) {1}, (C) {2}",
    "{head} (A) {0} (B) {1} (C) {2}",
    "{head} (A) {0}; (B) {1}; (C) {2}.",
    "{head}\n[A] {0}\n[B] {1}\n[C] {2}",
    "{head}\nA - {0}\nB - {1}\nC - {2}",
    "{head}\nA.) {0}\nB.) {1}\nC.) {2}",
    "{head} {{A: {0}, B: {1}, C: {2}}}",
    "{head} Pick from [A) {0}, B) {1}, C) {2}]",
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "gold", ["B", "(B)", "B.", "Cyprus", "B. Cyprus", "(B) Cyprus", "<answer>B</answer>", "Answer: B"]
)
def test_choices_in_the_text_become_options(layout, gold):
    question = layout.format(*CHOICES, head=HEAD)
    head, answer, options = read_gold(question, gold)
    assert head == HEAD and answer == "Cyprus"
    assert [option.rstrip(".") for option in options] == list(CHOICES)


@pytest.mark.parametrize(
    "text",
    [
        "Is vitamin A. or vitamin B. in it?",
        "What is shown in figure (A)?",
        "Compare (A) and (C).",
        "A. red",
        "(A) red (B) blue",  # no question before them
        "What does the sign say?",
    ],
)
def test_what_is_no_list_of_choices_stays(text):
    assert split_choices(text) is None
    assert read_gold(text, "B") == (text, "B", ())


def test_yes_or_no_is_not_turned_round_by_what_follows():
    sample = Sample("1", b"", "Is there more red than blue?", "no")
    assert is_correct("No, there is less red.", sample) and not is_correct("Yes, there is more.", sample)
    assert not is_correct("the lowest", Sample("1", b"", "Which one is the highest?", "the tower"))


def test_a_list_of_answers(tmp_path, monkeypatch):
    """Each is as good as the first, by any rule; with options all of them name one."""
    rows = [
        {"question": "Which brand?", "answer": ["nokia", "Nokia 3310", "nokia"]},
        {"question": "How far?", "answer": ["3 km", "about three kilometres"]},
        {"question": "Which?\nA. red\nB. blue", "answer": ["B", "blue"]},
        {"question": "What?", "answer": []},
        {"question": "What?", "answer": ["red", None]},
        {"question": "What?", "answer": "red", "accepted": "crimson"},  # letters are no answers
    ]
    monkeypatch.chdir(tmp_path)  # where bad rows are named
    Image.new("RGB", (50, 50)).save(tmp_path / "a.png")
    lines = (json.dumps(row | {"image": "a.png"}) + "\n" for row in rows)
    (tmp_path / "rows.jsonl").write_text("".join(lines))
    samples = load(str(tmp_path))
    golds = [(sample.answer, *sample.accepted) for sample in samples]
    assert golds == [("nokia", "Nokia 3310"), ("3 km", "about three kilometres"), ("blue",)]
    brand, distance, colour = samples
    assert is_correct("Nokia 3310.", brand) and is_correct("**nokia**", brand)
    assert not is_correct("3310", brand) and not is_correct("Nokia 3210", brand)
    assert is_correct("3", distance) and is_correct("About three kilometres.", distance)
    assert is_correct("B", colour) and not is_correct("A", colour)
    asked = []
    assert not is_correct("a phone", brand, lambda *said: asked.append(said))
    assert asked == [("Which brand?", "nokia / Nokia 3310", "a phone")]
    write_selected(samples, tmp_path / "selected.parquet")
    assert [(s.answer, *s.accepted) for s in load(str(tmp_path))] == golds


def test_a_gold_that_no_option_says_changes_nothing():
    text = "Which?\nA. red\nB. blue"
    assert read_gold(text, "green") == (text, "green", ())
    assert read_gold("Which?", "green", ("red", "blue")) == ("Which?", "green", ("red", "blue"))
