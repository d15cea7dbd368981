"""Names that don't exist: the nearest one, and variables of the environment."""

import difflib
import os
import re
from collections.abc import Iterable, Set

from redisfuse.errors import UsageError

_ENVIRONMENT_PREFIX = "REDISFUSE_"

_OTHER_VARIABLES = {"REDISFUSE_PASSWORD", "REDISFUSE_PAGER"}
# Kubernetes and Docker set these for a service with the name `redisfuse`; the tests of this project have their own.
_FOREIGN_VARIABLE = re.compile(r"REDISFUSE_(SERVICE_(HOST|PORT\w*)|PORT(_\d+_(TCP|UDP)\w*)?|NAME|ENV_\w+|TEST_\w+)")


def suggest_name(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'NAME'?`, or an empty string."""
    similar = difflib.get_close_matches(name, sorted(known), n=1)
    return f"; did you mean {similar[0]!r}?" if similar else ""


def check_environment(options: Set[str]) -> None:
    """Raise UsageError for a variable REDISFUSE_* that is not one of the options."""
    for name in find_unknown_variables(options):
        known = _OTHER_VARIABLES | {variable_name(option) for option in options}
        advice = suggest_name(name, known) or "; unset it"
        raise UsageError(f"the environment variable {name} is not an option{advice}")


def find_unknown_variables(options: Set[str]) -> list[str]:
    """Return the names of the variables REDISFUSE_* that are not among the options."""
    known = _OTHER_VARIABLES | {variable_name(option) for option in options}
    names = (name for name in os.environ if name.startswith(_ENVIRONMENT_PREFIX) and name not in known)
    return sorted(name for name in names if not _FOREIGN_VARIABLE.fullmatch(name))


def variable_name(option: str) -> str:
    """Return the name of the variable that sets an option."""
    return _ENVIRONMENT_PREFIX + option.upper()
