"""What an answer says: an option, letters, a number, yes or no, a formula; by rules, never by running it."""

import re
from functools import lru_cache


def unwrap(text: str) -> str:
    """An answer without the wrapping that models like: `**B**`, `$B$`, `\\text{B}`.

    >>> [unwrap(t) for t in ("**B**", "$12$", r"\\text{the car}", " a ")]
    ['B', '12', 'the car', 'a']
    """
    text = text.strip().strip("*$").strip()
    match = re.fullmatch(r"\\(?:text|mathrm|mathbf|textbf|boxed)\{([^{}]*)\}", text)
    return (match[1] if match else text).strip()


def normalise(text: str) -> str:
    """Lower case, no leading article, no closing punctuation, single spaces.

    >>> normalise(" The Red car. ")
    'red car'
    """
    text = " ".join(text.lower().split())
    return re.sub(r"^(a|an|the) (?=\w)", "", text).strip(" .,;:!?\"'()[]")


NUMBER = re.compile(
    r"[$€£]? ?(-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|-?\.\d+)(?: ?/ ?(\d+(?:\.\d+)?))? ?([%°]|[a-z²³]*)\.?",
    re.I,
)


def as_number(text: str) -> tuple[float, str] | None:
    """A lone number and its unit: thousands separators, currency, percent and fractions are understood.

    >>> [as_number(t) for t in ("1,200", "45%", "$3.50", "3/4", "12 cm", "-2")]
    [(1200.0, ''), (45.0, '%'), (3.5, ''), (0.75, ''), (12.0, 'cm'), (-2.0, '')]
    >>> [as_number(t) for t in ("B2", "1 or 2", "1,2", "")]
    [None, None, None, None]
    """
    match = (
        NUMBER.fullmatch(text.strip()) if len(text) <= 40 else None
    )  # longer text is no lone number
    if not match or (match[2] and float(match[2]) == 0):
        return None
    return float(match[1].replace(",", "")) / float(match[2] or 1), match[3].lower()


def same_number(prediction: str, gold: str) -> bool:
    """Equal values, and equal units where both have one (a percent sign may be left out).

    >>> same_number("12", "12 cm"), same_number("12 m", "12 cm"), same_number("1,200.0", "1200")
    (True, False, True)
    """
    numbers = as_number(prediction), as_number(gold)
    if None in numbers:
        return False
    (value, unit), (wanted, wanted_unit) = numbers
    return abs(value - wanted) <= 1e-6 * max(1, abs(wanted)) and (
        unit == wanted_unit or not unit or not wanted_unit
    )


def option_index(prediction: str, options: tuple[str, ...]) -> int | None:
    """Which option an answer names: by letter, by "B. text" or "The answer is B", or by the text of exactly
    one option.

    >>> options = ("a blue car", "the red car")
    >>> [option_index(p, options) for p in ("b", "(B)", "B. the red car", "The answer is B.", "red car")]
    [1, 1, 1, 1, 1]
    >>> [option_index(p, options) for p in ("A or B", "car", "")]
    [None, None, None]
    """
    text = " ".join(prediction.split())
    last = chr(64 + len(options))
    options = [normalise(unwrap(option)) for option in options]
    letter = rf"[(\[]?([A-{last}])\b[)\].:]*"
    # Before the texts: an option's text may be another's letter.
    match = re.fullmatch(letter, text, re.I)
    if not match and options.count(normalise(text)) == 1:
        return options.index(normalise(text))
    match = match or re.search(rf"\b(?:answer|option|choice)(?: is)?:? {letter}$", text, re.I)
    if not match and (lead := re.match(rf"[(\[]?([A-{last}])[)\].:]+ ", text)):
        others = re.search(
            rf"(?<!\w)[(\[]?[A-{last}][)\].:]+(?!\w)|\b(?:or|not?)\b", text[lead.end() :]
        )
        match = None if others else lead  # "A. or B." names no option
    if match:
        return ord(match[1].upper()) - 65
    if re.search(r"\b(?:not|no|nor|neither)\b|n't\b", text, re.I):
        return None
    plain = f" {normalise(text)} "
    named = [
        i
        for i, option in enumerate(options)
        if option and re.search(rf"(?<!\w){re.escape(option)}(?!\w)", plain)
    ]
    return named[0] if len(named) == 1 else None


def yes_or_no(text: str) -> str | None:
    """What an answer begins with, unless it takes that back.

    >>> [yes_or_no(t) for t in ("Yes, it is.", "no", "yes and no", "no idea", "maybe")]
    ['yes', 'no', None, None, None]
    """
    said = re.match(
        r"\W*(yes|no)\b(?! idea)(?!.*\b(?:yes|no)\b)", " ".join(text.lower().split())
    )
    return said[1] if said else None


def letters(text: str) -> str:
    """The option letters A to I that an answer names, in order: only where nothing else can be meant.

    >>> [letters(t) for t in ("b", "A, C", "(B) and (D)", "The answer is B", "B. the red car", "A car", "BD")]
    ['B', 'AC', 'BD', 'B', 'B', '', 'BD']
    >>> [letters(t) for t in ("Answer: B", "B:145°", "B (145°)", "A. or B.", "A. No, it is B.")]
    ['B', 'B', 'B', '', '']
    """
    text = unwrap(text)
    if len(text) < 40 and re.fullmatch(
        r"(?:[A-I]|\W|and\b)+|\W*[a-i](?:(?:\W|\band\b)+[a-i])*\W*", text
    ):
        return "".join(sorted(set(re.sub(r"and|[^A-Ia-i]", "", text).upper())))
    if stated := re.search(
        r"(?i:\b(?:answers?|options?|choices?)(?: is| are)?:?) ([^a-z]{1,30}|[a-i]\W*)$", text
    ):
        return letters(stated[1])
    lead = re.match(r"\W*([A-I])(?:[).:]+| (?=\())", text)
    if not lead or re.search(
        r"(?<!\w)[(\[]?[A-I][)\].:]|\b(?:or|not?)\b", text[lead.end() :], re.I
    ):
        return ""
    return lead[1]


def last_number(text: str) -> float | None:
    """The value of an answer: its last number, with separators, units, percent, fractions, LaTeX and pi.

    >>> [last_number(t) for t in ("$1,200.50", "x = 45%", r"\\frac{3}{4} cm", "3/8", "12 m3", "1 or 2")]
    [1200.5, 45.0, 0.75, 0.375, 12.0, None]
    >>> [last_number(t) for t in ("3 1/2", "1.5e3", "- 3", r"12\\text{ cm}^2", r"1.2\\times 10^3")]
    [3.5, 1500.0, -3.0, 12.0, 1200.0]
    """
    text = (
        unwrap(text)[-200:]
        .replace("\u2212", "-")
        .replace("{,}", ",")
        .replace("π", r"\pi ")
        .strip(" .")
    )
    text = re.sub(
        r"(?<=\d),(?=\d{3}(?!\d))", "", re.sub(r"\\[,!;%]|\\(?:circ|degree)|[$%°]", "", text)
    )
    text = re.sub(r"^.*=\s*|(?<![a-z\\])(?=pi\b)", lambda m: "" if m[0] else "\\", text)
    if re.search(r"\\(?!text|mathrm)|\^\{?-?\d+\}?$", text) and not re.search(
        r"[a-zA-Z]\^\{?\d\}?$", text
    ):
        return formula_value(text)
    text = re.sub(r"\\(?:text|mathrm)\{[^{}]*\}(?:\^\{?\d\}?)?", " ", text)
    if re.search(r"\bor\b", text):
        return None
    if mixed := re.fullmatch(r"(\d{1,9}) (\d{1,9})/(\d{1,9})\b.*", text):
        whole, above, below = map(int, mixed.groups())
        return whole + above / below if below else None
    found = re.findall(
        r"(?<![\w.^])(-? ?(?:\d+(?:\.\d+)?|\.\d+)(?:e[+-]?\d{1,2})?)(?:\s*/\s*(\d+(?:\.\d+)?))?",
        text,
    )
    if not found or (found[-1][1] and not float(found[-1][1])):
        return None
    return float(found[-1][0].replace(" ", "")) / float(found[-1][1] or 1)


@lru_cache(10_000)
def formula_value(text: str) -> float | None:
    """The number that a LaTeX formula stands for, by math-verify (no eval); None where there is none."""
    from math_verify import parse  # a second to import, and only mathematics needs it

    try:
        value = float(parse(f"${text}$", parsing_timeout=1)[0].evalf())
        return value if abs(value) < 1e15 else None
    except Exception:  # a parser over model text: whatever it raises, this is no number
        return None


@lru_cache(10_000)
def same_formula(prediction: str, gold: str) -> bool:
    """Equality of LaTeX by math-verify (symbolic, no eval); False where it can't parse or takes too long.

    >>> same_formula("0.5", r"\\frac{1}{2}"), same_formula("red=A", "A")
    (True, False)
    """
    if (
        max(len(prediction), len(gold)) > 200
        or not re.search(r"[\d\\^=]", gold)
        or "$" in prediction
    ):
        return False  # a $ inside would open a second formula, of which math-verify takes the better one
    if (
        "=" in prediction
        and "=" not in gold
        or not re.search(r"[\\^=+*/()-]", prediction + gold)
    ):
        return False  # plain words and numbers are compared elsewhere
    from math_verify import parse, verify  # a second to import, and only mathematics needs it

    try:
        formulas = [
            parse(f"${text.replace('$', '')}$", parsing_timeout=1)
            for text in (gold, prediction)
        ]
        return bool(verify(*formulas, timeout_seconds=1))
    except Exception:  # a parser over model text: whatever it raises, the formulas don't match
        return False


def chosen_by(answer: str, gold: str, options: tuple[str, ...]) -> str | None:
    """What an answer chose, to see whether a model always says the same: a letter, yes or no, or None.

    >>> chosen_by("the red car", "a blue car", ("a blue car", "the red car")), chosen_by("No.", "yes", ())
    ('B', 'no')
    """
    if options:
        place = option_index(unwrap(answer), options)
        return None if place is None else chr(65 + place)
    if gold in ("yes", "no"):
        return yes_or_no(answer)
    if re.fullmatch(r"\W*[A-I]\W*", gold):
        return letters(answer) or None
    return None
