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
    |-------|----:|---------:|
    | on    | 500 |    0.940 |
    | blank | 500 |    0.430 |
    """
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths)]
        cells[0] = row[0].ljust(widths[0])
        lines.append(f"| {' | '.join(cells)} |" if markdown else "  ".join(cells).rstrip())
    if markdown:
        rules = ["-" * (width + 1) + ":" for width in widths]
        rules[0] = "-" * (widths[0] + 2)
        lines.insert(1, f"|{'|'.join(rules)}|")
    return "\n".join(lines)
