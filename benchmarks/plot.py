"""Draws lines over time as one SVG file, panel under panel on the same clock, with nothing but text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, PANEL, LEFT, RIGHT, TOP, GAP, BOTTOM = 860, 150, 62, 18, 56, 46, 44
COLOURS = ("#2563eb", "#d97706", "#059669")


@dataclass(frozen=True)
class Line:
    """One quantity over time; `stepped` holds each value until the next."""

    name: str
    points: Sequence[tuple[float, float]]
    stepped: bool = False


@dataclass(frozen=True)
class Panel:
    """Quantities of one unit."""

    title: str
    lines: Sequence[Line]


def svg(title: str, panels: Sequence[Panel], marks: Sequence[tuple[float, str]]) -> str:
    """Return the drawing: `marks` are moments (in seconds, as all points) with the words that stand at them."""
    end_s = max(t for panel in panels for line in panel.lines for t, _ in line.points)
    height = TOP + len(panels) * (PANEL + GAP) - GAP + BOTTOM
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="22" font-size="15" font-weight="bold" fill="#111827">{escape(title)}</text>',
    ]
    for number, panel in enumerate(panels):
        out += _panel(panel, TOP + number * (PANEL + GAP), end_s)
    for at_s, words in marks:
        x = _x(at_s, end_s)
        out.append(f'<line x1="{x}" x2="{x}" y1="{TOP}" y2="{height - BOTTOM}" stroke="#9ca3af" stroke-dasharray="3 3"/>')
        out.append(f'<text x="{x + 4:.1f}" y="{TOP - 18}" fill="#6b7280">{escape(words)}</text>')
    for second in range(0, int(end_s) + 1, _step(end_s, 10)):
        x = _x(second, end_s)
        out.append(f'<text x="{x}" y="{height - BOTTOM + 18}" text-anchor="middle" fill="#374151">{second}</text>')
    out.append(f'<text x="{WIDTH - RIGHT}" y="{height - 8}" text-anchor="end" fill="#374151">seconds</text></svg>')
    return "\n".join(out) + "\n"


def _panel(panel: Panel, top: int, end_s: float) -> list[str]:
    highest = max(1.0, *(v for line in panel.lines for _, v in line.points))
    step = _step(highest, 4)
    most = step * math.ceil(highest / step)
    out = [f'<text x="{LEFT}" y="{top - 5}" font-weight="bold" fill="#374151">{escape(panel.title)}</text>']
    for value in range(0, most + 1, step):
        y = _y(value, most, top)
        out.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}" stroke="#e5e7eb"/>')
        out.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end" fill="#374151">{value}</text>')
    for number, line in enumerate(panel.lines):
        colour = COLOURS[number]
        path: list[str] = []
        for t, v in line.points:
            x, y = _x(t, end_s), _y(v, most, top)
            path.append(f"M{x},{y}" if not path else f"H{x}V{y}" if line.stepped else f"L{x},{y}")
        out.append(f'<path d="{"".join(path)}" fill="none" stroke="{colour}" stroke-width="2"/>')
        if len(panel.lines) > 1:
            x = WIDTH - RIGHT - 170 * (len(panel.lines) - number)
            out.append(f'<rect x="{x}" y="{top - 14}" width="12" height="4" fill="{colour}"/>')
            out.append(f'<text x="{x + 18}" y="{top - 7}" fill="#374151">{escape(line.name)}</text>')
    return out


def _x(t: float, end_s: float) -> float:
    return round(LEFT + t / end_s * (WIDTH - LEFT - RIGHT), 1)


def _y(value: float, most: float, top: int) -> float:
    return round(top + PANEL - value / most * PANEL, 1)


def _step(most: float, parts: int) -> int:
    """Return a round distance that divides `most` into about `parts`."""
    rough = max(1.0, most / parts)
    power = 10 ** math.floor(math.log10(rough))
    return int(next(n * power for n in (1, 2, 5, 10) if n * power >= rough))
