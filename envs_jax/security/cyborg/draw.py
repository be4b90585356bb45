"""A picture of a state: hosts by subnet, red's sessions, decoys, isolation. Host side only."""

from __future__ import annotations

import numpy as np

from envs_jax.render import Canvas, Frame
from envs_jax.security.cyborg.network import HOSTS, SUBNETS, Network
from envs_jax.security.cyborg.records import Sessions, Setup
from envs_jax.security.cyborg.state import State

MARGIN, HEADER, SUBNET_TITLE, LEGEND = 12, 30, 20, 26  # pixels
NAMED_HOSTS = 40  # larger networks are drawn with small boxes, without names
ACCESS_COLOURS = ("#e8eaed", "#f5b041", "#d64541")  # none, user, privileged
DECOY_COLOUR, ISOLATED_COLOUR, SEEN_COLOUR, INK, PALE = "#27ae60", "#2c5fa8", "#8e44ad", "#202124", "#f7f8fa"


def draw(state: State, network: Network) -> Frame:
    """One state as a picture.

    A host is grey, orange (user-level red session) or red (privileged); a blue frame means isolated, a dot per decoy,
    a violet corner that blue saw activity in the last step. The jewel carries a star, crossed out while its service
    is down.

    Args:
        state: of one environment, without a batch axis.
        network: the network it plays on.

    Returns:
        u8 `[height, width, 3]`.
    """
    num_hosts, num_subnets = network.num_hosts, network.num_subnets
    named = num_hosts <= NAMED_HOSTS
    cell_width, cell_height, per_row = (92, 46, 5) if named else (14, 14, 40)
    gap = 4 if named else 1
    members = [np.flatnonzero(_bits(network.members[subnet], num_hosts)) for subnet in range(num_subnets)]
    rows = [max(1, -(-len(hosts) // per_row)) for hosts in members]
    width = 2 * MARGIN + per_row * cell_width
    height = HEADER + sum(SUBNET_TITLE + count * cell_height + 8 for count in rows) + LEGEND

    sessions, setup = Sessions(state.sessions), Setup(state.setup)
    access = np.where(np.asarray(sessions.privileged), 2, np.asarray(sessions.any))
    decoys = np.asarray(setup.decoys)
    isolated, seen = _bits(state.isolated, num_hosts), _bits(state.active, num_hosts)
    jewel, alive = int(network.jewel), bool(state.service_alive)
    canvas = Canvas(width, height)
    service = "service up" if alive else "SERVICE DOWN"
    held, rooted = int((access > 0).sum()), int((access == 2).sum())
    summary = f"step {int(state.step)}    red holds {held} hosts, {rooted} privileged"
    canvas.text((MARGIN, 8), f"{summary}    {service}", INK, 13)
    top = HEADER
    for subnet, hosts in enumerate(members):
        title = SUBNETS[subnet] if num_hosts == len(HOSTS) else f"subnet {subnet}"
        bottom = top + SUBNET_TITLE + rows[subnet] * cell_height
        canvas.rectangle((MARGIN - 6, top, width - MARGIN + 6, bottom + 2), PALE, 6)
        canvas.text((MARGIN, top + 3), title, INK, 11)
        for index, host in enumerate(hosts):
            left = MARGIN + (index % per_row) * cell_width
            upper = top + SUBNET_TITLE + (index // per_row) * cell_height
            box = (left + 1, upper + 1, left + cell_width - gap, upper + cell_height - gap)
            if isolated[host]:
                canvas.rectangle(box, ISOLATED_COLOUR, 5)
                box = (box[0] + 3, box[1] + 3, box[2] - 3, box[3] - 3)
            canvas.rectangle(box, ACCESS_COLOURS[int(access[host])], 4)
            if seen[host]:
                canvas.rectangle((box[2] - 7, box[1], box[2], box[1] + 7), SEEN_COLOUR)
            if host == jewel:
                _jewel(canvas, box, alive)
            if named:
                canvas.text((box[0] + 4, box[1] + 3), HOSTS[host] if num_hosts == len(HOSTS) else str(host), INK, 11)
                for decoy in range(int(decoys[host]).bit_count()):
                    canvas.circle((box[0] + 8 + 9 * decoy, box[3] - 9), 3.2, DECOY_COLOUR)
            elif decoys[host]:
                canvas.circle((box[0] + 4, box[3] - 4), 2, DECOY_COLOUR)
        top = bottom + 8
    _legend(canvas, height - LEGEND + 6)
    return canvas.pixels()


def _bits(mask: object, num_hosts: int) -> np.ndarray:
    words = np.asarray(mask)
    hosts = np.arange(num_hosts)
    return words[hosts // 32] >> (hosts % 32).astype(np.uint32) & 1 == 1


def _jewel(canvas: Canvas, box: tuple[float, float, float, float], alive: bool) -> None:
    x, y = max(box[2] - 9, (box[0] + box[2]) / 2), max(box[3] - 9, (box[1] + box[3]) / 2)
    canvas.circle((x, y), 5, "#f1c40f" if alive else INK)
    if not alive:
        canvas.line([(x - 4, y - 4), (x + 4, y + 4)], "white", 1.5)
        canvas.line([(x - 4, y + 4), (x + 4, y - 4)], "white", 1.5)


def _legend(canvas: Canvas, top: float) -> None:
    entries = (
        (ACCESS_COLOURS[1], "user session"), (ACCESS_COLOURS[2], "privileged"), (DECOY_COLOUR, "decoy"),
        (SEEN_COLOUR, "activity seen"), (ISOLATED_COLOUR, "isolated"),
    )  # fmt: skip
    left = float(MARGIN)
    for colour, label in entries:
        canvas.circle((left + 5, top + 7), 4, colour)
        canvas.text((left + 13, top + 1), label, INK, 11)
        left += 22 + 6.2 * len(label)
