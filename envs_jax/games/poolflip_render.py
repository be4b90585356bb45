"""Pictures of PoolFlip: who owns what, and what each side believes, at one tick and over an episode."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from envs_jax.timeline import Curve, Kind, Played, Timeline, Track

if TYPE_CHECKING:
    from envs_jax.games.poolflip import PoolFlipState

Colour = tuple[int, int, int]
ROLE_COLOURS: tuple[Colour, Colour] = ((66, 114, 196), (204, 68, 60))  # blue, red
UNKNOWN: Colour = (225, 225, 225)  # what a belief fades to as it grows old
INK: Colour = (30, 30, 30)
WIDTH, HEADER, ROW = 560, 34, 66  # pixels
BAR_LEFT, BAR_WIDTH = 96, 150


def draw(state: PoolFlipState, horizon: int) -> np.ndarray:
    """One row per resource: a bar in the colour of the true owner, below it what each side believes.

    A belief fades towards grey with its age; beside the bars stand the ages in ticks.

    Args:
        state: of one environment, without a batch axis.
        horizon: ticks per episode.

    Returns:
        u8 [HEADER + R * ROW, WIDTH, 3].
    """
    from PIL import Image, ImageDraw

    owner, held_since, time = np.asarray(state.owner), np.asarray(state.held_since), int(state.time)
    believed, known = np.asarray(state.believed_owner), np.asarray(state.knowledge_time)
    own_flip, opponent_flip = np.asarray(state.last_flip), np.asarray(state.believed_opponent_flip)

    image = Image.new("RGB", (WIDTH, HEADER + len(owner) * ROW), (255, 255, 255))
    canvas = ImageDraw.Draw(image)
    canvas.text((10, 10), f"tick {time} of {horizon}    blue owns {np.sum(owner == 0)}, red {np.sum(owner == 1)}", INK)
    for resource in range(len(owner)):
        top = HEADER + resource * ROW
        canvas.text((10, top + 4), f"resource {resource}", INK)
        _bar(canvas, top, 24, ROLE_COLOURS[owner[resource]])
        canvas.text((BAR_LEFT + BAR_WIDTH + 10, top + 6), f"held for {time - held_since[resource]}", INK)
        for agent, name in enumerate(("blue", "red")):
            line = top + 27 + 15 * agent
            freshness = 0.0 if known[agent, resource] < 0 else 1.0 - (time - known[agent, resource]) / horizon
            belief = ROLE_COLOURS[believed[agent, resource]]
            _bar(canvas, line, 12, _mix(UNKNOWN, belief, 0.25 + 0.75 * freshness))
            canvas.text((10, line), f"{name} believes", ROLE_COLOURS[agent])
            ages = (own_flip[agent, resource], opponent_flip[agent, resource], known[agent, resource])
            words = [f"{what} {_ago(time, tick)}" for what, tick in zip(("flipped", "saw flip", "looked"), ages)]
            canvas.text((BAR_LEFT + BAR_WIDTH + 10, line), ", ".join(words), ROLE_COLOURS[agent])
    return np.asarray(image, np.uint8)


def _bar(canvas, top: int, height: int, colour: Colour) -> None:
    canvas.rectangle((BAR_LEFT, top, BAR_LEFT + BAR_WIDTH, top + height - 2), fill=colour)


def _mix(first: Colour, second: Colour, share: float) -> Colour:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second))
    return red, green, blue


def _ago(time: int, tick: int) -> str:
    return "never" if tick < 0 else f"{time - tick} ago"


ROLES = ("blue", "red")
KINDS = {
    "blue": Kind("blue owns", "#4272c4", "b"),
    "red": Kind("red owns", "#cc443c", "r"),
    "blue, rightly": Kind("believed blue, rightly", "#d3dff3", "."),
    "red, rightly": Kind("believed red, rightly", "#f6d8d5", ":"),
    "blue, wrongly": Kind("believed blue, wrongly", "#7fa4e0", "B"),
    "red, wrongly": Kind("believed red, wrongly", "#e8857d", "R"),
    "flip": Kind("flip", "#111111", "▲", mark=True),
    "failed flip": Kind("flip that failed", "#111111", "△", mark=True),
    "check": Kind("check", "#111111", "●", mark=True),
}


def timeline(played: Played) -> Timeline:
    """A bar per resource in the colour of its owner; under it what each side believes, with that side's moves.

    The moves are read from the states, so an opponent's are known too; but of its flips that failed the states say no
    more than of a check.
    """
    states, params, length = played.states, played.params, played.length
    owner, believed = np.asarray(states.owner)[1:], np.asarray(states.believed_owner)[1:]  # [T, R], [T, A, R]
    ticks = np.arange(length)[:, None, None]
    flips = np.asarray(states.last_flip)[1:] == ticks
    looks = np.asarray(states.knowledge_time)[1:] == ticks
    num_resources = owner.shape[1]
    tried = played.actions[:, :, None] == 1 + 2 * np.arange(num_resources)
    failed = tried & ~flips
    checks = looks & ~flips & ~failed
    moves = {"flip": flips, "failed flip": failed, "check": checks}  # each [T, A, R]

    tracks: list[Track | Curve] = []
    for resource in range(num_resources):
        true = [ROLES[agent] for agent in owner[:, resource]]
        tracks.append(Track(f"resource {resource}", true, height=18, gap=10))
        for agent, role in enumerate(ROLES):
            cells = [
                f"{ROLES[belief]}, {'rightly' if belief == truth else 'wrongly'}"
                for belief, truth in zip(believed[:, agent, resource], owner[:, resource])
            ]
            marks = [(int(t), name) for name, made in moves.items() for t in np.flatnonzero(made[:, agent, resource])]
            tracks.append(Track(f"{role} believes", cells, sorted(marks), height=11, gap=1))

    value = np.asarray(params.value) / np.sum(params.value)
    own = np.stack([(owner == agent) @ value for agent in range(2)], axis=1)  # [T, A]
    paid = np.where(flips | failed, np.asarray(params.flip_cost), np.where(checks, np.asarray(params.check_cost), 0.0))
    cost = paid.sum(axis=-1) / num_resources
    parts = [
        f"{role} owns {own[:, agent].mean():.0%}, flips {int((flips | failed)[:, agent].sum())}, "
        f"checks {int(checks[:, agent].sum())}"
        for agent, role in enumerate(ROLES)
    ]
    columns = {"tick": np.arange(length), "owner": owner}
    for agent, role in enumerate(ROLES):
        columns |= {
            f"{role}_action": [_action_name(moves, tick, agent) for tick in range(length)],
            f"{role}_believes": believed[:, agent],
            f"{role}_own": own[:, agent],
            f"{role}_cost": cost[:, agent],
        }
    return Timeline("PoolFlip    " + "    ".join(parts), KINDS, tracks, columns)


def _action_name(moves: dict[str, np.ndarray], tick: int, agent: int) -> str:
    names = [f"{name} {resource}" for name, made in moves.items() for resource in np.flatnonzero(made[tick, agent])]
    return names[0] if names else "sleep"
