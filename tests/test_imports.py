"""Who may import whom, and what importing costs."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

from jaxrl.algorithms import ALGORITHMS

ROOT = Path(__file__).parents[1]
# Each layer imports from its own and from those before it.
LAYERS = (
    ("types", "distributed"),
    ("parts", "data"),
    ("rollout", "loop"),
    ("llm",),
    ("algorithms",),
    ("rewards", "codeopt"),
    ("run", "results"),
    ("studies",),
    ("terminal",),
    ("cli", "cli_data", "cli_llm", "cli_report"),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
# What is no environment.
PROTOCOL = {"envs_jax.core", "envs_jax.spaces", "envs_jax.registry", "envs_jax.versus", "envs_jax.text.tool_calls"}
HEAVY = {
    # library: the only files that may import it
    "distrax": ("jaxrl/parts/distributions.py",),
    "orbax": ("jaxrl/run/checkpoint.py",),
    "brax": ("envs_jax/adapters/", "envs_jax/robotics/"),
    "mujoco": ("envs_jax/adapters/", "envs_jax/robotics/"),
    "gymnasium": ("envs_jax/adapters/", "jaxrl/run/"),
    "matplotlib": ("jaxrl/results/", "jaxrl/studies/"),
    "tensorboardX": ("jaxrl/results/",),
    "onnx": ("jaxrl/results/onnx.py",),
    "onnxruntime": ("jaxrl/results/onnx.py",),
    "typer": ("jaxrl/cli", "jaxrl/terminal"),
    "torch": (),
    "tensorflow": (),
}


@functools.cache
def imports(path):
    """`(module, whether at module level)` of every import in a file, `from a import b` as a.b."""
    tree = ast.parse(path.read_text())
    top = {id(node) for node in tree.body}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found += [(f"{node.module}.{alias.name}", id(node) in top) for alias in node.names]
    return found


def files(package):
    return sorted((ROOT / package).rglob("*.py"))


def name(path):
    return path.relative_to(ROOT).as_posix()


def within(module, package):
    return module == package or module.startswith(package + ".")


def test_environments_know_nothing_of_learning():
    wrong = [name(path) for path in files("envs_jax") for module, _ in imports(path) if within(module, "jaxrl")]
    assert not wrong
    assert len(files("envs_jax")) > 10


def test_environments_need_few_libraries():
    """On import: jax, numpy, flax.struct and chex; pictures need Pillow, adapters what they adapt."""
    known = {"jax", "numpy", "flax", "chex", "envs_jax", "__future__"} | sys.stdlib_module_names
    wrong = []
    for path in files("envs_jax"):
        if "adapters" in path.parts or "robotics" in path.parts:
            continue
        for module, at_top in imports(path):
            library = module.partition(".")[0]
            if at_top and library not in known and not (library == "PIL" and path.stem.endswith("render")):
                wrong.append((name(path), module))
            if library == "flax" and not within(module, "flax.struct"):
                wrong.append((name(path), module))
    assert not wrong


def test_layers_import_one_way():
    wrong = []
    for path in files("jaxrl"):
        here = path.relative_to(ROOT / "jaxrl").parts[0].removesuffix(".py")
        if here == "__init__":
            continue  # the public names, imported on first use
        assert here in LEVEL, f"{name(path)}: which layer is {here!r}?"
        for module, _ in imports(path):
            parts = module.split(".")
            if parts[0] == "jaxrl" and len(parts) > 1 and LEVEL.get(parts[1], -1) > LEVEL[here]:
                wrong.append((name(path), module))
    assert not wrong


def test_algorithms_import_no_environment_and_no_other_algorithm():
    algorithms = [where.partition(":")[0] for where, _ in ALGORITHMS.values()]
    wrong = []
    for path in files("jaxrl"):
        here = path.relative_to(ROOT / "jaxrl").parts[0].removesuffix(".py")
        if here == "__init__" or LEVEL[here] > LEVEL["algorithms"]:
            continue
        for module, _ in imports(path):
            if within(module, "envs_jax") and not any(within(module, allowed) for allowed in PROTOCOL):
                wrong.append((name(path), module))
            if any(within(module, algorithm) for algorithm in algorithms):
                wrong.append((name(path), module))
    assert not wrong


@pytest.mark.parametrize("library", HEAVY)
def test_heavy_libraries_stay_in_their_place(library):
    wrong = [
        name(path)
        for path in files("jaxrl") + files("envs_jax")
        for module, _ in imports(path)
        if within(module, library) and not name(path).startswith(HEAVY[library])
    ]
    assert not wrong


def python(code):
    """Runs code in a fresh process, as far from this one's settings as an import is concerned."""
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT).stdout


def test_the_public_names_import_no_heavy_library():
    code = """
import sys, jaxrl, envs_jax
assert "jax" not in sys.modules, "importing jaxrl imported jax"
for name in jaxrl.__all__:
    getattr(jaxrl, name)
envs_jax.make("cartpole")
heavy = {"distrax", "orbax", "brax", "mujoco", "matplotlib", "gymnasium", "tensorboardX", "IPython"}
print(*sorted(heavy & set(sys.modules)))
"""
    assert python(code).split() == []


def test_importing_costs_little_over_jax():
    code = "import time, jax; start = time.process_time(); import jaxrl; print(time.process_time() - start)"
    assert min(float(python(code)) for _ in range(2)) <= 0.5


def test_help_is_quick_and_needs_no_jax():
    code = """
import sys, time
sys.argv = ["jaxrl", "--help"]
from jaxrl.cli import main
try:
    main()
except SystemExit as stop:
    assert not stop.code
assert "jax" not in sys.modules, "--help imported jax"
print("seconds", time.process_time())
"""
    outputs = [python(code) for _ in range(3)]
    assert "train" in outputs[0]
    assert min(float(output.split()[-1]) for output in outputs) < 0.5
