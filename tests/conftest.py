"""What every test runs under: jax reads these variables when it is imported, as do the processes that tests start."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

import pytest

NUM_DEVICES = 4  # fake ones, for the tests that shard

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    flag = f"--xla_force_host_platform_device_count={NUM_DEVICES}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()

# Many tests build the same program: it compiles once for the whole session, in a folder that the session's worker
# processes share and that goes with it. JAXRL_TEST_CACHE names one that stays; tests of compilation itself turn it off.
if "JAXRL_TEST_CACHE" not in os.environ:
    folder = tempfile.mkdtemp(prefix="jaxrl-test-cache-")
    os.environ["JAXRL_TEST_CACHE"] = folder
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ["JAXRL_TEST_CACHE"]
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "true")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the slow tests: learning runs and physics")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    import jax

    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))
        if "gpu" in item.keywords and jax.default_backend() == "cpu":
            item.add_marker(pytest.mark.skip(reason="needs an accelerator"))
