"""HTML read strictly: every element closed, no attribute twice."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "br", "input"}


class Tree(HTMLParser):
    """Fails where elements are not closed in order; keeps every start tag."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), f"<{tag}> has an attribute twice"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        inner = self.open.pop()
        assert inner == tag, f"</{tag}> closes <{inner}> at {self.getpos()}"

    def handle_data(self, data):
        self.text += data

    def find(self, tag=None, **attributes) -> list[dict]:
        wanted = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
        return [a for t, a in self.tags if tag in (None, t) and all(a.get(k) == v for k, v in wanted.items())]


def parsed(html: str) -> Tree:
    tree = Tree()
    tree.feed(html)
    tree.close()
    assert not tree.open
    return tree
