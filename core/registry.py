"""Named factories, with third-party ones found through entry points."""

from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from .errors import SpecError
from .imports import import_object
from .names import describe_unknown

T = TypeVar("T")


class Registry(Generic[T]):
    """Maps a name to a factory; a built-in is given as ``module:attribute`` and imported on first use.

    >>> colours: Registry[str] = Registry("colour", "trimtab.colours", {"upper": "builtins:str"})
    >>> colours.get("upper")("red")
    'red'
    """

    def __init__(self, noun: str, entry_point_group: str, builtins: dict[str, str]) -> None:
        self.noun = noun
        self._group = entry_point_group
        self._paths = dict(builtins)
        self._factories: dict[str, Callable[..., T]] = {}

    def add(self, name: str, factory: Callable[..., T]) -> None:
        """Adds a factory.

        Raises:
            SpecError: the name is taken; nothing is overwritten silently.
        """
        if name in self:
            raise SpecError(f"a {self.noun} named '{name}' exists already; choose another name")
        self._factories[name] = factory

    def get(self, name: str) -> Callable[..., T]:
        """Returns the factory called ``name``; ``module:callable`` names one that is not registered.

        Raises:
            SpecError: the name is not known; the message lists those that are.
        """
        if name in self._factories:
            return self._factories[name]
        paths = self._known_paths()
        if name in paths or ":" in name:
            factory: Callable[..., T] = import_object(paths.get(name, name), noun=self.noun)
            self._factories[name] = factory
            return factory
        raise SpecError(describe_unknown(self.noun, name, self))

    def __contains__(self, name: object) -> bool:
        return name in self._factories or name in self._known_paths()

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({*self._factories, *self._known_paths()}))

    def _known_paths(self) -> dict[str, str]:
        found = {point.name: point.value for point in entry_points(group=self._group)}
        return {**found, **self._paths}
