"""Settings as data: a field of a frozen dataclass carries its label, help, limits and default, and all that reads or writes settings follows it.

A key is dotted, `optim.lr`; a flat mapping {key: value} is what the form, the flags, the TOML file and the saved metadata have in common.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import math
import os
import typing
from argparse import SUPPRESS, ArgumentParser
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

C = TypeVar("C")
Migration = Callable[[dict[str, Any]], dict[str, Any]]

METADATA_KEY = "tuner_settings"
MIGRATIONS: tuple[Migration, ...] = ()  # the n-th turns flat settings of version n into version n + 1
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
_EMPTY = {int: "is empty; write a whole number", float: "is empty; write a number"}

# ---- declaring settings


@dataclass(frozen=True)
class Option:
    """One setting, as the form, the flags and the checks see it; limits are inclusive, None is no limit."""

    key: str
    type: type
    default: Any
    label: str
    help: str
    min: float | None = None
    max: float | None = None
    choices: tuple | None = None
    unit: str = ""
    essential: bool = False
    kept: bool | None = None  # part of a run's saved state, by which a resumed run goes on; None: where it is a method's own


def opt(default: Any, label: str, help: str, **more: Any) -> Any:
    """A dataclass field with what people see of it; `more`: min, max, choices, unit, essential, kept, as in `Option`."""
    return dataclasses.field(default=default, metadata={"option": Option("", object, default, label, help, **more)})


def section(cls: type) -> Any:
    """A dataclass field that holds a group of settings."""
    return dataclasses.field(default_factory=cls, metadata={"section": cls})


@functools.cache  # asked for at every run, save and request, and always the same
def options(cls: type, prefix: str = "") -> tuple[Option, ...]:
    """All settings of a dataclass, those of its sections included, in the order they are written; keys start with `prefix` and a dot."""
    hints, found = typing.get_type_hints(cls), ()
    for field in dataclasses.fields(cls):
        key = _join(prefix, field.name)
        if "section" in field.metadata:
            found += options(field.metadata["section"], key)
        elif "option" in field.metadata:
            if hints[field.name] not in _KINDS:
                raise TypeError(f"{cls.__name__}.{field.name}: a setting is a bool, int, float or str")
            found += (dataclasses.replace(field.metadata["option"], key=key, type=hints[field.name]),)
    return found


# ---- from values to settings


def build(cls: type[C], values: Mapping[str, Any], method: type | None = None) -> C:
    """Settings of class `cls` from a mapping, nested or with dotted keys; numbers and bools may be strings.

    `method` is the chosen method's `Config`: the section named by `values["method"]` is built with it, into the field `settings`.
    Raises ValueError with one line per problem: unknown keys, wrong types, values outside their limits, or what a class's own `check()` finds.
    """
    flat, problems = _flatten(values)
    name = method_name(cls, flat)
    known = {o.key: o for o in options(cls) + (options(method, name) if method else ())}
    given: dict[str, Any] = {}
    for key, value in flat.items():
        try:
            given[key] = _convert(_find(known, key, value), value)
        except ValueError as error:
            problems.append(str(error))
    _refuse(problems)
    if method:
        given["settings"] = _construct(method, given, name, problems)
    made = _construct(cls, given, "", problems)
    _refuse(problems)
    return made


def _refuse(problems: list[str]) -> None:
    if problems:
        raise ValueError("\n".join(dict.fromkeys(problems)))


def method_name(cls: type, values: Mapping[str, Any]) -> str:
    """The method that the values choose, or else the default one; empty where the class has no method."""
    return str(values.get("method", getattr(cls, "method", "")))


def flatten(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys instead of nesting. Raises ValueError where a key is given twice."""
    flat, problems = _flatten(values)
    _refuse(problems)
    return flat


def flat_values(cfg: Any) -> dict[str, Any]:
    """The settings as {dotted key: value}: what `build` makes the same settings from, the method's own included."""
    values = {o.key: _get(cfg, o.key) for o in options(type(cfg))}
    own = getattr(cfg, "settings", None)
    if own is not None:
        values.update({_join(cfg.method, key): value for key, value in flat_values(own).items()})
    return values


def _flatten(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    flat: dict[str, Any] = {}
    problems = []
    for key, value in _leaves(values):
        if key in flat:
            problems.append(f"{key}: given twice")
        flat[key] = value
    return flat, problems


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        key = _join(prefix, str(name))
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, key)
        else:
            yield key, value


def _find(known: Mapping[str, Option], key: str, value: Any) -> Option | None:
    """The option of a key; None for an empty section. Raises ValueError for what there is not."""
    if key in known:
        return known[key]
    sections = list(dict.fromkeys(".".join(k.split(".")[:n]) for k in known for n in range(1, k.count(".") + 1)))
    if key in sections:
        if isinstance(value, Mapping):
            return None
        raise ValueError(f"{key}: {_shown(value)} is not a section; write [{key}] and its settings below")
    head = key.rpartition(".")[0] or (key if isinstance(value, Mapping) else "")
    if head and head not in sections:
        raise ValueError(f"{head}: there is no such section; there are {', '.join(sections) or 'none'}{meant(head, sections)}")
    last = key.rpartition(".")[2]
    same_name = [k for k in known if k.rpartition(".")[2] == last] or [k for k, option in known.items() if option.label.lower().replace(" ", "_") == last]
    raise ValueError(f"{key}: there is no such setting{meant(key, same_name or list(known), 0.0 if same_name else 0.6)}")


def meant(text: str, names: Iterable[str], cutoff: float = 0.6) -> str:
    """`; did you mean lr?` for the end of a sentence, or nothing where no name is like the text."""
    close = difflib.get_close_matches(text, list(names), n=1, cutoff=cutoff)
    return f"; did you mean {close[0]}?" if close else ""


def _construct(cls: type[C], given: Mapping[str, Any], prefix: str, problems: list[str]) -> C | None:
    """The dataclass from checked values; what its sections or its own `check()` object to is added to `problems`."""
    before, arguments = len(problems), {}
    for field in dataclasses.fields(cls):
        key = _join(prefix, field.name)
        if "section" in field.metadata:
            arguments[field.name] = _construct(field.metadata["section"], given, key, problems)
        elif key in given:
            arguments[field.name] = given[key]
    if len(problems) > before:
        return None  # a check that reads a broken section would only repeat its problem
    try:
        made = cls(**arguments)
        getattr(made, "check", lambda: None)()
    except ValueError as error:
        problems.append(f"{prefix}: {error}" if prefix else str(error))
        return None
    return made


# ---- one value


def _convert(option: Option | None, value: Any) -> Any:
    """The value as the option's type. Raises ValueError that names key and value."""
    if option is None:
        return None
    try:
        value = _READERS[option.type](value, option)
    except (ValueError, OverflowError):
        kind = f"one of {', '.join(map(str, option.choices))}" if option.choices else _KINDS[option.type]
        if option.type in _EMPTY and not str(value).strip():  # a field that somebody has emptied
            raise ValueError(f"{option.key}: {_EMPTY[option.type]}") from None
        raise ValueError(f"{option.key}: {_shown(value)} is not {kind}") from None
    if option.choices and value not in option.choices:
        close = meant(str(value), [str(c) for c in option.choices])
        raise ValueError(f"{option.key}: {_shown(value)} is not one of {', '.join(map(str, option.choices))}{close}")
    low, high = option.min, option.max
    if (low is not None and value < low) or (high is not None and value > high):
        raise ValueError(f"{option.key}: {_shown(value)} is {_limit(option)}")
    return value


def _limit(option: Option) -> str:
    if option.min is None or option.max is None:
        return f"above {_number(option.max)}" if option.min is None else f"below {_number(option.min)}"
    return f"outside [{_number(option.min)}, {_number(option.max)}]"


def _number(value: float) -> str:
    """A whole number without a point, as limits are read: 0 and 4294967295, not 0.0 and 4.29497e+09."""
    return str(int(value)) if float(value).is_integer() else repr(value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _read_bool(value: Any, option: Option) -> bool:
    words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    if isinstance(value, str) and value.strip().lower() in words:
        return words[value.strip().lower()]
    if not isinstance(value, bool):
        raise ValueError
    return value


def _read_int(value: Any, option: Option) -> int:
    if isinstance(value, str) and value.strip().lstrip("+-").isdecimal():
        return int(value)
    number = _read_float(value, option)  # 1e4 and 512.0 are whole numbers too
    if not number.is_integer():
        raise ValueError
    return value if isinstance(value, int) else int(number)


def _read_float(value: Any, option: Option) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError
    number = float(value)
    if not math.isfinite(number):
        raise ValueError
    return number


def _read_str(value: Any, option: Option) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and _is_number(option.default):
        return str(value)  # a learning rate is text because of the step syntax; `lr = 1e-4` in a file is meant as well
    if not isinstance(value, str):
        raise ValueError
    value.encode("utf-8")  # UnicodeEncodeError is a ValueError: a lone surrogate could not be written into any file
    return value


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


_READERS: dict[type, Callable[[Any, Option], Any]] = {bool: _read_bool, int: _read_int, float: _read_float, str: _read_str}

# ---- TOML


def to_toml(cfg: Any) -> str:
    """The settings as a TOML file from which `read_toml` and `build` make the same settings again."""
    return toml_text(flat_values(cfg))


def toml_text(values: Mapping[str, Any]) -> str:
    """Flat values as a TOML file; those of no section come first, as TOML wants it."""
    sections: dict[str, list[str]] = {"": [f"version = {len(MIGRATIONS) + 1}"]}
    for key, value in values.items():
        head, _, name = key.rpartition(".")
        sections.setdefault(head, []).append(f"{name} = {toml_value(value)}")
    return "\n\n".join("\n".join(([f"[{head}]"] if head else []) + lines) for head, lines in sections.items()) + "\n"


def toml_value(value: Any) -> str:
    """A bool, number or text as TOML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str):
        return repr(value)
    # a JSON string is a TOML basic string, but for DEL, which TOML wants escaped, and for ASCII-only JSON's surrogate pairs, which it refuses
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def read_toml(path: str | Path) -> dict[str, Any]:
    """A TOML file as flat settings of the current version. Raises ValueError that says what is wrong, with the line of a syntax error."""
    return migrate(load_toml(path), str(path))


def load_toml(path: str | Path) -> dict[str, Any]:
    """What a TOML file holds. Raises ValueError as `read_toml`."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")  # Windows editors put a byte order mark first
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not a settings file: it is not UTF-8 text") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    loads, syntax_error = _toml_reader()
    try:
        return loads(text)
    except syntax_error as error:
        raise ValueError(f"{path}: not valid TOML: {error}") from None


def _toml_reader() -> tuple[Callable[[str], dict[str, Any]], type[ValueError]]:
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        try:
            import tomli as tomllib
        except ModuleNotFoundError:
            raise ValueError("Python 3.10 reads settings files with the package tomli: run `pip install tomli`") from None
    return tomllib.loads, tomllib.TOMLDecodeError


def migrate(values: Mapping[str, Any], source: str, migrations: tuple[Migration, ...] | None = None) -> dict[str, Any]:
    """Flat settings of the current version from those of `version = N`; without a version they are the current ones. Raises ValueError."""
    migrations = MIGRATIONS if migrations is None else migrations
    flat, newest = flatten(values), len(migrations) + 1
    version = flat.pop("version", newest)
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise ValueError(f"{source}: version: {_shown(version)} is not a whole number from 1 up")
    if version > newest:
        raise ValueError(f"{source}: written by a newer Tuner (version {version}; this one reads up to {newest}): update the Tuner")
    for step in migrations[version - 1 :]:
        flat = step(flat)
    return flat


# ---- flags and metadata


def flags(parser: ArgumentParser, cls: type, method: type | None = None, name: str = "") -> None:
    """Adds `--section.key VALUE` for every setting; parsed values are strings for `build`, absent where not given. `name`: the method's."""
    name = name or method_name(cls, {})
    groups: dict[str, Any] = {}
    for option in options(cls) + (options(method, name) if method else ()):
        head = option.key.rpartition(".")[0]
        group = groups.get(head) or groups.setdefault(head, parser.add_argument_group(head or "run"))
        group.add_argument(f"--{option.key}", dest=option.key, default=SUPPRESS, metavar=_METAVARS[option.type], help=_describe(option))


_METAVARS = {bool: "true|false", int: "N", float: "X", str: "TEXT"}


def _describe(option: Option) -> str:
    notes = [f"one of {', '.join(map(str, option.choices))}"] if option.choices else []
    if option.min is not None and option.max is not None:
        notes.append(f"{_number(option.min)} to {_number(option.max)}{' ' + option.unit if option.unit else ''}")
    default = {True: "true", False: "false"}[option.default] if option.type is bool else option.default
    notes.append(f"default {default}" if default != "" else "default empty")
    return f"{option.help} ({'; '.join(notes)})".replace("%", "%%")


def to_metadata(cfg: Any) -> dict[str, str]:
    """The settings as one entry of a safetensors header."""
    return {METADATA_KEY: json.dumps({"version": len(MIGRATIONS) + 1, **flat_values(cfg)}, ensure_ascii=False)}


def from_metadata(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The flat settings out of a file's metadata, for `build`. Raises ValueError where there are none."""
    try:
        values = json.loads(metadata[METADATA_KEY])
    except KeyError:
        raise ValueError(f"the file holds no settings of the Tuner (no {METADATA_KEY} in its metadata)") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"the settings in the file's metadata are damaged: {error}") from None
    if not isinstance(values, dict):
        raise ValueError("the settings in the file's metadata are damaged: not a JSON object")
    return migrate(values, "the settings in the file")


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _get(cfg: Any, key: str) -> Any:
    for name in key.split("."):
        cfg = getattr(cfg, name)
    return cfg
