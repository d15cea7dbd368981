"""The limits of decoding as options, of a mount and of commands that decode."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from redisfuse.cli._options import OptionList, config_option
from redisfuse.cli._params import SIZE

if TYPE_CHECKING:
    from redisfuse.rendering.decoding.limits import DecodeLimits

MAX_DEPTH = 100
"""Decoders call themselves for each level: 100 levels of any format fit into Python's stack."""

_SECTION = "Decoding"

decode_options = OptionList(
    config_option(
        "--decode-input",
        section=_SECTION,
        type=SIZE,
        help="Bytes of a value that NAME%text decodes; of a larger one, the beginning.",
    ),
    config_option(
        "--decode-output",
        section=_SECTION,
        type=SIZE,
        help="Maximum size of a decoded text, and of each decompressed layer.",
    ),
    config_option(
        "--decode-depth",
        section=_SECTION,
        type=click.IntRange(1, MAX_DEPTH),
        metavar="N",
        help="Maximum number of layers, and of values within values.",
    ),
    config_option(
        "--decode-seconds",
        section=_SECTION,
        type=click.FloatRange(0, min_open=True),
        metavar="SECONDS",
        help="Maximum processor time to decode one value.",
    ),
)

DECODE_SETTINGS = ("decode_input", "decode_output", "decode_depth", "decode_seconds")


def build_decode_limits(context: click.Context, mount_settings: Mapping[str, Any]) -> DecodeLimits:
    """Return the limits of a command.

    They are those on its command line, else those of the mount, else its defaults.
    """
    from redisfuse.rendering.decoding.limits import DecodeLimits

    values = []
    for name in DECODE_SETTINGS:
        is_given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        values.append(context.params[name] if is_given else mount_settings.get(name, context.params[name]))
    return DecodeLimits(*values)
