"""An extension of griffe: the roles and directives of docstrings, in Markdown."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

ROLE = re.compile(r":(?:class|meth|func|mod|attr|obj|data):`(~?)([^`]+)`")
DIRECTIVE = re.compile(r"^( *)\.\. math::(.*(?:\n(?:\1 +.*| *$))*)", re.MULTILINE)
INLINE = re.compile(r":math:`([^`]+)`")


class DocstringMarkdown(Extension):
    """Rewrite each docstring when its object has been read."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = in_markdown(obj.docstring.value)


def in_markdown(text: str) -> str:
    text = DIRECTIVE.sub(lambda m: f"{m[1]}$$\n{m[1]}{_joined(m[2])}\n{m[1]}$$\n", text)
    text = INLINE.sub(r"$\1$", text)
    text = ROLE.sub(lambda m: _reference(m[1], m[2]), text)
    return re.sub(r"^( *)Example:$", r"\1Examples:", text, flags=re.MULTILINE)


def _joined(formula: str) -> str:
    return " ".join(formula.split())


def _reference(short: str, name: str) -> str:
    """A link, or code where the name is no whole one."""
    shown = name.rpartition(".")[2] if short else name
    if not name.startswith("norton_losses"):
        return f"`{shown}`"
    return f"[`{shown}`][{name}]"
