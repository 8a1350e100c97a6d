"""The site: every public name has an entry, docstrings become Markdown, and a browser can read, search and dim it.

What needs the site built is slow; ``SITE=FOLDER`` names one that is, as ``make docs`` does.
"""

import importlib
import os
import pkgutil
import re
import subprocess
import sys
import time
from pathlib import Path

import browser
import pytest

import dynamics

ROOT = Path(__file__).parents[1]
PAGES = ["index", "docs/first-steps", "docs/theory", "gallery/index", "notebooks/1_tour", "api/dynamics.observe"]
PAGES += ["gallery/grokking.lazy_to_rich", "api/dynamics.linalg"]


@pytest.fixture(scope="module")
def api():
    sys.path.insert(0, str(ROOT / "docs" / "site"))
    try:
        yield importlib.import_module("api")
    finally:
        sys.path.remove(str(ROOT / "docs" / "site"))


def everything_exported():
    """``module.name`` of every ``__all__``, found without the site's code; modules by their own names."""
    for info in [None, *pkgutil.walk_packages(dynamics.__path__, "dynamics.")]:
        if info and (info.name.startswith("dynamics.interop.") or info.name.endswith("__main__")):
            continue
        module = importlib.import_module(info.name) if info else dynamics
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            yield value.__name__ if isinstance(value, type(dynamics)) else f"{module.__name__}.{name}"


def test_the_reference_has_every_exported_name(api):
    entries = {name.path for name in api.public_names()} | {module.__name__ for module in api.public_modules()}
    assert not set(everything_exported()) - entries


def test_an_object_that_several_modules_export_is_described_once(api):
    homes = {name.path: name.home for name in api.public_names()}
    assert homes["dynamics.study"] == homes["dynamics.evolve.study"] == "dynamics.evolve.study"
    assert "Described as" in api.entry(next(name for name in api.public_names() if name.path == "dynamics.study"))
    assert {home for path, home in homes.items() if path.endswith(".Objective")} == {"dynamics.types.Objective"}


def test_a_docstring_of_the_house_becomes_markdown(api):
    def kernel(x, *, width=3):
        """A kernel ``K[i, j]`` of <x, y> * 2.

            K = x x^T

        Args:
            x: inputs,
                more of them.
            width: n.

        Cost: one
        product.

        Example:
            >>> 1 + 1
            2
        """

    text = api.docstring(api.inspect.getdoc(kernel))
    assert r"A kernel ``K[i, j]`` of \<x, y> \* 2." in text
    assert "```text\nK = x x^T\n```" in text
    assert "**Arguments**\n\n- `x`: inputs,\n  more of them.\n- `width`: n." in text
    assert "**Cost**: one product." in text
    assert "**Example**\n\n```pycon\n>>> 1 + 1\n2\n```" in text


@pytest.mark.parametrize(
    ("text", "markdown"),
    [
        ("a sum\n+ b\n- c\n>= 1\n1. d", "a sum\n\\+ b\n\\- c\n\\>= 1\n1\\. d"),
        ("- one\n- ``- two\n- ``", "- one\n- ``- two\n- ``"),
        ("either:\n- x_1\n- y", "either:\n- x\\_1\n- y"),
        ("``f\n- g`` - h", "``f\n- g`` - h"),
    ],
)
def test_a_formula_that_a_line_breaks_is_no_list(api, text, markdown):
    assert api.escaped(text) == markdown


def test_signatures_name_the_houses_types_by_their_homes(api):
    assert api.signature(dynamics.observe.loss) == "() -> dynamics.types.Observable"
    assert api.signature(dynamics.evolve.gradient_descent).startswith("(objective: dynamics.types.Objective, ")
    assert "draw: Callable[[dynamics.evolve.Lane], Any]" in api.signature(dynamics.study)  # an alias of Any is not Any


def test_links_that_leave_the_site_lead_to_the_repository(api, tmp_path):
    pages = pytest.importorskip("pages", reason="needs nbformat, of the extra `test`")
    text = "[a](theory.md#x) [b](../README.md) [c](../notebooks) [d](../CITATION.cff) [e](../experiments/depth)"
    text += " [f](gone.md)"
    turned = re.findall(r"\]\((.*?)\)", pages.at_home(ROOT, "docs/index.md", f"{text}\n```\n[g](../LICENSE)\n```\n"))
    there = pages.repository(ROOT)
    assert turned == [
        "theory.md#x",
        "../index.md",
        "../notebooks/index.md",
        f"{there}/blob/main/CITATION.cff",
        f"{there}/tree/main/experiments/depth",
        "gone.md",  # which the strict build refuses
        "../LICENSE",
    ]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site."""
    if "SITE" in os.environ:
        return Path(os.environ["SITE"]).resolve()
    pytest.importorskip("pydata_sphinx_theme", reason="needs the extra `docs`")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, str(ROOT / "docs" / "site" / "build.py"), str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return folder / "html"


@pytest.mark.slow
def test_every_public_name_is_in_the_built_inventory(site):
    inventory = pytest.importorskip("sphinx.util.inventory", reason="needs the extra `docs`").InventoryFile
    found = inventory.loads((site / "objects.inv").read_bytes(), uri="").data
    entries = {name for kind, names in found.items() if kind.startswith("py:") for name in names}
    assert not set(everything_exported()) - entries


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    if browser.missing():
        pytest.skip(browser.missing())
    window = browser.Browser(tmp_path_factory.mktemp("profile"))
    window.open("about:blank")
    window.errors(), window.requests()
    yield window
    window.close()


def background(window):
    return window.run("return getComputedStyle(document.body).backgroundColor")


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_a_page_at_any_width_in_light_and_dark(chromium, site, page):
    colours = []
    for width, dark in [(1440, False), (360, True)]:
        chromium.open((site / f"{page}.html").as_uri(), width=width, dark=dark)
        assert chromium.run("return document.querySelectorAll('h1').length") == 1
        assert chromium.run("return document.documentElement.scrollWidth <= innerWidth"), (width, "scrolls sideways")
        broken = "return [...document.images].filter((one) => one.complete && !one.naturalWidth).map((one) => one.src)"
        assert chromium.run(broken) == []
        colours.append(background(chromium))
    assert colours[0] != colours[1]
    assert chromium.errors() == []
    assert {url for url in chromium.requests() if not url.startswith(("file:", "data:"))} == set()


@pytest.mark.slow
def test_search_finds_a_name_and_a_word(chromium, site):
    for words, wanted in [("preconditioned_sharpness", "dynamics.observe"), ("seeds", "first-steps")]:
        chromium.open(f"{(site / 'search.html').as_uri()}?q={words}")
        found = []
        for _ in range(100):
            found = chromium.run("return [...document.querySelectorAll('#search-results li a')].map((one) => one.href)")
            if any(wanted in url for url in found):
                break
            time.sleep(0.1)
        assert any(wanted in url for url in found), found


@pytest.mark.slow
def test_a_notebook_opens_in_colab(chromium, site):
    chromium.open((site / "notebooks" / "1_tour.html").as_uri())
    links = chromium.run("return [...document.querySelectorAll('article a')].map((one) => one.href)")
    assert any(url.startswith("https://colab.research.google.com/github/") for url in links)
    assert chromium.run("return document.querySelectorAll('article img').length") >= 1
