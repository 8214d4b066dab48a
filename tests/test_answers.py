"""What counts as right: a corpus of answers that people and models give, and properties for any options.

To add a form, add it to the right or to the wrong answers of a group.
"""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import Sample
from grading.answers import as_number, letters, option_index, unwrap, yes_or_no
from grading.correct import is_correct

PETS = ("a cat", "the dog", "no pet", "The image does not feature pets")
SENTENCES = (
    "The material of the glove is rubber.",
    "The material of the glove is cotton.",
    "The material of the glove is leather.",
)
SIDES = ("It is on the left.", "It is on the right.")
LETTERS = ("F", "D", "B", "I")  # texts that are letters themselves
NUMBERS = ("12 cm", "-12 cm", "1,200 cm")

# what is probed, gold, options, right answers, wrong answers
CORPUS = [
    (
        "a letter, by itself and after a lead",
        "the dog",
        PETS,
        [
            "B", "b", "(B)", "B.", "B)", "[B]", "(b).", "**B**", "$B$", "`B`", r"\boxed{B}",
            r"\boxed{\text{B}}",
            r"\text{B}", r"\(B\)", "（B）", "B。", "Answer: B", "**Answer:** B", "answer: (B)",
            "The answer is B", "The answer is B.", "The answer is (B).", "The answer is: B",
            r"The answer is \boxed{B}.",
            "The correct answer is B", "The correct option is B.", "The right choice is B", "Option B",
            "option B.", "Choice B", "It is B.", "It's B", "I choose B", "I would choose option B",
            "So the answer is B.", "Therefore, the answer is B", "The final answer is B", "My answer is B",
            "答案是B", "答案：B", "选B", "正确答案是 B。", "The best answer is option B",
        ],
        [
            "A", "C", "E", "AB", "A, B", "A or B", "B or C", "A/B", "B/C", "either A or B", "not B",
            "Not B.",
            "option A or option B", "neither option A nor option B", "The answer is not B",
            "The answer is not option B", "The answer is not option B.", "The answer isn't B",
            "I do not think the answer is B", "It is not B", "It's not B.", "Anything but not B",
            "between A and B", "B and C", "The answer is A", "Option A.", "It is C", "答案是A", "",
            "The answer is B or C", "A. or B.", "I can't tell A from B", "I don't know", "none",
        ],
    ),
    (
        "a letter with its text, or with a reason",
        "the dog",
        PETS,
        [
            "B. the dog", "B: the dog", "(B) the dog", "B) dog", "Option B: the dog", "B. The dog.",
            "The correct option is B. the dog", "The answer is B. the dog", "B because it is brown",
            "B, because it barks", "B since it has four legs", "B because it is not a cat",
            "B. It is brown.",
            "The answer is B because it barks.", "**B. the dog**", "the dog", "The dog", "dog", "a dog",
            "The dog.", "It is the dog.", "the answer is the dog", "There is the dog in it",
        ],
        [
            "A. the dog or B", "A. No, it is B.", "A. a cat", "C. no pet", "a cat", "cat", "no pet",
            "the dog or a cat", "a cat or the dog", "not the dog", "It is not the dog.", "no dog",
            "neither the dog nor a cat", "the dogs", "dogma", "pet", "the", "a",
        ],
    ),
    (
        "options that themselves deny",
        "no pet",
        PETS,
        ["C", "C. no pet", "(C) no pet", "no pet", "No pet.", "The answer is C. no pet",
         "Option C: no pet"],
        ["D. no pet", "A", "not C", "pet", "no cat", "C or D"],
    ),
    (
        "an option that says it is not there",
        "The image does not feature pets",
        PETS,
        [
            "D", "D. The image does not feature pets", "(D) The image does not feature pets.",
            "The image does not feature pets", "The image does not feature pets.",
            "The answer is D. The image does not feature pets",
        ],
        ["The image does feature pets", "C. The image does not feature pets", "not D", "E"],
    ),
    (
        "sentences, answered with the word that tells them apart",
        SENTENCES[0],
        SENTENCES,
        ["rubber", "Rubber.", "A", "is rubber", "The glove is rubber",
         SENTENCES[0], "the answer is rubber"],
        ["cotton", "The material", "glove", "rubber or cotton", "not rubber", "B", SENTENCES[1], "rubbery"],
    ),
    (
        "sides",
        SIDES[1],
        SIDES,
        ["B", "right", "on the right", "It is on the right.", "the right", "On the right."],
        ["left", "A", "left or right", "not on the left", "It is not on the right.", "on the", "rightly"],
    ),
    (
        "texts that are letters: labels first",
        "I",
        LETTERS,
        ["D", "(D)", "I", "D. I", "The answer is D"],
        ["B", "A", "C", "F", "not D"],
    ),
    (
        "options with signs and separators",
        "-12 cm",
        NUMBERS,
        ["B", "-12 cm", "B. -12 cm", "(B) -12 cm", "The answer is B"],
        ["12 cm", "A", "C", "1,200 cm", "12"],
    ),
    (
        "yes",
        "yes",
        (),
        [
            "yes", "Yes", "Yes.", "YES", "**Yes**", r"\boxed{yes}", "Yes, it is.", "Yes, there is a dog.",
            "The answer is yes", "The answer is yes.", "Answer: Yes", "Yes, there is a dog and no cat",
            "是", "是。",
            "yes!", "Yes - they do.",
        ],
        [
            "no", "No.", "The answer is no", "yes and no", "yes or no", "Yes. No.", "Yes, no.",
            "maybe", "not sure",
            "There is no dog in the image.", "There is a dog in the image.",
            "I think so", "否", "", "no idea", "not yes", "unknown", "A",
        ],
    ),
    (
        "no",
        "no",
        (),
        [
            "no", "No", "No.", "NO", "**No**", r"\boxed{no}", "No, it is not.", "No, there is no dog",
            "否", "否。",
            "The answer is no.", "Answer: no", "No, they show different letters.", "no!",
        ],
        [
            "yes", "Yes.", "The answer is yes", "yes and no", "no or yes", "No. Yes.", "no idea",
            "No idea.",
            "maybe", "There is a dog.", "是", "", "none", "north", "not sure",
        ],
    ),
    (
        "a whole number",
        "2",
        (),
        [
            "2", "2.", "2.0", "two", "Two", "Two.", "**2**", "$2$", r"\boxed{2}", "The answer is 2",
            "The answer is 2.", "There are 2 dogs", "There are 2 dogs.", "There are two dogs.",
            "2 dogs", "x = 2",
            "n=2", "about 2", "approximately 2", "It is 2.", "Answer: 2", "I count 2 dogs.", "4/2",
        ],
        [
            "3", "20", "22", "-2", "1 or 2", "2 or 3", "2 and 3", "between 2 and 3", "not 2",
            "There are not 2 dogs",
            "2, 3", "three", "twenty-two", "1 + 2", "5 = 2", "I can't see", "",
            "There are 2 dogs and 3 cats", "1.2",
        ],
    ),
    (
        "a decimal number",
        "12.5",
        (),
        ["12.5", "12.50", "about 12.5", "approximately 12.5", "around 12.5", "The answer is 12.5",
         "$12.5$", "25/2",
         r"\frac{25}{2}", "12.5 cm", "x = 12.5", "roughly 12.5"],
        ["12,5", "12", "125", "1.25", "12.6", "12.5 or 13", "-12.5"],
    ),
    (
        "a fraction in LaTeX",
        r"\frac{3}{4}",
        (),
        ["0.75", ".75", "3/4", r"\frac{3}{4}", r"$\frac{3}{4}$", r"\[\frac{3}{4}\]",
         r"\boxed{\frac{3}{4}}", "6/8",
         r"\dfrac{3}{4}", r"The answer is \frac{3}{4}"],
        ["0.7", "4/3", "75", "34", r"\frac{4}{3}", "3/4 or 1/4"],
    ),
    (
        "per cent",
        "75%",
        (),
        ["75%", "75 %", "75", "75 percent", "0.75", r"75\%", "about 75%", "The answer is 75%", "75.0%"],
        ["7.5%", "75 or 80%", "750", "0.75%", "-75%"],
    ),
    (
        "degrees",
        "45°",
        (),
        ["45°", "45", "45 degrees", "45 degree", "45.0", r"45^\circ", r"\angle A = 45^\circ",
         "The answer is 45°"],
        ["54", "45%", "145", "45 or 135"],
    ),
    (
        "a number with a unit",
        "12 cm",
        (),
        ["12 cm", "12cm", "12", "12.0 cm", "12 cm.", "**12 cm**", "The answer is 12 cm", "x = 12 cm",
         r"12\text{ cm}", "about 12 cm"],
        ["12 m", "12 mm", "120", "12 kg", "1.2 cm", "12 or 13 cm"],
    ),
    (
        "thousands",
        "1,200",
        (),
        ["1200", "1,200", "1,200.0", "$1,200", "The answer is 1,200", "1200 people"],
        ["1.2", "120", "12,000", "1,2"],
    ),
    (
        "a short text",
        "red",
        (),
        ["red", "Red", "RED.", "the red", "**red**", r"\text{red}", "The answer is red", "It is red.",
         "Answer: red",
         "It's red", '"red"', "(red)"],
        ["blue", "not red", "It is not red", "red or blue", "redder", "bored", "", "re",
         "the answer is not red"],
    ),
    (
        "a lead is whole words",
        "head",
        (),
        ["head", "The answer is head", "Letter: head"],
        ["letterhead", "Its head office", "optionhead", "The answer ishead"],
    ),
    (
        "a letter of the toy",
        "A",
        (),
        ["A", "A.", "**A**", "The answer is A", "It is A", r"\boxed{A}"],
        ["H", "a cat", "not A", "A or H", "AA", ""],
    ),
]  # fmt: skip
CORPUS += [
    (
        "powers in superscript", "100", (),
        ["10²", "10^2", "The answer is 10².", "1000⁄10", "100"],
        ["102", "10³", "10⁻²", "2¹⁰⁰", "1⁰0"],
    ),
    ("what looks like a power without its sign", "102", (), ["102", "102.0"], ["10²", "$10²$", "10^2"]),
    ("a negative power", "0.001", (), ["10⁻³", "10^{-3}", "1/1000"], ["10³", "10-3", "103"]),
    (
        "mixed numbers", "3.5", (),
        ["3½", "3 1/2", "3 ½", "7/2", "It is 3½."],
        ["31/2", "15.5", "3/2", "½", "-3½", "3⅓"],
    ),
    ("a fraction of one sign", r"\frac{3}{4}", (), ["¾", "3⁄4", "The part is ¾."], ["43", "½", "-¾"]),
    ("a currency is a unit", "25%", (), ["25%", "25", "25 percent"], ["$25", r"\$25", "25 dollars", "€25"]),
    (
        "dollars", "$4.35", (),
        ["$4.35", r"\$4.35", "4.35 dollars", "4.35", "It costs $4.35."],
        ["4.35%", "€4.35", "4.35 cents", "$4", "$4.35 or $5"],
    ),
    (
        "a number that is an option stands free", "10", ("9", "10", "100"),
        ["10", "c = 10", r"$\sqrt{6^2+8^2}=10$", "The side is 10."],
        [r"$\sqrt{10}$", "√10", "10²", "10/2", "$10^2$", "1/10"],
    ),
    (
        "a part of a pair is no option", "Lyon and Riga", ("Oslo and Riga", "Lyon and Riga", "100 to 200"),
        ["Lyon and Riga", "B", "The cities are Lyon and Riga."],
        ["Lyon", "Riga", "Lyon and Bern", "100", "Oslo and Riga"],
    ),
    (
        "typographic signs", "women's dress", (),
        ["women’s dress", "“Women’s dress”", "women‘s\u00a0dress", "the wo\u200bmen's dress",
         "«women's dress»"],
        ["men’s dress", "women’s", "“Women’s dresses”"],
    ),
    (
        "a number's typographic signs", "-12345", (),
        ["−12345", "–12345", "\u221212\u202f345", "-12\u00a0345", "-12 345", "‑12,345"],
        ["12345", "12 345", "-12 34", "-1234", "−12\u202f346"],
    ),
    (
        "a letter that is called right", "the dog", PETS,
        [
            "B is correct.", "Option B is correct", "(B) is the correct answer.", "Statement B is true.",
            "The true statement is B", "The correct statement is B.", "B!", 'The answer is "B"',
            "The answer is “B”.",
            "选择B", "B选项", "选项B", "<answer>B</answer></answer>", "It barks, so **B**.",
            "It barks, so B.",
            "The correct answer to the question is (B) the dog. The other pets do not match. "
            "Therefore, the best answer is (B).",
        ],
        [
            "A is correct.", "B is false.", "B is not correct", "Option B is incorrect", "A!", "选择A",
            "A选项",
            "B is correct, or A", "It barks, so not B.", "The answer is not B. It meows, so A.",
            "The answer is (B) the dog. Therefore, the best answer is (A).", "The best answer is (B) or (A).",
            "The answer is B. This is not true.", "<answer>A</answer></answer>",
        ],
    ),
    (
        "an area", "25 m^2", (),
        [
            "25", "25 m^2", "25 m²", "25 m2", "25 square meters", "25 square metres", "25 sq. m",
            "25 meters squared",
            r"$25\,\text{m}^2$", r"25 \mathrm{~m}^{2}", "The area is 25 m².",
            "It is 25 square meters large.",
        ],
        ["25 m", "25 cm²", "25 m^3", "25 square feet", "The area is 25 cm².", "25 cubic meters", "25 m/s",
         "24 m²"],
    ),
    (
        "a speed", "120 km/h", (),
        ["120 km/h", "120 kilometers per hour", "120", r"$120\text{ km/h}$", "120 kph", "240 / 2 = 120 km/h"],
        ["120 m/s", "120 km", "120 mph", "120 hours", "120 miles per hour", "12 km/h"],
    ),
    (
        "an acceleration", "2.5 m/s^2", (),
        [
            "2.5 m/s²", "2.5 meters per second squared", r"$2.5\ \mathrm{m/s^2}$", "2.5 m s^-2",
            "a = 2.5 m/s²", "a = F/m = 10/4 = 2.5 m/s^2",
        ],
        ["2.5 m/s", "2.5 km/s^2", "25 m/s²", "2.5 meters per second", "2.5 s^2/m"],
    ),
    (
        "a formula with a unit", "9π cm²", (),
        ["9π cm²", "9*pi cm^2", "9π square centimeters", r"$9\pi\ \text{cm}^2$", "9π",
         r"A = \pi r^2 = 9\pi \text{ cm}^2"],
        ["9 cm²", "9π cm", "9π m²", "6π cm²", "9π square meters"],
    ),
    (
        "a calculation that ends in its value", "25%", (),
        ["(80 − 60)/80 = 25%", "20/80 = 25%", "100% - 75% = 25%", "p = 25%"],
        ["5 = 25%", "25% = 20/80 = 5", "not p = 25%", "a = 25%, b = 30%", "p <= 25%", "p = 25% or 30%"],
    ),
    (
        "an equation of two numbers", "12", (),
        ["3 × 4 = 12", "x = 12", "? = 12"], ["5 = 12", "x = 5 = 12", "x ≠ 12", "x >= 12", r"x \le 12"],
    ),
    (
        "an inequality", "x > 3", (),
        ["x > 3", "x>3", "$x > 3$", "3 < x", "The inequality is x > 3."],
        ["x < 3", "x ≥ 3", "3 > x", "3", "x = 3", "x > -3"],
    ),
    ("a number is no inequality", "3", (), ["3", "x = 3"], ["x > 3", "3 < x", "x >= 3", "x<3", "3 > x"]),
    (
        "a point", "(3, -2)", (),
        ["They intersect at (3, −2).", "(3,-2)", "At the point **(3, -2)**", r"$\left(3, -2\right)$"],
        ["(-2, 3)", "(3, -2) and (-3, 2)", "-(3, -2)", "not at (3, -2)", "They meet at (3, 2).", "f(3, -2)"],
    ),
]  # fmt: skip
CORPUS += [
    (
        "a power of ten", "10^-3", (),
        ["10⁻³", "10^{-3}", "0.001"],
        ["10³", "-10^3", "10-3"],
    ),
    (
        "a power of ten, as its value", "0.001", (),
        ["10^-3"],
        [],
    ),
    (
        "a number times a power of ten", "1500", (),
        ["1.5·10³", "1.5 × 10^3", "1.5e3"],
        ["1.5", "15·10³"],
    ),
    (
        "a small number", "1e-07", (),
        ["0.0000001", "1e-07", "10^-7"],
        ["1", "0", "1e-06"],
    ),
    (
        "a small number, in digits", "0.0000001", (),
        ["1e-07", "1e-7"],
        ["0", "1e-6"],
    ),
    (
        "a large number", "3e8", (),
        ["300000000", "3e8", "3·10^8", "300,000,000"],
        ["3", "3e7"],
    ),
    (
        "a large number, in digits", "300000000", (),
        ["3e8", "3×10⁸"],
        ["3"],
    ),
    (
        "a name with an index", "x_1", (),
        ["x₁", "x_1"],
        ["x_2", "x₂", "x1x"],
    ),
    (
        "a letter among remarks on the others", "blue", ("red", "blue", "green"),
        [
            "故选B",
            "「B」",
            "The correct answer to the question is (B) blue. The tile is plainly blue. "
            "The other options do not fit.",
            "The correct answer is (B) blue. Options (A) and (C) do not match the picture.",
        ],
        [
            "故选A",
            "「A」",
            "The correct answer to the question is (A) red. The tile is plainly blue. "
            "The other options do not fit.",
            "The correct answer is (A) red. Options (B) and (C) do not match the picture.",
            "The correct answer is not (B) blue. The other options fit.",
            "The correct answer is (B) or (C). Option (A) does not match.",
        ],
    ),
    (
        "a part of a name", "New Hampshire", ("Vermont", "New Hampshire", "Maine"),
        ["New Hampshire", "B"],
        ["New", "Hampshire", "A"],
    ),
]  # fmt: skip
ROWS = [
    (probe, gold, options, answer, right)
    for probe, gold, options, good, bad in CORPUS
    for answers, right in ((good, True), (bad, False))
    for answer in answers
]


def test_the_corpus_is_large():
    distinct = {(gold, options, answer) for _, gold, options, answer, _ in ROWS}
    assert len(distinct) == len(ROWS) >= 400


@pytest.mark.parametrize("probe, gold, options, right, wrong", CORPUS, ids=[row[0] for row in CORPUS])
def test_corpus(probe, gold, options, right, wrong):
    sample = Sample("1", b"", "Which?", gold, options=options)
    assert [answer for answer in right if not is_correct(answer, sample)] == []
    assert [answer for answer in wrong if is_correct(answer, sample)] == []


# question, gold, options, right answers, wrong answers
ASKED = [
    (
        "By how much did the rate fall?", "2.5 points", ("1.5 points", "2.5 points"),
        ["B", "It fell by 2.5 points.", "It dropped by 2.5 points", "2.5"],
        ["It rose by 2.5 points.", "It increased by 2.5 points", "It fell by 1.5 points"],
    ),
    (
        "What is the ratio of cats to dogs?", "2:3", ("2:3", "3:2"),
        ["The ratio of cats to dogs is 2:3.", "2:3"], ["The ratio of dogs to cats is 2:3.", "3:2"],
    ),
    (
        "Which statement is false?", "tea rose", ("tea rose", "coffee rose"),
        ["A", "The answer is A."], ["Statement A is true.", "A is correct", "B"],
    ),
    (
        "How does the pressure change?", "It stays the same", ("It increases", "It stays the same"),
        ["The pressure stays the same.", "It stays the same.", "stays the same"],
        ["The pressure increases.", "It does not stay the same.", "The pressure increases or stays the same"],
    ),
    (
        "Which type of rock is pictured?", "sedimentary rock", ("igneous rock", "sedimentary rock"),
        ["The rock is sedimentary rock.", "Sedimentary", "It is a sedimentary rock."],
        ["The rock pictured is not sedimentary.", "The rock pictured is igneous.", "sedimentary or igneous"],
    ),
    (
        "How many states have a value above 50?", "3", ("-3", "3", "13"),
        ["There are 3 states.", "three", "3"],
        ["More than 3 states have a value above 50.", "There are 13 states with a value above 50", "-3",
         "above 3"],
    ),
    (
        "What density does the region have?", "above 200", ("below 50", "above 200"),
        ["The region has a density above 200.", "above 200"],
        ["200", "not above 200", "below 200", "The region has a density below 50"],
    ),
    (
        "How does it go on?", "It first rises and then falls", ("It first rises and then falls", "It stays"),
        ["It first rises and then falls.", "first rises and then falls"], ["It first falls and then rises."],
    ),
]  # fmt: skip


@pytest.mark.parametrize("question, gold, options, right, wrong", ASKED, ids=[row[0] for row in ASKED])
def test_what_is_asked_decides(question, gold, options, right, wrong):
    sample = Sample("1", b"", question, gold, options=options)
    assert [answer for answer in right if not is_correct(answer, sample)] == []
    assert [answer for answer in wrong if is_correct(answer, sample)] == []


FORMS = (
    "{}", "({})", "{}.", "**{}**", "Answer: {}", "The answer is {}.", "The correct option is {}",
    "Option {}",
    "\\boxed{{{}}}", "It is {}.", "The answer is \\boxed{{{}}}.", "答案是{}",
)  # fmt: skip
DENIALS = (
    "not {}", "The answer is not {}", "The answer is not option {}.", "I do not think the answer is {}",
    "It isn't {}", "neither {} nor any other",
)  # fmt: skip
ALTERNATIVES = ("{} or {}", "option {} or option {}", "either {} or {}", "{}/{}", "The answer is {} or {}")
words = st.from_regex(r"[a-h]{3,6}( [a-h]{3,6})?", fullmatch=True)


@given(st.lists(words, min_size=2, max_size=5, unique=True), st.data())
@settings(max_examples=200, deadline=None)
def test_any_options(options, data):
    """For any options: each right form is right, and each form of another, a denial or a choice is wrong."""
    place = data.draw(st.integers(0, len(options) - 1))
    other = data.draw(st.integers(0, len(options) - 1).filter(lambda i: i != place))
    sample = Sample("1", b"", "?", options[place], options=tuple(options))
    mine, theirs = chr(65 + place), chr(65 + other)
    for form in FORMS:
        assert is_correct(form.format(mine), sample), form
        assert not is_correct(form.format(theirs), sample), form
    assert is_correct(f"{mine}. {options[place]}", sample)
    for form in DENIALS:
        assert not is_correct(form.format(mine), sample), form
    for form in ALTERNATIVES:
        assert not is_correct(form.format(mine, theirs), sample), form
        assert not is_correct(form.format(theirs, mine), sample), form


@given(st.text(max_size=300))
@settings(max_examples=300, deadline=None)
def test_any_text_is_read_without_an_error(text):
    for read in (unwrap, yes_or_no, letters, as_number):
        read(text)
    option_index(text, PETS)


LONG = ("the " * 250, "(" * 990, "\\boxed{" * 140, "A, " * 330, "answer is " * 99, "{" * 990)


@pytest.mark.parametrize("text", LONG)
def test_long_answers_are_read_quickly(text):
    began = time.time()
    for gold, options in (("the dog", PETS), ("yes", ()), ("12", ()), ("A", ())):
        is_correct(text, Sample("1", b"", "?", gold, options=options))
    letters(text)
    assert time.time() - began < 1
