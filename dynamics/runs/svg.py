"""Makes a figure's SVG fit for an HTML page: known elements only, no scripts, no links out, a dark version."""

from __future__ import annotations

import colorsys
import re
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ELEMENTS = _words(
    "svg g defs path use clipPath rect circle ellipse line polyline polygon text tspan image linearGradient "
    "radialGradient stop pattern symbol marker title desc"
)
_PRESENTATION = _words(
    "fill fill-opacity fill-rule stroke stroke-width stroke-opacity stroke-dasharray stroke-dashoffset stroke-linecap "
    "stroke-linejoin stroke-miterlimit opacity color clip-path clip-rule visibility display font-family font-size "
    "font-style font-weight text-anchor dominant-baseline alignment-baseline image-rendering stop-color stop-opacity "
    "letter-spacing overflow"
)
_GEOMETRY = _words(
    "id d x y x1 x2 y1 y2 cx cy r rx ry width height viewBox transform points offset gradientUnits gradientTransform "
    "patternUnits patternTransform clipPathUnits preserveAspectRatio dx dy rotate refX refY markerWidth markerHeight "
    "orient markerUnits fx fy textLength lengthAdjust"
)
_HEX = re.compile(r"#[0-9a-f]{6}")
_FONT = re.compile(r"^(?P<before>.*?)(?P<size>[\d.]+(?:px|pt|em|%))(?:/\S+)?\s+(?P<family>.+)$")


class Drawing(NamedTuple):
    """``markup`` for the page, the CSS rules ``dark`` that recolour it on a dark one, and its ``width`` in points."""

    markup: str
    dark: str
    width: float


def inline_svg(path: Path, label: str, prefix: str) -> Drawing:
    """The SVG of a file as markup for an HTML page, under a strict content security policy.

    Styles become presentation attributes, identifiers get ``prefix`` (two figures on a page must not share any), and
    whatever is not a plain drawing is left out: scripts, event handlers, foreign objects, links to other files.

    Args:
        path: an SVG file, e.g. one written by matplotlib.
        label: what a screen reader says in place of the drawing.
        prefix: put before every identifier, letters and digits.

    Raises:
        ValueError: when the file is no SVG or declares entities; names the file.
    """
    text = path.read_text(encoding="utf-8")
    if "<!ENTITY" in text:
        raise ValueError(f"{path}: declares XML entities; a figure needs none")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ValueError(f"{path}: not well-formed SVG ({error})") from error
    if _local(root.tag) != "svg":
        raise ValueError(f"{path}: the root element is {_local(root.tag)}, not svg")
    colours: set[tuple[str, str]] = set()
    clean = _clean(root, prefix, colours)
    if "viewBox" not in clean.attrib:
        clean.set("viewBox", f"0 0 {_number(root.get('width'))} {_number(root.get('height'))}")
    clean.attrib.pop("height", None)
    width = float(re.split(r"[ ,]+", clean.attrib["viewBox"].strip())[2])
    clean.set("width", f"{2.0 * width:g}")
    clean.attrib.setdefault("stroke-linejoin", "round")
    clean.set("role", "img")
    clean.set("aria-label", label)
    rules = (f".{kind}-{value[1:]}{{{kind}:{_on_dark(kind, value)}}}" for kind, value in sorted(colours))
    return Drawing(ElementTree.tostring(clean, encoding="unicode"), "".join(rules), width)


def _on_dark(kind: str, value: str) -> str:
    """A colour as it is on a dark page: greys turned over, lines lightened; fills stay, so that colour scales keep."""
    red, green, blue = (int(value[at : at + 2], 16) / 255 for at in (1, 3, 5))
    hue, lightness, saturation = colorsys.rgb_to_hls(red, green, blue)
    if max(red, green, blue) - min(red, green, blue) < 0.06:
        lightness = 0.05 + 0.92 * (1 - lightness)
    elif kind == "stroke":
        lightness = 0.5 + 0.4 * lightness
    return "#" + "".join(f"{round(255 * part):02x}" for part in colorsys.hls_to_rgb(hue, lightness, saturation))


def _clean(element: ElementTree.Element, prefix: str, colours: set[tuple[str, str]]) -> ElementTree.Element:
    clean = ElementTree.Element(_local(element.tag))
    clean.text, clean.tail = element.text, element.tail
    for name, value in element.attrib.items():
        name = _local(name)
        if name == "style":
            for key, item in _declarations(value):
                _set(clean, key, item, prefix)
        else:
            _set(clean, name, value, prefix)
    used = [(kind, value) for kind in ("fill", "stroke") if _HEX.fullmatch(value := clean.get(kind, ""))]
    if used:
        clean.set("class", " ".join(f"{kind}-{value[1:]}" for kind, value in used))
        colours.update(used)
    for child in element:
        if isinstance(child.tag, str) and _local(child.tag) in _ELEMENTS:
            clean.append(_clean(child, prefix, colours))
        elif child.tail and len(clean):
            clean[-1].tail = (clean[-1].tail or "") + child.tail
    return clean


def _set(element: ElementTree.Element, name: str, value: str, prefix: str) -> None:
    value = value.strip()
    if name == "id":
        element.set("id", prefix + value)
    elif name == "href":
        if value.startswith("#"):
            element.set("href", f"#{prefix}{value[1:]}")
        elif element.tag == "image" and re.match(r"data:image/(png|jpeg|webp);base64,", value):
            element.set("href", value)
    elif name in _PRESENTATION or name in _GEOMETRY:
        local = re.sub(r"url\(\s*['\"]?#([^)'\"]+)['\"]?\s*\)", rf"url(#{prefix}\1)", value)
        if re.sub(r"url\(#[^)]*\)", "", local).find("url(") < 0:
            element.set(name, local)


def _declarations(style: str) -> list[tuple[str, str]]:
    """The ``name: value`` pairs of a style attribute, the ``font`` shorthand taken apart."""
    pairs = []
    for declaration in style.split(";"):
        name, _, value = declaration.partition(":")
        name, value = name.strip(), value.strip()
        font = _FONT.match(value) if name == "font" else None
        if font is None:
            pairs.append((name, value))
            continue
        pairs += [("font-size", font["size"]), ("font-family", font["family"])]
        for word in font["before"].split():
            pairs.append(("font-style" if word in ("italic", "oblique") else "font-weight", word))
    return pairs


def _local(tag: str) -> str:
    return tag.rpartition("}")[2]


def _number(size: str | None) -> float:
    found = re.match(r"[\d.]+", size or "")
    return float(found.group()) if found else 100.0
