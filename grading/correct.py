"""Is an answer correct? Rules decide where they can; a judge, if there is one, only where they can't."""

import re
from dataclasses import replace

from grading import answers, sentences

MOST_WORDS = 4  # of an answer that rules are to check
MAX_ANSWER_CHARS = 1000  # the paper's guard against long answers that sway the judge
# "The area of the circle is", "Angle 1 is", "The clock shows".
STATED = re.compile(r"^(?:the|its?|angle|∠) ?[^=]{0,60}?(?:\b(?:is|equals|shows)\s+|= ?)", re.I)
RATIO = re.compile(r"(?<=\d) ?(?::|to) ?(?=\d)")
OPPOSITES = """
    greatest/smallest largest/smallest biggest/smallest highest/lowest higher/lower longest/shortest
    longer/shorter tallest/shortest most/least most/fewest more/less more/fewer stronger/weaker
    heavier/lighter fastest/slowest faster/slower older/younger hottest/coldest warmer/colder
    first/last before/after north/south east/west rise/fall
"""
OPPOSITES = [pair.split("/") for pair in OPPOSITES.split()]
OPPOSITES += [[other, word] for word, other in OPPOSITES]
RISES = re.compile(r"\b(?:ris(?:e[ns]?|ing)|rose|increas\w*|gr[eo]w\w*)")
FALLS = re.compile(r"\b(?:fall\w*|fell|drop\w*|decreas\w*|declin\w*)")
FAULT = re.compile(r"\b(?:false|incorrect|wrong|untrue)\b", re.I)
TUPLE = re.compile(r"(?<![\w)-])\([^()]*,[^()]*\)(?!\w)")


def is_correct(prediction: str | None, sample, judge=None) -> bool:
    """Does a prediction agree with the gold answer of a `Sample`, or with another one that is accepted?

    judge: optional callable (question, gold, prediction) -> bool, asked where no rule can tell.

    >>> from data import Sample
    >>> is_correct("Yes, it is.", Sample("1", b"", "Is it?", "yes"))
    True
    >>> is_correct("A", Sample("2", b"", "Which letter?", "B"))
    False
    """
    if prediction is None or not prediction.strip() or len(prediction) >= MAX_ANSWER_CHARS:
        return False
    said = answers.unwrap(prediction)
    outcomes = [by_rules(said, replace(sample, answer=gold)) for gold in (sample.answer, *sample.accepted)]
    if True in outcomes:
        return True
    if None in outcomes and judge:
        return bool(judge(sample.text(), " / ".join((sample.answer, *sample.accepted)), said))
    return False


def by_rules(said: str, sample) -> bool | None:
    """What the first rule that can tell says of an unwrapped answer; None where none can."""
    # "No, there are fewer" answers yes or no, whatever the question asks.
    if answers.yes_or_no(said) is None and turned_round(said, f"{sample.text()} {sample.answer}"):
        return None
    if "=" not in sample.answer:
        said = result(said)
    for rule in RULES:
        decided = rule(said, sample)
        if decided is not None:
            return decided
    return None


def result(said: str) -> str:
    """What a label or a calculation leads to: what stands after the last "=".

    >>> [result(t) for t in ("x = 12", "(80 - 60)/80 = 25%", "5 = 12", "not x = 12", "x = 1, y = 12")]
    ['12', '25%', '5 = 12', 'not x = 12', 'x = 1, y = 12']
    """
    *before, last = said.split("=")
    left = "=".join(before)
    unclear = re.search(r",(?!\d{3})|\band\b|[<>!≠≤≥]", left) or answers.DENIES.search(left)
    parts = map(answers.without_lead, map(str.strip, before))
    # "5 = 12" leads nowhere.
    another = any(answers.as_number(part) and not answers.same_number(part, last.strip()) for part in parts)
    return said if unclear or another or answers.CHOICE.search(left) else last.strip()


# Each rule answers True, False, or None where it can't tell. They are asked in this order.


def same_option(said: str, sample) -> bool | None:
    """By the options' texts, not their letters: two options may say the same."""
    if not sample.options:
        return None
    negative = answers.DENIES.search(sample.question) or FAULT.search(sample.question)
    if answers.CALLED_RIGHT.fullmatch(said) and negative:  # "B is true", where what is false is asked for
        return None
    chosen = answers.option_index(said, sample.options)
    wanted = gold_option(sample)
    if chosen is None or wanted is None:
        return None
    return sample.options[chosen] == wanted


def turned_round(said: str, question: str) -> bool:
    """Does an answer say the opposite of a word of the question that it does not have?

    >>> turned_round("Rain was lowest in May", "When was rain highest?"), turned_round("May", "highest?")
    (True, False)
    >>> turned_round("It rose by 2", "By how much did it fall?"), turned_round("dogs to cats", "cats to dogs")
    (True, True)
    """
    spoken = FALLS.sub("fall", RISES.sub("rise", said.lower()))
    asked = FALLS.sub("fall", RISES.sub("rise", question.lower()))
    pairs = re.findall(r"(\w+) to (?:the )?(\w+)", asked)
    if any(f"{right} to {left}" in spoken.replace("to the ", "to ") for left, right in pairs):
        return True
    spoken = set(re.findall(r"\w+", spoken))
    asked = set(re.findall(r"\w+", asked))
    return any(word in asked - spoken and other in spoken - asked for word, other in OPPOSITES)


def same_text(said: str, sample) -> bool | None:
    if said == sample.answer:
        return True
    gold = answers.normalise(answers.unwrap(sample.answer))
    claim = answers.without_lead(said)
    if gold in (answers.normalise(said), answers.normalise(claim)):
        return gold != ""  # nothing but punctuation says nothing
    return True if answers.same_code(claim, gold) else None


def same_yes_or_no(said: str, sample) -> bool | None:
    gold = answers.normalise(answers.unwrap(sample.answer))
    if gold not in ("yes", "no"):
        return None
    claim = answers.yes_or_no(said) or sentences.restated(said, sample.question)
    return None if claim is None else claim == gold


def same_value(said: str, sample) -> bool | None:
    """Numbers and formulas. Another value may be the same thing in another unit: then no rule can tell."""
    gold = answers.unwrap(sample.answer)
    for pattern in (answers.BOUND, answers.DENIES):
        if pattern.search(said) and not pattern.search(gold):
            return None
    if not re.search(r"[\d\\^=]", gold):
        return None
    claims = [said, answers.without_lead(said), STATED.sub("", said)]
    tuples = TUPLE.findall(said)
    if TUPLE.fullmatch(gold) and len(tuples) == 1 and not answers.CHOICE.search(said):
        claims += tuples
    for claim in (answers.unwrap(claim.rstrip(" .")) for claim in claims):
        if answers.same_quantity(claim, gold):
            return True
        if RATIO.sub(":", answers.normalise(claim)) == RATIO.sub(":", answers.normalise(gold)):
            return True
    return None


def same_statement(said: str, sample) -> bool | None:
    """A gold or an answer that is a sentence. Where they differ a judge may know better."""
    is_value = re.search(r"\d", sample.answer) and not sentences.is_sentence(sample.answer)
    if sample.options or not sample.tool or is_value:
        return None
    return sentences.says_same(said, sample.answer, sample.question) or None


RULES = (same_option, same_text, same_yes_or_no, same_value, same_statement)


def verifiable(sample) -> bool:
    """Is there a short answer that rules pay: an option on offer, yes or no, a value, up to four words?

    >>> from data import Sample
    >>> rows = [("?", "12 cm"), ("?", "a red cup"), ("What color is it?", "The color of the cup is red.")]
    >>> rows.append(("What is it?", "A quiet street with old houses, some cars and a church at its end."))
    >>> [verifiable(Sample("1", b"", question, answer)) for question, answer in rows]
    [True, True, True, False]
    """
    if sample.options:
        return gold_option(sample) is not None
    for gold in (sample.answer, *sample.accepted):
        beyond = sentences.beyond(sentences.claim(gold, sample.question), sample.question)
        forms = (gold, " ".join(beyond), "yes", "no")
        short = [form for form in forms if form and len(re.findall(r"\w{2,}", form)) <= MOST_WORDS]
        if any(by_rules(answers.unwrap(form), replace(sample, answer=gold)) for form in short):
            return True
    return False


def gold_option(sample) -> str | None:
    """The text of the correct option, which the gold answer is or names; None if it does neither."""
    if sample.answer in sample.options:
        return sample.answer
    index = answers.option_index(sample.answer, sample.options)
    return None if index is None else sample.options[index]
