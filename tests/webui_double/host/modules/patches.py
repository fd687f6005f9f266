"""Functions that are replaced by others of the same place, and put back."""

from __future__ import annotations

from typing import Any

_ABSENT = object()
_replaced: dict[tuple[Any, Any, str], tuple[Any, Any]] = {}  # (who, where, name) -> what was found there, what stood in the object itself


def patch(key: Any, obj: Any, field: str, replacement: Any) -> Any:
    """Replaces an attribute and returns what it was. Raises RuntimeError where `key` has replaced it already."""
    mark = (key, obj, field)
    if mark in _replaced:
        raise RuntimeError(f"{field} of {obj} is replaced already.")
    _replaced[mark] = getattr(obj, field), vars(obj).get(field, _ABSENT)
    setattr(obj, field, replacement)
    return _replaced[mark][0]


def undo(key: Any, obj: Any, field: str) -> None:
    """Puts it back. Raises RuntimeError where there is nothing to put back."""
    if (key, obj, field) not in _replaced:
        raise RuntimeError(f"{field} of {obj} is not replaced.")
    own = _replaced.pop((key, obj, field))[1]
    if own is _ABSENT:  # it was inherited
        delattr(obj, field)
    else:
        setattr(obj, field, own)


def original(key: Any, obj: Any, field: str) -> Any:
    """What was there before, or None."""
    return _replaced.get((key, obj, field), (None, None))[0]


def undo_all() -> None:
    """At the double's end."""
    for mark in reversed([*_replaced]):
        undo(*mark)
