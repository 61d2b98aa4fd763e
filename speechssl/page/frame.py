"""The page's frame: style, script and policy around some HTML."""

from __future__ import annotations

from html import escape
from importlib import resources
from string import Template

import speechssl

POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def frame(title: str, body: str, *, nav: str = "", footer: str = "", generator: str = "", more_script: str = "") -> str:
    """A whole HTML page; it loads nothing, and its policy forbids that it does.

    more_script: runs after the page's own script, and may then send requests to where the page came from.
    """
    return Template(asset("page.html")).substitute(
        title=escape(title),
        generator=escape(f"{generator} {speechssl.__version__}"),
        policy=POLICY + ("; connect-src 'self'" if more_script else ""),
        style=asset("page.css"),
        script=asset("page.js") + more_script,
        nav=nav,
        body=body,
        footer=escape(footer or f"speechssl {speechssl.__version__}"),
    )


def asset(name: str) -> str:
    """A file of this package."""
    return (resources.files("speechssl.page") / name).read_text(encoding="utf-8")
