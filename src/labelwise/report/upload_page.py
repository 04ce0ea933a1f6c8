"""The page of a server: a scan is dropped on it, and the page of its result appears there. It asks its server only."""

from __future__ import annotations

from markupsafe import Markup

from labelwise.report.page import allowed, resource, style, template


def upload_page(title: str = "Segment a scan") -> str:
    """The page as HTML. The pages of results that it shows bring the viewer; their script is allowed here too."""
    script = resource("upload.js")
    return template("upload.html").render(
        title=title,
        style=style(),
        script=Markup(script),
        script_sources=allowed(script, resource("viewer.js")),
        asks_server=True,
        viewer=True,
    )
