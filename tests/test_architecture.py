"""The shape of the project, as DESIGN decides it: who imports whom, how long things are, what the library never does. Read from the source (AST)."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "lib_tuner"
FILES = sorted(path for path in (ROOT / PACKAGE).rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8"), str(path)) for path in FILES}

# lowest first; a part may import what is below it, and other files of its own folder
LEVELS = (
    ("config", "disk", "events", "words"),
    ("settings", "sd"),
    ("host", "optim", "presets"),
    ("foreign",),
    ("data",),
    ("methods.base",),
    ("methods",),
    ("checkpoint", "metrics", "tools"),
    ("step",),
    ("milestones",),
    ("train",),
    ("compare", "recorders", "progress"),
    ("live",),
    ("runs",),
    ("queue_file",),
    ("foreseen", "work"),
    ("datasets", "jobs", "outlook", "toolbox"),
    ("grid", "keeping", "measuring"),
    ("comparisons", "dataset_audit", "dataset_crops", "dataset_tags"),
    ("dataset_captions",),
    ("demo",),
    ("bench",),
    ("web",),
    ("ui",),
    ("hosts",),
    ("program",),
)
PROGRAM = ("__main__", "audit", "cli", "cli_train", "compare_command", "crop", "edit", "environment", "tag", "webui_suite")  # one part, the highest: what `python3 -m lib_tuner` is made of
BASE = ("methods.base", "methods.metadata")  # what a method is, and what it hands its file; they know no single method
EVERYWHERE = {"torch", "safetensors", "einops", "PIL"} | set(sys.stdlib_module_names)  # may be imported at the top of a file
ONLY_IN = {  # package -> the only places that may import it, at all
    "modules": ("hosts/a1111.py",),
    "fastapi": ("web/",),
    "pydantic": ("web/",),
    "starlette": ("web/",),
    "uvicorn": ("ui/page.py",),
    "gradio": ("ui/",),
    "onnxruntime": ("data/onnx.py",),
    "torchvision": (),
    "open_clip": (),
}
MAY_PRINT = ("__main__.py", "cli.py", "progress.py", "bench")


def name_of(path: Path) -> str:
    """`lib_tuner/sd/unet.py` -> `lib_tuner.sd.unet`, a package's __init__ -> the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES}


def place(path: Path) -> str:
    return path.relative_to(ROOT / PACKAGE).as_posix()


def part_of(module: str) -> str:
    """The name in LEVELS that a module of ours belongs to; empty for the package itself."""
    inner = module.removeprefix(PACKAGE).lstrip(".")
    first = inner.partition(".")[0]
    if inner in BASE:
        return BASE[0]
    if first in PROGRAM:
        return "program"
    return "bench" if first.startswith("bench") else first


def imports(tree: ast.AST, module: str, is_package: bool) -> Iterator[tuple[str, int]]:
    """Full names of all that is imported anywhere in a file, and the lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = module.split(".") if is_package else module.split(".")[:-1]
                here = here[: len(here) - node.level + 1]
                base = ".".join([*here, base] if base else here)
            for alias in node.names:
                yield (f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base), node.lineno


def all_imports(path: Path) -> list[tuple[str, int]]:
    return list(imports(TREES[path], name_of(path), path.name == "__init__.py"))


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and getattr(node.test, "id", getattr(node.test, "attr", "")) == "TYPE_CHECKING"


def without_types(tree: ast.Module) -> ast.Module:
    return ast.Module([node for node in tree.body if not is_type_checking(node)], [])


def functions(tree: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


def level(part: str) -> int:
    return next(i for i, parts in enumerate(LEVELS) if part in parts)


def allowed(importer: str, imported: str) -> bool:
    """Whether a part may import another: below, or itself. The package's own __init__ (its version) is below all."""
    return not imported or importer == imported or (bool(importer) and level(imported) < level(importer))


# ---- the rules themselves, on made-up sources


@pytest.mark.parametrize(
    "importer, imported, answer",
    [("settings", "config", True), ("settings", "sd", False), ("sd", "settings", False), ("sd", "sd", True), ("config", "train", False),
     ("methods", "methods.base", True), ("methods.base", "methods", False), ("train", "recorders", False), ("demo", "hosts", False), ("program", "hosts", True),
     ("program", "", True), ("", "config", False), ("data", "optim", True), ("tools", "checkpoint", False)],
)  # fmt: skip
def test_the_rule_of_levels_reads_as_designed(importer, imported, answer):
    assert allowed(importer, imported) is answer


def test_imports_are_found_in_functions_under_type_checking_and_relative():
    source = "import os.path\nif TYPE_CHECKING:\n    from ..sd import unet\ndef f():\n    from . import items\n    from ..config import opt\n"
    found = [name for name, _ in imports(ast.parse(source), "lib_tuner.data.batches", False)]
    assert found == ["os.path", "lib_tuner.sd.unet", "lib_tuner.data.items", "lib_tuner.config"]
    assert [name for name, _ in imports(without_types(ast.parse(source)), "lib_tuner.data.batches", False)] == [found[0], *found[2:]]
    assert [name for name, _ in imports(ast.parse("from .base import Method"), "lib_tuner.methods", True)] == ["lib_tuner.methods.base"]


# ---- the project


def test_every_file_has_a_level():
    known = {part for parts in LEVELS for part in parts}
    assert [place(path) for name, path in MODULES.items() if part_of(name) and part_of(name) not in known] == []


def test_nothing_imports_what_is_above_it():
    wrong = []
    for name, path in MODULES.items():
        for imported, line in all_imports(path):
            if imported.partition(".")[0] == PACKAGE and not allowed(part_of(name), part_of(imported)):
                wrong.append(f"{place(path)}:{line} imports {imported}")
    assert wrong == []


def test_no_circles():
    """Names under TYPE_CHECKING are imported by nobody at run time and may point back."""
    graph = {}
    for name, path in MODULES.items():
        found = imports(without_types(TREES[path]), name, path.name == "__init__.py")
        graph[name] = {imported for imported, _ in found if imported in MODULES and imported != name}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join([*way[way.index(name) :], name])
        if name not in done:
            for imported in sorted(graph[name]):
                visit(imported, (*way, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_some_packages_are_imported_in_their_own_place_only():
    wrong = []
    for path in FILES:
        for imported, line in all_imports(path):
            places = ONLY_IN.get(imported.partition(".")[0])
            if places is not None and not place(path).startswith(tuple(places) or "nowhere"):
                wrong.append(f"{place(path)}:{line} imports {imported}")
    assert wrong == []


def test_optional_packages_are_imported_inside_functions():
    wrong = []
    for path in FILES:
        inside = {id(node) for function in functions(TREES[path]) for node in ast.walk(function)}
        for node in ast.walk(without_types(TREES[path])):
            if isinstance(node, (ast.Import, ast.ImportFrom)) and id(node) not in inside:
                roots = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [] if node.level else [node.module]
                own = ONLY_IN.keys()  # where those may be imported is another test
                wrong += [f"{place(path)}:{node.lineno} imports {r}" for r in roots if r.partition(".")[0] not in EVERYWHERE | own]
    assert wrong == []


def test_files_have_400_lines_at_most():
    assert {place(p): n for p in FILES if (n := len(p.read_text(encoding="utf-8").splitlines())) > 400} == {}


def test_functions_have_60_lines_and_7_parameters_at_most():
    wrong = []
    for path in FILES:
        for node in functions(TREES[path]):
            lines = node.end_lineno - node.lineno + 1
            a = node.args
            names = [x.arg for x in (*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg) if x]
            count = len(names) - (names[:1] in (["self"], ["cls"]))
            if lines > 60 or count > 7:
                wrong.append(f"{place(path)}:{node.lineno} {node.name}: {lines} lines, {count} parameters")
    assert wrong == []


def is_silent(handler: ast.ExceptHandler) -> bool:
    nothing = (ast.Pass, ast.Expr)
    return all(isinstance(node, nothing) and (isinstance(node, ast.Pass) or isinstance(node.value, ast.Constant)) for node in handler.body)


def test_no_bare_and_no_silent_except():
    handlers = [(path, node) for path in FILES for node in ast.walk(TREES[path]) if isinstance(node, ast.ExceptHandler)]
    assert [f"{place(path)}:{node.lineno}" for path, node in handlers if node.type is None or is_silent(node)] == []


def test_no_global():
    assert [f"{place(p)}:{n.lineno}" for p in FILES for n in ast.walk(TREES[p]) if isinstance(n, ast.Global)] == []


def test_the_library_does_not_print():
    wrong = []
    for path in FILES:
        calls = [n for n in ast.walk(TREES[path]) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.func.id == "print"]
        wrong += [f"{place(path)}:{n.lineno}" for n in calls if not place(path).startswith(MAY_PRINT)]
    assert wrong == []


def test_importing_the_program_imports_neither_torch_nor_gradio():
    heavy = ("torch", "gradio", "PIL", "numpy", "safetensors")
    code = f"import sys, lib_tuner.cli, lib_tuner.settings, lib_tuner.progress; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def project_files() -> list[Path]:
    """What git tracks or would, or else everything that is not hidden."""
    try:
        done = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True)
        return [ROOT / line for line in done.stdout.splitlines()]
    except (OSError, subprocess.CalledProcessError):
        return [p for p in ROOT.rglob("*") if not any(part.startswith(".") or part == "outputs" for part in p.relative_to(ROOT).parts)]


def test_no_file_names_a_path_of_one_machine():
    """Such a path works for whoever wrote it and for nobody else."""
    pattern = re.compile(rb"(?<![\w.])/(?:" + b"|".join([b"work", b"root", b"farm", b"home/[a-z]+", b"tmp/bash_jobs"]) + rb")/")
    wrong = []
    for path in project_files():
        if path.is_file() and path.stat().st_size < 1_000_000:
            data = path.read_bytes()
            if b"\0" not in data:
                wrong += [f"{path.relative_to(ROOT)}:{i}" for i, line in enumerate(data.splitlines(), 1) if pattern.search(line)]
    assert wrong == []
