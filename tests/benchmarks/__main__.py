"""The benchmarks: a mount compared with direct commands and with tmpfs, in one run.

    python -m tests.benchmarks [TOPIC...] [--quick | --large] [--binding NAME] [--write]

Topics: reading, capacity, writing, undo, survey, following, guest_cost and cluster; the default is all. `--write`
writes the tables and the machine of the run to tests/benchmarks/RESULTS.md. tests.benchmarks.bench_index, bench_journal
and bench_rollback measure in more detail; bench_commits compares two checkouts.
"""

from __future__ import annotations

import argparse
import importlib
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from tests.benchmarks import host_info
from tests.benchmarks.baseline import SIZES, BenchmarkRun, temporary_folders
from tests.benchmarks.report import ResultTable

TOPICS = ("reading", "capacity", "writing", "undo", "survey", "following", "guest_cost", "cluster")
TITLE = "Results of the benchmarks"
RESULTS_FILE = Path(__file__).with_name("RESULTS.md")


def main() -> int:
    """Measure, print and, with `--write`, write the results."""
    options = _parse_options()
    topics: Sequence[str] = options.topics or TOPICS
    load, began = host_info.format_load(), time.time()
    about = [
        *host_info.describe_host(),
        ("Load before the run", load),
        ("Run", time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())),
    ]
    console = Console(width=max(160, Console().width))
    sections: dict[str, list[ResultTable]] = {}
    with temporary_folders() as (disk, memory, kind):
        about.append(("tmpfs", kind))
        names = (options.binding,) if options.binding else tuple(host_info.list_bindings())
        for topic in topics:
            (disk / topic).mkdir()
            (memory / topic).mkdir()
            run = BenchmarkRun(SIZES[options.size], names, disk / topic, memory / topic)
            sections[topic] = importlib.import_module(f"tests.benchmarks.{topic}").measure(run)
    about.append(("Took", f"{time.time() - began:.0f} s, with the {options.size} sizes"))
    for tables in sections.values():
        for table in tables:
            console.print()
            table.print(console)
    console.print()
    for name, value in about:
        console.print(f"{name}: {value}", highlight=False)
    if options.write:
        write_results(sections, about)
        console.print(f"Written to {RESULTS_FILE}")
    missed = [row for tables in sections.values() for table in tables for row in table.rows if "MISSED" in row[-1]]
    console.print(f"Goals missed: {len(missed)}")
    return 0


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__.partition("\n")[0])
    parser.add_argument("topics", nargs="*", metavar="TOPIC", help=", ".join(TOPICS))
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", dest="size", action="store_const", const="quick", help="small sizes: does it all run?")
    size.add_argument("--large", dest="size", action="store_const", const="large", help="5 M keys, 1 M journal rows")
    parser.add_argument("--binding", help="this one only")
    parser.add_argument("--write", action="store_true", help="write tests/benchmarks/RESULTS.md")
    parser.set_defaults(size="normal")
    options = parser.parse_args()
    unknown = set(options.topics) - set(TOPICS)
    if unknown:
        parser.error(f"no such topic: {', '.join(sorted(unknown))} (there are {', '.join(TOPICS)})")
    return options


def write_results(sections: dict[str, list[ResultTable]], run_facts: Sequence[tuple[str, str]]) -> None:
    """Replace the sections of the measured topics; the others keep the machine of their run."""
    bodies = dict(_split_sections(RESULTS_FILE.read_text())) if RESULTS_FILE.exists() else {}
    machine_text = "\n".join(f"- {name}: {value}" for name, value in run_facts)
    for topic, tables in sections.items():
        bodies[topic] = "\n".join(
            [*(table.to_markdown() for table in tables), f"### Machine of this run\n\n{machine_text}\n"]
        )
    ordered = [(topic, bodies.pop(topic)) for topic in TOPICS if topic in bodies]
    ordered += bodies.items()  # of the detailed benchmarks
    text = f"# {TITLE}\n\nWritten by `make bench` (`python -m tests.benchmarks --write`). "
    text += "Trust the ratios, not the absolute figures.\n\n"
    RESULTS_FILE.write_text(text + "\n".join(f"# {topic.capitalize()}\n\n{body.strip()}\n" for topic, body in ordered))


def _split_sections(text: str) -> list[tuple[str, str]]:
    parts = re.split(r"^# (.+)$", text, flags=re.MULTILINE)[1:]
    return [(name.lower(), body) for name, body in zip(parts[::2], parts[1::2], strict=True) if name != TITLE]


if __name__ == "__main__":
    sys.exit(main())
