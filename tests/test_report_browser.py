"""The pages in a real browser: no console errors, no request out, contrast AA, zoom, filter, sort, speed."""

import statistics
from threading import Thread

import browser
import jax.numpy as jnp
import pytest
from matplotlib.figure import Figure
from test_report import CLAIMS, make_run

from dynamics.observe import loss, watch
from dynamics.runs.report.index_page import write_index
from dynamics.runs.report.live import server
from dynamics.runs.report.run_page import write_report
from dynamics.types import Objective

pytestmark = pytest.mark.skipif(bool(browser.missing()), reason=browser.missing())

# Text elements whose colour stands less than 4.5 : 1 off their background (WCAG 2.2, criterion 1.4.3, level AA).
LOW_CONTRAST = """
const linear = (v) => v <= 10.31475 ? v / 3294.6 : ((v / 255 + .055) / 1.055) ** 2.4;
const light = (c) => { const [r, g, b] = c.map(linear);
  return .2126 * r + .7152 * g + .0722 * b; };
const parse = (text) => text.match(/[\\d.]+/g).map(Number);
const back = (element) => { for (; element; element = element.parentElement) {
  const c = parse(getComputedStyle(element).backgroundColor); if (c.length === 3 || c[3] > .99) return c.slice(0, 3); }
  return [255, 255, 255]; };
const low = [];
for (const element of document.querySelectorAll('body *:not(svg *):not(script)')) {
  if (![...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim())) continue;
  if (element.closest('.skip') || !element.getClientRects().length) continue;
  const [a, b] = [light(parse(getComputedStyle(element).color).slice(0, 3)), light(back(element))];
  const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
  if (ratio < 4.5) low.push(element.tagName + ' ' + element.textContent.slice(0, 30) + ' ' + ratio);
}
return low;
"""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    window = browser.Browser(tmp_path_factory.mktemp("profile"))
    yield window
    window.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return write_report(make_run(tmp_path_factory.mktemp("runs"))).as_uri()


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    first = make_run(root)
    write_report(first)
    for number in range(499):
        claims = (CLAIMS[:1], CLAIMS, None)[number % 3]
        run = make_run(root, f"family{number % 7}.paper", f"run-{number:03d}", claims, figure=False)
        (run / "figure.png").write_bytes((first / "figure.png").read_bytes())
    return write_index(root).as_uri()


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    for name in ("one", "two_with_a_long_name"):
        look = watch(Objective.of(lambda w, batch: jnp.sum(w**2)), [loss()], None, to=root / name, quiet=True)
        with look:
            for step in range(3):
                look(step, jnp.full(2, 1.0 + step))
    with server(root, 0) as made:
        Thread(target=made.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{made.server_address[1]}/"
        made.shutdown()


def test_the_live_page_reads_again_while_it_is_open(chromium, live):
    chromium.open(live)
    assert chromium.run("return document.querySelectorAll('.live tbody input:checked').length") == 2
    chromium.run("return again()")
    assert "read at" in chromium.run("return document.getElementById('now').textContent")
    assert chromium.errors() == []


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1440])
@pytest.mark.parametrize("page", ["report", "index", "live"])
def test_page_is_clean_readable_and_stays_home(chromium, request, page, width, dark):
    url = request.getfixturevalue(page)
    chromium.open("about:blank")
    chromium.errors(), chromium.requests()
    chromium.open(url, width=width, dark=dark)
    assert chromium.errors() == []
    folder = url.rpartition("/")[0]
    assert all(asked.startswith((folder, "data:")) for asked in chromium.requests() if asked != "about:blank")
    assert chromium.run("return document.documentElement.scrollWidth <= innerWidth")
    assert chromium.run(LOW_CONTRAST) == []


def test_a_claims_numbers_stay_on_one_line(chromium, tmp_path):
    long = {"name": "a claim " * 20, "source": "a source " * 20, "note": "a note " * 40, "holds": True}
    numbers = {"measured": -1.234e-05, "predicted": "in [-1.2e-05, 3.4e-05]", "tolerance": "0.05 relative"}
    chromium.open(write_report(make_run(tmp_path, claims=[{**long, **numbers}])).as_uri(), width=1440)
    lines = """return [...document.querySelectorAll('.claims td.number')].map((cell) => {
      const text = document.createRange(); text.selectNodeContents(cell); return text.getClientRects().length; })"""
    assert chromium.run(lines) == [1, 1, 1]
    assert chromium.run("return document.documentElement.scrollWidth <= innerWidth")


def test_an_indexs_cells_hold_their_words(chromium, tmp_path):
    """Verdicts of many claims stay in their column; names of experiments break between their words."""
    make_run(tmp_path, "grokking.random_feature_amplification", "0123456789", CLAIMS[:1] * 16)
    chromium.open(write_index(tmp_path).as_uri(), width=1440)
    inside = """const right = (node) => node.getBoundingClientRect().right;
      return [...document.querySelectorAll('.runs .verdict')].every((x) => right(x) <= right(x.closest('td')));"""
    assert chromium.run(inside)
    lines = """const text = document.createRange(); text.selectNodeContents(document.querySelector('.runs tbody th'));
      return new Set([...text.getClientRects()].map((piece) => piece.top)).size"""
    assert chromium.run(lines) == 2


@pytest.mark.parametrize("width", [360, 1440])
def test_an_indexs_thumbnail_shows_a_panel_that_can_be_read(chromium, tmp_path, width):
    """A strip of five panels in its first corner, one panel as a whole; a file that is no image as no figure."""
    for name, columns in (("strip", 5), ("one", 1)):
        drawing = Figure(figsize=(4.2 * columns, 3))
        drawing.subplots(1, columns)
        drawing.savefig(make_run(tmp_path, "a", name) / "figure.png", dpi=150)
    (make_run(tmp_path, "a", "broken") / "figure.png").write_bytes(b"no image")
    chromium.open(write_index(tmp_path).as_uri(), width=width)
    shown = chromium.run("""return Object.fromEntries([...document.querySelectorAll('.runs tbody tr')].map((row) => {
      const size = (node) => node ? [node.clientWidth, node.clientHeight] : [];
      return [row.dataset.name, [size(row.querySelector('.thumb')), size(row.querySelector('.thumb img'))]]; }))""")
    (room, _), (wide, _) = shown["strip"]
    assert wide / 5 > 0.5 * 4.2 * 150  # the panel is drawn at more than half its size
    assert 0.8 * wide / 5 < room < wide / 2  # most of it is seen (of 360 px the page has 303), and little else
    (room, high), (wide, tall) = shown["one"]
    assert wide <= 352
    assert high >= 0.9 * tall
    assert shown["broken"][1] == []
    assert chromium.run("return document.documentElement.scrollWidth <= innerWidth")


def test_figure_zooms_by_button_key_and_back(chromium, report):
    chromium.open(report)
    wide = "return document.querySelector('.plot img').getBoundingClientRect().width"
    press = "document.querySelector('.plot').dispatchEvent(new KeyboardEvent('keydown', {key: arguments[0]}))"
    home = chromium.run(wide)
    chromium.run("document.querySelector('[data-action=in]').click()")
    assert chromium.run(wide) == pytest.approx(1.5 * home, rel=1e-3)
    assert chromium.run("return document.querySelector('[role=status]').textContent") == "150 %"
    for key in ("-", "-", "-"):
        chromium.run(press, key)
    assert chromium.run(wide) == pytest.approx(home)
    chromium.run(press, "+")
    chromium.run(press, "0")
    assert chromium.run(wide) == pytest.approx(home)


def test_on_a_phone_a_wide_figure_scrolls_at_a_legible_size(chromium, tmp_path):
    run = make_run(tmp_path)
    drawing = Figure(figsize=(16.8, 6))
    drawing.subplots(2, 4)
    drawing.savefig(run / "figure.svg")
    chromium.open(write_report(run).as_uri(), width=360)
    size = """const plot = document.querySelector('.plot');
      return [plot.scrollWidth, plot.clientWidth, plot.scrollLeft, document.documentElement.scrollWidth];"""
    wide, seen, _, page = chromium.run(size)
    assert page <= 360
    assert wide / 4 > 0.7 * seen  # one of the four panels fills most of the screen
    chromium.run("const plot = document.querySelector('.plot'); plot.scrollLeft = plot.scrollWidth")
    chromium.run("document.querySelector('[data-action=in]').click()")
    wide, seen, left, _ = chromium.run(size)
    assert left + seen > 0.8 * wide  # it zooms into what is seen, here the right end


def test_everything_interactive_has_a_name_and_takes_the_keyboard(chromium, report, index, live):
    for url in (report, index, live):
        chromium.open(url)
        nodes = chromium.command("Accessibility.getFullAXTree", {})["nodes"]
        roles = {"button", "link", "searchbox", "combobox", "checkbox", "image", "img"}
        nameless = [
            node
            for node in nodes
            if not node["ignored"] and node["role"]["value"] in roles and not node.get("name", {}).get("value")
        ]
        assert nameless == []
        headings = [node["name"]["value"] for node in nodes if node.get("role", {}).get("value") == "heading"]
        assert headings
        assert chromium.run("return [...document.querySelectorAll('[tabindex]')].every((node) => node.tabIndex === 0)")
        assert chromium.run("return document.documentElement.lang") == "en"


def test_index_filters_and_sorts(chromium, index):
    chromium.open(index)
    visible = "return document.querySelectorAll('.runs tbody tr:not([hidden])').length"
    assert chromium.run(visible) == 500
    chromium.run(
        "const v = document.getElementById('verdict'); v.value = 'holds'; v.dispatchEvent(new Event('change'))"
    )
    assert chromium.run(visible) == 167
    typing = "words.value = arguments[0]; words.dispatchEvent(new Event('input'))"
    chromium.run(typing, "family3 RUN-003")
    assert chromium.run(visible) == 1
    assert chromium.run("return document.getElementById('count').textContent") == "1 of 500 runs"
    chromium.run(typing, "")
    for order in ("ascending", "descending"):
        chromium.run("document.querySelector('[data-key=name] button').click()")
        names = chromium.run("return [...document.querySelectorAll('.runs tbody tr')].map((row) => row.dataset.name)")
        assert names == sorted(names, reverse=order == "descending")
        assert chromium.run("return document.querySelector('[data-key=name]').getAttribute('aria-sort')") == order


def test_index_of_500_runs_loads_within_a_second(chromium, index):
    loads = []
    for _ in range(5):
        chromium.open(index)
        loads.append(chromium.run("return performance.getEntriesByType('navigation')[0].loadEventEnd"))
    assert statistics.median(loads) < 1000.0, loads
