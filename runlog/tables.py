"""Rows of cells -> a table, as text for the screen or as Markdown."""


def table(rows: list[list[str]], markdown: bool = False) -> str:
    """A table of these rows, of which the first holds the titles. The first column stands on the left, all
    others on the right.

    >>> rows = [["arm", "n", "accuracy"], ["on", "500", "0.940"], ["blank", "500", "0.430"]]
    >>> print(table(rows))
    arm      n  accuracy
    on     500     0.940
    blank  500     0.430
    >>> print(table(rows, markdown=True))
    | arm   |   n | accuracy |
    | ----- | --: | -------: |
    | on    | 500 |    0.940 |
    | blank | 500 |    0.430 |
    """
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0])]
        for text, width in zip(others, widths[1:]):
            cells.append(text.rjust(width))
        lines.append(cells)
    if not markdown:
        return "\n".join("  ".join(cells) for cells in lines)
    rules = ["-" * (width - 1) + ":" for width in widths]
    rules[0] = "-" * widths[0]
    lines.insert(1, rules)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
