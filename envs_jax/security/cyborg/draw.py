"""The network as a picture: hosts by subnet, sessions, decoys, isolation, the last moves, the reward. Host only."""

from __future__ import annotations

import dataclasses
import math

import jax
import numpy as np

from envs_jax.render import Canvas, Frame, Point
from envs_jax.security.cyborg.network import DISCOVER, SLEEP, Network
from envs_jax.security.cyborg.records import Sessions, Setup
from envs_jax.security.cyborg.state import FALSE, UNKNOWN, State
from envs_jax.security.cyborg.story import Move, base_rewards, host_name, members, moves, subnet_name
from envs_jax.timeline import Played, unstack

Box = tuple[float, float, float, float]  # left, top, right, bottom

WIDTH, MARGIN, GAP, PADDING = 980.0, 14.0, 40.0, 12.0  # pixels
HEADER, TITLE, CURVE, LEGEND = 62.0, 26.0, 74.0, 30.0
NAMED_HOSTS, SMALL_HOSTS = 60, 240  # up to so many hosts have names; more become small squares
INK, FAINT, PANEL, EDGE = "#202124", "#80868b", "#f4f6f8", "#c6cbd1"
FILLS, EDGES = ("#ffffff", "#fbd59b", "#f0958d"), ("#c6cbd1", "#e08e0b", "#c0392b")  # none, user, privileged
RED, FAILED, BLUE, DECOY, SEEN, ISOLATED = "#c5221f", "#a8a29e", "#1a56c4", "#1e9e57", "#8e44ad", "#5b8def"
RING = 3.0  # pixels
RED_TAGS = ("Sleep", "Discover", "Scan", "Exploit", "Escalate", "Impact")  # by kind of action
BELIEFS = ("", "?", "user", "root")  # what blue believes of a host
LEGEND_ENTRIES = (
    (FILLS[1], "user session"), (FILLS[2], "privileged"), (DECOY, "decoy"), (SEEN, "activity seen, blue's belief"),
    (ISOLATED, "isolated"), (RED, "red's action, scanned"), (BLUE, "blue's action"), ("#f1c40f", "jewel"),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Moment:
    """What led to a state, and how the reward ran."""

    blue: Move
    red: Move
    step: int
    totals: np.ndarray  # f64 [T], running reward of the whole episode


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where everything stands: subnets side by side, in rows, their hosts as cards within."""

    panels: dict[int, Box]  # by subnet
    cards: dict[int, Box]  # by host
    bottom: float  # of the panels
    named: bool

    @property
    def card_size(self) -> Point:
        left, top, right, bottom = next(iter(self.cards.values()))
        return right - left, bottom - top


def draw(state: State, network: Network, moment: Moment | None = None) -> Frame:
    """One state as a picture.

    A host is white, orange (user-level red session) or red (privileged). Green dots are decoys; violet is what blue
    saw in the last step (a ring a scan, a disc an exploit) and what it believes; a blue frame means isolated, a small
    red dot that red has the host's ports on record. The jewel carries a star, dark while its service is down.

    Args:
        state: of one environment, without a batch axis.
        network: the network it plays on.
        moment: the step that led to the state; its moves are drawn as an arrow and frames, its reward as a curve.

    Returns:
        u8 `[height, width, 3]`.
    """
    state, layout = jax.device_get(state), lay_out(network)
    height = layout.bottom + (CURVE if moment else 0.0) + LEGEND
    canvas = Canvas(round(WIDTH), round(height))
    _draw_header(canvas, state, network, moment)
    if moment and moment.red.kind == DISCOVER:
        _ring(canvas, layout.panels.get(moment.red.subnet), _color(moment.red, RED), RING, 10)
    for subnet, box in layout.panels.items():
        _draw_panel(canvas, network, layout, subnet, box)
    if moment:
        _draw_rings(canvas, layout, moment)
    _draw_hosts(canvas, state, network, layout)
    if moment:
        _draw_moves(canvas, network, layout, moment)
        _draw_curve(canvas, moment, layout.bottom + 6)
    left = MARGIN
    for color, label in LEGEND_ENTRIES:
        canvas.circle((left + 5, height - LEGEND / 2), 5, EDGE)
        canvas.circle((left + 5, height - LEGEND / 2), 4.4, color)
        canvas.text((left + 15, height - LEGEND / 2 - 7), label, INK, 11.5)
        left += 34 + 5.6 * len(label)
    return canvas.pixels()


def film(played: Played) -> list[Frame]:
    """The pictures of an episode: the start, and the state after every step."""
    network, totals = played.params.network, np.cumsum(base_rewards(played))
    moments = [Moment(blue, red, step, totals) for step, (blue, red) in enumerate(moves(played))]
    nobody = Move(SLEEP, -1, -1, UNKNOWN, "")
    start = Moment(nobody, nobody, -1, totals)
    return [draw(state, network, moment) for state, moment in zip(unstack(played.states), [start, *moments])]


def lay_out(network: Network) -> Layout:
    """Places subnets and hosts; every network fits the same width."""
    num_hosts = network.num_hosts
    inside = members(network.members, num_hosts)  # [S, N]
    subnets = np.flatnonzero(inside.any(axis=1)).tolist()
    total = int(inside.sum())
    named = total <= NAMED_HOSTS
    wanted = (124.0, 56.0, 10.0) if named else (24.0, 24.0, 4.0) if total <= SMALL_HOSTS else (11.0, 11.0, 2.0)
    per_row = len(subnets) if len(subnets) <= 4 else math.ceil(math.sqrt(1.5 * len(subnets)))
    gap = GAP if per_row <= 4 else 18.0
    panel_width = (WIDTH - 2 * MARGIN - (per_row - 1) * gap) / per_row
    room = panel_width - 2 * PADDING
    columns = max(1, int((room + wanted[2]) / (wanted[0] + wanted[2])))
    card_width = min(wanted[0], room)
    if named:  # cards share the width evenly
        card_width = (room - (columns - 1) * wanted[2]) / columns

    panels, cards, top = {}, {}, HEADER
    for first in range(0, len(subnets), per_row):
        row = subnets[first : first + per_row]
        tallest = max(math.ceil(inside[subnet].sum() / columns) for subnet in row)
        bottom = top + TITLE + tallest * (wanted[1] + wanted[2]) + PADDING - wanted[2]
        for place, subnet in enumerate(row):
            left = MARGIN + place * (panel_width + gap)
            panels[subnet] = (left, top, left + panel_width, bottom)
            for index, host in enumerate(np.flatnonzero(inside[subnet]).tolist()):
                x = left + PADDING + index % columns * (card_width + wanted[2])
                y = top + TITLE + index // columns * (wanted[1] + wanted[2])
                cards[host] = (x, y, x + card_width, y + wanted[1])
        top = bottom + 14
    return Layout(panels, cards, top, named)


def _draw_header(canvas: Canvas, state: State, network: Network, moment: Moment | None) -> None:
    sessions = Sessions(state.sessions)
    alive = bool(state.service_alive)
    canvas.text((MARGIN, 10), f"step {int(state.step)}", INK, 18, bold=True)
    held, rooted = int(sessions.any.sum()), int(sessions.privileged.sum())
    canvas.text((MARGIN, 36), f"red holds {held} host{'s' * (held != 1)}, {rooted} privileged", INK, 13)
    canvas.text((WIDTH - MARGIN, 36), "service up" if alive else "SERVICE DOWN", DECOY if alive else RED, 13, "right",
                bold=not alive)  # fmt: skip
    if not moment or moment.step < 0:
        return
    totals, step = moment.totals, moment.step
    reward = totals[step] - (totals[step - 1] if step else 0.0)
    canvas.text((WIDTH - MARGIN, 10), f"reward {reward:.1f}    total {totals[step]:.1f}", INK, 15, "right")
    for top, side, color in ((10, moment.blue, BLUE), (33, moment.red, RED)):
        failed = "   failed" if side.success == FALSE else ""
        canvas.text((WIDTH / 2 - 210, top), f"{'blue' if side is moment.blue else 'red'}", color, 14, bold=True)
        canvas.text((WIDTH / 2 - 170, top), side.name + failed, _color(side, color), 14)


def _draw_panel(canvas: Canvas, network: Network, layout: Layout, subnet: int, box: Box) -> None:
    canvas.rectangle(box, PANEL, 10)
    pivots, gateways = np.asarray(network.pivots), np.asarray(network.gateways)
    opened = [other for other in layout.panels if other != subnet and (pivots[subnet] & gateways[other]).any()]
    canvas.text((box[0] + PADDING, box[1] + 6), subnet_name(network, subnet), INK, 13, bold=True)
    far = []
    for other in opened:
        target = layout.panels[other]
        if target[1] == box[1] and 0 < target[0] - box[2] <= GAP:  # the next one to the right
            middle = (box[1] + min(box[3], target[3])) / 2
            _arrow(canvas, (box[2] + 2, middle), (target[0] - 2, middle), EDGE, 3)
        elif other > subnet:
            far.append(str(other))
    if far:
        canvas.text((box[2] - PADDING, box[1] + 7), "opens " + ", ".join(far), FAINT, 11, "right")


def _draw_hosts(canvas: Canvas, state: State, network: Network, layout: Layout) -> None:
    num_hosts = network.num_hosts
    sessions, setup = Sessions(state.sessions), Setup(state.setup)
    access = np.where(sessions.privileged, 2, sessions.any)
    isolated, active, alarmed = (members(mask, num_hosts) for mask in (state.isolated, state.active, state.alarmed))
    belief = members(state.belief_low, num_hosts) + 2 * members(state.belief_high, num_hosts)
    decoys, scanned = np.bitwise_count(setup.decoys), setup.ports != 0
    jewel, alive = int(network.jewel), bool(state.service_alive)
    for host, box in layout.cards.items():
        left, top, right, bottom = box
        level = int(access[host])
        edge, width = (ISOLATED, 4.0) if isolated[host] else (EDGES[level], 1.4)
        if not layout.named:
            width = min(width, (right - left) / 6)
        _frame(canvas, box, edge, FILLS[level], width, 7 if layout.named else 2)
        if not layout.named:
            side = right - left
            if host == jewel:
                _star(canvas, ((left + right) / 2, (top + bottom) / 2), side * 0.42, alive)
            if active[host]:
                canvas.circle((right - side * 0.22, top + side * 0.22), side * 0.17, SEEN)
            if decoys[host]:
                canvas.circle((left + side * 0.25, bottom - side * 0.25), side * 0.15, DECOY)
            continue
        canvas.text((left + 9, top + 7), host_name(network, host), INK, 12.5)
        if active[host]:
            canvas.circle((right - 13, top + 14), 5.5, SEEN)
            if not alarmed[host]:
                canvas.circle((right - 13, top + 14), 3.4, FILLS[level])
        if belief[host]:
            canvas.text((right - 8, bottom - 20), BELIEFS[belief[host]], SEEN, 12, "right", bold=True)
        for index in range(int(decoys[host])):
            canvas.circle((left + 14 + 10 * index, bottom - 13), 3.6, DECOY)
        if scanned[host]:
            canvas.circle((right - 27, top + 14), 3, RED)
        if host == jewel:
            _star(canvas, (left + 66, bottom - 13), 8, alive)


def _draw_rings(canvas: Canvas, layout: Layout, moment: Moment) -> None:
    """Frames around the hosts that the two sides dealt with, blue's outside red's."""
    red, blue = moment.red, moment.blue
    width, radius = (RING, 7.0) if layout.named else (2.0, 2.0)
    both = 2 * width if blue.host == red.host else width
    _ring(canvas, layout.cards.get(blue.host), _color(blue, BLUE), both, radius)
    _ring(canvas, layout.cards.get(red.host), _color(red, RED), width, radius)


def _draw_moves(canvas: Canvas, network: Network, layout: Layout, moment: Moment) -> None:
    """An arrow from red's foothold, and the names of both actions on the edges of the cards."""
    red, blue = moment.red, moment.blue
    target = layout.cards.get(red.host)
    if target:
        start = layout.cards[int(network.foothold)]
        if start is not target:
            _arrow(canvas, _towards(start, target), _towards(target, start), _color(red, RED), 2.4)
        if layout.named:
            _tag(canvas, (target[2] - 10, target[3] - 4), RED_TAGS[red.kind], _color(red, RED))
    target = layout.cards.get(blue.host)
    if target and layout.named:
        _tag(canvas, (target[2] - 10, target[1] - 12), blue.name.split()[0], _color(blue, BLUE))


def _color(move: Move, color: str) -> str:
    return FAILED if move.success == FALSE else color


def _draw_curve(canvas: Canvas, moment: Moment, top: float) -> None:
    """The running reward of the whole episode, dark up to now."""
    totals = np.concatenate([[0.0], moment.totals])
    low = min(float(totals.min()), -0.1)
    left, right, bottom = MARGIN + 52, WIDTH - MARGIN, top + CURVE - 18
    x = np.linspace(left, right, len(totals))
    y = top + 8 + (bottom - top - 8) * totals / low
    points = list(zip(x.tolist(), y.tolist()))
    canvas.text((left - 8, top + 1), "0", FAINT, 11, "right")
    canvas.text((left - 8, bottom - 7), f"{low:.1f}", FAINT, 11, "right")
    canvas.text((left - 8, (top + bottom) / 2 - 4), "total", FAINT, 11, "right")
    canvas.line(points, "#d5d9de", 2)
    past = points[: moment.step + 2]
    if len(past) > 1:
        canvas.line(past, INK, 2.4)
    canvas.circle(past[-1], 4.5, INK)


def _frame(canvas: Canvas, box: Box, edge: str, fill: str, width: float, radius: float) -> None:
    left, top, right, bottom = box
    canvas.rectangle(box, edge, radius)
    canvas.rectangle((left + width, top + width, right - width, bottom - width), fill, max(radius - width, 0))


def _ring(canvas: Canvas, box: Box | None, color: str, width: float, radius: float) -> None:
    """A frame around a box that is still to be drawn."""
    if box:
        left, top, right, bottom = box
        canvas.rectangle((left - width, top - width, right + width, bottom + width), color, radius + width)


def _tag(canvas: Canvas, corner: Point, text: str, color: str) -> None:
    """A label with its top right at `corner`."""
    x, y = corner
    canvas.rectangle((x - 12 - 5.6 * len(text), y, x, y + 16), color, 8)
    canvas.text((x - 6, y + 2), text, "white", 11, "right")


def _arrow(canvas: Canvas, start: Point, end: Point, color: str, width: float) -> None:
    dx, dy = end[0] - start[0], end[1] - start[1]
    length = math.hypot(dx, dy) or 1.0
    ux, uy, head = dx / length, dy / length, 3.2 * width
    neck = (end[0] - head * ux, end[1] - head * uy)
    canvas.line([start, neck], color, width)
    sides = [(neck[0] + sign * head * 0.55 * -uy, neck[1] + sign * head * 0.55 * ux) for sign in (1, -1)]
    canvas.polygon([end, *sides], color)


def _towards(box: Box, other: Box) -> Point:
    """Where the line between the middles of two boxes leaves the first."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    dx, dy = (other[0] + other[2]) / 2 - x, (other[1] + other[3]) / 2 - y
    reach = min(
        (box[2] - box[0]) / 2 / abs(dx) if dx else math.inf, (box[3] - box[1]) / 2 / abs(dy) if dy else math.inf
    )
    return x + dx * reach, y + dy * reach


def _star(canvas: Canvas, centre: Point, radius: float, alive: bool) -> None:
    x, y = centre
    angles = [math.pi * (index / 5 - 0.5) for index in range(10)]
    corners = [
        (x + r * math.cos(angle), y + r * math.sin(angle)) for angle, r in zip(angles, (radius, radius * 0.45) * 5)
    ]
    canvas.polygon(corners, "#f1c40f" if alive else INK)
