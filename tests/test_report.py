"""The report and index pages as text: escaped, self-contained under a strict policy, true to the files they show."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.figure import Figure

from dynamics.runs import BadInput, Damaged
from dynamics.runs.durable.files import plain
from dynamics.runs.figures import colour, drawn, new_figure, theory_style
from dynamics.runs.report.claim_words import claims_table
from dynamics.runs.report.index_page import write_index
from dynamics.runs.report.run_page import write_report
from dynamics.types import Claim

# hostile text wherever a run's files can carry text
HOSTILE = "<script>alert('x')</script>\"&<img src=x onerror=alert(1)>"

CLAIMS = [
    {"name": "exponent", "source": "fig. 2", "measured": 0.251234, "predicted": 0.25, "tolerance": 0.06, "holds": True},
    {
        "name": HOSTILE,
        "source": HOSTILE,
        "measured": None,
        "measured_status": "nan",
        "predicted": ">= 2",
        "holds": False,
    },
    {"name": "control", "source": "fig. 3", "measured": None, "holds": None, "note": "needs two values of eps"},
]


def make_run(root, experiment="grokking.lazy_to_rich", name="first", claims=CLAIMS, figure=True):
    run = root / experiment / name
    run.mkdir(parents=True)
    (run / "config.json").write_text(json.dumps({"seed": 3, "alpha": [0.1, 0.2], "text": HOSTILE, "in": {"b": 2}}))
    provenance = {"command": ["python", "-m", "experiments.grokking", "--name", "a b"], "versions": {"jax": "0.10.2"}}
    (run / "provenance.json").write_text(json.dumps(provenance))
    if claims is not None:
        (run / "claims.json").write_text(json.dumps(claims))
    if figure:
        drawing = Figure(figsize=(4, 3))
        axes = drawing.subplots()
        axes.semilogy([1, 2, 3], [1, 0.1, 0.01], "o--", label="theory")
        axes.imshow([[0.0, 1.0]], extent=(1, 3, 0.01, 1))
        axes.legend()
        drawing.savefig(run / "figure.svg")
        drawing.savefig(run / "figure.png", dpi=50)
    return run


class Tags(HTMLParser):
    """Collects elements, and checks that they nest."""

    VOID = frozenset({"meta", "link", "img", "input", "br", "wbr"})

    def __init__(self, page):
        super().__init__()
        self.found, self.open = [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_report_escapes_and_shows_everything(tmp_path):
    page = write_report(make_run(tmp_path)).read_text()
    tags = Tags(page).found
    assert sum(tag == "script" for tag, _ in tags) == 1
    assert not any(name.startswith("on") or name == "style" for _, attrs in tags for name in attrs)
    assert "1 of 2 claims hold" in page
    for text in ("0.2512", "needs two values of eps", "0.1, 0.2", "in.b", "0.10.2", "nan"):
        assert text in page
    assert "python -m experiments.<wbr>grokking --name &#39;a b&#39;" in page


def test_report_is_self_contained_and_its_policy_matches_its_content(tmp_path):
    page = write_report(make_run(tmp_path)).read_text()
    for _, attrs in Tags(page).found:
        for name in ("src", "href", "action"):
            assert attrs.get(name, "#").startswith(("#", "data:")), attrs
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page).group(1)
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        content = re.search(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL).group(1)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_a_rival_that_is_not_finite_and_a_claim_that_was_not_reached_are_shown(tmp_path):
    late = Claim.at_least("delay", "s", [np.inf, 3.0], 2.0, rivals={"never": np.inf, "none": 0.0})
    claims = plain([claim._asdict() for claim in (late, late._replace(holds=None, unreached=500))])
    page = write_report(make_run(tmp_path, claims=claims)).read_text()
    assert "NOT never inf" in page
    assert "inf ± " not in page
    assert "not by step 500" in page
    assert '<span class="verdict unreached">… not reached</span>' in page
    assert "✗ 0 of 2 claims hold, 1 not reached" in page
    table = claims_table(claims).splitlines()
    assert table[2].split()[:5] == ["not", "reached", "delay", "not", "by"]
    index = write_index(tmp_path).read_text()
    assert 'data-verdict="fails"' in index


def test_report_of_an_unfinished_run(tmp_path):
    run = make_run(tmp_path, claims=None, figure=False)
    (run / "provenance.json").unlink()
    page = write_report(run).read_text()
    assert "no claims recorded" in page
    assert "Repeat this run" not in page
    assert sorted(path.name for path in run.iterdir()) == ["config.json", "report.html"]


@pytest.mark.parametrize(("name", "content"), [("claims.json", "[{"), ("config.json", "[]"), ("claims.json", "[3]")])
def test_a_damaged_file_is_named(tmp_path, name, content):
    run = make_run(tmp_path)
    (run / name).write_text(content)
    with pytest.raises(Damaged, match=name):
        write_report(run)
    assert not (run / "report.html").exists()


HOSTILE_SVG = (
    '<!DOCTYPE svg [<!ENTITY a "b">]><svg xmlns="http://www.w3.org/2000/svg" width="90pt" height="60pt" '
    'viewBox="0 0 90 60" onload="alert(1)"><script>alert(2)</script><image href="http://example.org/x.png"/>'
    '<foreignObject><body onclick="alert(3)"/></foreignObject>&a;"><script>alert(4)</script></svg>'
)


@pytest.mark.parametrize("content", [HOSTILE_SVG, "<svg", '"><script>alert(5)</script>'])
def test_a_figure_is_an_inert_image(tmp_path, content):
    """As an image a browser runs no script of it and fetches nothing; none of its text is markup of the page."""
    run = make_run(tmp_path)
    (run / "figure.svg").write_text(content)
    page = write_report(run).read_text()
    tags = Tags(page).found
    (image,) = [attrs for tag, attrs in tags if tag == "img"]
    kind, _, data = image["src"].partition(",")
    assert (kind, base64.b64decode(data).decode()) == ("data:image/svg+xml;base64", content)
    assert {"svg", "image", "foreignobject", "body2"}.isdisjoint(tag for tag, _ in tags)
    assert sum(tag == "script" for tag, _ in tags) == 1
    assert "alert" not in page.replace(HOSTILE, "").replace("alert(&#39;x&#39;)", "").replace("alert(1)", "")
    assert image["width"] == ("180" if content is HOSTILE_SVG else "600")


def test_labels_of_a_saved_figure_neither_touch_nor_leave_their_axes(tmp_path):
    figure, panels = new_figure(1, 3, width=2.4, height=2.3)
    for panel in panels[:2]:
        panel.loglog([16, 512], [0.2, 3.0])
    panels[0].set(xlabel="number of random features k", ylabel="a quantity (on the training set; lines: theory)")
    panels[1].set_ylabel("kernel distance $|K_t - K_0|_F / |K_0|_F$ on fresh points")
    figure.colorbar(panels[2].imshow([[0.0, 1.0]]), label="log10 of the change (blank: not fitted)")
    limits = panels[0].get_xlim()
    for name, data in drawn(figure).items():
        (tmp_path / name).write_bytes(data)
    figure.draw_without_rendering()
    assert panels[0].get_xlim() == limits
    for axes in figure.axes:
        for axis, side in ((axes.xaxis, "width"), (axes.yaxis, "height")):
            room = 1.05 * getattr(axes.get_window_extent(), side)  # the layout moves a little after the break
            assert getattr(axis.label.get_window_extent(), side) <= room, axis.get_label_text()
            low, high = axis.get_view_interval()
            shown = [
                label.get_window_extent()
                for minor in (False, True)
                for at, label in zip(axis.get_ticklocs(minor=minor), axis.get_ticklabels(minor=minor))
                if label.get_text() and low <= at <= high
            ]
            assert not any(one.overlaps(other) for at, one in enumerate(shown) for other in shown[:at])


def curves(draw, count, label="alpha = {:g}"):
    """A panel of ``count`` curves, and one of theory, with a legend; saved."""
    figure, panel = new_figure()
    for i in range(count):
        draw(panel, [0.0, 1.0], [0.0, i], label=label.format(0.5 * i), color=colour(i, count))
    panel.plot([0, 1], [1, 1], label="theory", **theory_style())
    panel.legend()
    return figure, panel


DRAW = {
    "plot": lambda panel, x, y, **more: panel.plot(x, y, **more),
    "open markers": lambda panel, x, y, color, **more: panel.scatter(x, y, facecolors="none", edgecolors=color, **more),
    "error bars": lambda panel, x, y, **more: panel.errorbar(x, y, [1, 1], fmt="none", **more),
    "bars": lambda panel, x, y, **more: panel.bar(x, y, **more),
}


@pytest.mark.parametrize("draw", DRAW)
def test_a_long_legend_of_numbers_is_a_colour_bar(tmp_path, draw):
    """In the curves' own colours; what is no number stays in the legend, and a short legend stays as it is."""
    figure, panel = curves(DRAW[draw], 12)
    for name, data in drawn(figure).items():
        (tmp_path / name).write_bytes(data)
    assert [text.get_text() for text in panel.get_legend().get_texts()] == ["theory"]
    _, bar = figure.axes
    assert bar.get_ylabel() == "alpha"
    ticks = [text.get_text() for text in bar.get_yticklabels()]
    assert (ticks[0], ticks[-1], len(ticks)) == ("0", "5.5", 6)
    np.testing.assert_allclose(bar.collections[-1].get_facecolor(), [colour(i, 12) for i in range(12)])
    assert "5.5" in (tmp_path / "figure.svg").read_text()
    figure, panel = curves(DRAW[draw], 3)
    for name, data in drawn(figure).items():
        (tmp_path / name).write_bytes(data)
    assert len(figure.axes) == 1
    assert len(panel.get_legend().get_texts()) == 4


def test_a_colour_bar_leaves_one_entry_a_kind(tmp_path):
    figure, panel = curves(DRAW["plot"], 12, "train, $\\alpha$ = {:g}")
    for i in range(12):
        panel.plot([0, 1], [i, 0], label=f"test, $\\alpha$ = {0.5 * i:g}", color=colour(i, 12))
    panel.plot([0, 1], [2, 2], label="width = 8")
    panel.legend()
    for name, data in drawn(figure).items():
        (tmp_path / name).write_bytes(data)
    texts = [text.get_text() for text in panel.get_legend().get_texts()]
    assert texts == ["train", "theory", "test", "width = 8"]
    assert figure.axes[1].get_ylabel() == "alpha"


def test_index_lists_every_run_and_survives_a_damaged_one(tmp_path):
    write_report(make_run(tmp_path))
    make_run(tmp_path, name="second", claims=CLAIMS[:1], figure=False)
    make_run(tmp_path, name="third", claims=None, figure=False)
    (make_run(tmp_path, experiment="rich_lazy.output_scale", figure=False) / "claims.json").write_text("[")
    page = write_index(tmp_path).read_text()
    tags = Tags(page).found
    verdicts = sorted(attrs["data-verdict"] for tag, attrs in tags if tag == "tr" and attrs)
    assert verdicts == ["fails", "holds", "none", "none"]
    for text in ("unfinished", "unreadable", "1 of 1 claims hold", 'href="grokking.lazy_to_rich/first/report.html"'):
        assert text in page
    assert [attrs["src"] for tag, attrs in tags if tag == "img"] == ["grokking.lazy_to_rich/first/figure.png"]


def test_index_shows_the_values_of_a_sweep(tmp_path):
    run = make_run(tmp_path)
    (run / "config.json").write_text(json.dumps({"steps": 20, "sweep": {"width": [2, 3], "start": ["one", "two"]}}))
    assert "steps=20 width=2, 3 start=one, two" in write_index(tmp_path).read_text()


def test_index_of_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(BadInput, match="root: got"):
        write_index(tmp_path / "absent")
