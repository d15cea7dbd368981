"""The status of a mount as lines of text."""

from redisfuse.cli._mount_status import Facts
from redisfuse.cli._output import format_bytes, format_count
from redisfuse.client.replication import MasterLink
from redisfuse.text import for_terminal


def format_status(facts: Facts) -> list[str]:
    """Return the status of one mount as lines."""
    rows = [
        ("mounted", f"{facts['server']} ({facts['server_version']}), {facts['mode']}"),
        ("keys", _format_key_count(facts)),
        ("changes", "tracked by the server" if facts["live"] else f"not tracked: {facts['reason']}"),
        *([("replica", _format_link(facts, facts["max_lag_seconds"]))] if facts["master_link"] else []),
        *_format_shards(facts),
        *([("sentinels", "{} of {} answer".format(*facts["sentinels"]))] if facts.get("sentinels") else []),
        ("kernel cache", "invalidated when a key changes" if facts["kernel_cache"] else _format_no_cache(facts)),
        *_format_hashes(facts),
        ("sent", f"{facts['commands']} commands in {facts['round_trips']} round trips"),
        ("cache", _format_cache(facts)),
        *_format_evictions(facts),
        (
            "memory",
            f"{format_bytes(facts['memory_bytes'])}, of which {format_bytes(facts['index_bytes'])} for the index"
            + (" (key names are on disk)" if facts["index_on_disk"] else ""),
        ),
        ("process", f"pid {facts['pid']} for {facts['up_seconds']:g} s, {facts['binding']} on {facts['library']}"),
    ]
    if facts["journal"]:
        rows.append(("journal", f"{facts['journal']}, session {facts['session']}"))
    return [for_terminal(facts["mountpoint"]), *(f"  {name:<13}{text}" for name, text in rows)]


def _format_cache(facts: Facts) -> str:
    if facts["cache_hit_rate"] is None:
        return "not used yet"
    size, limit = format_bytes(facts["cache_bytes"]), format_bytes(facts["cache_limit_bytes"])
    return f"{facts['cache_hit_rate']:.0%} hit rate, {size} of {limit} in use"


def _format_evictions(facts: Facts) -> list[tuple[str, str]]:
    """Return a row about what the cache could not hold, if there is anything."""
    keys, contents = facts["cache_evicted_keys"], facts["cache_evicted_contents"]
    if not keys and not contents:
        return []
    evicted = f"the attributes of {format_count(keys, 'key')} and {format_count(contents, 'content')}"
    return [("evicted", f"{evicted}, which did not fit into --cache-memory")]


def _format_shards(facts: Facts) -> list[tuple[str, str]]:
    """Return a row for each shard of a cluster, and one about unserved slots."""
    rows = []
    for shard in facts.get("shards", ()):
        state = "tracked" if shard["live"] else f"not tracked: {shard['reason']}"
        if shard["live"] and not shard["ready"]:
            state = f"tracked, scanning: {shard['scanned']} keys so far"
        if shard["master_link"]:
            state += f"; {_format_link(shard, facts['max_lag_seconds'])}"
        rows.append(("shard", f"{shard['node']}, {format_count(shard['slots'], 'slot')}, {state}"))
    if facts.get("unserved_slots"):
        kind = "replica" if facts["replicas"] else "node"
        rows.append(("cluster", f"no {kind} serves {format_count(facts['unserved_slots'], 'slot')}"))
    return rows


def _format_link(facts: Facts, limit: float) -> str:
    """Return the state of a replica's link, and how old its values may be."""
    text, lag = MasterLink(**facts["master_link"]).text, facts["lag_seconds"]
    if lag is not None:
        text += f"; values are at most {lag:.0f} s old"
    if limit and (lag is None or lag > limit):
        text += f", so reads are refused (--max-lag {limit:g})"
    return text


def _format_hashes(facts: Facts) -> list[tuple[str, str]]:
    """Return a row about the layout of hashes, unless all are listed as fields."""
    if facts["hashes"] != "auto":
        return [("hashes", f"listed as {facts['hashes']}")]
    folders, count = facts["hash_file_folders"], facts["hash_file_folder_count"]
    if not folders:
        return []
    shown = ", ".join(f"/{folder}" for folder in folders)
    more = f" and {count - len(folders)} more" if count > len(folders) else ""
    return [("hashes", f"listed as files in {shown}{more} (more than --hash-limit hashes)")]


def _format_key_count(facts: Facts) -> str:
    if facts.get("paused"):
        return "read when the mount is used again"
    if not facts["ready"]:
        total = facts["scan_total"]
        return f"scanning: {facts['scanned']} of {total or 'an unknown number'}"
    return f"{facts['keys']}{' (rescanning)' if facts['scanning'] else ''}"


def _format_no_cache(facts: Facts) -> str:
    return f"expires after one second: {facts['kernel_cache_reason'] or 'changes are not tracked yet'}"
