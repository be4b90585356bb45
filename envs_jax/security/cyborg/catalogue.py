"""What hosts are made of: exploits, decoys and host images, and the one word that describes a host.

Exploit i attacks exactly port `EXPLOITS[i].port`, so one bit order serves ports and exploits alike. It is the order of
falling weight: the exploit that red prefers is the lowest set bit.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from envs_jax.security.cyborg.rules import Rules

Array = jax.Array


class Exploit(NamedTuple):
    name: str
    port: int
    service: str  # the service type it needs at that port


EXPLOITS = (
    Exploit("FTPDirectoryTraversal", 21, "ftp"),
    Exploit("HarakaRCE", 25, "smtp"),
    Exploit("SQLInjection", 3390, "mysql"),
    Exploit("HTTPSRFI", 443, "web"),
    Exploit("HTTPRFI", 80, "web"),
    Exploit("EternalBlue", 139, "smb"),
    Exploit("BlueKeep", 3389, "rdp"),
    Exploit("SSHBruteForce", 22, "ssh"),
)
PORTS = tuple(exploit.port for exploit in EXPLOITS)  # the modelled ports; other ports only add to the size of a scan
SQL, SSH = 2, 7  # exploits with rules of their own
SQL_BIT, SSH_BIT, WEB_BITS = 1 << SQL, 1 << SSH, (1 << 3) | (1 << 4)
NUM_EXPLOITS = len(EXPLOITS)


class Decoy(NamedTuple):
    name: str
    guard: int  # cannot be placed where this port listens
    opens: int
    system: str  # "any", "linux" or "windows"


DECOYS = (
    Decoy("Apache", 80, 80, "any"),
    Decoy("Femitter", 21, 21, "windows"),
    Decoy("HarakaSMPT", 25, 25, "linux"),
    Decoy("Smss", 139, 139, "windows"),
    Decoy("SSHD", 22, 22, "any"),
    Decoy("Svchost", 3389, 3389, "windows"),
    Decoy("Tomcat", 443, 443, "any"),
    Decoy("Vsftpd", 21, 80, "linux"),  # guards one port and opens another: a quirk of the original
)
NUM_DECOYS = len(DECOYS)
ON_WINDOWS = sum((decoy.system != "linux") << index for index, decoy in enumerate(DECOYS))  # as a set of decoys
ON_LINUX = sum((decoy.system != "windows") << index for index, decoy in enumerate(DECOYS))


class Socket(NamedTuple):
    port: int
    service: str = ""  # no exploit fits an empty type
    account: str = ""  # whom an exploit becomes: "user", "system" (privileged), or "" where none gets in


@dataclasses.dataclass(frozen=True)
class Image:
    windows: bool
    sockets: tuple[Socket, ...]


_LINUX_SSH, _WEB = Socket(22, "ssh", "user"), (Socket(80, "web", "user"), Socket(443, "web", "user"))


def images(rules: Rules) -> dict[str, Image]:
    """The host images of CAGE 2 by name."""
    smb = Socket(139, "smb", "system") if rules.fix_ent_smb else Socket(139)
    user3_mysql = Socket(3390, "mysql", "system") if rules.fix_user3_mysql else Socket(3389, "mysql", "system")
    mail = Socket(25, "smtp", "system")
    return {
        "operator": Image(False, (Socket(22, "ssh"), Socket(53), Socket(53), Socket(68))),
        "linux-server": Image(False, (_LINUX_SSH,)),
        "windows-server": Image(
            True, (_LINUX_SSH, Socket(135), Socket(3389, "rdp", "system"), Socket(445), smb, *_WEB)
        ),
        "ftp-desktop": Image(True, (_LINUX_SSH, Socket(21, "ftp", "system"))),
        "smb-desktop": Image(
            True, (Socket(445, "smb"), Socket(139, "smb", "system"), Socket(135), Socket(3389, "rdp", "user"))
        ),
        "mail-desktop": Image(False, (*_WEB, user3_mysql, mail)),
        "mail-ssh-desktop": Image(False, (_LINUX_SSH, *_WEB, Socket(3390, "mysql", "system"), mail)),
    }


def profile(image: Image) -> int:
    """An image as one 32-bit word: listening, exploitable and privileged ports (8 bits each), then `Profile`'s rest."""
    listens = vulnerable = privileged = 0
    for socket in image.sockets:
        if socket.port in PORTS:
            index = PORTS.index(socket.port)
            fits = bool(socket.account) and EXPLOITS[index].service == socket.service
            listens |= 1 << index
            vulnerable |= fits << index
            privileged |= (fits and socket.account == "system") << index
    others = len({socket.port for socket in image.sockets} - set(PORTS))
    return (
        listens
        | vulnerable << 8
        | privileged << 16
        | len(image.sockets) << 24
        | others << 28
        | int(image.windows) << 31
    )


@dataclasses.dataclass(frozen=True)
class Profile:
    """Reads a host's word (a u32 of any shape)."""

    word: Array

    @property
    def listens(self) -> Array:
        """Modelled ports with a real service."""
        return self.word & 0xFF

    @property
    def vulnerable(self) -> Array:
        """Exploits that a real service of the host gives way to."""
        return (self.word >> 8) & 0xFF

    @property
    def privileged(self) -> Array:
        """Those of them that end in a privileged session at once."""
        return (self.word >> 16) & 0xFF

    @property
    def num_sockets(self) -> Array:
        return ((self.word >> 24) & 0xF).astype(jnp.int32)

    @property
    def num_other_ports(self) -> Array:
        """Distinct listening ports beside the modelled ones."""
        return ((self.word >> 28) & 0x7).astype(jnp.int32)

    @property
    def windows(self) -> Array:
        return self.word >> 31 == 1


def opened_ports(decoys: Array, rules: Rules) -> Array:
    """Ports that a set of decoys (u32 of any shape, bit order of `DECOYS`) holds open."""
    ports = [PORTS.index(decoy.guard if rules.fix_vsftpd else decoy.opens) for decoy in DECOYS]
    return _move_bits(decoys, list(enumerate(ports)))


def placeable_decoys(listening: Array, windows: Array) -> Array:
    """Decoys that fit a host with these open ports (u32 and bool of one shape): the system, and a free guard port."""
    free = _move_bits(~listening, [(PORTS.index(decoy.guard), index) for index, decoy in enumerate(DECOYS)])
    return free & jnp.where(windows, jnp.uint32(ON_WINDOWS), jnp.uint32(ON_LINUX))


def _move_bits(word: Array, moves: list[tuple[int, int]]) -> Array:
    """The word whose bit `to` is bit `start` of the given one, or any of several; equal distances move together."""
    masks: dict[int, int] = {}
    for start, to in moves:
        masks[to - start] = masks.get(to - start, 0) | 1 << start
    moved = jnp.zeros_like(word)
    for distance, mask in masks.items():
        bits = word & mask
        moved = moved | (bits << distance if distance >= 0 else bits >> -distance)
    return moved


def candidates(ports: Array) -> Array:
    """Exploits that red considers, from the ports on its record; SQL injection needs a web port beside its own."""
    return jnp.where(ports & WEB_BITS != 0, ports, ports & ~jnp.uint32(SQL_BIT))


def lowest(bits: Array) -> Array:
    """The lowest set bit alone."""
    return bits & (~bits + jnp.uint32(1))


def bit_index(single: Array) -> Array:
    """i32: which bit is set, -1 for none."""
    return jnp.int32(31) - jax.lax.clz(single).astype(jnp.int32)
