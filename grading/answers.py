"""What an answer says: an option, letters, a number, yes or no, a formula. Rules read it; nothing is run.

Every reader works in the same stages. It takes off the wrapping (`unwrap`), then a lead such as "The answer
is" (`without_lead`). The remaining text must be the answer itself. An answer that denies something or leaves
a choice ("not B", "A or B") names no option: an ambiguous answer is wrong.
"""

import re
import unicodedata
from functools import lru_cache

from grading.formulas import WORKER
from grading.units import split_unit, unit_of

# What may stand before the answer proper.
LEAD = re.compile(
    r"(?:(?:so|thus|therefore|hence|then),? )?"
    r"(?:"
    r"(?:(?:the|my) )?(?:(?:(?:correct|right|final|best) )?(?:answers?|options?|choices?|letters?)"
    r"|(?:correct|true) statement)(?: to (?:the|this) question)?"
    r"(?: (?:is|are|would be|should be|must be))?(?![a-z])"
    r"|(?:i think |i believe )?(?:it is|it's|it must be|that is|that's)(?![a-z])"
    r"|i (?:would )?(?:choose|pick|select)(?![a-z])"
    r"|(?:正确)?(?:答案|选项)(?:是|为)?|故?选择?"
    r")\s*[:=]?\s*(?:(?:options?|choices?|letters?|answers?)\b\s*)?",
    re.I,
)
LETTER_FIRST = re.compile(r"[(\[]?[A-I][)\].:]")
# "Option B is correct", "B is the right answer", "B选项".
CALLED_RIGHT = re.compile(
    r"(?:(?:option|choice|answer|statement) )?[(\[\"']*([A-I])[)\]\"']*"
    r"(?: is (?:the )?(?:correct|right|true|best)(?: (?:answer|option|choice|one|statement))?|选?项)\W*",
    re.I,
)
DENIES = re.compile(
    r"\b(?:not|no|nor|neither|never|none|cannot|except|rather than|other than"
    r"|(?:any|every|all)\w*(?: \w+)? but)\b|n't\b",
    re.I,
)
CHOICE = re.compile(r"\b(?:or|either)\b|\b[A-I] ?/ ?[A-I]\b|\bbetween [A-I\d]")
REASON = re.compile(r"(?:because|since|as|which|who|that)\b", re.I)
BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
WORDS = "zero one two three four five six seven eight nine ten eleven twelve"
NUMBER_WORDS = {word: number for number, word in enumerate(WORDS.split())}
TEENS = "thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
TEENS = {word: number for number, word in enumerate(TEENS.split(), 13)}
TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
TENS = {word: 10 * number for number, word in enumerate(TENS.split(), 2)}
# "sixteen", "twenty", "twenty-four": read where they stand alone.
LONE_NUMBER_WORDS = NUMBER_WORDS | TEENS | TENS
LONE_NUMBER_WORDS |= {
    f"{ten}-{one}": TENS[ten] + NUMBER_WORDS[one] for ten in TENS for one in WORDS.split()[1:10]
}


# What looks alike is written alike.
PLAIN = dict.fromkeys("‘’‚‛´ʼ", "'") | dict.fromkeys("“”„‟«»「」『』", '"') | dict.fromkeys("‐‑‒–−", "-")
PLAIN |= dict.fromkeys("\u00ad\u200b\u200c\u200d\u2060\ufeff", "") | dict.fromkeys("º˚", "°")
PLAIN = str.maketrans(PLAIN | {"。": ".", "—": " - "})
RAISED = "¹²³⁰-ⁿˣ"
SUPERSCRIPT = re.compile(rf"(?<=[^\s{RAISED}])[{RAISED}]+(?![{RAISED}⁄])")
BEFORE_FRACTION = re.compile(rf"(?<=\d)(?=[¼-¾⅐-⅞]|[{RAISED}]+⁄)")
THOUSANDS_SPACE = re.compile(r"(?<=\d)[\u00a0\u2007\u2009\u202f](?=\d{3}(?!\d))")
TIME = re.compile(r"\b0?(\d{1,2}:\d\d) ?([ap])\.?m\b")
CODE = re.compile(r"(?=.*\d)\w+(?:[ -]\w+)*")  # a number plate, a phone number
PHONE = 7  # digits from which numbers may be grouped in any way: "100-50" is not "10050"
MATH = re.compile(r"\$\$?([^$]+)\$\$?(?!\d)")  # not the dollars of "$5 or $6"
TEXT = re.compile(r"\\(?:text|mathrm|mathbf|textbf|mbox)\s*\{([^{}]*)\}")


def unwrap(text: str) -> str:
    """An answer without the usual wrapping (Markdown, LaTeX, full-width characters), its signs in one form.

    >>> [unwrap(t) for t in ("**B**", "$12$", r"\\text{the car}", r"\\(\\boxed{\\text{B}}\\)", "（B）")]
    ['B', '12', 'the car', 'B', '(B)']
    >>> [unwrap(t) for t in ("10²", "10⁻³", "3½", "2√3", "−½", "“STOP”", r"25\\,\\text{m}^2", "$5")]
    ['10^2', '10^{-3}', '3 1/2', '2\\\\sqrt{3}', '-1/2', '"STOP"', '25 m^2', '$5']
    """
    text = unicodedata.normalize("NFKC", raised(text).translate(PLAIN)).replace("⁄", "/")
    text = re.sub(r"\*\*|__|`|</?(?:b|i|u|em|strong|answer)>", "", text)
    text = re.sub(r"\^(?:\\circ|\{\\circ\})|\\degree", "°", text).replace("\\%", "%").replace("{,}", ",")
    text = text.replace("\\$", "＄")  # a dollar that opens no formula
    text = re.sub(r"√\s*\(?(\d+(?:\.\d+)?)\)?", r"\\sqrt{\1}", text)
    text = re.sub(r"(?<=\d) ?\*? ?(?:π|pi\b)(?!\w)", r"\\pi", text)
    text = re.sub(r"(?<=\S)~|(?<!\\)\\[,;: ]", " ", text)
    for _ in range(4):  # wrappings nest
        inner = BOXED.sub(r"\1", text).strip().strip("*").strip()
        inner = re.sub(r"^\\[(\[]|\\[)\]]$", "", MATH.sub(r"\1", inner))
        inner = TEXT.sub(r" \1", inner).strip()
        if inner == text:
            break
        text = inner
    return re.sub(" {2,}", " ", text).replace("＄", "$").strip()


def raised(text: str) -> str:
    """Powers and fractions in plain signs, before the normal form makes 102 of 10² and 31/2 of 3½.

    >>> raised("10²"), raised("m⁻¹"), raised("3½")
    ('10^2', 'm^{-1}', '3 ½')
    """
    text = THOUSANDS_SPACE.sub(",", BEFORE_FRACTION.sub(" ", text))

    def power(found):
        digits = unicodedata.normalize("NFKC", found[0]).translate(PLAIN)
        return f"^{digits}" if len(digits) == 1 else f"^{{{digits}}}"

    return SUPERSCRIPT.sub(power, text)


def count_boxed(turns: list[str]) -> int:
    """The number of `\\boxed{...}` in the last turn, after its thought."""
    last = turns[-1] if turns else ""
    after_thought = last.rpartition("</think>")[2]
    return after_thought.count("\\boxed{")


def find_answer(text: str, boxed: bool = False) -> str | None:
    """The text in the last non-empty `<answer>...</answer>` of a turn. With boxed: in the last `\\boxed{...}`
    after the turn's thought.

    text: what the model wrote, without observations. They repeat the format line, and the
    `<answer>...</answer>` in that line is no answer.

    >>> find_answer("<answer>A</answer> no, <answer> B </answer><answer></answer>")
    'B'
    >>> find_answer(r"<think>\\boxed{3}?</think> so it is \\boxed{\\frac{1}{2}}", boxed=True)
    '\\\\frac{1}{2}'
    """
    if boxed:
        return last_boxed(text.rpartition("</think>")[2])
    end = text.rfind("</answer>")
    while end >= 0:
        start = text.rfind("<answer>", 0, end)
        if start < 0:
            break
        if answer := text[start + len("<answer>") : end].partition("</answer>")[0].strip():
            return answer
        end = text.rfind("</answer>", 0, start)
    return None


def last_boxed(text: str) -> str | None:
    """The text in the last `\\boxed{...}`, which may hold braces; None if it is missing, empty or not closed.

    >>> last_boxed(r"\\boxed{1}, no, \\boxed{\\frac{1}{2}}"), last_boxed(r"\\boxed{1")
    ('\\\\frac{1}{2}', None)
    """
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    inside = text[start + len("\\boxed{") :]
    depth = 1
    for index, character in enumerate(inside):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return inside[:index].strip() or None
    return None


def without_lead(text: str) -> str:
    """The text after "The answer is" and the like, or before "is correct".

    >>> [without_lead(t) for t in ("The correct option is B.", "Answer: 12", "It's red", "a choice of two")]
    ['B.', '12', 'red', 'a choice of two']
    >>> [without_lead(t) for t in ("Option B is correct.", "B is the best answer", "B选项", "B is false")]
    ['B', 'B', 'B', 'B is false']
    """
    if right := CALLED_RIGHT.fullmatch(text):
        return right[1]
    lead = LEAD.match(text)
    return text[lead.end() :] if lead else text


def normalise(text: str) -> str:
    """Lower case, no leading article, no closing punctuation, single spaces, times in one form.

    >>> normalise(" The Red car. "), normalise("08:45 A.M.")
    ('red car', '8:45 am')
    """
    text = re.sub(r"(?<=\w)_(?:\{(\w+)\}|(?=\w))", r"\1", " ".join(text.lower().split()))  # x_1, written x₁
    text = TIME.sub(r"\1 \2m", text)
    return re.sub(r"^(a|an|the) (?=\w)", "", text).strip(" .,;:!?\"'()[]")


def same_code(prediction: str, gold: str) -> bool:
    """The same letters and digits, in other groups?

    >>> [same_code(text, "KD72 WPL") for text in ("kd72wpl", "KD72-WPL", "KD7 WPL")]
    [True, True, False]
    >>> same_code("01632-960148", "01632 960148"), same_code("100-50", "10050"), same_code("-12345", "12345")
    (True, False, False)
    """
    grouped = [normalise(text) for text in (prediction, gold)]
    if not all(map(CODE.fullmatch, grouped)):
        return False
    said, wanted = (re.sub(r"[ -]", "", text) for text in grouped)
    are_numbers = any(re.search(r"\d[ -]\d", text) for text in grouped)
    return said == wanted and (not are_numbers or len(re.findall(r"\d", wanted)) >= PHONE)


# --------------------------------------------------------------------------------------------------
# Options.


def option_index(prediction: str, options: tuple[str, ...]) -> int | None:
    """The index of the option that an answer names: by its letter, by its text, or by both.

    >>> options = ("a blue car", "the red car", "no car")
    >>> [option_index(p, options) for p in ("b", "(B)", "B. the red car", "The answer is B.", "red car")]
    [1, 1, 1, 1, 1]
    >>> [option_index(p, options) for p in ("C. no car", "B because it is red", "red", "Option B: red")]
    [2, 1, 1, 1]
    >>> [option_index(p, options) for p in ("A or B", "not B", "car", "", "The answer is not option B")]
    [None, None, None, None, None]
    """
    text = without_others(" ".join(unwrap(prediction).split()))
    texts = [normalise(unwrap(option)) for option in options]
    last = chr(64 + len(options))
    for claim in (text, without_lead(text)):
        # The letter before the texts: an option's text may be another's letter.
        if letter := re.fullmatch(rf"[(\[\"']*([A-{last}])\b[)\].:!\"']*", claim, re.I):
            return ord(letter[1].upper()) - 65
        if texts.count(normalise(claim)) == 1:
            return texts.index(normalise(claim))
        value = as_number(claim)
        equal = [index for index, text in enumerate(texts) if value and as_number(text) == value]
        if len(equal) == 1:
            return equal[0]
    index = letter_first(without_lead(text), texts, last)
    if index is not None:
        return index
    index = stated_letter(text, last)
    if index is not None or LETTER_FIRST.match(without_lead(text)):  # "D. no pet", where that is C
        return index
    return named(text, texts)


def without_others(text: str) -> str:
    """An answer without a last sentence that only denies the other options.

    >>> without_others("(B) red. Options (A) and (C) do not fit."), without_others("(B). (B) does not fit.")
    ('(B) red.', '(B). (B) does not fit.')
    """
    *before, last = re.split(r"(?<=[.!;]) ", text)
    said = " ".join(before)
    named = [set(re.findall(r"\b[A-I]\b", part)) for part in (said, last)]
    others = re.match(r"(?:the other|options?|choices?)\b.*(?:\bnot\b|n't\b)", last, re.I)
    return said if others and said and not named[0] & named[1] else text


def letter_first(claim: str, texts: list[str], last: str) -> int | None:
    """The index of the option whose letter begins an answer: "B. the red car", "B because ...", "(B) red"."""
    match = re.match(rf"[(\[]?([A-{last}])(?:[)\].:,]+(?=\s|$)|[)\].:]+|(?=\s))\s*(.*)", claim)
    if not match:
        return None
    index = ord(match[1]) - 65
    rest = match[2]
    if normalise(rest) == texts[index] or REASON.match(rest):
        return index
    bare = claim[1:2] == " "  # "A car ..." is an article, not an option
    others = re.search(rf"(?<!\w)[(\[]?[A-{last}][)\].:]+(?!\w)|(?<![\w'])[B-{last}](?![\w'])", rest)
    if bare or others or DENIES.search(rest) or CHOICE.search(rest):
        return None
    return index


def stated_letter(text: str, last: str) -> int | None:
    """The index of the only letter after "option", "answer is" or "so", at the end of an answer.

    >>> stated_letter("The answer is (A) a dog. It is not big. So the best answer is (A).", "D")
    0
    >>> [stated_letter(t, "D") for t in ("It is a big one, so B.", "The answer isn't B", "option A, B")]
    [1, None, None]
    """
    sentences = re.split(r"(?<=[.!;]) ", text)
    with_letter = " ".join(part for part in sentences if re.search(rf"\b[A-{last}]\b", part, re.I))
    if DENIES.search(with_letter) or CHOICE.search(with_letter):
        return None
    lead = r"(?:answer|option|choice|statement)(?: to the question)?(?: is)?:?|(?:so|thus|hence|therefore),?"
    stated = rf"\b(?:{lead}) (?:option )?[(\[\"']*([A-{last}])\b[)\].:\"']*"
    found = {letter.upper() for letter in re.findall(stated, text, re.I)}
    ends = re.search(stated + "$", text, re.I)
    return ord(found.pop()) - 65 if ends and len(found) == 1 else None


def named(text: str, texts: list[str]) -> int | None:
    """The index of the only option whose text is in the answer, or whose text has the answer in it.

    >>> [named(t, ["riga and bern", "oslo", "above 200"]) for t in ("Bern", "It is above 200", "200")]
    [None, 2, None]
    """
    said = without_pronoun(normalise(without_lead(text)))
    texts = [without_pronoun(option) for option in texts]
    holds = [i for i, option in enumerate(texts) if option and has_words(said, option)]
    if len(holds) == 1:
        option = texts[holds[0]]
        rest = said.replace(option, " ").split()  # "toward and away from it" says two options
        others = (set(other.split()) - set(option.split()) for other in texts)
        unclear = leaves_open(text, option) or any(words and words <= set(rest) for words in others)
        return None if unclear else holds[0]
    if holds or len(said) < 3 and not re.fullmatch(r"[a-z]\d", said):
        return None
    inside = [i for i, option in enumerate(texts) if has_words(option, said)]
    if len(inside) != 1:
        return None
    option = texts[inside[0]]
    others = {word for text in texts if text != option for word in text.split()}
    rest = set(option.split()) - set(said.split()) - others - LITTLE
    if rest and len(option.split()) <= 3:  # "New" is not "New Hampshire"
        return None
    one_of = re.search(rf"\b(?:and|&|to) {re.escape(said)}|{re.escape(said)} (?:and|&|to)\b", option)
    unclear = one_of or leaves_open(text, option) or leaves_open(option, said)  # "pet" is not "no pet"
    return None if unclear else inside[0]


LITTLE = {"a", "an", "the", "of", "in", "on", "is", "are", "it"}


def without_pronoun(text: str) -> str:
    return re.sub(r"^(?:it|they) (?=\w)", "", text)


def leaves_open(text: str, other: str) -> bool:
    """Does a text deny, choose or bound more than another does?"""
    return any(len(sign.findall(text)) > len(sign.findall(other)) for sign in (DENIES, CHOICE, BOUND))


def has_words(text: str, words: str) -> bool:
    return re.search(rf"(?<![\w{{^/*+$-])(?<!\d\.){re.escape(words)}(?![\w}}^/*+$-]|\.\d)", text) is not None


def letters(text: str) -> str:
    """The option letters A to I that an answer names, in order. "" if it could mean something else.

    >>> [letters(t) for t in ("b", "A, C", "(B) and (D)", "The answer is B", "B. the red car", "A car", "BD")]
    ['B', 'AC', 'BD', 'B', 'B', '', 'BD']
    >>> [letters(t) for t in ("The answers are A and C", "Both A and C", "B:145°", "A. or B.", "not B")]
    ['AC', 'AC', 'B', '', '']
    """
    claim = without_lead(" ".join(unwrap(text).split()))
    claim = re.sub(r"^both\b\s*", "", claim, flags=re.I)
    several = r"(?:[A-I]|\W|and\b)+|\W*[a-i](?:(?:\W|\band\b)+[a-i])*\W*"
    if len(claim) < 40 and re.fullmatch(several, claim) and not CHOICE.search(claim):
        return "".join(sorted(set(re.sub(r"and|[^A-Ia-i]", "", claim).upper())))
    stated = None if DENIES.search(text) or CHOICE.search(text) else stated_letter(claim, "I")
    if stated is not None:
        return chr(65 + stated)
    lead = re.match(r"\W*([A-I])(?:[).:]+| (?=\())(.*)", claim)
    others = r"(?<!\w)[(\[]?[A-I][)\].:]|\bor\b|^\s*(?:no|not)\b"
    if not lead or re.search(others, lead[2], re.I):
        return ""
    return lead[1]


# --------------------------------------------------------------------------------------------------
# Yes and no.


def yes_or_no(text: str) -> str | None:
    """The yes or no that begins an answer, unless the answer takes it back.

    >>> [yes_or_no(t) for t in ("Yes, it is.", "no", "No, there is no dog.", "The answer is no.", "是")]
    ['yes', 'no', 'no', 'no', 'yes']
    >>> [yes_or_no(t) for t in ("yes and no", "no idea", "maybe", "Yes. No.", "There is no dog here.")]
    [None, None, None, None, None]
    """
    said = without_lead(" ".join(unwrap(text).lower().split()))
    said = {"是": "yes", "否": "no"}.get(said.strip(" ."), said)
    first = re.match(r"\W*(yes|no)\b(?! (?:idea|doubt|question|way))(.*)", said)
    if not first:
        return None
    other = "no" if first[1] == "yes" else "yes"
    taken_back = rf"^\W*(?:and|or|/) ?{other}\b|(?:^|[.!;,])\s*{other}\s*(?:[.!;,]|$)"
    return None if re.search(taken_back, first[2]) else first[1]


# --------------------------------------------------------------------------------------------------
# Numbers and formulas.

NUMBER = re.compile(
    r"(?P<currency>[$€£]?) ?(?P<sign>-?)(?P<value>(?:\d{1,3}(?:[, ]\d{3})+|\d+)(?:\.\d+)?(?:e[+-]?\d{1,2})?"
    r"|\.\d+)"
    r"(?:(?: (?P<above>\d+))? ?/ ?(?P<below>\d+(?:\.\d+)?))? ?(?P<unit>(?:[^\d\s].*)?)"
)
NUMBER_IN_TEXT = re.compile(
    r"(?<![\w.^{])(-? ?(?:\d+(?:\.\d+)?|\.\d+)(?:e[+-]?\d{1,2})?)(?:\s*/\s*(\d+(?:\.\d+)?))?"
)
LISTED = re.compile(r"\s*(?:and|&|to|-|–)\s*")  # between two numbers: then neither is the answer
ONLY_NUMBERS = re.compile(r"[\d.\s]+(?:[,;][\d.\s]+)+")
# Before a number: then it is not that number.
BOUND = re.compile(
    r"\\(?:[lg](?:eq?|t)|neq?)\b|\d ?[<>≠≤≥]"
    r"|(?:[<>≠≤≥]=?|\b(?:(?:more|less|fewer|greater|larger|smaller|other) than|over|under|above|below|before"
    r"|after|at (?:least|most)|up to|until)\b) ?[\d$€£-]",
    re.I,
)
RANGE = re.compile(r"\d+ ?[-–] ?\d+")
POWER = re.compile(r"(?<![a-zA-Z])\^\{?-?\d+\}?$")  # of a number; cm^2 is a unit
# Beside one of these words, a word for a number is only a part of the number.
MORE_NUMBER_WORDS = re.compile(
    r"\b(?:\w+teen|\w+ty|hundred|thousand|million|half|thirds?|quarters?|minus|negative)\b"
)
SCALES = (("thousand", 3), ("million", 6), ("billion", 9), ("trillion", 12))
TEN_TO = r"10\^\{?(-?\d{1,2})\}?(?!\d)"
TIMES_TEN = re.compile(rf"(?<=\d) ?(?:[·×*⋅x]|\\times|\\cdot) ?{TEN_TO}")
TEN_TO = re.compile(rf"(?<![\w.^\\]){TEN_TO}")
ABOUT = re.compile(r"(?:approximately|about|around|roughly|nearly|≈|~)\s*", re.I)


def as_number(text: str) -> tuple[float, str] | None:
    """A lone number and its unit. It may have thousands separators, a currency, percent, or be a fraction.

    >>> [as_number(t) for t in ("1,200", "45%", "$3.50", "3/4", "12 cm", "-2", "about 12.5", "3 1/2")]
    [(1200.0, ''), (45.0, '%'), (3.5, '$'), (0.75, ''), (12.0, 'cm'), (-2.0, ''), (12.5, ''), (3.5, '')]
    >>> as_number("two"), as_number("twenty-four"), as_number("25 square meters"), as_number("2 dogs")
    ((2.0, ''), (24.0, ''), (25.0, 'm^2'), (2.0, 'dogs'))
    >>> [as_number(t) for t in ("B2", "1 or 2", "1,2", "", "2 or 3 dogs")]
    [None, None, None, None, None]
    """
    text = in_digits(ABOUT.sub("", text.strip(), count=1))
    sign = re.match(r"(?:minus|negative) ", text, re.I)
    text = text[sign.end() :] if sign else text
    word = text.lower().rstrip(".")
    if word in LONE_NUMBER_WORDS:
        return float(-LONE_NUMBER_WORDS[word] if sign else LONE_NUMBER_WORDS[word]), ""
    match = NUMBER.fullmatch(text) if len(text) <= 60 else None  # longer text is no lone number
    if not match or (match["below"] and float(match["below"]) == 0):
        return None
    word = match["unit"].lower().rstrip(".")
    unit = unit_of(match["currency"] + word)
    if unit is None and re.fullmatch("[a-z]+", word):  # "2 dogs"
        unit = word
    if unit is None:
        return None
    value = float(re.sub("[, ]", "", match["value"]))
    if match["above"]:
        value += float(match["above"]) / float(match["below"])
    elif match["below"]:
        value /= float(match["below"])
    return -value if sign or match["sign"] else value, unit


def in_digits(text: str) -> str:
    """Millions and powers of ten as Python writes them.

    >>> in_digits("$4.5 million"), in_digits("1.5·10^3"), in_digits("10^{-3}")
    ('$4.5e6', '1.5e3', '1e-3')
    """
    for word, power in SCALES:
        text = re.sub(rf"(?<=\d) {word}\b", f"e{power}", text, flags=re.I)
    return TEN_TO.sub(r"1e\1", TIMES_TEN.sub(r"e\1", text))


def only_number(text: str) -> tuple[float, str] | None:
    """The number in a short sentence with a single one, such as "There are 2 dogs."

    >>> only_number("There are 2 dogs."), only_number("between 2 and 3"), only_number("more than 2")
    ((2.0, ''), None, None)
    >>> only_number("It is 2 square meters large.")
    (2.0, 'm^2')
    """
    if len(text) > 80 or DENIES.search(text) or CHOICE.search(text) or BOUND.search(text):
        return None
    words = [word.strip(".,;:!?()") for word in in_digits(text).split()]
    places = [place for place, word in enumerate(words) if as_number(word)]
    if len(places) != 1 or not any(c.isalpha() for c in text):
        return None
    value, unit = as_number(words[places[0]])
    behind = words[places[0] + 1 : places[0] + 5]
    units = (unit_of(" ".join(behind[:count])) for count in range(len(behind), 0, -1))
    unit = unit or next(filter(None, units), "")
    return None if not unit and re.search(r"\d", " ".join(behind[:2])) else (value, unit)


def same_number(prediction: str, gold: str) -> bool:
    """Are the values equal, and the units if both have one? 0.75, 75 and 75 % agree with a gold of 75 %.

    >>> same_number("12", "12 cm"), same_number("12 m", "12 cm"), same_number("1,200.0", "1200")
    (True, False, True)
    >>> same_number("25 square meters", "25 m^2"), same_number("$25", "25%"), same_number("12 345", "12,345")
    (True, False, True)
    >>> same_number("45 degrees", "45°"), same_number("0.75", "75%"), same_number("There are 2 dogs.", "2")
    (True, True, True)
    """
    wanted = as_number(gold)
    claim = without_lead(prediction)
    said = as_number(claim) or only_number(claim)
    if wanted is None or said is None:
        return False
    for share, percent in ((said, wanted), (wanted, said)):
        if percent[1] == "%" and not share[1] and close(100 * share[0], percent[0]):
            return True
    return close(said[0], wanted[0]) and (said[1] == wanted[1] or not said[1] or not wanted[1])


def same_quantity(prediction: str, gold: str) -> bool:
    """Are numbers or formulas equal, and their units if both have one?

    >>> [same_quantity(r"9\\pi cm^2", gold) for gold in (r"9\\pi square centimeters", r"9\\pi cm")]
    [True, False]
    """
    if as_number(prediction) and as_number(gold):
        return same_number(prediction, gold)
    said, unit = split_unit(prediction)
    value, wanted = split_unit(gold)
    other_unit = unit and wanted and unit != wanted
    return same_number(prediction, gold) or not other_unit and same_formula(said, value)


def close(a: float, b: float) -> bool:
    return abs(a - b) <= min(1e-6 * max(1, abs(b)), 1e-3 * abs(b))


def last_number(text: str) -> float | None:
    """The value of an answer: its last number, with separators, units, percent, fractions, LaTeX and pi.

    None if the answer denies something, leaves a choice between numbers, or only lists numbers.

    >>> [last_number(t) for t in ("$1,200.50", "x = 45%", r"\\frac{3}{4} cm", "3/8", "12 m3", "1 or 2")]
    [1200.5, 45.0, 0.75, 0.375, 12.0, None]
    >>> [last_number(t) for t in ("3 1/2", "1.5e3", "- 3", r"12\\text{ cm}^2", r"1.2\\times 10^3")]
    [3.5, 1500.0, -3.0, 12.0, 1200.0]
    >>> [last_number(t) for t in ("14 years (from 1980 to 1994)", "There are two dogs", "12 and 13")]
    [14.0, 2.0, None]
    """
    claim = plain_number(unwrap(text)[-200:])
    if DENIES.search(claim) or ONLY_NUMBERS.fullmatch(claim):
        return None
    if POWER.search(claim) or "\\" in claim:
        return formula_value(split_unit(claim)[0])
    if re.search(r"\bor\b", claim):
        return None
    if mixed := re.fullmatch(r"(\d{1,9}) (\d{1,9})/(\d{1,9})\b.*", claim):
        whole, above, below = map(int, mixed.groups())
        return whole + above / below if below else None
    found = list(NUMBER_IN_TEXT.finditer(claim))
    if not found:
        return number_word(claim)
    value, below = found[-1].groups()
    if len(found) > 1:
        between = claim[found[-2].end() : found[-1].start()]
        is_range = value.startswith("-") and not between.strip()  # "13 - 14"
        if is_range or LISTED.fullmatch(between):
            return None
    if below and not float(below):
        return None
    return float(value.replace(" ", "")) / float(below or 1)


def plain_number(text: str) -> str:
    """The text after the last "=", without separators, signs of units, and a remark in brackets.

    >>> plain_number("x = 1,200 % (of 3 cm)"), plain_number("2π")
    ('1200', '2\\\\pi')
    """
    text = re.sub(r"\s\((?=[^()]*[a-z]{2})[^()]*\)\W*$", "", text)
    text = text.replace("π", r"\pi ").strip().rstrip(" .")
    text = re.sub(r"\\!|[$%°]", "", text)
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    text = re.sub(r"(?<![a-z\\])(?=pi\b)", r"\\", text)
    return re.sub(r"^.*=\s*", "", text).strip()


def number_word(text: str) -> float | None:
    """The number that is written as a word, if there is only one.

    >>> number_word("There are two dogs"), number_word("two or three"), number_word("twenty-two")
    (2.0, None, None)
    """
    if MORE_NUMBER_WORDS.search(text.lower()):
        return None
    words = re.findall(r"[a-z]+", text.lower())
    found = [NUMBER_WORDS[word] for word in words if word in NUMBER_WORDS]
    return float(found[0]) if len(found) == 1 else None


@lru_cache(10_000)
def formula_value(text: str) -> float | None:
    """The value of a LaTeX formula, by math-verify (no eval); None if it has none."""
    return WORKER.ask("value", text)


@lru_cache(10_000)
def same_formula(prediction: str, gold: str) -> bool:
    """Are two LaTeX formulas equal? By math-verify (symbolic, no eval); False if it can't parse them in time.

    >>> same_formula("0.5", r"\\frac{1}{2}"), same_formula("red=A", "A")
    (True, False)
    """
    prediction = prediction.replace("°", "").replace("×", r"\times ")
    gold = gold.replace("°", "").replace("×", r"\times ")
    # A $ inside would open a second formula, and math-verify takes the better of two.
    if max(len(prediction), len(gold)) > 200 or not re.search(r"[\d\\^=]", gold) or "$" in prediction:
        return False
    if RANGE.fullmatch(gold):  # 2013-2014 is no difference
        return False
    if "=" in prediction and "=" not in gold or not re.search(r"[\\^=<>+*/()-]", prediction + gold):
        return False  # plain words and numbers are compared elsewhere
    return bool(WORKER.ask("equal", gold, prediction))


def chosen_by(answer: str, gold: str, options: tuple[str, ...]) -> str | None:
    """What an answer chose: a letter, yes or no, or None. It tells whether a model always says the same.

    >>> chosen_by("the red car", "a blue car", ("a blue car", "the red car")), chosen_by("No.", "yes", ())
    ('B', 'no')
    """
    if options:
        index = option_index(unwrap(answer), options)
        return None if index is None else chr(65 + index)
    if gold in ("yes", "no"):
        return yes_or_no(answer)
    if re.fullmatch(r"\W*[A-I]\W*", gold):
        return letters(answer) or None
    return None
