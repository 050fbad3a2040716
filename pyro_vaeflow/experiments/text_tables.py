"""A frame of a report as text, in the forms that pages and papers take."""

import pandas as pd


def as_text(frame: pd.DataFrame, style: str) -> str:
    """A frame as ``md``, ``csv`` or ``latex`` text.

    Example:
        >>> print(as_text(pd.DataFrame({"flow": ["iaf"], "F1, top 20%": ["0.94"]}), "latex"))
        \\begin{tabular}{ll}
        model & F1, top 20\\% \\\\
        \\hline
        iaf & 0.94 \\\\
        \\end{tabular}
    """
    if style == "csv":
        return frame.to_csv(index=False).rstrip()
    heads = [str(name) for name in frame.columns]
    rows = [["" if pd.isna(cell) else str(cell) for cell in row] for row in frame.to_numpy(object)]
    if style == "latex":
        lines = [" & ".join(map(_escaped, row)) + r" \\" for row in [heads, *rows]]
        begin = rf"\begin{{tabular}}{{{'l' * len(heads)}}}"
        return "\n".join([begin, lines[0], r"\hline", *lines[1:], r"\end{tabular}"])
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    ruled = [heads, ["-" * width for width in widths], *rows]
    padded = ([c.ljust(w) for c, w in zip(row, widths, strict=True)] for row in ruled)
    return "\n".join("| " + " | ".join(row) + " |" for row in padded)


def _escaped(text: str) -> str:
    for plain, special in {"\\": r"\textbackslash ", "_": r"\_", "%": r"\%", "±": r"$\pm$"}.items():
        text = text.replace(plain, special)
    return text
