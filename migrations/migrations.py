"""The journal's migrations in order, as one set.

Both redisfuse and `sqlite-utils migrate` apply it:

    sqlite-utils migrate journal.db path/to/migrations/migrations.py --list

Each numbered module beside this file has `NAME` and `apply(db)`. A released one never changes.
"""

import importlib.util
from pathlib import Path

from sqlite_utils import Migrations

migrations = Migrations("redisfuse")

for path in sorted(Path(__file__).resolve().parent.glob("m[0-9][0-9][0-9][0-9]_*.py")):
    spec = importlib.util.spec_from_file_location(f"redisfuse_migration_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    migrations(name=module.NAME)(module.apply)
