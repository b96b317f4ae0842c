"""The tree is as docs/architecture.md says, and what is expensive is loaded by those who need it."""

import ast
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fiat_jax

ROOT = Path(__file__).resolve().parents[1]
NEED_TENSORFLOW = ("fiat_jax.data.seqio_import", "fiat_jax.data.vocabulary")
DIMENSIONED = re.compile(r"[a-z_][a-z0-9_]*_([A-Z][A-Z0-9]*)")


def loaded_after(script: str, libraries: tuple[str, ...]) -> set[str]:
    """Run Python code in a process of its own; return which of the libraries it imported."""
    report = f"\nimport sys\nprint('loaded', *(set({libraries!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script + report], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split()[1:])


def test_the_import_contracts_hold():
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("arguments", [(), ("--help",)], ids=["import", "help"])
def test_the_command_line_starts_without_the_heavy_libraries(arguments):
    script = "import fiat_jax.cli"
    if arguments:
        script += f"\nimport contextlib, sys\nsys.argv = ['fiat', *{arguments!r}]"
        script += "\nwith contextlib.suppress(SystemExit):\n    fiat_jax.cli.main()"
    heavy = ("jax", "flax", "tensorflow", "seqio", "transformers", "datasets", "sklearn", "scipy", "torch")
    assert loaded_after(script, heavy) == set()


def test_every_module_imports_and_none_loads_tensorflow_or_torch():
    names = [module.name for module in pkgutil.walk_packages(fiat_jax.__path__, "fiat_jax.")]
    assert set(NEED_TENSORFLOW) < set(names)
    script = "\n".join(f"import {name}" for name in names if name not in NEED_TENSORFLOW)
    assert loaded_after(script, ("tensorflow", "seqio", "torch", "peft")) == set()


def test_a_client_renders_without_the_heavy_libraries():
    rooms = "conversation", "detokenize", "instructions", "render", "tokenizer"
    script = "\n".join(f"import fiat_jax.prompts.{room}" for room in rooms)
    assert loaded_after(script, ("jax", "flax", "tensorflow", "seqio", "torch", "transformers", "datasets")) == set()


def test_the_architecture_page_and_the_readme_name_every_room_of_the_tree():
    rooms = [f"{m.name}/" if m.ispkg else f"{m.name}.py" for m in pkgutil.iter_modules(fiat_jax.__path__)]
    for page in (ROOT / "docs" / "architecture.md", ROOT / "README.md"):
        text = page.read_text(encoding="utf-8")
        assert [room for room in rooms if room not in text] == [], f"{page.name} lacks them"


def test_every_letter_of_a_tensor_name_is_in_the_legend():
    legend = (ROOT / "docs" / "dimensions.md").read_text(encoding="utf-8")
    known = set("".join(re.findall(r"^\| ([A-Z](?:, [A-Z])*) \|", legend, re.MULTILINE)))
    unknown = {}
    for path in (ROOT / "fiat_jax").rglob("*.py"):
        for name in names_in(ast.parse(path.read_text(encoding="utf-8"))):
            found = DIMENSIONED.fullmatch(name)
            if found and set(re.sub(r"\d", "", found[1])) - known:
                unknown[name] = path.name
    assert unknown == {}


def names_in(tree: ast.AST):
    """Yield every variable, argument, attribute and function name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.FunctionDef):
            yield node.name
