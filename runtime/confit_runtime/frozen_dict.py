"""Dicts that cannot be changed, because many users share them."""

from __future__ import annotations

from typing import Any, NoReturn


class FrozenDict(dict[str, Any]):
    """A dict that cannot be changed. JSON, equality and pickle treat it as any dict; `dataclasses.asdict` keeps the type."""

    def _refuse(self, *args: object, **kwargs: object) -> NoReturn:
        raise TypeError("this dict is shared by all users of the model and cannot be changed: copy it with dict(...)")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[type[FrozenDict], tuple[dict[str, Any]]]:
        return FrozenDict, (dict(self),)


def freeze(value: Any) -> Any:
    """Make a dict and the dicts in it unchangeable, and a list a tuple; anything else stays as it is."""
    if isinstance(value, dict):
        return FrozenDict({key: freeze(inner) if isinstance(inner, dict) else inner for key, inner in value.items()})
    return tuple(value) if isinstance(value, list) else value
