"""One table, drawn as plain text, Markdown or LaTeX (page.py draws the same table as HTML)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Entry(NamedTuple):
    """What stands in one place of a table."""

    text: str
    detail: str = ""  # spread, interval, count: printed after the text, quieter where possible
    best: bool = False


@dataclass(frozen=True)
class Table:
    """The first column names the rows; all other columns hold numbers."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[Entry, ...], ...]
    legend: str = ""  # how to read an entry

    def to_text(self) -> str:
        """Aligned columns; the best entry carries a star."""
        body = [[_starred(entry) for entry in row] for row in self.rows]
        lines = _aligned([list(self.header), *body])
        lines.insert(1, "-" * max(len(line) for line in lines))
        return "\n".join([self.title, *([self.legend] if self.legend else []), "", *lines])

    def to_markdown(self) -> str:
        """A table as GitHub and Pandoc read it; the best entry is bold."""
        rule = ["---", *["---:"] * (len(self.header) - 1)]
        body = [[_bold(entry) for entry in row] for row in self.rows]
        lines = [f"| {' | '.join(row)} |" for row in [[_escaped(h) for h in self.header], rule, *body]]
        legend = [_escaped(self.legend), ""] if self.legend else []
        return "\n".join([f"### {_escaped(self.title)}", "", *legend, *lines])

    def to_latex(self) -> str:
        """A table environment for booktabs; the best entry is bold."""
        caption = f"{_tex(self.title)}. {_tex(self.legend)}" if self.legend else _tex(self.title)
        rows = [
            " & ".join([_tex(row[0].text), *(_tex_entry(entry) for entry in row[1:])]) + r" \\"
            for row in self.rows
        ]
        return "\n".join(
            [
                r"\begin{table}",
                r"\centering",
                rf"\caption{{{caption}}}",
                rf"\begin{{tabular}}{{l{'r' * (len(self.header) - 1)}}}",
                r"\toprule",
                " & ".join(map(_tex, self.header)) + r" \\",
                r"\midrule",
                *rows,
                r"\bottomrule",
                r"\end{tabular}",
                r"\end{table}",
            ]
        )


# Signs that mean something in LaTeX, or that its fonts lack outside mathematics.
_TEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "±": r"$\pm$", "−": "$-$", "–": "--", "<": "$<$", ">": "$>$", "·": r"$\cdot$",
    **{sign: rf"\{sign}" for sign in "&%$#_"},
}  # fmt: skip


def _tex(text: str) -> str:
    return " ".join("".join(_TEX.get(sign, sign) for sign in text).split())


def _tex_entry(entry: Entry) -> str:
    text = rf"\textbf{{{_tex(entry.text)}}}" if entry.best else _tex(entry.text)
    return f"{text} {_tex(entry.detail)}".rstrip()


def _starred(entry: Entry) -> str:
    if not entry.detail:
        return f"{entry.text}{'*' if entry.best else ''}"
    return f"{entry.text}{'*' if entry.best else ' '} {entry.detail}"


def _bold(entry: Entry) -> str:
    text = f"**{_escaped(entry.text)}**" if entry.best else _escaped(entry.text)
    return f"{text} {_escaped(entry.detail)}".rstrip()


def _escaped(text: str) -> str:
    for sign in "\\|*_<`[":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            text.ljust(width) if column == 0 else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
