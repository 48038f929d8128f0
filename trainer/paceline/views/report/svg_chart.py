"""Charts as SVG without a script: colours come from the page's style, values are told where the pointer rests."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from paceline.views.report.axes import Scale
from paceline.views.report.downsampling import Point

WIDTH, HEIGHT = 1080, 220
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 8, 24  # around the plot
STOPS = 120  # columns in which the pointer finds the values
ROW, THICK, NAMES, VALUES = 25, 15, 84, 150  # rows of bars: distance, thickness, room for names and for values
Tell = Callable[[float], str]


@dataclass(frozen=True)
class Line:
    """A curve; `style` is a class of the page's style, `band` draws from the least to the greatest value as well."""

    name: str
    style: str
    points: Sequence[Point]
    band: bool = False


@dataclass(frozen=True)
class Bar:
    """A bar of parts one after the other, each with the class of its style."""

    name: str
    parts: Mapping[str, float]
    value: str  # at its end
    strong: bool = False


@dataclass(frozen=True)
class Chart:
    """A drawing with its caption and its legend."""

    caption: str
    svg: Markup
    legend: Sequence[tuple[str, str]] = ()  # class of the style, name


def lines(caption: str, across: Scale, up: Scale, curves: Sequence[Line], tell: Tell) -> Chart:
    """Curves over time, with their axes."""
    frame = _Frame(across, up)
    drawn = [*frame.grid()]
    drawn += [frame.band(c) for c in curves if c.band]
    drawn += [frame.curve(c) for c in curves]
    legend = [(c.style, c.name) for c in curves] if len(curves) > 1 else []
    return _chart(caption, HEIGHT, [*drawn, *frame.stops(curves, tell)], legend)


def rows(caption: str, bars: Sequence[Bar], tell: Tell, legend: Mapping[str, str] | None = None) -> Chart:
    """Bars below one another, on one scale; `legend` names the parts."""
    longest = max(sum(bar.parts.values()) for bar in bars)
    room = NAMES if any(bar.name for bar in bars) else 0
    scale = (WIDTH - room - VALUES) / (longest or 1.0)
    drawn: list[str] = []
    for index, bar in enumerate(bars):
        top, left = index * ROW + (ROW - THICK) / 2, float(room)
        text = "row strong" if bar.strong else "row"
        drawn.append(_text(room - 8, top + 12, bar.name, text, "end"))
        for part, value in bar.parts.items():
            width = value * scale
            drawn.append(_rect(left, top, width, THICK, f"p-{part}", f"{bar.name}: {part} {tell(value)}"))
            left += width
        drawn.append(_text(left + 8, top + 12, bar.value, text))
    return _chart(caption, len(bars) * ROW, drawn, _of_parts(legend or {}))


def columns(caption: str, across: Scale, up: Scale, heights: Mapping[int, Mapping[str, float]], width: int) -> Chart:
    """Columns of parts upon one another at whole numbers, each `width` wide."""
    parts_there = {part: part for parts in heights.values() for part in parts}
    frame = _Frame(across, up)
    drawn = [*frame.grid()]
    for at, parts in sorted(heights.items()):
        left, right, below = frame.x(at), frame.x(at + width), 0.0
        names = f"{at}" if width == 1 else f"{at} to {at + width - 1}"
        for part, value in parts.items():
            bottom, below = frame.y(below), below + value
            told = f"{names}: {part} {value:g}"
            drawn.append(_rect(left + 1, frame.y(below), right - left - 2, bottom - frame.y(below), f"p-{part}", told))
    return _chart(caption, HEIGHT, drawn, _of_parts(parts_there))


@dataclass(frozen=True)
class _Frame:
    """Places values between the axes."""

    across: Scale
    up: Scale

    def x(self, value: float) -> float:
        return LEFT + self.across.place(value) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - self.up.place(value) * (HEIGHT - TOP - BOTTOM)

    def grid(self) -> Iterator[str]:
        for value, text in self.up.ticks:
            y = self.y(value)
            yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            yield _text(LEFT - 8, y + 4, text, "tick", "end")
        for value, text in self.across.ticks:
            x = self.x(value)
            yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM + 4}"/>'
            yield _text(x, HEIGHT - BOTTOM + 18, text, "tick", "end" if x > WIDTH - 40 else "middle")

    def curve(self, line: Line) -> str:
        places = [(p.time, p.mean) for p in line.points]
        places = places * 2 if len(places) == 1 else places  # a line to itself is a dot
        return f'<polyline class="line {line.style}" points="{self._points(places)}"/>'

    def band(self, line: Line) -> str:
        there = [(p.time, p.greatest) for p in line.points]
        back = [(p.time, p.least) for p in reversed(line.points)]
        return f'<polygon class="band {line.style}" points="{self._points([*there, *back])}"/>'

    def stops(self, curves: Sequence[Line], tell: Tell) -> Iterator[str]:
        """Columns that tell the values in them."""
        seconds = (self.across.high - self.across.low) / STOPS
        for stop in range(STOPS):
            begin = self.across.low + stop * seconds
            told = [t for c in curves if (t := _told(c, begin, begin + seconds, tell))]
            if told:
                x, title = self.x(begin), "\n".join([f"{begin:.4g} to {begin + seconds:.4g} s", *told])
                yield _rect(x, TOP, self.x(begin + seconds) - x, HEIGHT - TOP - BOTTOM, "stop", title)

    def _points(self, places: Iterable[tuple[float, float]]) -> str:
        return " ".join(f"{self.x(time):.1f},{self.y(value):.1f}" for time, value in places)


def _told(line: Line, begin: float, end: float, tell: Tell) -> str:
    points = [p for p in line.points if begin <= p.time < end]
    if not points:
        return ""
    mean = sum(p.mean for p in points) / len(points)
    return f"{line.name}: {tell(mean)} (at most {tell(max(p.greatest for p in points))})"


def _chart(caption: str, height: float, drawn: Sequence[str], legend: Sequence[tuple[str, str]]) -> Chart:
    head = f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(caption)}">'
    return Chart(caption, Markup(f"{head}{''.join(drawn)}</svg>"), legend)  # all texts in it are escaped


def _of_parts(names: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(f"p-{part}", name) for part, name in names.items()]


def _text(x: float, y: float, text: str, style: str, anchor: str = "start") -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _rect(x: float, y: float, width: float, height: float, style: str, title: str) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" width="{max(0.0, width):.1f}" height="{max(0.0, height):.1f}"'
    return f'<rect class="{escape(style)}" {place}><title>{escape(title)}</title></rect>'
