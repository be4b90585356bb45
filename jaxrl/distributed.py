"""Several processes as one: `initialize()` at the start of a program that may run on one machine or on many."""

from __future__ import annotations

import os
from collections.abc import Mapping

ADDRESS, NUM_PROCESSES, PROCESS_ID = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
# What launchers say of the number of processes, one variable each, or of the machines of a TPU slice, a list.
_COUNTS = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
_LISTS = ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES")
_STARTED = ("SLURM_STEP_ID", "OMPI_MCA_orte_hnp_uri")  # by a launcher: a shell inside an allocation has only counts
_MULTISLICE = "MEGASCALE_COORDINATOR_ADDRESS"


def initialize() -> bool:
    """Joins the other processes of this program, where the environment says that there are some.

    To be called once, before anything else of JAX. With JAX_COORDINATOR_ADDRESS set, this process is number
    JAX_PROCESS_ID of JAX_NUM_PROCESSES; under Slurm, Open MPI or on a TPU slice of several machines JAX finds these
    numbers itself. Anywhere else this does nothing. Afterwards `jax.devices()` are those of all processes.

    Returns:
        Whether there are other processes.

    Raises:
        ValueError: the coordinator's address is given, but not which process this is.
    """
    if not wanted(os.environ):
        return False
    import jax

    if ADDRESS not in os.environ or not {NUM_PROCESSES, PROCESS_ID} & set(os.environ):
        jax.distributed.initialize()  # a launcher's or a TPU's numbers
        return jax.process_count() > 1
    numbers = {}
    for name in (NUM_PROCESSES, PROCESS_ID):
        text = os.environ.get(name, "")
        if not text.isdigit():
            raise ValueError(f"with {ADDRESS}, {name} must be a number, got {text!r}")
        numbers[name] = int(text)
    if numbers[PROCESS_ID] >= numbers[NUM_PROCESSES]:
        raise ValueError(
            f"{PROCESS_ID} must be less than {NUM_PROCESSES} = {numbers[NUM_PROCESSES]}, got {numbers[PROCESS_ID]}"
        )
    jax.distributed.initialize(os.environ[ADDRESS], numbers[NUM_PROCESSES], numbers[PROCESS_ID])
    return True


def wanted(environment: Mapping[str, str]) -> bool:
    """Whether these environment variables are those of one process among several."""
    if ADDRESS in environment or _MULTISLICE in environment:
        return True
    if any(len(environment.get(name, "").split(",")) > 1 for name in _LISTS):
        return True
    several = any(environment.get(name, "1").isdigit() and int(environment.get(name, "1")) > 1 for name in _COUNTS)
    return several and any(name in environment for name in _STARTED)
