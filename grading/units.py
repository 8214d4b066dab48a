"""Units of measure in one form each: "square meters", "m2" and "m^2" are the same."""

import re
from collections import Counter
from functools import lru_cache

# Words and their symbols. A plural may end in s; a symbol stands for itself.
MEASURES = """
    meter/m metre/m gram/g liter/l litre/l second/s newton/n joule/j watt/w volt/v ampere/a hertz/hz
    pascal/pa
"""
PREFIXES = {"": "", "kilo": "k", "centi": "c", "milli": "m"}
OTHERS = """
    percent/% degree/° deg/° celsius/°c fahrenheit/°f dollar/$ usd/$ euro/€ eur/€ gbp/£ cent/¢
    foot/ft feet/ft inch/in inches/in yard/yd mile/mi sec/s minute/min hour/h hr/h pound/lb lbs/lb ounce/oz
"""
UNITS = dict(pair.split("/") for pair in OTHERS.split())
for pair in MEASURES.split():
    word, _, symbol = pair.partition("/")
    UNITS |= {prefix + word: short + symbol for prefix, short in PREFIXES.items()}
UNITS |= {symbol: symbol for symbol in UNITS.values()}
SHORT = {"mph": "mi/h", "kph": "km/h", "kmh": "km/h", "per": "/", "sq": "square", "cu": "cubic"}
PART = re.compile(r"([/*·⋅-]?) *(°[cf]?|[a-z]+|[%$€£¢])(?:\^\{?(-?\d)\}?|([23]))?")


@lru_cache(10_000)
def unit_of(text: str) -> str | None:
    """A unit in its one form; None for what is none, "" for nothing.

    >>> [unit_of(t) for t in ("meters", "m2", "square meters", "sq. ft", "cm^{3}", "km per hour", "dogs")]
    ['m', 'm^2', 'm^2', 'ft^2', 'cm^3', 'h^-1 km', None]
    >>> unit_of("meters per second squared") == unit_of("m/s^2") == unit_of("m s^-2")
    True
    """
    text = re.sub(r"[a-z]+", lambda found: symbol_of(found[0]), text.lower())
    for before, after, power in (("square", "squared", "^2"), ("cubic", "cubed", "^3")):
        text = re.sub(rf" *\b{after}\b", power, text)
        text = re.sub(rf"\b{before}\b\.? *([a-z]+)", rf"\1{power}", text)
    text = re.sub(r"° *(?=°|[cf]\b)", "°", text).replace("°°", "°")
    powers = Counter()
    below = False
    for separator, symbol, power, bare in PART.findall(text):
        below |= separator == "/"
        powers[symbol] += (-1 if below else 1) * int(power or bare or 1)
    known = all(symbol in UNITS.values() for symbol in powers)
    if not known or PART.sub("", text).strip(" ."):
        return None
    return " ".join(symbol if power == 1 else f"{symbol}^{power}" for symbol, power in sorted(powers.items()))


def symbol_of(word: str) -> str:
    return SHORT.get(word) or UNITS.get(word) or UNITS.get(word.removesuffix("s"), word)


def split_unit(text: str) -> tuple[str, str]:
    """A value and the unit behind it, which may have several words; "" where there is none.

    >>> split_unit("9 square meters"), split_unit("9 km/h"), split_unit("2 red dogs")
    (('9', 'm^2'), ('9', 'h^-1 km'), ('2 red dogs', ''))
    """
    words = text.split()
    for start in range(max(1, len(words) - 4), len(words)):
        unit = unit_of(" ".join(words[start:]))
        if unit:
            return " ".join(words[:start]), unit
    return text, ""
