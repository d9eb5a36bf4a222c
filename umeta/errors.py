"""The one error a person can cause and cure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input. The message names the offending thing, what was expected, and how to fix it.

    The command line prints it without a traceback and exits with code 2.
    """


class LeftOut(UserWarning):
    """Files that are no readable images were left out; the message names them.

    The command line says so when all else is done.
    """


class Interrupted(Exception):
    """Ctrl-C was pressed and the work so far has been saved; the message says how to go on."""


def suggest(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'kmeans'?"` for a near miss, else the list of what is known."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(known) or 'none'}"
