"""The one kind of error that is the user's to mend: it says where, what, and the choices, in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from importlib.util import find_spec


class PruneError(Exception):
    """A mistake the user can mend. `where` names the file, step or option; the message says what and the choices."""

    def __init__(self, message: str, *, where: str | None = None):
        self.message = message
        self.where = where
        super().__init__(f"{where}: {message}" if where else message)

    def at(self, where: str) -> PruneError:
        """The same error, placed: kept as it is when it already says where."""
        return self if self.where else PruneError(self.message, where=where)


def unknown(kind: str, name: object, choices: Iterable[str]) -> PruneError:
    """The error for a name that is not among the choices: names the nearest one and lists them all."""
    names = sorted(choices)
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    return PruneError(f"unknown {kind} {str(name)!r}{hint} choices: {', '.join(names) or 'none'}")


def need(library: str, extra: str, *, what: str, where: str | None = None) -> None:
    """PruneError with the line that installs an extra of the package, when a library of it cannot be imported.

    The line is the README's: it is run in the folder that holds the source.
    """
    if find_spec(library) is None:
        name = library.replace("_", "-")
        raise PruneError(f'{what} needs {name}, which is not installed: pip install ".[{extra}]"', where=where)
