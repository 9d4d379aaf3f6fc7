"""Hooks of mkdocs: pages of repository files, formulas without scripts, and llms.txt.

Pages link to files of the repository, so that the links work there as well. In the site a linked
file is a page of its own: Markdown as it is, Python with its docstring as text, a folder as a list.
"""

from __future__ import annotations

import ast
import html
import posixpath
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.nav import Navigation, Section
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
START = "README.md"  # of the repository, the first page of the site

_navigation: list[Any] = []
_markdown: dict[str, str] = {}  # of each page, with the links of the site


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the first page, and what the pages link to."""
    waiting = [START, *_listed(config["nav"])]
    waiting += [f"docs/{file.src_uri}" for file in files.documentation_pages()]
    seen: set[str] = set()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        uri = site_uri(path)
        if files.get_file_from_path(uri) is None:
            files.append(_generated(path, uri, config))
        if uri.endswith(".md"):
            waiting += [target for target in linked(path) if not target.startswith("docs/")]
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links at pages of the site."""
    source = _SITE.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    if not source.endswith(".md"):
        _markdown[page.file.src_uri] = markdown
        return markdown  # code, in which f[x](y) is no link

    def moved(match: re.Match[str]) -> str:
        uri = site_uri(_resolved(source, match[1]))
        return posixpath.relpath(uri, posixpath.dirname(page.file.src_uri))

    _markdown[page.file.src_uri] = LINK.sub(moved, markdown)
    return _markdown[page.file.src_uri]


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn formulas into MathML, which browsers draw by themselves."""

    def drawn(match: re.Match[str]) -> str:
        display = "block" if match[1] == "div" else "inline"
        formula = html.unescape(match[2]).strip()
        return f'<{match[1]} class="formula">{convert(formula, display=display)}</{match[1]}>'

    return FORMULA.sub(drawn, content)


def on_nav(nav: Navigation, config: MkDocsConfig, files: Files) -> Navigation:
    _navigation[:] = nav.items
    return nav


def on_post_build(config: MkDocsConfig) -> None:
    """Write llms.txt, an index for language models, and the Markdown that it lists."""
    lines = ["# norton_losses", "", f"> {config['site_description']}"]
    for item in _navigation:
        pages = _pages_of(item)
        if isinstance(item, Section):
            lines += ["", f"## {item.title}", ""]
        for page in pages:
            # Of the API the Markdown names what to render, and nothing else.
            place = (
                page.file.dest_uri if ":::" in _markdown[page.file.src_uri] else page.file.src_uri
            )
            lines.append(f"- [{page.title}]({place})")
    for place, markdown in _markdown.items():
        copy = Path(config["site_dir"], place)
        if ":::" not in markdown:
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(markdown)
    Path(config["site_dir"], "llms.txt").write_text("\n".join(lines) + "\n")


_SITE: dict[str, str] = {}  # what of the repository, beside the documentation, has gone where


def site_uri(path: str) -> str:
    """The place in the site of a file or folder of the repository."""
    if path == START:
        uri = "index.md"
    elif path.startswith("docs/"):
        return path.removeprefix("docs/")
    elif (ROOT / path).is_dir():
        uri = f"repository/{path}/index.md"
    elif path.endswith(".py"):
        uri = f"repository/{path}.md"
    else:
        uri = f"repository/{path}"
    _SITE[uri] = path
    return uri


def linked(path: str) -> list[str]:
    """The files of the repository that a Markdown page links to."""
    if not path.endswith(".md"):
        return []
    return [_resolved(path, target) for target in LINK.findall((ROOT / path).read_text())]


def _resolved(source: str, target: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), target))


def _generated(path: str, uri: str, config: MkDocsConfig) -> File:
    file = ROOT / path
    if not uri.endswith(".md"):
        return File.generated(config, uri, abs_src_path=str(file))
    if file.is_dir():
        names = sorted(f"- `{entry.name}`" for entry in file.iterdir() if entry.name[0] not in "._")
        return File.generated(config, uri, content=f"# {path}\n\n" + "\n".join(names))
    if path.endswith(".md"):
        return File.generated(config, uri, content=file.read_text())
    return File.generated(config, uri, content=_of_python(path, file.read_text()))


def _of_python(path: str, source: str) -> str:
    """A page of a module: its docstring as text, then the code."""
    text = ast.get_docstring(ast.parse(source)) or ""
    code = source.split('"""', 2)[2].lstrip() if source.startswith('"""') else source
    return f'# `{Path(path).name}`\n\n{text}\n\n```python title="{path}"\n{code}```\n'


def _listed(nav: Any) -> list[str]:
    """The files of the repository that the navigation names by their place in the site."""
    if isinstance(nav, list):
        return [path for item in nav for path in _listed(item)]
    if isinstance(nav, dict):
        return [path for item in nav.values() for path in _listed(item)]
    path = str(nav).removeprefix("repository/")
    return [path.removesuffix(".md") if path.endswith(".py.md") else path] if path != nav else []


def _pages_of(item: Any) -> list[Page]:
    if isinstance(item, Page):
        return [item]
    return [page for child in item.children or [] for page in _pages_of(child)]
