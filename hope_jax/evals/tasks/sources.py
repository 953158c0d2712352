"""Texts that an evaluation reads: a file or folder that a flag names, or documents of the embedded corpus."""

from hope_jax.core.errors import ConfigError, DataError
from hope_jax.core.paths import as_path, files_in
from hope_jax.data.corpus import Document, parse_documents

SUFFIX = ".txt"


def read_documents(key: str, source: str) -> list[Document]:
    """The documents of a UTF-8 text file, or of the `.txt` files of a folder (any depth), in a fixed order.

    A file holds one document, or several separated by lines that hold only a form feed. Documents of white
    space alone are left out. `Document.source` is the file's path in the folder, or its name.

    Args: the option that names the source, for errors, and the source.

    Raises:
      ConfigError: there is no such file or folder, or no text in it.
      DataError: a file cannot be read or is not UTF-8.
    """
    root = as_path(key, source)
    if root.is_dir():
        files = {p.relative_to(root).as_posix(): p for p in files_in(root, f"**/*{SUFFIX}")}
        if not files:
            raise ConfigError(
                f"{key}={source}: no {SUFFIX} file in this folder; text files must end in {SUFFIX}"
            )
    elif root.is_file():
        files = {root.name: root}
    else:
        raise ConfigError(
            f"{key}={source}: no such file or folder; name a text file or a folder of {SUFFIX} files"
        )
    documents: list[Document] = []
    for name, path in files.items():
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise DataError(f"{key}={source}: cannot read {name}: {error.strerror or error}") from None
        documents += parse_documents(name, raw, key)
    if not documents:
        raise ConfigError(f"{key}={source}: there is no text in it; want at least one document")
    return documents
