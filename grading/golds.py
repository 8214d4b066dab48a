"""Gold answers and options as data sets write them, made ready to ask and to grade.

`read_gold` goes through these stages: a gold's own lead is taken off ("#### 3", "Answer: B"); choices that
stand in the question's text become options; a gold that names an option, by letter, text or both, becomes its
text. Where a stage can't tell, the row stays as it is: choices whose letters are not A, B, C ... in
order, letters in a sentence that goes on ("Which is longer, (A) or (B)?"), an inline list that neither label,
brackets nor a question mark announces, a gold that none of the options says.
"""

import re

from grading.answers import find_answer, last_boxed, normalise, option_index, unwrap

LEAD = re.compile(r"^\s*(?:the )?(?:correct |final )?ans(?:wer)?(?: is\b\s*[:=]?|\s*[:=])\s*", re.I)
LABEL = re.compile(
    r"\s*\b(?:(?:the )?(?:answer )?(?:choices?|options?|(?:pick|choose) one)(?: are)?\s*:"
    r"|(?:pick|choose) from:?)\s*$",
    re.I,
)
# What announces a list of choices within a line.
ANNOUNCED = re.compile(
    r"\b(?:(?:choices?|options?|(?:pick|choose) one)(?: are)?\s*:|(?:pick|choose) from\b)"
    r"|[?:]\s+(?=[(\[{]?A\W)",
    re.I,
)
# A letter that opens a choice, by layout: at the start of a line; in brackets, or after a label, within one.
AT_LINE = re.compile(
    r"(?:^|\n)[ \t]*(?:[-*•] +)?(?:\*\*)?(?:option )?[(\[<]?([A-Za-z])"
    r"(?:\.?[)\]>.:、](?:\*\*)?[ \t]*| [-–] )(?=\S)",
    re.I,
)
IN_BRACKETS = re.compile(r"(?:^|[\s;,])[(\[<]([A-Za-z])[)\]>][.:]?\s*")
AFTER_LABEL = re.compile(r"(?:^|[\s;,])[(\[{]?([A-Za-z])[)\].:、]\s*")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# What to do with the choices, behind the last of them.
INSTRUCTION = re.compile(
    r"\n\s*(?:please |(?:your )?answer[ :]|select |choose |think |directly |respond |give |context|hint).*"
    r"|\s(?:(?i:please )|(?=Answer|Select|Choose|Respond|Give))(?i:answer|select|choose|respond|give)"
    r" (?:with|by|using|directly|only|from|the|one)\b.*",
    re.I | re.S,
)
GOES_ON = re.compile(r"^(?:[,;?]|(?:and|or)\b)|[\s,](?:and|or)$")  # a choice of no list


def read_gold(question: str, gold: str, options: tuple[str, ...] = ()) -> tuple[str, str, tuple[str, ...]]:
    """The question without its choices, the gold, and the options.

    >>> read_gold("Which country?\\nChoices:\\n(A) Malta\\n(B) Cyprus", "Cyprus")
    ('Which country?', 'Cyprus', ('Malta', 'Cyprus'))
    >>> read_gold("Which colour?", "<answer>B</answer>", ("red", "blue")), read_gold("How many?", "#### 3")
    (('Which colour?', 'blue', ('red', 'blue')), ('How many?', '3', ()))
    """
    gold = without_gold_lead(gold)
    found = None if options else split_choices(question)
    if found:
        head, choices = found
        index = option_index(gold, choices)  # a letter before the texts, which may be letters themselves
        chosen = named_option(gold, choices) if index is None else choices[index]
        if chosen is not None:
            return head, chosen, choices
    if options:
        chosen = named_option(gold, options)
        return question, gold if chosen is None else chosen, options
    return question, gold, options


def without_gold_lead(gold: str) -> str:
    """
    >>> [without_gold_lead(t) for t in ("2 + 1\\n#### 3", "The answer is 3.", "<answer> B </answer>", "A: B")]
    ['3', '3', 'B', 'A: B']
    """
    tagged = {found.strip() for found in re.findall("<answer>(.*?)</answer>", gold, re.S)}
    if len(tagged) > 1 or "" in tagged:
        raise ValueError("the gold has two answers" if len(tagged) > 1 else "the gold has an empty answer")
    gold = find_answer(gold) or gold
    if "####" in gold:
        gold = gold.rpartition("####")[2]
    gold = last_boxed(gold) or gold
    lead = LEAD.match(gold)
    return gold[lead.end() :].strip().removesuffix(".") if lead else gold.strip()


def named_option(gold: str, options: tuple[str, ...]) -> str | None:
    """The option that a gold is, or names: its text before a letter, since a text may be another's letter."""
    if gold in options:
        return gold
    texts = [normalise(unwrap(option)) for option in options]
    wanted = normalise(unwrap(gold))
    if texts.count(wanted) == 1:
        return options[texts.index(wanted)]
    index = option_index(gold, options)
    return None if index is None else options[index]


def split_choices(text: str) -> tuple[str, tuple[str, ...]] | None:
    """A question's text without the choices at its end, and these; None where there are none to tell apart.

    >>> split_choices("Which? A. red B. blue"), split_choices("Is vitamin A. or B. in it?")
    (('Which?', ('red', 'blue')), None)
    >>> split_choices("Which?\\nA. red\\nB. blue\\nAnswer with the letter.")
    ('Which?\\nAnswer with the letter.', ('red', 'blue'))
    >>> split_choices("How far? Choices: A:1 cm B: 2 cm"), split_choices("How far? (A) 1 cm (B) 2 cm")
    (('How far?', ('1 cm', '2 cm')), ('How far?', ('1 cm', '2 cm')))
    >>> split_choices("Which? {A: red, B: blue}"), split_choices("Which? Pick from [A) red, B) blue]")
    (('Which?', ('red', 'blue')), ('Which?', ('red', 'blue')))
    """
    text = re.sub(r"<br ?/?>", "\n", text)
    if re.search(r"""\[\s*['"]A\W""", text):  # a list as a program prints it
        text = re.sub(r"""\[\s*['"](?=[A-Z]\W)|['"]\s*,\s*['"](?=[A-Z]\W)|['"]\s*\]""", " ", text)
    for marks in (AT_LINE.finditer(text), IN_BRACKETS.finditer(text), after_label(text)):
        head, choices, rest = cut(text, run_on(list(marks)))
        if is_a_list(head, choices):
            return "\n".join(filter(None, (LABEL.sub("", head).strip(), rest))), tuple(choices)
    return None


def after_label(text: str):
    """The marks that may open a choice, within a line, after what announces them."""
    label = ANNOUNCED.search(text)
    return AFTER_LABEL.finditer(text, label.start()) if label else ()


def run_on(marks: list[re.Match]) -> list[re.Match]:
    """The marks from the last A on, if their letters run on in order; else none."""
    found = "".join(mark[1] for mark in marks)
    start = max(found.rfind("A"), found.rfind("a"), 0)
    in_order = LETTERS[: len(found) - start]
    return marks[start:] if found[start:] in (in_order, in_order.lower()) else []


def cut(text: str, marks: list[re.Match]) -> tuple[str, list[str], str]:
    """What stands before the marks, the choices behind each, and an instruction after the last."""
    if not marks:
        return text, [], ""
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    choices = [text[mark.end() : end].strip(" \n\t;") for mark, end in zip(marks, ends)]
    first = text[marks[0].start() : ends[0]].strip()
    if first[:1] in ("[", "{") and first[2:3] not in ("]", "}"):  # around all of them
        choices[-1] = choices[-1].rstrip("]}")
    instruction = INSTRUCTION.search(choices[-1])
    rest = instruction[0].strip() if instruction else ""
    choices[-1] = INSTRUCTION.sub("", choices[-1])
    choices = [choice.strip().rstrip(", ") for choice in choices]
    choices = [choice.replace("**", "") if choice.count("**") == 1 else choice for choice in choices]
    return text[: marks[0].start()].strip(), choices, rest


def is_a_list(head: str, choices: list[str]) -> bool:
    """Are these choices of a question, or letters in a sentence that goes on?

    >>> is_a_list("Which?", ["red", "blue"]), is_a_list("Which is longer,", ["or", "?"])
    (True, False)
    >>> is_a_list("Which of", ["cats", "dogs and", "birds has the largest share?"])
    False
    """
    asks = "?" in "".join(choices) and not head.endswith(("?", ":"))
    whole = all(choice.strip(" .,;:?!") and not GOES_ON.search(choice) for choice in choices)
    return len(choices) > 1 and bool(LABEL.sub("", head)) and whole and not asks
