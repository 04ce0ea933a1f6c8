"""What MkDocs needs beside docs/: the pages of `links`, the printed command line, and links turned to all of them."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parent))  # MkDocs imports this file by its path
from links import DOCS, content, is_page, origin, place, shown, turned, written_out

STYLE = Path(__file__).parent / "site.css"
FIGURE = re.compile(r'<img [^>]*?src="[^"]*?(assets/methods/\w+\.svg)"[^>]*>')


def commands() -> str:
    """What every verb prints with --help."""
    from labelwise.cli.main import app

    group: Any = typer.main.get_command(app)
    top = group.make_context("labelwise", [], resilient_parsing=True)
    top.max_content_width = top.terminal_width = 100
    pages = [
        "# Verbs, as printed",
        "What `labelwise VERB --help` says, taken from the parser. The [command line](command-line.md) has the same in "
        "tables, with links to the guides.",
        f"```text\n{group.get_help(top)}\n```",
    ]
    for name, verb in group.commands.items():
        context = verb.make_context(name, [], parent=top, resilient_parsing=True)
        context.max_content_width = context.terminal_width = 100
        pages.append(f"## {name}\n\n```text\n{verb.get_help(context)}\n```")
    return "\n\n".join(pages) + "\n"


# MkDocs


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Write the entries FOLDER/* of the navigation out."""
    config.nav = written_out(config.nav)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of everything that is linked, and is not a page of docs."""
    files.remove(files.src_uris["README.md"])  # its place is that of the README of the repository
    files.append(File.generated(config, "reference/commands.md", content=commands()))
    files.append(File.generated(config, "assets/site.css", content=STYLE.read_text(encoding="utf-8")))
    for path in shown():
        if place(path) not in files.src_uris:
            what = {"content": content(path)} if is_page(path) else {"abs_src_path": str(path)}
            files.append(File.generated(config, place(path), **what))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the links of a page of the repository to the pages of the site."""
    path = origin(page.file.src_uri)
    if path is None:
        return markdown
    return turned(markdown, path if path.is_dir() else path.parent, page.file.src_uri)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put the figures of methods into the page, where they take its colours."""

    def figure(match: re.Match[str]) -> str:
        return (DOCS / match[1]).read_text(encoding="utf-8").replace("\n", " ")

    return FIGURE.sub(figure, html)
