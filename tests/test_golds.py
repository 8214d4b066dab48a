"""Golds as the paper's rows have them: sentences, letters and choices in the question, leads of their own."""

import gzip
import json
import re
from pathlib import Path
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data import Sample, load, with_options
from grading.correct import is_correct, verifiable
from grading.golds import read_gold, split_choices
from grading.sentences import BEGINS, FILLER, is_sentence, says_same
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


def read_forms(name: str) -> list[dict]:
    rows = gzip.decompress((Path(__file__).parent / name).read_bytes()).decode().splitlines()
    return list(map(json.loads, rows))


# 580 rows of the three kinds by writers who had not seen the rules: forms that a fair reader takes for the
# gold, and forms that none does. At first sight 0.84 to 0.96 of the right forms were paid, and 0.005 to 0.019
# of the wrong ones; the rules were bettered after each set.
FORMS = read_forms("forms.json.gz")
# "No" with more behind it; roles that are swapped.
PAID_ALL_THE_SAME = {"No, there are two clocks on the wall.", "The CFO reports to the finance manager."}


def test_forms_that_no_rule_was_made_for():
    """90 more rows, to which nothing was mended: what the rules do on rows they have not met. Most of the
    wrong ones that are paid say the right value of something else ("The perimeter is 12 cm", asked for the
    area)."""
    paid = []
    wrong = []
    for row in read_forms("forms_unseen.json.gz"):
        sample = Sample("1", b"", row["question"], row["gold"], tool=row["kind"] != "thinklite")
        sample = with_options(sample)
        paid += [is_correct(form, sample) for form in row["right"]]
        wrong += [is_correct(form, sample) for form in row["wrong"]]
    assert (len(paid), len(wrong)) == (588, 630)
    assert fmean(paid) >= 0.85 and fmean(wrong) <= 0.04


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


def test_the_answers_that_the_authors_judge_graded():
    """Of DeepEyes' models, on V*, with their 72B judge's verdicts (its repository's `eval_results`).
    Where a row has no options, a bare letter says nothing."""
    rows = [row for row in read_forms("judged_answers.jsonl.gz") if len(row["said"].strip()) > 1]
    verdicts = {0: [], 1: []}
    for row in rows:
        paid = is_correct(row["said"], Sample("1", b"", row["question"], row["gold"]))
        verdicts[row["right"]].append(paid)
    assert len(verdicts[1]) > 400 and fmean(verdicts[1]) >= 0.99
    assert len(verdicts[0]) > 100 and not any(verdicts[0])


# question, gold, answers that say the same, answers that say something else and were paid, or might be
BEYOND = [
    (
        "Is there a dog?", "Yes, there is a dog.",
        ["There is a dog.", "There is a brown dog."],
        ["There is a fire hydrant.", "There is no dog."],
    ),
    (
        "Are there any cars?", "No, there are no cars.",
        ["There are no cars.", "There aren't any cars."],
        ["There are no people.", "There are cars.", "There are two cars."],
    ),
    (
        "Is there a red car?", "Yes",
        ["There is a red car on the road."],
        ["There is a blue car.", "There is a car."],
    ),
    (
        "Is there a bicycle to the right of the bus?", "Yes",
        ["There is a bicycle to the right of the bus.", "yes"],
        ["There is a bicycle to the left of the bus.", "There is a bus to the right of the bicycle."],
    ),
    (
        "Where is the cat?", "The cat is in the box.",
        ["in the box", "inside the box", "The cat is in the box", "the box",
         "It is inside of the box."],
        ["on the box", "by the box", "from the box", "on top of the box", "The cat is at the box."],
    ),
    (
        "Where is the cup?", "The cup is on the table.",
        ["on the table", "on top of the table", "The cup in the image is on the table."],
        ["in the table", "by the table", "under the table"],
    ),
    (
        "What is the color of the dog?", "brown",
        ["The color of the dog is brown.", "The dog is brown."],
        ["The color of the truck is brown.", "The truck is brown."],
    ),
    (
        "What is the color of the dog?", "The color of the dog is brown.",
        ["The dog is brown.", "It is brown"],
        ["The color of the truck is brown.", "The truck is brown."],
    ),
    (
        "What is the pose of the cat?", "The pose of the cat is lying down.",
        ["lying down", "The cat is lying down"],
        ["The dog is lying down"],
    ),
    (
        "What is the pose of the cat?", "lying down",
        ["lying down", "The cat is lying down."],
        ["The dog is lying down"],
    ),
    (
        "What color is the shirt the man on the left is wearing?",
        "The man on the left is wearing a green shirt.",
        ["green", "The man on the left is wearing a green shirt.", "The shirt is green."],
        ["The man on the right is wearing a green shirt.",
         "The man on the left is wearing a red shirt."],
    ),
    (
        "What color is the bird?", "blue with a white head",
        ["It is blue with a white head."],
        ["white with a blue head", "The bird is white with a blue head."],
    ),
    (
        "What color is the bird?", "The bird is blue with a white head.",
        ["blue with a white head"],
        ["white with a blue head"],
    ),
    (
        "What is the boy wearing?", "a red shirt and blue shorts",
        ["A red shirt and blue shorts.", "He is wearing a red shirt and blue shorts"],
        ["a blue shirt and red shorts"],
    ),
    (
        "What is the boy wearing?", "The boy is wearing a red shirt and blue shorts.",
        ["a red shirt and blue shorts"],
        ["a blue shirt and red shorts"],
    ),
    (
        "What does the cake say?", "The cake says Happy Birthday Tom.",
        ["Happy Birthday Tom", "It says Happy Birthday Tom"],
        ["Tom Birthday Happy"],
    ),
    (
        "What is on the plate of the car?", "The plate reads ABC 123.",
        ["ABC 123", "ABC-123"],
        ["123 ABC", "123"],
    ),
    (
        "What is the score?", "The score is 3 to 2.",
        ["3 to 2"],
        ["2 to 3", "3"],
    ),
    (
        "What date is on the sign?", "The date on the sign is 05/06/2012.",
        ["05/06/2012"],
        ["06/05/2012"],
    ),
    (
        "What time does the clock show?", "The clock shows 10:10.",
        ["10:10", "It shows 10:10."],
        ["10", "10:11"],
    ),
    (
        "What time does the clock show?", "The clock shows 10:25.",
        ["10:25"],
        ["25:10", "10"],
    ),
    (
        "What color is the hat?", "The hat is red, not blue.",
        ["red", "The hat is red, not blue.", "Red, not blue."],
        ["blue, not red", "blue"],
    ),
    (
        "What was the revenue?", "4.5 million",
        ["4.5 million", "4,500,000", "The revenue was 4.5 million."],
        ["4.5", "4.5 billion"],
    ),
    (
        "What was the revenue?", "The revenue was 4.5 million.",
        ["4.5 million"],
        ["4.5", "4.5 billion", "5.4 million"],
    ),
    (
        "What two colors does the flag have?", "The flag is red and white.",
        ["white and red", "red and white", "red, white"],
        ["red", "red and blue"],
    ),
    (
        "What is the color of the umbrella?", "The color of the umbrella is purple.",
        ["In the image, the umbrella is purple.", "Based on the image, it is purple.",
         "After zooming in, the umbrella is purple.", "The umbrella is clearly purple."],
        ["In the image, the umbrella is red.", "In the image, the hat is purple."],
    ),
    (
        "What is the color of the jacket worn by the skier?",
        "The color of the jacket worn by the skier is orange.",
        ["The jacket is orange.", "orange", "The skier's jacket is orange."],
        ["The skier is orange.", "The jacket is red."],
    ),
    (
        "What color is the jacket worn by the skier?", "The jacket worn by the skier is orange.",
        ["The jacket is orange.", "orange"],
        ["The jacket is red."],
    ),
    (
        "What is the color of the bag held by the woman?", "The bag held by the woman is black.",
        ["The bag is black."],
        ["The woman is black."],
    ),
    (
        "What is the color of the car parked in front of the shop?",
        "The car parked in front of the shop is red.",
        ["The car is red."],
        ["The shop is red."],
    ),
    (
        "What is the color of the car closest to the camera?",
        "The color of the car closest to the camera is red.",
        ["The car is red."],
        ["The camera is red."],
    ),
    (
        "What color is the bag held by the woman?", "black",
        ["The bag is black."],
        ["The woman is black."],
    ),
    (
        "What color is the scarf worn by the woman?", "red",
        ["The scarf is red.", "The woman is wearing a red scarf", "It is red"],
        ["The woman is red.", "The woman is wearing a red hat", "The scarf is blue."],
    ),
    (
        "What is the color of the scarf worn by the woman?", "red",
        ["The scarf is red.", "The woman is wearing a red scarf", "It is red"],
        ["The woman is red.", "The woman is wearing a red hat", "The scarf is blue."],
    ),
    (
        "Is the lamp turned on or off?", "The lamp is turned on.",
        ["on", "On.", "It is on", "The lamp is on."],
        ["off", "The lamp is turned off.", "on or off"],
    ),
    (
        "Is the lamp turned on or off?", "The lamp is turned off.",
        ["off", "It is off"],
        ["on", "The lamp is turned on."],
    ),
    (
        "Is the man in the foreground or background?", "The man is in the background.",
        ["background", "in the background"],
        ["foreground", "The man is in the foreground"],
    ),
    (
        "Is the tree in the foreground or the background of the picture?",
        "The tree is in the background of the picture.",
        ["background", "In the background."],
        ["foreground", "the picture"],
    ),
    (
        "What are the words on the truck?", 'The words on the truck are "Fresh Milk".',
        ["Fresh Milk", '"Fresh Milk"', "The words are Fresh Milk."],
        ["Milk Fresh", "Milk"],
    ),
    (
        "What words are on the truck?", 'The words on the truck are "Fresh Milk".',
        ["Fresh Milk", '"Fresh Milk"'],
        ["Milk Fresh", "Milk"],
    ),
    (
        "Which is larger, the red ball or the blue ball?", "The red ball is larger.",
        ["The red one", "the red ball", "The red ball is larger.", "red"],
        ["The blue one", "the blue ball", "one"],
    ),
    (
        "What time is it on the clock?", "The clock shows 3:30.",
        ["3:30"],
        ["3", "30:3"],
    ),
    (
        "What time does the clock show?", "The clock shows 3:30.",
        ["3:30"],
        ["3", "3:00"],
    ),
    (
        "What are the people playing?", "The people are playing tennis.",
        ["tennis", "playing tennis", "They are playing tennis."],
        ["golf", "playing"],
    ),
    (
        "What are the people doing?", "The people are playing tennis.",
        ["playing tennis", "They play tennis.", "tennis"],
        ["golf", "playing", "watching tennis"],
    ),
    (
        "What is the color of the left shoe?", "The left shoe is white and the right shoe is black.",
        ["white", "The left shoe is white.", "The left shoe is white and the right shoe is black."],
        ["black", "The left shoe is black and the right shoe is white.", "The right shoe is white."],
    ),
    (
        "Is there a bicycle to the right of the bus?", "Yes, there is.",
        ["There is a bicycle to the right of the bus."],
        ["There is a bicycle to the right of the car.", "There is a bicycle.", "There is a bus."],
    ),
    (
        "Can you see a watch on the man's left wrist?", "Yes, the man is wearing a watch.",
        ["There is a watch on his left wrist."],
        ["There is a watch on his right wrist.", "There is no watch on his left wrist."],
    ),
    ("Is there a dog under the car?", "No", ["There is no dog."], ["There is no dog in the house."]),
    ("Is the cat in the box?", "Yes", ["The cat is in the box."], ["The cat is on the box."]),
    (
        "What is the color of the woman's handbag?", "The color of the woman's handbag is black.",
        ["The woman has a black handbag.", "Her handbag is black."],
        ["The woman is black.", "The bag of the man is black"],
    ),
    ("What is it?", "a cat and a black dog", ["A cat and a black dog."], ["a black cat and a dog"]),
    ("What color is it?", "dark red and white", ["Dark red and white."], ["dark white and red"]),
    (
        "What color is the curtain by the piano?", "The curtain by the piano is white.",  # it ends in no
        ["white"], ["black"],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("question", "gold", "same", "other"), BEYOND)
def test_what_is_said_beyond_the_question_in_its_order(question, gold, same, other):
    sample = Sample("1", b"", question, gold)
    assert [said for said in same if not is_correct(said, sample)] == []
    assert [said for said in other if is_correct(said, sample)] == []


def test_a_sentence_with_a_word_exchanged_is_paid_no_more():
    """Each content word of the gold sentences in turn; what stays paid is behind "than", or stood there."""
    paid = []
    for row in FORMS:
        gold = row["gold"]
        if row["kind"] != "vstar" or BEGINS.match(gold) or not is_sentence(gold):
            continue
        sample = Sample("1", b"", row["question"], gold)
        for word in re.finditer(r"[A-Za-z0-9][\w-]*", gold):
            if word[0].lower() not in FILLER and len(word[0]) > 1:
                said = f"{gold[: word.start()]}elephant{gold[word.end() :]}"
                paid.append(is_correct(said, sample))
    assert len(paid) >= 600 and fmean(paid) <= 0.02


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
        "Pick the label: alpha (A), beta (B), gamma (C)?",
        "In panel (a) and panel (b), which is darker?",
        "Which line is longer, (A) or (B)?",
        "Is the red car (A) or the blue car (B) faster?",
        "Which of (A) cats, (B) dogs and (C) birds has the largest share?",
        "Which sign? (A) Stop, (B) Yield or (C) Go",
        "In figure (a) the dog runs, in figure (b) it sits. Where is it happier?",
    ],
)
def test_what_is_no_list_of_choices_stays(text):
    assert split_choices(text) is None
    assert read_gold(text, "B") == (text, "B", ())


# question with choices, gold, and what is read of them
IN_TEXT = [
    ("Which?\nA. red\nB. blue\nAnswer:", "B", "Which?\nAnswer:", "blue", ("red", "blue")),
    ("Which?\nA. red\nB. blue\nYour answer:", "B", "Which?\nYour answer:", "blue", ("red", "blue")),
    (
        "Which? (A) red (B) blue Answer with the letter only.", "B",
        "Which?\nAnswer with the letter only.", "blue", ("red", "blue"),
    ),
    ("Which point is highest?\nA. C\nB. A\nC. B", "B", "Which point is highest?", "A", ("C", "A", "B")),
    ("Which?\n**A.** alpha\n**B.** beta", "B", "Which?", "beta", ("alpha", "beta")),
    ("Which?\n**A. alpha**\n**B. beta**", "B", "Which?", "beta", ("alpha", "beta")),
    ("Which?\nA、alpha\nB、beta", "B", "Which?", "beta", ("alpha", "beta")),
    ("Which?\nOption A: alpha\nOption B: beta", "B", "Which?", "beta", ("alpha", "beta")),
    ("Which?<br>A. alpha<br>B. beta", "B", "Which?", "beta", ("alpha", "beta")),
]  # fmt: skip


@pytest.mark.parametrize(("text", "gold", "head", "answer", "options"), IN_TEXT)
def test_choices_in_other_layouts(text, gold, head, answer, options):
    assert read_gold(text, gold) == (head, answer, options)


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("The answer is 3.", "3"),
        ("The final answer is red.", "red"),
        ("Ans: 3", "3"),
        ("<answer>B</answer> <answer>B</answer>", "B"),
    ],
)
def test_a_gold_has_leads_of_its_own(gold, answer):
    assert read_gold("?", gold)[1] == answer


@pytest.mark.parametrize(
    "gold",
    ["<answer>A</answer> or <answer>B</answer>", "<answer></answer>", "<answer>A</answer><answer> </answer>"],
)
def test_a_gold_with_two_answers_or_none_is_named(gold):
    with pytest.raises(ValueError, match="the gold has"):
        read_gold("?", gold)


# question, gold, options, with the tool, payable by rules
PAYABLE = [
    ("?", "green", ("red", "blue"), True, False),
    ("?", "B", ("red", "blue"), True, True),
    ("?", "The sum of the angles is 180 degrees, so the third one has 60.", (), False, False),
    ("?", "60 degrees", (), False, True),
    ("?", "x = 2 or x = -3", (), False, True),
    ("What is on the table?", "The table.", (), True, True),
    ("What is it?", "It is.", (), True, True),
    ("What color is the cup?", "The color of the cup is red.", (), True, True),
    ("Is there a dog?", "Yes, there is a dog lying under the table in the corner.", (), True, True),
    ("What is it?", "A quiet street with old houses, some cars and a church at its end.", (), True, False),
]  # fmt: skip


@pytest.mark.parametrize(("question", "gold", "options", "tool", "payable"), PAYABLE)
def test_verifiable_is_what_some_short_answer_is_paid_for(question, gold, options, tool, payable):
    assert verifiable(Sample("1", b"", question, gold, options=options, tool=tool)) == payable


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


def test_a_letter_that_is_called_right():
    """ "B is correct" names B, but not where what is wrong is asked for."""
    said = ("B is correct.", "Option B is true", "B")
    for question, right in (
        ("Which statement is correct?", [True, True, True]),
        ("Which is the right one?", [True, True, True]),
        ("Which statement is incorrect?", [False, False, True]),
        ("Which statement is not true?", [False, False, True]),
    ):
        sample = Sample("1", b"", question, "a dog", options=("a cat", "a dog"))
        assert [is_correct(answer, sample) for answer in said] == right


def test_a_gold_that_no_option_says_changes_nothing():
    text = "Which?\nA. red\nB. blue"
    assert read_gold(text, "green") == (text, "green", ())
    assert read_gold("Which?", "green", ("red", "blue")) == ("Which?", "green", ("red", "blue"))
