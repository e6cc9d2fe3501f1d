"""Reads a figure back from its SVG: groups by class, ends of paths, and pixels as numbers by the axis's own ticks."""

import re
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

SVG = "{http://www.w3.org/2000/svg}"
TICK = r"[\d.]+( %)?"


def parsed(drawn: str) -> Element:
    return ElementTree.fromstring(drawn)


def paths(drawing: Element, name: str) -> list[list[tuple[float, float]]]:
    """The points of the first path in every group of a class."""
    groups = [part for part in drawing.iter(f"{SVG}g") if part.get("class") == name]
    return [points(next(group.iter(f"{SVG}path")).attrib["d"]) for group in groups]


def points(path: str) -> list[tuple[float, float]]:
    numbers = [float(number) for number in re.findall(r"-?[\d.]+", path)]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def texts(drawing: Element) -> list[str]:
    return [part.text or "" for part in drawing.iter(f"{SVG}text")]


def scale(drawing: Element, axis: str) -> tuple[float, float]:
    """Pixel of zero and pixels for 1, from the axis's lines and the labels of its ticks, where it is linear."""
    anchor, side = {"x": ("middle", 0), "y": ("end", 1)}[axis]
    labels = [
        float(part.text.split()[0])
        for part in drawing.iter(f"{SVG}text")
        if re.fullmatch(TICK, part.text or "") and part.get("text-anchor") == anchor
    ]
    lines = [points(part.attrib["d"]) for part in drawing.iter(f"{SVG}path") if part.get("stroke-opacity") == "0.25"]
    if not lines or lines[0][0][side] != lines[0][1][side]:  # without lines: a label stands at its tick
        lines = [
            [(float(part.attrib["x"]), 0.0)] * 2
            for part in drawing.iter(f"{SVG}text")
            if re.fullmatch(TICK, part.text or "") and part.get("text-anchor") == anchor
        ]
    places = [line[0][side] for line in lines]
    assert len(labels) == len(places) > 1
    unit = (places[-1] - places[0]) / (labels[-1] - labels[0])
    return places[0] - labels[0] * unit, unit
