"""Gathers the site's pages from what is there: README, documents, notebooks, experiments, public names."""

from __future__ import annotations

import re
import shutil
import tomllib
from pathlib import Path

import api
import nbformat

from dynamics.runs.command.discover import Entry, gallery
from dynamics.runs.command.gallery import OPEN, figure_file, title
from dynamics.runs.durable.files import read_json

TOP = ("CHANGELOG.md", "CONTRIBUTING.md")
LINK = re.compile(r"(\]\()(?!https?://|#|mailto:)([^)#\s]+)(#[^)]*)?(\))")
FENCED = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def write(root: Path, source: Path) -> None:
    """Writes every page under ``source``, laid out as the repository is, so that its links hold."""
    for folder in ("docs", "notebooks", "gallery", "api"):
        (source / folder).mkdir(parents=True)
    readme = (root / "README.md").read_text().partition(OPEN)[0].rpartition("\n## ")[0]
    write_page(root, source, "index.md", readme + toctree(["docs/install", "docs/first-steps", "docs/index", "gallery/index", "notebooks/index", "api/index", "CHANGELOG", "CONTRIBUTING"], hidden=True))
    for name in TOP:
        write_page(root, source, name, (root / name).read_text())
    for path in sorted((root / "docs").glob("*.md")):
        text = path.read_text()
        write_page(root, source, f"docs/{path.name}", text + (guides(root, text) if path.name == "index.md" else ""))
    shutil.copytree(root / "docs" / "gallery", source / "docs" / "gallery")
    write_gallery(root, source)
    write_notebooks(root, source)
    write_reference(source)


def write_page(root: Path, source: Path, name: str, text: str) -> None:
    """A page with the links that leave the site turned to the repository."""
    here = (root / name).parent

    def turned(found: re.Match) -> str:
        target = (here / found[2]).resolve()
        if target.suffix in (".md", ".ipynb", ".webp", ".png") and (source / name).parent.joinpath(found[2]).resolve():
            inside = target.relative_to(root).as_posix()
            if inside in ("README.md",):
                return f"{found[1]}{found[2].replace('README.md', 'index.md')}{found[3] or ''}{found[4]}"
            if target.suffix != ".md" or target.parent == root / "docs" or inside in TOP:
                return found[0]
        if target == root / "notebooks" or target == root / "docs":
            return f"{found[1]}{found[2].rstrip('/')}/index.md{found[4]}"
        if not target.exists():
            return found[0]  # Sphinx says so
        kind = "tree" if target.is_dir() else "blob"
        return f"{found[1]}{repository(root)}/{kind}/main/{target.relative_to(root).as_posix()}{found[3] or ''}{found[4]}"

    parts = FENCED.split(text)
    turned_text = "".join(part if number % 2 else LINK.sub(turned, part) for number, part in enumerate(parts))
    (source / name).write_text(turned_text)


def repository(root: Path) -> str:
    return tomllib.loads((root / "pyproject.toml").read_text())["project"]["urls"]["Repository"]


def guides(root: Path, text: str) -> str:
    """The tables of contents of the documents: by the headings of their index, and what it does not name after them."""
    sections = re.split(r"^## (.*)$", text, flags=re.MULTILINE)
    named = {heading: re.findall(r"\]\(([\w-]+)\.md", body) for heading, body in zip(sections[1::2], sections[2::2], strict=True)}
    seen = {"index", "install", "first-steps"}  # these two stand in the site's own bar
    out = ""
    for heading, pages in named.items():
        fresh = [page for page in dict.fromkeys(pages) if page not in seen]
        seen.update(fresh)
        out += toctree(fresh, hidden=True, caption=heading) if fresh else ""
    rest = sorted(path.stem for path in (root / "docs").glob("*.md") if path.stem not in seen)
    return out + (toctree(rest, hidden=True, caption="More") if rest else "")


def toctree(pages: list[str], *, hidden: bool = False, caption: str = "", depth: int = 1) -> str:
    options = [":hidden:"] * hidden + [f":caption: {caption}"] * bool(caption) + [f":maxdepth: {depth}"]
    return "\n\n```{toctree}\n" + "\n".join([*options, "", *pages]) + "\n```\n"


def write_gallery(root: Path, source: Path) -> None:
    """A page an experiment, and one with all figures."""
    entries, results = gallery(), read_json(root / "docs" / "gallery.json", {})
    lines = ["# Gallery", "", f"{len(entries)} experiments, each with its theory laid over the measurement.", ""]
    families: dict[str, list[Entry]] = {}
    for entry in entries:
        families.setdefault(entry.family, []).append(entry)
    for family, members in families.items():
        lines += [f"## {family.rpartition('.')[2].replace('_', ' ').capitalize()}", "", "::::{div} gallery", ""]
        for entry in members:
            picture = figure_file(root, entry.experiment)
            figure = f"![](../docs/gallery/{picture.name})" if picture.is_file() else ""
            lines += [":::{div} card", "", f"[{figure}](./{entry.experiment}.md)" if figure else "", "", f"[`{entry.experiment}`](./{entry.experiment}.md) {api.escaped(title(entry))}", "", ":::", ""]
            (source / "gallery" / f"{entry.experiment}.md").write_text(experiment(root, entry, results.get(entry.experiment)))
        lines += ["::::", ""]
    text = "\n".join(lines) + toctree([entry.experiment for entry in entries], hidden=True)
    (source / "gallery" / "index.md").write_text(text)


def experiment(root: Path, entry: Entry, found: dict | None) -> str:
    """One experiment: its figure, its claims, how to run it, what its docstring says."""
    path = root / Path(*entry.module.split(".")).with_suffix(".py")
    import ast

    doc = ast.get_docstring(ast.parse(path.read_text())) or ""
    picture = figure_file(root, entry.experiment)
    held = f"{found['held']} of {found['tested']} claims held, {found['rejected']} of {found['rivals']} rivals rejected." if found else "Not run yet."
    seconds = f"The quick preset takes about {entry.seconds:.0f} s on two CPU cores." if entry.seconds else ""
    lines = [f"# {entry.experiment}", "", f"**{api.escaped(title(entry))}**", "", api.escaped(entry.source), ""]
    if picture.is_file():
        lines += [f"![The figure of {entry.experiment}](../docs/gallery/{picture.name})", ""]
    lines += [f"{held} {seconds}", "", "```console", f"python -m {entry.module}", "```", ""]
    lines += [api.prose(doc.partition("\n\n")[2]), "", f"[Source]({repository(root)}/blob/main/{path.relative_to(root).as_posix()})", ""]
    return "\n".join(lines)


def write_notebooks(root: Path, source: Path) -> None:
    """The notebooks with their output and a link that opens each in Colab, and a page that lists their questions."""
    lines = ["# Notebooks", "", "Each with its output; none is longer than a minute or two on two CPU cores.", ""]
    paths = sorted((root / "notebooks").glob("*.ipynb"), key=lambda path: int(path.name.partition("_")[0]))
    slug = repository(root).partition("github.com/")[2]
    for path in paths:
        notebook = nbformat.read(path, as_version=4)
        first = notebook.cells[0]
        head, _, rest = first.source.partition("\n")
        colab = f"https://colab.research.google.com/github/{slug}/blob/main/notebooks/{path.name}"
        first.source = f"{head}\n\n[Open in Colab]({colab})\n{rest}"
        nbformat.write(notebook, source / "notebooks" / path.name)
        question = re.search(r"\*\*Question\.\*\*\s*(.*?\?)", rest, re.DOTALL)
        lines += [f"- [{head.lstrip('# ')}]({path.name}) ([Colab]({colab})). {' '.join(question[1].split()) if question else ''}"]
    text = "\n".join(lines) + toctree([path.stem for path in paths], hidden=True)
    (source / "notebooks" / "index.md").write_text(text)


def write_reference(source: Path) -> None:
    """A page a public module."""
    modules = api.public_modules()
    for module in modules:
        (source / "api" / f"{module.__name__}.md").write_text(api.page(module))
    text = "# Reference\n\nEvery public name, by module. Every example is executed by the tests.\n"
    (source / "api" / "index.md").write_text(text + toctree([module.__name__ for module in modules]))
