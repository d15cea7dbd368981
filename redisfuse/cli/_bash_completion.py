"""Completes words in bash, and quotes them; click inserts them as they are."""

import os
import re

from click.shell_completion import BashComplete, CompletionItem, add_completion_class

_SOURCE = """\
%(complete_func)s() {
    local IFS=$'\\n' line
    while read -r line; do
        case $line in
            dir,*) compopt -o dirnames ;;
            file,*) compopt -o default ;;
            plain,*) COMPREPLY+=("${line#*,}") ;;
        esac
    done < <(COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD=$COMP_CWORD %(complete_var)s=bash_complete "$1")
}

complete -o nosort -F %(complete_func)s %(prog_name)s
"""

_UNSAFE = re.compile(r"[^\w@%+=:,./~-]")  # outside of quotes
_UNSAFE_IN_DOUBLE_QUOTES = re.compile(r'[$`"\\]')


class QuotingBashComplete(BashComplete):
    """Quotes what it offers, as the user began to: with a backslash or in quotes."""

    source_template = _SOURCE

    def format_completion(self, item: CompletionItem) -> str:
        """Return the line of one completion."""
        word = os.environ["COMP_WORDS"].split("\n")[-1]
        if word.startswith("'"):
            value = item.value.replace("'", r"'\''")
        elif word.startswith('"'):
            value = _UNSAFE_IN_DOUBLE_QUOTES.sub(r"\\\g<0>", item.value)
        else:
            value = _UNSAFE.sub(r"\\\g<0>", item.value)
        return f"{item.type},{value}"


def register() -> None:
    """Let click use it."""
    add_completion_class(QuotingBashComplete, "bash")
