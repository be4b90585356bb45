"""Reads recorded games of the original simulator: a folder with `traces.npz` and `legend.json`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from envs_jax.security.cyborg.catalogue import DECOYS, EXPLOITS, PORTS
from envs_jax.security.cyborg.network import HOSTS, RED_KINDS, SUBNETS

INPUTS = (
    "blue_action", "green_action", "green_host", "red_class", "red_host", "red_subnet", "red_exploit", "red_detected",
    "red_esc_removable",
)  # fmt: skip
EPISODES = ("ep_red", "ep_policy", "ep_green", "ep_len", "ep_start")
RESULTS = (
    "obs", "reward", "red_success", "n_user_removable", "n_user_sticky", "n_priv", "decoys", "red_ports",
    "red_known_ip", "red_known_host", "red_known_subnet", "red_ot_known", "ot_alive", "ot_service_active",
    "ot_pid_linked", "red_agent", "red_choice_mask",
)  # fmt: skip
# Checked too where a record has them.
MORE_RESULTS = (
    "blue_success", "malware_files", "access", "rew_conf", "rew_avail", "rew_cost", "bt_activity", "bt_compromised",
    "tt_scanned",
)  # fmt: skip
WIDTHS = {"obs": 52, "red_agent": 5} | dict.fromkeys(
    ("n_user_removable", "n_user_sticky", "n_priv", "decoys", "red_ports", "malware_files", "access", "bt_activity",
     "bt_compromised"), len(HOSTS),
)  # fmt: skip
RED_AGENTS = {"B_line": "bline", "Meander": "meander", "Sleep": "sleep"}


@dataclasses.dataclass(frozen=True)
class Traces:
    """Recorded episodes; `arrays` as in the file, with exploits and ports renumbered to this package's order."""

    arrays: dict[str, np.ndarray]
    legend: dict[str, Any]
    stats: dict[str, Any] | None

    @property
    def num_episodes(self) -> int:
        return len(self.arrays["ep_len"])

    def padded(self, name: str) -> np.ndarray:
        """A per-step array as `[T, B, ...]`, zero after an episode's end."""
        rows = self.arrays[name]
        start, length = self.arrays["ep_start"], self.arrays["ep_len"]
        out = np.zeros((int(length.max()), len(length), *rows.shape[1:]), rows.dtype)
        for episode, (first, steps) in enumerate(zip(start, length)):
            out[:steps, episode] = rows[first : first + steps]
        return out

    def mask(self) -> np.ndarray:
        """bool `[T, B]`: steps that were recorded."""
        length = self.arrays["ep_len"]
        return np.arange(int(length.max()))[:, None] < length[None, :]


def read_traces(folder: str | Path) -> Traces:
    """Reads and checks a folder of traces.

    Raises:
        ValueError: a file is missing, unreadable or of another format; the message names the file and the field.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; expected one with traces.npz and legend.json")
    legend = _read_json(folder / "legend.json")
    stats = _read_json(folder / "stats.json") if (folder / "stats.json").exists() else None
    if stats is not None and not isinstance(stats.get("cells"), dict):
        raise ValueError(f"{folder / 'stats.json'}: has no table 'cells'")
    path = folder / "traces.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise ValueError(f"{path} cannot be read as traces: {error}") from error
    except Exception as error:  # zipfile.BadZipFile, zlib.error: numpy lets the archive's own errors through
        raise ValueError(f"{path} is damaged: {error}") from error
    _check_legend(folder / "legend.json", legend)
    _check_arrays(path, arrays, legend)
    return Traces(_renumber(arrays, legend), legend, stats)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a table, got {type(value).__name__}")
    return value


def _check_legend(path: Path, legend: dict[str, Any]) -> None:
    expected = {
        "hosts": list(HOSTS),
        "subnets": list(SUBNETS),
        "decoys": [decoy.name for decoy in DECOYS],
    }
    for name, value in expected.items():
        if legend.get(name) != value:
            raise ValueError(f"{path}: {name!r} must be {value}, got {legend.get(name)!r}")
    for name, known in (("exploits", [exploit.name for exploit in EXPLOITS]), ("ports", list(PORTS))):
        missing = set(known) - set(legend.get(name) or [])
        if missing:
            raise ValueError(f"{path}: {name!r} lacks {sorted(missing)}")
    if list(legend.get("red_classes") or [])[: len(RED_KINDS)] != list(RED_KINDS):
        raise ValueError(f"{path}: 'red_classes' must begin with {list(RED_KINDS)}, got {legend.get('red_classes')!r}")
    unknown = set(legend.get("red_agents") or ["none given"]) - set(RED_AGENTS)
    if unknown:
        raise ValueError(f"{path}: unknown 'red_agents' {sorted(unknown)}; known are {sorted(RED_AGENTS)}")


def _check_arrays(path: Path, arrays: dict[str, np.ndarray], legend: dict[str, Any]) -> None:
    missing = [name for name in (*EPISODES, *INPUTS, *RESULTS) if name not in arrays]
    if missing:
        raise ValueError(f"{path}: not a trace file of this format, it lacks {', '.join(missing)}")
    num_steps, num_episodes = len(arrays["blue_action"]), len(arrays["ep_len"])
    for name in (*EPISODES, *INPUTS, *RESULTS, *(name for name in MORE_RESULTS if name in arrays)):
        array = arrays[name]
        lead = num_episodes if name in EPISODES else num_steps
        shape = (lead, WIDTHS[name]) if name in WIDTHS else (lead,)
        if array.shape != shape or array.dtype.kind not in "iufb":
            raise ValueError(f"{path}: {name!r} must be numbers of shape {shape}, got {array.dtype} {array.shape}")
    start, length = arrays["ep_start"], arrays["ep_len"]
    if num_episodes == 0 or (length < 1).any() or (start < 0).any() or (start + length > num_steps).any():
        raise ValueError(f"{path}: 'ep_start' and 'ep_len' must name rows among the {num_steps} recorded")
    limits = {
        "blue_action": (0, 144), "green_host": (-1, 12), "red_class": (0, len(RED_KINDS) - 1), "red_host": (-1, 12),
        "red_subnet": (-1, 2), "red_exploit": (-1, len(EXPLOITS) - 1), "ep_red": (0, len(legend["red_agents"]) - 1),
    }  # fmt: skip
    for name, (low, high) in limits.items():
        if len(arrays[name]) and not (low <= arrays[name].min() and arrays[name].max() <= high):
            raise ValueError(
                f"{path}: {name!r} must lie in {low} .. {high}, got {arrays[name].min()} .. {arrays[name].max()}"
            )


def _renumber(arrays: dict[str, np.ndarray], legend: dict[str, Any]) -> dict[str, np.ndarray]:
    arrays = dict(arrays)
    names = [exploit.name for exploit in EXPLOITS]
    order = np.array([names.index(name) if name in names else -1 for name in legend["exploits"]] + [-1])
    arrays["red_exploit"] = order[arrays["red_exploit"]]  # -1 picks the appended -1
    ports = np.zeros_like(arrays["red_ports"])
    for index, port in enumerate(PORTS):
        ports |= (arrays["red_ports"] >> legend["ports"].index(port) & 1) << index
    arrays["red_ports"] = ports
    return arrays
