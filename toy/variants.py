"""Variants of the toy, by the name of the data set.

    toy:kinds=read+glance           only these kinds of questions
    toy:tiles=5-6                   so many tiles in an image
    toy:letters=28-36               letters of this height in pixels, and tiles that hold them

Several settings are separated by commas. `toy-mixture:...` takes the same.
"""

MOST_TILES = 6  # as many as there are colours
LARGEST = 210  # px; a letter on a tile that still fits its grid cell


def read_variant(text: str, weights: dict[str, float]) -> tuple[dict, dict]:
    """The weights of the kinds, and the arguments of `random_scene`, that a variant asks for.

    weights: of the toy that is varied. Raises ValueError for a setting that is not possible.

    >>> read_variant("kinds=read,tiles=5-6", {"read": 0.5, "glance": 0.5})
    ({'read': 0.5}, {'tiles': (5, 6)})
    """
    scene = {}
    for setting in text.split(","):
        key, _, value = setting.partition("=")
        if key == "kinds":
            unknown = [kind for kind in value.split("+") if kind not in weights]
            if unknown:
                raise ValueError(
                    f"no such kind of question: {', '.join(unknown)}; known: {', '.join(weights)}"
                )
            weights = {kind: weights[kind] for kind in value.split("+")}
        elif key == "tiles":
            scene["tiles"] = read_range(value, 2, MOST_TILES)
        elif key == "letters":
            low, high = read_range(value, 8, LARGEST)
            side = round(1.15 * high)
            scene |= {"letter_px": (low, high), "side": (max(92, side), max(108, side))}
        else:
            raise ValueError(
                f"a toy is varied by kinds=, tiles=, letters=, not {setting!r}, as in toy:tiles=5-6"
            )
    return weights, scene


def read_range(text: str, least: int, most: int) -> tuple[int, int]:
    """
    >>> read_range("28-36", 8, 210), read_range("5", 2, 6)
    ((28, 36), (5, 5))
    """
    low, _, high = text.partition("-")
    if not (low.isdecimal() and (high or low).isdecimal()):
        raise ValueError(f"a range looks like 28-36, not {text!r}")
    low = int(low)
    high = int(high or low)
    if not least <= low <= high <= most:
        raise ValueError(f"{text} is no range within {least} and {most}")
    return low, high
