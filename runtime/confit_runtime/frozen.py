"""What cannot be changed: dicts that many share."""

from __future__ import annotations

from typing import Any, NoReturn


class FrozenDict(dict[str, Any]):
    """A dict that cannot be changed, for JSON, equality and pickle a dict as any other; `dataclasses.asdict` gives one, too."""

    def _refuse(self, *args: object, **kwargs: object) -> NoReturn:
        raise TypeError("this dict is shared by all that use the model and cannot be changed: make a dict(...) of it")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[type[FrozenDict], tuple[dict[str, Any]]]:
        return FrozenDict, (dict(self),)


def frozen(value: Any) -> Any:
    """A dict as one that cannot be changed, those in it too, and a list as a tuple; anything else as it is."""
    if isinstance(value, dict):
        return FrozenDict({key: frozen(inner) if isinstance(inner, dict) else inner for key, inner in value.items()})
    return tuple(value) if isinstance(value, list) else value
