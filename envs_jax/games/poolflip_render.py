"""A picture of a PoolFlip state: who owns what, and what each side believes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

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
