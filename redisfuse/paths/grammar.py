"""Key ⇄ path: the grammar of names (docs/names.md).

Pure; safe from any thread; nothing is looked up. A key is split into components by the separator; all except the
last are directories. A name can carry, in this order:

- a field: `hello.howdy` is the field `howdy` of the hash `hello`;
- the file mark: `user%` is the file, where `user` is also a directory;
- a view: `user%json`.

If two things want one plain name, a directory wins over a file (the file gets the mark), and a field wins over a key
(the key's dots are written `%2E`). `parse` returns every reading of a path; the caller tries them in this order:
`as_directory`, `as_field`, `as_key`.

`builder.py` writes names, `parser.py` parses them, `encoding.py` has the escapes and cuts, `types.py` the results of
parsing. Import all public names from here.
"""

from dataclasses import dataclass

from redisfuse.errors import BadNameError, NameTooLongError, NotFoundError
from redisfuse.paths.builder import (
    DIGEST_DIR,
    FILE_MARK,
    PATH_MAX,
    REFRESH_FILE,
    VIEW_SUFFIXES,
    PathBuilder,
    sha256_hex,
)
from redisfuse.paths.encoding import NAME_MAX, decode_component
from redisfuse.paths.parser import parse_path
from redisfuse.paths.types import (
    DigestEntry,
    DigestField,
    DigestFieldsDir,
    DigestRoot,
    KeyRef,
    NameSegment,
    ParsedPath,
    PathCandidates,
    RefreshFile,
    RootDir,
)
from redisfuse.text import for_terminal

__all__ = [
    "DIGEST_DIR",
    "FILE_MARK",
    "NAME_MAX",
    "PATH_MAX",
    "REFRESH_FILE",
    "VIEW_SUFFIXES",
    "DigestEntry",
    "DigestField",
    "DigestFieldsDir",
    "DigestRoot",
    "KeyRef",
    "NameSegment",
    "ParsedPath",
    "PathCandidates",
    "PathCodec",
    "RefreshFile",
    "RootDir",
    "sha256_hex",
]


@dataclass(frozen=True, slots=True, eq=False)  # hashed by identity, which is fast
class PathCodec(PathBuilder):
    """Writes and parses the paths under one separator.

    Raises UsageError if the separator is empty.
    """

    def parse(self, path: bytes) -> ParsedPath:
        """Return the meaning of a path from the mount's root.

        The leading slash is optional. Raises NotFoundError if no key, field or directory can have this path.
        """
        return parse_path(self, path.removeprefix(b"/"))

    def find_hash_of_segment(self, segment: NameSegment) -> bytes | None:
        """Return the key of the hash whose fields' names a segment may begin."""
        dot = segment.prefix.find(b".", 1)
        component = decode_component(segment.prefix[:dot]) if dot > 0 else None
        return None if component is None else self.join_key((*segment.directory, component))

    def parse_new(self, path: bytes) -> PathCandidates:
        """Return the meaning of the path of a file or directory to be created.

        The same for the target of a rename. Raises BadNameError if no key can have this path, NameTooLongError if a
        name or the path is too long.
        """
        try:
            meaning = self.parse(path)
        except NotFoundError:
            raise self.invalid_name_error(path) from None
        if isinstance(meaning, PathCandidates) and meaning.view is None:
            return meaning
        reason = {
            PathCandidates: "is a view of a key, which can't be written",
            NameSegment: "is the beginning of a cut name; it exists while a key with such a name exists",
            RefreshFile: "starts a rescan; the key of that name is %2Eupdater",
        }.get(type(meaning), "is reserved by redisfuse")
        raise BadNameError(f"{for_terminal(path.removeprefix(b'/'))} {reason}")

    def invalid_name_error(self, path: bytes) -> BadNameError | NameTooLongError:
        """Return the error for a path at which no file can be created."""
        path = path.removeprefix(b"/")
        names = path.split(b"/")
        if len(path) > PATH_MAX or any(len(name) > NAME_MAX for name in names):
            limits = f"at most {NAME_MAX} bytes a name, {PATH_MAX} bytes a path"
            return NameTooLongError(
                f"{for_terminal(path[:60])}… is too long: {limits} (docs/names.md explains %+ and %long)"
            )
        for name in names:
            if self.separator in name:
                shown, separator = for_terminal(name), for_terminal(self.separator)
                corrected = for_terminal(name.replace(self.separator, b"/"))
                return BadNameError(f"{shown}: {separator} separates directories in a key; use {corrected}")
        return BadNameError(
            f"{for_terminal(path)} is not a valid name: % begins an escape (write %25 for a percent sign)"
        )
