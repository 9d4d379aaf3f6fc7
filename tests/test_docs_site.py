"""The documentation builds without a warning, and reads well in a browser, at a phone's width too."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest

import norton_losses
from norton_losses import audit, functional, kernels, metrics, plotting, retrieval, sinkhorn
from tests.browser import opened

ROOT = Path(__file__).parents[1]
PHONE = 375, 812  # pixels

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if any(find_spec(name) is None for name in ("mkdocs", "material", "mkdocstrings")):
        pytest.skip("mkdocs-material and mkdocstrings are not installed: pip install '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    run = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(folder)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert "WARNING" not in run.stderr
    return folder


class _Page(HTMLParser):
    """The anchors of a page, and what it links to and loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids, self.targets = set[str](), list[str]()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids |= {given[key] or "" for key in ("id", "name") if key in given}
        loads = tag in ("img", "script") or given.get("rel") in ("stylesheet", "icon")
        target = given.get("src" if tag in ("img", "script") else "href")
        if target is not None and (loads or tag == "a"):
            self.targets.append(target)


def test_no_link_is_broken_and_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    pages = {path: _Page(path) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(pages) > 40
    for path, page in pages.items():
        for target in page.targets:
            url = urlparse(target)
            if url.scheme:
                assert url.scheme in ("https", "mailto"), (path, target)
                continue
            file = (path.parent / unquote(url.path)).resolve() if url.path else path
            assert file.is_file(), (path, target)
            if url.fragment and file in pages:
                assert unquote(url.fragment) in pages[file].ids, (path, target)


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    ids = {id for path in (site / "api").glob("*.html") for id in _Page(path).ids}
    for module in (
        norton_losses,
        audit,
        functional,
        kernels,
        metrics,
        plotting,
        retrieval,
        sinkhorn,
    ):
        for name in set(module.__all__) - {"functional", "sinkhorn"}:
            home = "norton_losses" if name in norton_losses.__all__ else module.__name__
            assert f"{home}.{name}" in ids, name


def test_formulas_roles_and_examples_are_rendered(site: Path) -> None:
    pages = [path.read_text() for path in (site / "api").glob("*.html")]
    for leftover in (".. math::", ":class:`", ":meth:`", ":func:`", "Example:<"):
        assert not any(leftover in page.split("<article")[1] for page in pages), leftover
    formulas = [formula for page in pages for formula in re.findall("<math.*?</math>", page)]
    assert not any("\\" in formula for formula in formulas)
    losses = (site / "api" / "losses.html").read_text()
    assert "<math" in losses
    assert 'class="gp">&gt;&gt;&gt; </span>' in losses


def test_the_index_for_language_models_lists_every_page(site: Path) -> None:
    index = (site / "llms.txt").read_text()
    for line in index.splitlines():
        if line.startswith("- ["):
            assert (site / line.rpartition("(")[2].rstrip(")")).is_file(), line
    for path in (ROOT / "docs").rglob("*.md"):
        if path != ROOT / "docs" / "README.md":
            place = path.relative_to(ROOT / "docs")
            place = place.with_suffix(".html") if place.parts[0] == "api" else place
            assert f"({place})" in index, path


def test_code_is_shown_as_it_is(site: Path) -> None:
    shown = site / "repository" / "tests" / "test_distributed.py.md"
    source = (ROOT / "tests" / "test_distributed.py").read_text()
    assert source.split('"""', 2)[2].strip() in shown.read_text()


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    """The site behind a server of its own."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_pages_read_well_in_a_browser(site: Path, address: str) -> None:
    with opened(*PHONE) as (page, complaints):
        page.on("request", lambda asked: check_address(asked.url, address, complaints))
        for path in sorted(site.rglob("*.html")):
            if path.name == "404.html":
                continue
            page.goto(address + str(path.relative_to(site)))
            page.evaluate("Promise.all(Array.from(document.images, i => i.decode()))")
            shown = page.evaluate("Array.from(document.images, i => i.naturalWidth > 0)")
            assert all(shown), path
            needed = page.evaluate("document.documentElement.scrollWidth")
            assert needed <= PHONE[0], path
            assert not complaints, path
        page.set_viewport_size({"width": 1280, "height": 900})
        page.goto(address)
        page.click("input.md-search__input")
        page.keyboard.type("prompt bucket")
        page.wait_for_selector(".md-search-result__item")
        assert "bucket" in page.inner_text(".md-search-result__list").lower()
        assert not complaints


def check_address(asked: str, address: str, complaints: list[str]) -> None:
    if not asked.startswith((address, "data:", "blob:")):
        complaints.append(f"asks for {asked}")
