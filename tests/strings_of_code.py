"""The sentences that the program makes, read out of its source: every text that reaches a person, with {0}, {1}, ... where values stand.

A text is followed through f-strings, sums, choices and the package's own small functions, so that `f"{_count(n, 'picture')} of {total}"` becomes
"{0} picture of {1}" and "{0} pictures of {1}". Where that would become too many, the part is a hole and its words are sentences of their own.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "lib_tuner"
HOLE = "\0"
MOST = 12  # texts of one expression; a part that would make more becomes a hole
DEPTH = 4  # functions that call functions
# not on the page: the command line, the benchmarks, the making of the demo, the host's own comparison grid, the API's description
ELSEWHERE = (
    "cli.py", "cli_train.py", "lib_tuner/edit.py", "lib_tuner/crop.py", "lib_tuner/tag.py", "lib_tuner/audit.py", "__main__.py", "environment.py", "bench.py", "bench_methods.py", "bench_peers.py", "bench_worker.py", "bench_data.py", "bench_memory.py", "bench_compare.py", "compare_command.py", "webui_suite.py", "demo", "command_line.py",
    "make_random.py", "export_tiny.py", "lib_tuner/compare/axes.py", "ui", "bodies.py",
)  # fmt: skip
NOT_TOLD = frozenset(("TypeError", "AssertionError", "KeyError", "NotImplementedError", "SystemExit", "StopIteration"))  # a programmer's mistakes
TEXTS = {"Warned": 0, "Preparing": 2, "Warning_": 0, "Fix": 0, "Problem": 1, "Finding": 2, "complain": 1, "ValueError": 0, "Kind": 1, "AxisOption": 0, "LoadReport": 4}  # call -> which argument is told
TOLD = frozenset(("said", "general", "error", "text", "trouble", "note", "is", "norms", "trained by", "dropped", "varied"))  # keywords, dict keys and attributes whose value is told
SAYS = frozenset((  # functions whose answer is told
    "outlook.py:_pictures", "outlook.py:_buckets", "outlook.py:_masks", "outlook.py:_length", "outlook.py:_stages", "outlook.py:_time", "outlook.py:_memory", "host.py:__str__",
    "arguments.py:refusal", "mirrored.py:refusal", "lora_file.py:__str__", "extract.py:__str__", "recipe.py:__str__", "__init__.py:_of_values", "__init__.py:_draft", "kohya_forms.py:of_metadata", "advisor.py:__str__",
    "audit.py:too_small", "audit.py:blurred", "audit.py:barred", "audit.py:even", "audit.py:blocky", "audit.py:wrong_mode", "audit.py:transparent", "audit.py:animated", "audit.py:turned",
    "audit.py:too_long", "problems.py:_more", "captions.py:problem", "journal_file.py:advice",
))  # fmt: skip
PIECES = (  # words that are put together in other ways; each stands so in the source
    "gradient checkpointing", "channels-last", "the model that is loaded first", "given twice", "make room", "choose a disk that takes files of this size",
    "make it writable or choose another folder", "a file without tensors", "a weights file of an unknown kind", "and {0} more", "the Train tab writes embeddings in every form", "the WebUI reads hypernetworks as .pt alone", "nothing is known of its form", "done", "nan", "failed", "stopped",
    "save of a run", "LoRA, embedding or hypernetwork",
)  # fmt: skip
SILENT = frozenset((  # calls whose texts no page shows, or as what other collectors find
    "write", "add_argument", "compile", "debug", "info", "warning", "error", "exception", "opt", "_goal", "_pace", "HTTPException",
))  # fmt: skip
_SENTENCE = re.compile(r"[A-Z“\0][^\n]* [^\n]* [^\n]*[.?!…]")
_PREFIX = re.compile(r"(?:(?:[a-z_]+(?:\.[a-z_]+)*|\{\d\}): )+")
Texts = list[str]  # with HOLEs


@dataclass
class Source:
    """One module: its functions and what its names stand for."""

    path: Path
    tree: ast.Module
    functions: dict[str, ast.FunctionDef] = field(default_factory=dict)
    names: dict[str, list[ast.expr]] = field(default_factory=dict)


def sources() -> list[Source]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        if {path.relative_to(PACKAGE).parts[0], path.name, path.relative_to(PACKAGE.parent).as_posix()} & set(ELSEWHERE) and path.name not in ("train_tab.py", "webui_page.py"):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        functions = {n.name: n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
        found.append(Source(path, tree, functions, bindings(tree.body)))
    return found


_BOUND: dict[int, tuple[list[ast.stmt], dict[str, list[ast.expr]]]] = {}  # by the statements' identity, and the statements, so that it stays theirs


def bindings(body: list[ast.stmt]) -> dict[str, list[ast.expr]]:
    """name -> what is assigned to it, in the statements and those within, but not in functions of their own."""
    if id(body) not in _BOUND:
        _BOUND[id(body)] = body, _bound(body)
    return _BOUND[id(body)][1]


def _bound(body: list[ast.stmt]) -> dict[str, list[ast.expr]]:
    names: dict[str, list[ast.expr]] = {}
    todo: list[ast.AST] = list(body)
    while todo:
        node = todo.pop(0)
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Lambda)):
            continue
        if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
            names[node.target.id] = [ast.BinOp(before, node.op, node.value) for before in names.get(node.target.id, [])]
        if isinstance(node, ast.Assign):
            for target in node.targets:
                _bind(names, target, node.value)
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            _bind(names, node.target, node.value)
        elif isinstance(node, ast.NamedExpr):
            _bind(names, node.target, node.value)
        todo += ast.iter_child_nodes(node)
    return names


def _bind(names: dict[str, list[ast.expr]], target: ast.expr, value: ast.expr) -> None:
    if isinstance(target, ast.Name):
        names.setdefault(target.id, []).append(value)
    elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
        for one, its in zip(target.elts, value.elts):
            _bind(names, one, its)


class Reader:
    """Follows texts; what it makes a hole of is in `parts`."""

    def __init__(self, source: Source, shared: dict[str, tuple[Source, ast.FunctionDef]]):
        self.source, self.shared, self.parts = source, shared, []

    def texts(self, node: ast.expr, scope: dict[str, list[ast.expr]], given: dict[str, Texts], depth: int = 0) -> Texts:
        """What the expression may say; [HOLE] where that is not known."""
        if depth > 30:
            return [HOLE]
        known = getattr(self, f"_{type(node).__name__}", None)
        return known(node, scope, given, depth + 1) if known else [HOLE]

    def _Constant(self, node, scope, given, depth):
        return [node.value] if isinstance(node.value, str) else [HOLE]

    def _JoinedStr(self, node, scope, given, depth):
        return self._product([self.texts(value, scope, given, depth) for value in node.values])

    def _FormattedValue(self, node, scope, given, depth):
        if node.conversion == ord("r") or node.format_spec:
            return [HOLE]
        texts = self.texts(node.value, scope, given, depth)
        if any(_SENTENCE.fullmatch(text) for text in texts):  # a sentence within another
            return self._hole(texts)
        return [HOLE] if all(HOLE in text and not re.search(r"[a-z]{2}", text) for text in texts) else texts

    def _IfExp(self, node, scope, given, depth):
        return _each([*self.texts(node.body, scope, given, depth), *self.texts(node.orelse, scope, given, depth)])

    def _Tuple(self, node, scope, given, depth):
        return [text for value in node.elts for text in self.texts(value, scope, given, depth) if text != HOLE]

    def _BoolOp(self, node, scope, given, depth):
        return self._hole([text for value in node.values for text in self.texts(value, scope, given, depth)])

    def _BinOp(self, node, scope, given, depth):
        if isinstance(node.op, ast.Mult) and isinstance(node.left, ast.Constant) and isinstance(node.left.value, str):
            return ["", node.left.value]
        if isinstance(node.op, ast.Add):
            return self._product([self.texts(node.left, scope, given, depth), self.texts(node.right, scope, given, depth)])
        return [HOLE]

    def _Name(self, node, scope, given, depth):
        if node.id in given:
            return given[node.id]
        values = scope.get(node.id) or self.source.names.get(node.id) or []
        inner = {name: value for name, value in scope.items() if name != node.id}  # x = f"{x} more" ends here
        return _each([text for value in values for text in self.texts(value, inner, given, depth)]) or [HOLE]

    def _Subscript(self, node, scope, given, depth):
        table = node.value
        if isinstance(table, ast.Name):
            table = next(iter(scope.get(table.id) or self.source.names.get(table.id) or []), None)
        if isinstance(table, ast.Dict):
            return _each([text for value in table.values for text in self.texts(value, scope, given, depth)])
        return [HOLE]

    def _Call(self, node, scope, given, depth):
        if isinstance(node.func, ast.Attribute) and node.func.attr in ("strip", "rstrip"):
            return self.texts(node.func.value, scope, given, depth)
        if isinstance(node.func, ast.Attribute) and node.func.attr == "join" and isinstance(node.args[0], (ast.List, ast.Tuple)):
            return self._hole([text for one in node.args[0].elts for text in self.texts(one, scope, given, depth)])
        if not isinstance(node.func, ast.Name) or node.func.id == "str":
            return [HOLE]
        source, function = self.shared.get(node.func.id, (None, None))
        function = self.source.functions.get(node.func.id) or function
        if function is None or depth > DEPTH * 5:
            return [HOLE]
        passed = {arg.arg: self.texts(value, scope, given, depth) for arg, value in zip(function.args.args, node.args)}
        reader = Reader(source or self.source, self.shared) if node.func.id not in self.source.functions else self
        said = [text for value in returned(function) for text in reader.texts(value, bindings(function.body), passed, depth + 3)]
        self.parts += reader.parts if reader is not self else []
        return _each(said) or [HOLE]

    def _product(self, many: list[Texts]) -> Texts:
        made = [""]
        for texts in many:
            texts = texts if len(made) * len(texts) <= MOST else self._hole(texts)
            made = [a + b for a, b in itertools.product(made, texts)]
        return _each([re.sub(f"{HOLE}(?:{HOLE}|\\.\\.\\.)*", HOLE, text) for text in made])

    def _hole(self, texts: Texts) -> Texts:
        self.parts += texts
        return [HOLE]


def returned(function: ast.FunctionDef) -> list[ast.expr]:
    return [n.value for n in ast.walk(function) if isinstance(n, ast.Return) and n.value is not None]


def _each(texts: Texts) -> Texts:
    return list(dict.fromkeys(texts))


# ---- where texts reach people ----------------------------------------------------------------------------------------


def told(source: Source) -> Iterator[tuple[ast.expr, list[ast.stmt], bool]]:
    """(expression, the statements around it, whether it is told for sure): what exceptions, events and shown fields get, and every other text."""
    seen: set[int] = set(map(id, docstrings(source.tree)))
    todo: list[tuple[ast.AST, list[ast.stmt]]] = [(source.tree, source.tree.body)]
    while todo:
        node, body = todo.pop(0)
        if id(node) in seen or _silent(node):
            continue
        seen.add(id(node))
        inner = node.body if isinstance(node, ast.FunctionDef) else body
        for expression in [*_told_by(node), *_said_by(node, source)]:
            seen.add(id(expression))
            yield expression, inner, True
        if isinstance(node, (ast.JoinedStr, ast.BinOp, ast.IfExp)) or isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node, inner, False
            todo += [(child, inner) for child in ast.iter_child_nodes(node) if not isinstance(node, ast.JoinedStr) and not isinstance(child, (ast.JoinedStr, ast.Constant))]
            continue
        todo += [(child, inner) for child in ast.iter_child_nodes(node)]


def _told_by(node: ast.AST) -> list[ast.expr]:
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and _name(node.exc) not in NOT_TOLD:
        return node.exc.args
    if isinstance(node, ast.Call):
        at = TEXTS.get(_name(node))
        return ([node.args[at]] if at is not None and len(node.args) > at else []) + [k.value for k in node.keywords if k.arg in TOLD]
    if isinstance(node, ast.Dict):
        return [value for key, value in zip(node.keys, node.values) if isinstance(key, ast.Constant) and key.value in TOLD]
    if isinstance(node, ast.Assign) and any(isinstance(t, ast.Attribute) and t.attr in TOLD for t in node.targets):
        return [node.value]
    return []


def _said_by(node: ast.AST, source: Source) -> list[ast.expr]:
    says = isinstance(node, ast.FunctionDef) and f"{source.path.name}:{node.name}" in SAYS
    return [part for value in returned(node) for part in _parts(value, bindings(node.body))] if says else []


def _parts(value: ast.expr, names: dict[str, list[ast.expr]]) -> list[ast.expr]:
    """What a function that says something may give back: a tuple's parts, and of `table.get(key, other)` each of the table's values and the other."""
    if isinstance(value, ast.Call) and _name(value) == "get" and isinstance(value.func.value, ast.Name):
        return [*(one for table in names.get(value.func.value.id, []) if isinstance(table, ast.Dict) for one in table.values), *value.args[1:]]
    return value.elts if isinstance(value, ast.Tuple) else [value]


def _silent(node: ast.AST) -> bool:
    """Log lines, patterns, help of the command line, and mistakes of a programmer."""
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
        return _name(node.exc) in NOT_TOLD
    return isinstance(node, ast.Call) and _name(node) in SILENT


def _name(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def docstrings(tree: ast.Module) -> Iterator[ast.expr]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node, clean=False) is not None:
            yield node.body[0].value


def sentences() -> dict[str, str]:
    """{sentence with {0}, {1}, ...: the module that says it}."""
    found: dict[str, str] = {}
    every = sources()
    shared = {name: (source, function) for source in every for name, function in source.functions.items()}
    for source in every:
        for expression, body, sure in told(source):
            reader = Reader(source, shared)
            texts = reader.texts(expression, bindings(body), {})
            for text in [*texts, *reader.parts]:
                if sure or _SENTENCE.fullmatch(text):
                    for line in text.split("\n"):
                        if key := as_key(line):
                            found.setdefault(key, source.path.name)
    for key in [key for key in found if key.removeprefix("row {0} ") != key and _renumbered(key.removeprefix("row {0} ")) in found]:
        del found[key]  # `row {0} {1}` is enough
    return {**found, **{piece: "PIECES" for piece in PIECES}}


def _renumbered(key: str) -> str:
    return re.sub(r"\{(\d)\}", lambda hole: f"{{{int(hole[1]) - 1}}}", key)


def as_key(text: str) -> str:
    """The text as the tables have it: without a setting's key in front and without what joins it to others; empty where it holds no words."""
    text = text.strip(" ;,")
    numbered = re.sub(HOLE, lambda _, n=itertools.count(): f"{{{next(n)}}}", text)
    prefix = _PREFIX.match(numbered)
    if prefix:
        return as_key(text[len(re.match(r"(?:(?:[a-z_]+(?:\.[a-z_]+)*|\0): )+", text)[0]) :])
    return numbered if re.search(r"[A-Za-z]{2}", re.sub(r"\{\d\}", "", numbered)) else ""
