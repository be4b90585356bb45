"""The rules that can be switched: quirks of the original simulator with their repairs, and the extension's options."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from envs_jax.registry import nearest


@dataclasses.dataclass(frozen=True)
class Rules:
    """Static rules of a game. All `fix_*` off is the CAGE Challenge 2 simulator (commit 26ce1c1), bug for bug.

    Each switch changes the compiled program, so two worlds are two environments; parameters and states fit both.
    """

    fix_remove_success: bool = False  # Remove reports whether it killed a session, instead of always true
    fix_vsftpd: bool = False  # DecoyVsftpd opens 21 as ftp, instead of 80 as web
    fix_ent_smb: bool = False  # EternalBlue works on the Windows servers, as SYSTEM
    fix_user3_mysql: bool = False  # mysql of User3 listens on 3390 as root, instead of on 3389
    fix_user_reward: bool = False  # any red session costs a host's value, instead of only privileged ones
    fix_scan_mask: bool = False  # a seen reverse shell is reported even when the host was scanned in the same step
    fix_impact_relink: bool = False  # the service can be stopped again after a Restore
    fix_ssh_remove: bool = False  # Remove kills the sessions of SSH brute force
    fix_empty_scan: bool = False  # a scan without a route reports failure
    fix_ssh_decoy_belief: bool = False  # a failed brute force does not mark the host as taken
    fix_decoy_hides: bool = False  # a decoy placed in the same step does not hide a small scan
    fix_belief_downgrade: bool = False  # a seen exploit never lowers the belief from privileged to user
    fix_analyse_stale: bool = False  # Remove deletes the malware file too, once no session is left
    fix_stale_ports: bool = False  # Restore makes red's record of the host's ports void, and the scripts scan again

    extension: bool = False  # whether Patch, Isolate and Unisolate exist; off, their code is left out
    restore_unpatches: bool = True  # Restore brings back the unpatched services of the backup image
    allow_isolate_foothold: bool = False  # whether red's first host may be cut off
    patch_steps: int = 1  # a patch takes effect after so many steps, the host's services being down before

    def __post_init__(self) -> None:
        if not isinstance(self.patch_steps, int) or self.patch_steps < 1:
            raise ValueError(f"patch_steps must be an integer of at least 1, got {self.patch_steps!r}")


FIXES = tuple(field.name for field in dataclasses.fields(Rules) if field.name.startswith("fix_"))


def make_rules(fixes: str | Sequence[str] = (), **options: bool | int) -> Rules:
    """`Rules` with some quirks repaired.

    Args:
        fixes: names from `FIXES`, with or without their prefix, or `"all"`.
        **options: the other fields of `Rules`.

    Raises:
        ValueError: a name is unknown.
    """
    names = FIXES if fixes == "all" else (fixes,) if isinstance(fixes, str) else tuple(fixes)
    names = [name if name.startswith("fix_") else f"fix_{name}" for name in names]
    for name in names:
        if name not in FIXES:
            raise ValueError(f"unknown fix {name!r}{nearest(name, FIXES)} Allowed: 'all', {', '.join(FIXES)}")
    return Rules(**dict.fromkeys(names, True), **options)  # type: ignore[arg-type]
