"""Draw a figure of each method, and write the gallery: docs/assets/methods/*.svg and docs/methods/README.md.

    python website/gallery.py            # rewrite
    python website/gallery.py --check    # exit 1 if a file is not what the cards and `figures` say

Figures follow light and dark by themselves: as images by the reader's system, inside a page by its colours (site.css).
"""

from __future__ import annotations

import sys
import textwrap
from collections import defaultdict
from collections.abc import Iterable
from html import escape
from pathlib import Path

from figures import FIGURES, Cases, Figure, Net, Term, View

from labelwise.methods import METHODS, find_method, name_of
from labelwise.methods.base import Card, LearnsFrom

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "assets" / "methods"
PAGE = ROOT / "docs" / "methods" / "README.md"
BEGIN, END = "<!-- website/gallery.py writes from here -->", "<!-- to here -->"

WIDTH, GAP = 600, 8
CASE_X, VIEW_X, NET_X, TERM_X = 32, 122, 196, 384  # middles of scans, left edges of boxes
SCAN = (52, 38)  # a body
NET_WIDTH, TERM_WIDTH = 136, 214
CASES: tuple[LearnsFrom, ...] = ("full", "partial", "none")
OF: dict[Cases, tuple[LearnsFrom, ...]] = {
    "all": CASES,
    "labelled": ("full", "partial"),
    "open": ("partial", "none"),
}
STYLE = """
.figure { --ink: #1f2933; --soft: #52606d; --line: #7b8794; --body: #d9dee4; --organ: #aab4bf; --fill: #f2f4f7;
  --labels: #00796b; --predictions: #b45309; --both: #6d28d9; font: 15px system-ui, sans-serif; }
@media (prefers-color-scheme: dark) { .figure { --ink: #e6eaee; --soft: #aeb7c0; --line: #8b97a3; --body: #3a434d;
  --organ: #66717d; --fill: #252b33; --labels: #4fd1c1; --predictions: #f5a755; --both: #b79bff; } }
.figure text { fill: var(--ink); text-anchor: middle; } .figure .small { font-size: 13px; fill: var(--soft); }
.figure .name { font-weight: 600; font-size: 14px; } .figure .left text, .figure text.left { text-anchor: start; }
.figure .arrow { fill: none; stroke: var(--line); stroke-width: 1.5; } .figure .head { fill: var(--line); }
.figure .followed { stroke-dasharray: 5 4; } .figure .weights { stroke-dasharray: 1.5 4; stroke-linecap: round;
  stroke-width: 2.5; } .figure .box { fill: var(--fill); stroke: var(--line); stroke-width: 1.5; }
.figure .body { fill: var(--body); } .figure .organ { fill: var(--organ); } .figure .known { fill: var(--labels); }
.figure .unknown { fill: none; stroke: var(--soft); stroke-dasharray: 2 2; }
.figure .dot { fill: var(--ink); opacity: .55; } .figure .pasted { stroke: var(--ink); fill: var(--body); }
.figure .labels { fill: var(--labels); } .figure .predictions { fill: var(--predictions); }
.figure .both { fill: var(--both); } .figure .neither { fill: var(--line); }
"""


# parts of a figure, as SVG


def text(x: float, y: float, words: str, kind: str = "") -> str:
    """A line of text around y."""
    of_kind = f' class="{kind}"' if kind else ""
    return f'<text x="{x:g}" y="{y + 5:g}"{of_kind}>{escape(words)}</text>'


def organs(kinds: tuple[str, str, str]) -> str:
    """Three structures of a body that lies around (0, 0): liver, spleen, kidney."""
    shapes = (
        '<path class="{}" d="M-20-4C-19-13-6-14-2-8 0-3-6 3-12 7-19 8-21 2-20-4z"/>',
        '<path class="{}" d="M11-9C17-11 21-4 18 2 14 4 9-2 11-9z"/>',
        '<ellipse class="{}" cx="5" cy="8" rx="5.5" ry="4"/>',
    )
    return "".join(shape.format(kind) for shape, kind in zip(shapes, kinds, strict=True))


def body(inside: str, x: float, y: float, scale: float = 1.0) -> str:
    """A scan: a section through a body."""
    size = f" scale({scale:g})" if scale != 1 else ""
    ellipse = f'<ellipse class="body" rx="{SCAN[0] / 2:g}" ry="{SCAN[1] / 2:g}"/>'
    return f'<g transform="translate({x:g} {y:g}){size}">{ellipse}{inside}</g>'


def case(kind: LearnsFrom, y: float) -> str:
    """A case with all, one or none of its structures annotated."""
    drawn = {
        "full": ("known", "known", "known"),
        "partial": ("known", "unknown", "unknown"),
        "none": ("unknown", "unknown", "unknown"),
    }[kind]
    return body(organs(drawn), CASE_X, y - 7) + text(CASE_X, y + 21, kind, "small")


def view(shown: View, y: float) -> str:
    """A scan as a network gets it."""
    grey = organs(("organ", "organ", "organ"))
    dots = "".join(
        f'<circle class="dot" cx="{17 * ((7 * n) % 11 - 5) / 5:.1f}" cy="{12 * ((5 * n) % 13 - 6) / 6:.1f}" r="1.1"/>'
        for n in range(26)
    )
    inside = {
        "plain": grey,
        "noise": grey + dots,
        "strong": f'<g style="filter:contrast(1.6)">{organs(("dot", "dot", "dot"))}</g>',
        "box": grey + f'<rect class="pasted" x="-2" y="-11" width="21" height="16"/>{_pasted()}',
        "blocks": grey
        + "".join(
            f'<rect class="pasted" x="{x}" y="{y}" width="9" height="8"/>'
            for x, y in ((-18, -5), (-2, 3), (10, -9))
        ),
        "pyramid": grey,
    }[shown.look]
    drawn = body(inside, VIEW_X, y - 9)
    if shown.look == "pyramid":
        drawn = (
            body(grey, VIEW_X - 14, y - 12, 0.8)
            + body(grey, VIEW_X + 16, y - 4, 0.5)
            + body(grey, VIEW_X + 34, y, 0.28)
        )
    lines = textwrap.wrap(shown.caption, 14)
    return drawn + "".join(text(VIEW_X, y + 19 + 15 * n, line, "small") for n, line in enumerate(lines))


def _pasted() -> str:
    """What is seen of another scan inside a box."""
    return '<path class="organ" d="M2 5C2-3 10-8 17-6V5z"/>'


def net(shown: Net, y: float) -> str:
    """A network, narrow in its middle; a memory is a stack."""
    lines = textwrap.wrap(shown.caption, 16)
    height = net_height(shown)
    top, left, right = y - height / 2, NET_X, NET_X + NET_WIDTH
    if shown.kind == "memory":
        size = f'width="{NET_WIDTH - 6}" height="{height - 3}" rx="3"'
        shape = "".join(
            f'<rect class="box" x="{left + 3 * n}" y="{top + 3 * n - 3:g}" {size}/>' for n in (2, 1, 0)
        )
    else:
        middle, bottom = NET_X + NET_WIDTH / 2, top + height
        dash = " followed" if shown.kind == "followed" else ""
        shape = (
            f'<path class="box{dash}" d="M{left} {top:g}Q{middle:g} {top + 12:g} {right} {top:g}V{bottom:g}'
            f'Q{middle:g} {bottom - 12:g} {left} {bottom:g}z"/>'
        )
    middle = NET_X + NET_WIDTH / 2 - (3 if shown.kind == "memory" else 0)
    return shape + "".join(
        text(middle, y + 17 * (n - (len(lines) - 1) / 2), line) for n, line in enumerate(lines)
    )


def net_height(shown: Net) -> int:
    """Of the box."""
    return 38 + 12 * (len(textwrap.wrap(shown.caption, 16)) - 1)


def term(name: str, shown: Term, y: float) -> str:
    """A term of the loss, with a bar in the colour of what it learns from."""
    lines = textwrap.wrap(shown.caption, 27)
    height = term_height(shown)
    top = y - height / 2
    box = f'<rect class="box" x="{TERM_X}" y="{top:g}" width="{TERM_WIDTH}" height="{height}" rx="4"/>'
    bar = f'<rect class="{shown.learns}" x="{TERM_X}" y="{top:g}" width="6" height="{height}" rx="3"/>'
    rows = text(TERM_X + 15, top + 14, name, "name left")
    if len(name) > 22:  # whatever the font: not beyond the box
        rows = rows.replace(
            "<text ", f'<text textLength="{TERM_WIDTH - 24}" lengthAdjust="spacingAndGlyphs" '
        )
    rows += "".join(text(TERM_X + 15, top + 31 + 15 * n, line, "small left") for n, line in enumerate(lines))
    return box + bar + rows


def term_height(shown: Term) -> int:
    """Of the box."""
    return 26 + 15 * len(textwrap.wrap(shown.caption, 27))


def spread(heights: list[int], total: float) -> list[float]:
    """Middles of boxes that share out a height evenly."""
    free = (total - sum(heights)) / len(heights)
    middles, top = [], 0.0
    for height in heights:
        middles.append(top + free / 2 + height / 2)
        top += free + height
    return middles


# a figure


def draw(name: str, card: Card, figure: Figure) -> str:
    """The SVG of a method."""
    cases = [kind for kind in CASES if kind in card.learns_from]
    heights = {
        "cases": [62 for _ in cases],
        "views": [62 + 15 * (len(textwrap.wrap(one.caption, 14)) - 1) for one in figure.views.values()],
        "nets": [net_height(one) + 10 for one in figure.nets.values()],
        "terms": [term_height(one) for one in figure.terms.values()],
    }
    total = max(sum(column) + GAP * (len(column) - 1) for column in heights.values()) + 4
    y: dict[str, float] = {}
    columns: list[Iterable[str]] = [cases, figure.views, figure.nets, figure.terms]
    for column, names in zip(heights, columns, strict=True):
        y |= {
            f"{column}/{key}": middle
            for key, middle in zip(names, spread(heights[column], total), strict=True)
        }
    drawn = [case(kind, y[f"cases/{kind}"]) for kind in cases]
    drawn += [view(one, y[f"views/{key}"]) for key, one in figure.views.items()]
    drawn += [net(one, y[f"nets/{key}"]) for key, one in figure.nets.items()]
    drawn += [term(key, one, y[f"terms/{key}"]) for key, one in figure.terms.items()]
    lines = _arrows(name, figure, cases, y)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="figure" role="img" viewBox="0 0 {WIDTH} {total:g}">'
    )
    title = f"<title>{escape(description(card, figure))}</title>"
    marker = (
        f'<marker id="{name}-head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
        'markerUnits="userSpaceOnUse" orient="auto"><path class="head" d="M0 0 8 4 0 8z"/></marker>'
    )
    return "\n".join(
        [head, title, f"<style>{STYLE}</style>", f"<defs>{marker}</defs>", *lines, *drawn, "</svg>", ""]
    )


def _arrows(name: str, figure: Figure, cases: list[LearnsFrom], y: dict[str, float]) -> list[str]:
    """All arrows; those that meet at one side of a box share it out."""
    ends: list[tuple[str, str, str]] = []
    for key, one in figure.views.items():
        ends += [(f"cases/{kind}", f"views/{key}", ">") for kind in OF[one.of] if kind in cases]
    for arrow in figure.arrows:
        start, sign, end = arrow.split()
        ends.append((_column(figure, start), _column(figure, end), sign))
    sides: dict[tuple[str, bool], list[str]] = defaultdict(list)
    for start, end, _ in ends:
        if start.split("/")[0] != end.split("/")[0]:
            sides[start, True].append(end)
            sides[end, False].append(start)

    def port(node: str, out: bool, other: str) -> float:
        others = sorted(sides[node, out], key=y.__getitem__)
        step = min(9.0, 30 / len(others))
        return (
            y[node]
            + step * (others.index(other) - (len(others) - 1) / 2)
            - (9 if node.startswith("views") else 0)
        )

    right = {"cases": CASE_X + 28, "views": VIEW_X + 30, "nets": NET_X + NET_WIDTH + 2}
    left = {"views": VIEW_X - 31, "nets": NET_X - 2, "terms": TERM_X - 2}
    order = list(figure.nets)
    drawn = []
    for start, end, sign in ends:
        (from_, first), (to, second) = start.split("/"), end.split("/")
        kind = {">": "", "-": " followed", "~": " weights"}[sign]
        if from_ != to:
            a, b = (right[from_], port(start, True, end)), (left[to], port(end, False, start))
            half = (b[0] - a[0]) / 2
            path = f"M{a[0]:g} {a[1]:.1f}C{a[0] + half:g} {a[1]:.1f} {b[0] - half:g} {b[1]:.1f} {b[0]:g} {b[1]:.1f}"
        else:
            down = y[end] > y[start]
            gap = [net_height(figure.nets[key]) / 2 * (1 if down else -1) for key in (first, second)]
            near = abs(order.index(first) - order.index(second)) == 1
            if near:
                x = NET_X + NET_WIDTH / 2 + (26 if sign == "~" else 0)
                path = f"M{x:g} {y[start] + gap[0] * 0.75:.1f}V{y[end] - gap[1] * 0.8:.1f}"
            else:  # around what lies between
                x = NET_X + NET_WIDTH + 2
                from_y, to_y = y[start] + 6, y[end] - 6
                path = f"M{x} {from_y:.1f}C{x + 30} {from_y:.1f} {x + 30} {to_y:.1f} {x} {to_y:.1f}"
        drawn.append(f'<path class="arrow{kind}" marker-end="url(#{name}-head)" d="{path}"/>')
    return drawn


def _column(figure: Figure, key: str) -> str:
    """A node of a figure with its column; the names of views, networks and terms differ."""
    for column, names in (("views", figure.views), ("nets", figure.nets), ("terms", figure.terms)):
        if key in names:
            return f"{column}/{key}"
    raise KeyError(key)


def description(card: Card, figure: Figure) -> str:
    """A figure in words."""
    cases = ", ".join(kind for kind in CASES if kind in card.learns_from)
    views = "; ".join(one.caption for one in figure.views.values())
    nets = "; ".join(one.caption for one in figure.nets.values())
    terms = "; ".join(f"{name} ({one.caption})" for name, one in figure.terms.items())
    return f"{card.title}. Cases: {cases}. Views: {views}. Networks: {nets}. Terms: {terms}."


# the page


def cards() -> str:
    """A card for every method, those that learn from labels alone first."""
    parts = []
    groups = {
        "From labels alone": [name for name in METHODS if "none" not in find_method(name).card.learns_from],
        "Also from scans without labels": [
            name for name in METHODS if "none" in find_method(name).card.learns_from
        ],
    }
    for heading, names in groups.items():
        parts.append(f"## {heading}")
        for name in names:
            method = find_method(name)
            card = method.card
            learns = ", ".join(kind for kind in CASES if kind in card.learns_from)
            facts = [
                f"`{name}`",
                f"learns from: {learns}",
                " ".join(f"{dims}D" for dims in sorted(card.dims)),
            ]
            if method.follows is not None:
                before = name_of(method.follows)
                facts.append(f"after [`{before}`]({before}.md)")
            facts += [f"[paper]({card.paper})"] if card.paper else ["no paper: a baseline"]
            facts.append(f"[results]({name}.md#results)")
            parts += [
                '<div class="method" markdown>',
                f"### [{card.title}]({name}.md)",
                f"![{description(card, FIGURES[name])}](../assets/methods/{name}.svg)",
                card.idea,
                " · ".join(facts),
                "</div>",
            ]
    return "\n\n".join(parts)


def written() -> dict[Path, str]:
    """What every file is to hold."""
    files = {FOLDER / f"{name}.svg": draw(name, find_method(name).card, FIGURES[name]) for name in METHODS}
    page = PAGE.read_text(encoding="utf-8")
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    files[PAGE] = f"{before}{BEGIN}\n\n{cards()}\n\n{END}{after}"
    return files


def main() -> None:
    """Write the files, or compare them."""
    files = written()
    strange = {path for path in FOLDER.glob("*.svg") if path not in files}
    if "--check" in sys.argv:
        old = {
            path
            for path, new in files.items()
            if not path.exists() or path.read_text(encoding="utf-8") != new
        }
        sys.exit("\n".join(["not up to date:", *map(str, sorted(old | strange))]) if old | strange else 0)
    FOLDER.mkdir(parents=True, exist_ok=True)
    for path, new in files.items():
        path.write_text(new, encoding="utf-8")
    for path in strange:
        path.unlink()


if __name__ == "__main__":
    main()
