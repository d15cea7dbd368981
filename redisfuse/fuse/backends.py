"""Which bindings can be used here, and choosing one."""

from __future__ import annotations

import importlib
import os
from typing import NamedTuple

from redisfuse.errors import MountError, UsageError
from redisfuse.fuse.interface import Binding

BINDING_NAMES = ("fusepy", "mfusepy")


class BindingAvailability(NamedTuple):
    """`reason`, one line, says what is missing and how to get it; empty if the binding can be used."""

    name: str
    reason: str


def _load_binding(name: str) -> Binding:
    """Raises MountError, one line, if what it needs is missing."""
    if name == "fusepy":
        try:
            module = importlib.import_module("redisfuse.fuse.libfuse2")
        except ModuleNotFoundError as error:
            raise MountError(f"{error.name} is not installed: `pip install fusepy`") from error
        except OSError as error:
            raise MountError("libfuse 2 is missing: `apt install libfuse2`") from error
        return _typed_binding(module.Libfuse2Session())
    # mfusepy takes libfuse 2 if both are there, unless it is told otherwise while it is imported.
    before = os.environ.get("FUSE_LIBRARY_NAME")
    os.environ["FUSE_LIBRARY_NAME"] = "fuse3"
    try:
        module = importlib.import_module("redisfuse.fuse.libfuse3")
    except ModuleNotFoundError as error:
        raise MountError(f"{error.name} is not installed: `pip install 'redisfuse[fuse3]'`") from error
    except (OSError, AttributeError) as error:
        raise MountError("libfuse 3 is missing: `apt install fuse3`") from error
    finally:
        if before is None:
            del os.environ["FUSE_LIBRARY_NAME"]
        else:
            os.environ["FUSE_LIBRARY_NAME"] = before
    return _typed_binding(module.Libfuse3Session())


def _typed_binding(binding: Binding) -> Binding:
    """For the type checker: what importlib gives has no type."""
    return binding


def list_bindings() -> list[BindingAvailability]:
    """Each binding, and why it can't be used if so."""
    found = []
    for name in BINDING_NAMES:
        try:
            _load_binding(name)
            found.append(BindingAvailability(name, ""))
        except MountError as error:
            found.append(BindingAvailability(name, str(error)))
    return found


def select_binding(name: str | None = None) -> Binding:
    """The binding `name`, or the best that can be used: mfusepy where it and libfuse 3 are there, else fusepy.

    Raises UsageError for a name that there is none of, MountError (one line) if what it needs is missing.
    """
    if name is not None:
        if name not in BINDING_NAMES:
            raise UsageError(f"no binding {name!r}: there are {' and '.join(BINDING_NAMES)}")
        return _load_binding(name)
    try:
        return _load_binding("mfusepy")
    except MountError:
        return _load_binding("fusepy")


__all__ = ["BINDING_NAMES", "BindingAvailability", "list_bindings", "select_binding"]
