"""Sphinx settings of the site; build.py writes the pages that it reads."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pages
from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.transforms import SphinxTransform

ROOT = Path(__file__).parents[2]
about = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
repository = about["urls"]["Repository"]

project = "dynamics"
author = about["authors"][0]["name"]
project_copyright = author
version = release = about["version"]

extensions = ["myst_nb"]
nb_execution_mode = "off"  # notebooks are committed with their output
myst_heading_anchors = 4
myst_enable_extensions = ["attrs_inline"]
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"
suppress_warnings = ["mystnb.unknown_mime_type"]

html_theme = "pydata_sphinx_theme"
html_title = "dynamics"
html_static_path = [str(Path(__file__).with_name("site.css"))]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "icon_links": [{"name": "Source", "url": repository, "icon": "fa-brands fa-github"}],
    "header_links_before_dropdown": 6,
    "navbar_align": "left",
    "navigation_with_keys": False,
    "show_toc_level": 1,
    "footer_start": ["copyright"],
    "footer_end": [],
}
html_sidebars = {page: [] for page in ["index", *pages.TOP, *pages.BAR] if not page.endswith("/index")}
html_context = {"default_mode": "auto"}


class LinkNames(SphinxTransform):
    """Code that is a public name, ``observe.ntk`` or ``study``, leads to its entry in the reference."""

    default_priority = 1

    def apply(self, **_):
        here = self.env.current_document.docname
        for literal in list(self.document.findall(nodes.literal)):
            target = NAMES.get(literal.astext().removesuffix("()"))
            if target is None or literal.get("classes") or isinstance(literal.parent, nodes.reference):
                continue
            link = pending_xref(
                "", refdomain="py", reftype="obj", reftarget=target, refdoc=here, refexplicit=True, refwarn=True
            )
            literal.replace_self(link)
            link += literal


def setup(app):
    global NAMES
    import api

    NAMES = api.short_names()
    app.add_transform(LinkNames)
