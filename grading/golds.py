"""Gold answers and options as data sets write them, made ready to ask and to grade.

`read_gold` goes through these stages: a gold's own lead is taken off ("#### 3", "Answer: B"); choices that
stand in the question's text become options; a gold that names an option, by letter, text or both, becomes its
text. Where a stage can't tell, the row stays as it is: choices whose letters are not A, B, C ... in
order, an inline list that neither label, brackets nor a question mark announces, a gold that none of the
options says.
"""

import re

from grading.answers import find_answer, last_boxed, normalise, option_index, unwrap

LEAD = re.compile(r"^\s*(?:(?:the )?(?:correct |final )?answer(?: is)?\s*[:=]|answer is)\s*", re.I)
LABEL = re.compile(
    r"\s*\b(?:(?:the )?(?:answer )?(?:choices?|options?|(?:pick|choose) one)(?: are)?\s*:"
    r"|(?:pick|choose) from:?)\s*$",
    re.I,
)
# What announces a list of choices within a line.
LISTED = re.compile(
    r"\b(?:(?:choices?|options?|(?:pick|choose) one)(?: are)?\s*:|(?:pick|choose) from\b)"
    r"|[?:]\s+(?=[(\[{]?A\W)",
    re.I,
)
AS_LIST = re.compile(r"""\[\s*['"]A\W""")  # a list as a program prints it
# A letter that opens a choice: at the start of a line, or, in brackets or after a label, within one.
AT_LINE = re.compile(r"(?:^|\n)[ \t]*(?:[-*•] +)?[(\[<]?([A-Za-z])(?:\.?[)\]>.:][ \t]*| [-–] )(?=\S)")
INLINE = re.compile(r"(?:^|[\s;,])[(\[<]([A-Za-z])[)\]>][.:]?\s*")
AFTER_LABEL = re.compile(r"(?:^|[\s;,])[(\[{]?([A-Za-z])[)\].:]\s*")
INSTRUCTION = re.compile(
    r"\n\s*(?=(?:please |answer |select |choose |think |directly |respond |give |context|hint)).*",
    re.I | re.S,
)


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
        chosen = named_option(gold, choices)
        if chosen is not None:
            return head, chosen, choices
    if options:
        chosen = named_option(gold, options)
        return question, gold if chosen is None else chosen, options
    return question, gold, options


def without_gold_lead(gold: str) -> str:
    """
    >>> [without_gold_lead(t) for t in ("2 + 1\\n#### 3", "Answer: B", "<answer> B </answer>", "A: B")]
    ['3', 'B', 'B', 'A: B']
    """
    gold = find_answer(gold) or gold
    if "####" in gold:
        gold = gold.rpartition("####")[2]
    gold = last_boxed(gold) or gold
    return LEAD.sub("", gold).strip()


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
    if AS_LIST.search(text):
        text = re.sub(r"""\[\s*['"](?=[A-Z]\W)|['"]\s*,\s*['"](?=[A-Z]\W)|['"]\s*\]""", " ", text)
    label = LISTED.search(text)
    patterns = [AT_LINE, INLINE] + [AFTER_LABEL] * bool(label)
    for pattern in patterns:
        marks = list(pattern.finditer(text, label.start() if label and pattern is AFTER_LABEL else 0))
        # The last A from which the letters run on in order, to the end of the text.
        starts = [number for number, mark in enumerate(marks) if mark[1] in "Aa"]
        marks = marks[starts[-1] :] if starts else []
        letters = "".join(mark[1] for mark in marks)
        if not letters or letters not in (LETTERS[: len(letters)], LETTERS[: len(letters)].lower()):
            continue
        ends = [mark.start() for mark in marks[1:]] + [len(text)]
        choices = [text[mark.end() : end].strip(" \n\t;,") for mark, end in zip(marks, ends)]
        first = text[marks[0].start() : ends[0]].strip()
        if first[:1] in ("[", "{") and first[2:3] not in ("]", "}"):  # around all of them
            choices[-1] = choices[-1].rstrip("]}")
        instruction = INSTRUCTION.search(choices[-1])
        rest = instruction[0].strip() if instruction else ""
        choices[-1] = INSTRUCTION.sub("", choices[-1]).strip()
        head = LABEL.sub("", text[: marks[0].start()]).strip()
        if len(choices) > 1 and all(choices) and head:
            return "\n".join(filter(None, (head, rest))), tuple(choices)
    return None


LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
