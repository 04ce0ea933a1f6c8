"""One report, one HTML file: no request leaves it; light and dark, readable on a phone, on paper and aloud.

Every text goes through the automatic escaping of the template. The only script is the viewer, which the page knows
by its hash; a page without cases to view has none.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from labelwise.atomic import write_text
from labelwise.report.agreement import DataSets
from labelwise.report.comparison import MEAN, Comparison
from labelwise.report.cost import Cost
from labelwise.report.figures import Picture
from labelwise.report.measures import measure
from labelwise.report.overlays import DIFFERENCES, CasePicture
from labelwise.report.plots import best_runs, paired_plot, size_plot, value_plot
from labelwise.report.statistics import defined_mean
from labelwise.report.tables import Table
from labelwise.report.viewer import ViewerCase
from labelwise.settings import flat

NIIVUE = "niivue-0.69.0.umd.js.gz"
MOST_CURVES = 8  # runs whose learning curves are drawn


def write_page(
    path: Path | str,
    *,
    title: str,
    facts: Mapping[str, object],
    comparison: Comparison,
    curves: Mapping[str, Sequence[Picture]],
    worst: Sequence[CasePicture],
    best: Sequence[CasePicture] = (),
    viewer: Sequence[ViewerCase] = (),
    oriented: bool = True,
    coverage: Picture | None = None,
    data_sets: DataSets | None = None,
    cost: Cost | None = None,
    forecast: Table | None = None,
    measured_on: str = "",
) -> None:
    """Write the report, atomically. The answer comes first, then what it rests on.

    Args
        facts           settings and environment: name -> value, or heading -> {name -> value}, however deep
        curves          run -> pictures of `figures.learning_curves`
        worst, best     overlays, in any order; the worst are shown with the lowest mean Dice first
        viewer          cases for the viewer
        oriented        False if the scans of the viewer do not tell the sides of the patient
        coverage        picture of `figures.coverage_picture`
        data_sets       how far data sets agree, if runs left one after the other out
        cost            what labels are worth, from trainings with more and with fewer of them
        forecast        what the trainings were expected to cost, beside what they did
        measured_on     on which data the runs were scored, such as "test split of LA 2018"

    Errors
        ResourceError   the file cannot be written
    """
    first = comparison.measures[0]
    plots = (value_plot(comparison, first), paired_plot(comparison, first))
    page = template("page.html").render(
        title=title,
        style=style(),
        comparison=comparison,
        measured_on=measured_on,
        plots=[plot for plot in plots if plot],
        sizes=size_plot(comparison),
        curves={run: pictures for run, pictures in curves.items() if pictures},
        worst=_ordered(worst),
        best=list(reversed(_ordered(best))),
        coverage=coverage,
        data_sets=data_sets,
        cost=cost,
        forecast=forecast,
        facts=_blocks(facts),
        **viewer_parts(viewer, oriented=oriented),
        MEAN=MEAN,
    )
    write_text(path, page)


def viewer_parts(viewer: Sequence[ViewerCase], *, oriented: bool) -> dict[str, object]:
    """What a template needs for the viewer: the cases, the library, and the script with the hash that allows it."""
    script = resource("viewer.js")
    return {
        "script": Markup(script) if viewer else None,
        "script_sources": allowed(script) if viewer else "'none'",
        "viewer": [_embedded(number, case) for number, case in enumerate(viewer)],
        "niivue": base64.b64encode(_bytes(NIIVUE)).decode() if viewer else "",
        "oriented": oriented,
        "differences": DIFFERENCES,
    }


def allowed(*scripts: str) -> str:
    """What the policy of a page says so that these scripts run, what the viewer unpacks, and no other."""
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    return " ".join([*(f"'sha256-{digest}'" for digest in digests), "blob:"])


def style() -> Markup:
    """The style sheet of all pages."""
    return Markup(resource("page.css").strip())


def curves_of(comparison: Comparison) -> tuple[str, ...]:
    """The runs whose learning curves a page shows: all, or the best ones."""
    return best_runs(comparison, MOST_CURVES)


def _bytes(name: str) -> bytes:
    return resources.files(__package__).joinpath("assets", name).read_bytes()


def resource(name: str) -> str:
    """A text file of the assets."""
    return _bytes(name).decode("utf-8")


@cache
def template(name: str) -> Template:
    """A template of this room: every text is escaped; ``picture`` shows a Picture."""
    environment = Environment(
        loader=PackageLoader("labelwise.report", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "breaking": _breaking,
        "apart": _apart,
        "picture": _picture,
        "dice": measure("dice").number,
    }
    return environment.get_template(name)


def _breaking(text: str) -> Markup:
    """A name that may be long: its lines break after an underscore."""
    return Markup(str(escape(text)).replace("_", "_<wbr>"))


def _apart(text: str) -> Markup:
    """Details of a number: their lines break at commas only."""
    return Markup(str(escape(text)).replace(", ", ",\n").replace(" ", "&nbsp;"))


def _picture(picture: Picture) -> Markup:
    if picture.kind == "svg":  # inline, so that it takes over the colours and the font of the page
        return Markup('<div role="img" aria-label="{}">{}</div>').format(
            picture.alt, Markup(picture.data.decode())
        )
    data = base64.b64encode(picture.data).decode()
    return Markup('<img src="data:image/{};base64,{}" alt="{}" loading="lazy">').format(
        picture.kind, data, picture.alt
    )


def _ordered(pictures: Sequence[CasePicture]) -> list[CasePicture]:
    """Pictures of one case together, the case with the lowest mean Dice first; undefined ones last."""
    values: dict[str, list[float]] = {}
    for shown in pictures:
        values.setdefault(shown.case, []).append(shown.mean_dice)
    means = {case: float(defined_mean(np.array(found), axis=0)) for case, found in values.items()}
    places = {case: place for place, case in enumerate(values)}

    def order(shown: CasePicture) -> tuple[bool, float, int]:
        mean = means[shown.case]
        return (math.isnan(mean), 0.0 if math.isnan(mean) else mean, places[shown.case])

    return sorted(pictures, key=order)


def _embedded(number: int, shown: ViewerCase) -> dict[str, object]:
    """What the script needs of a case, and its files as base64 under names of their own."""
    files = {f"scan-{number}": shown.scan}
    files |= {f"map-{number}-{n}": data for n, data in enumerate(shown.maps.values())}
    return {
        "about": {
            "case": shown.case,
            "note": shown.note,
            "scan": f"scan-{number}",
            "names": list(shown.maps),
            "maps": {str(n): f"map-{number}-{n}" for n in range(len(shown.maps))},
            "colours": list(shown.colours.items()),
            "annotated": [n for n, name in enumerate(shown.colours, start=1) if name in shown.annotated],
            "centre": list(shown.centre),
        },
        "files": {name: base64.b64encode(data).decode() for name, data in files.items()},
    }


def _blocks(facts: Mapping[str, object]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Heading and lines of each list of facts; single facts first, under no heading."""
    nested = {name: value for name, value in facts.items() if isinstance(value, Mapping) and value}
    single = {name: value for name, value in facts.items() if not isinstance(value, Mapping)}
    blocks = [("", _lines(single))] if single else []
    return blocks + [(name, _lines(block)) for name, block in nested.items()]


def _lines(facts: Mapping[str, object]) -> list[tuple[str, str]]:
    """Nested facts as dotted names; lists are joined, nothing set is a dash."""
    return [(name, _told(value)) for name, value in flat(facts).items()]


def _told(value: object) -> str:
    if isinstance(value, (list, tuple, set, frozenset)):
        return ", ".join(map(str, value)) or "–"
    return "–" if value in (None, "") else str(value)
