"""Rows from files and data set libraries, each with the place it came from."""

import csv
import importlib
import io
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fiat_jax.errors import UserError
from fiat_jax.prompts.fields import SourceRow
from fiat_jax.remote import fetched, is_remote

COLUMNS, FILE = "?columns=", "file"
LONGEST_CELL = 2**31 - 1  # csv refuses cells of more than 128 KiB unless told


def read_source(source: str) -> Iterator[SourceRow]:
    """Yield the rows of one source in its order.

    Args:
        source: a path (local, gs://, s3://) that ends in .jsonl, .tsv (no quoting) or .csv; a pattern of such paths
            (mgsm/*.jsonl), whose rows come file by file, with the file's name without its ending as their field
            "file"; a table without a header says what is in it (x.tsv?columns=input,target); "hf://NAME:CONFIG/SPLIT",
            where NAME is a hub id or a folder written by `save_to_disk`; "tfds://NAME/SPLIT", where NAME names a
            data set prepared as array_record, or is its folder (class labels become their names); or
            "seqio://MODULE:NAME/SPLIT", a seqio Task or mixture that MODULE registers (`data.seqio_rows`).

    Raises:
        UserError: the source is absent, of unknown kind, empty, or not what its name promises; names file and line.
    """
    scheme, found, name = source.partition("://")
    rows = LIBRARIES[scheme](name, source) if found and scheme in LIBRARIES else _read_file(source)
    empty = True
    for row in rows:
        empty = False
        yield row
    if empty:
        raise UserError(f"{source} holds no rows")


def _read_file(source: str) -> Iterator[SourceRow]:
    name, _, named = source.partition(COLUMNS)
    columns = tuple(named.split(",")) if named else None
    paths = files_of(source)
    if not _is_pattern(name):
        yield from _read_one(name, columns)
        return
    if not paths:
        raise UserError(f"{source}: no file has such a name; correct the task's `splits`")
    for path in paths:
        for row in _read_one(str(path), columns):
            row.setdefault(FILE, path.stem)
            yield row


def files_of(source: str) -> list[Path]:
    """Return the files that a source names which are there, fetched if they are in an object store, in reading order.

    Of what a library has there are none.
    """
    name = source.partition(COLUMNS)[0]
    if is_remote(name) and name.partition("://")[0] in LIBRARIES:
        return []
    if not _is_pattern(name):
        path = fetched(name)
        return [path] if path.is_file() else []
    folder, _, pattern = name.rpartition("/")
    if _is_pattern(folder):
        raise UserError(f"{source}: a pattern is of file names alone; name the folder")
    there = fetched(folder or ("/" if name.startswith("/") else "."))
    return sorted(there.glob(pattern)) if there.exists() else []


def _is_pattern(name: str) -> bool:
    return bool(set("*[") & set(name))


def _read_one(source: str, columns: Sequence[str] | None) -> Iterator[SourceRow]:
    path = fetched(source)
    if path.suffix not in PARSERS:
        known = ", ".join([*PARSERS, *(f"{scheme}://" for scheme in LIBRARIES)])
        raise UserError(f"{source}: cannot tell how to read it from its name; known are {known}")
    if not path.exists():
        raise UserError(f"{source}: there is no such file; correct the task's `splits`")
    if columns and path.suffix not in TABLES:
        raise UserError(f"{source}{COLUMNS}...: only tables have columns: {', '.join(TABLES)}")
    lines = _lines(path.read_bytes(), source)
    if columns:
        separator = TABLES[path.suffix]
        lines = itertools.chain([(0, separator.join(columns))], lines)
    yield from PARSERS[path.suffix](lines, source, *([1] if columns else []))


def _lines(content: bytes, source: str) -> Iterator[tuple[int, str]]:
    """Yield (line number, line) split at line feeds alone: str.splitlines also splits inside JSON texts, at U+2028."""
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        try:
            yield number, line.removesuffix(b"\r").decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{source} line {number}: byte {error.start + 1} is not UTF-8; save the file as UTF-8"
            ) from None


def _read_jsonl(lines: Iterator[tuple[int, str]], source: str) -> Iterator[SourceRow]:
    for number, line in lines:
        if not line.strip():
            continue
        where = f"{source} line {number}"
        try:
            row = json.loads(line)
            json.dumps(row, ensure_ascii=False).encode()  # a lone surrogate is valid JSON and no text
        except json.JSONDecodeError as error:
            raise UserError(f"{where}: not valid JSON ({error.msg}, column {error.colno}); mend the line") from None
        except UnicodeEncodeError:
            raise UserError(
                f"{where}: half a surrogate pair (\\ud800 to \\udfff) is no character; mend the line"
            ) from None
        if not isinstance(row, dict):
            raise UserError(f'{where}: a row is a JSON object {{"field": value}}, not {type(row).__name__}')
        yield SourceRow(row, where)


def _read_tsv(lines: Iterator[tuple[int, str]], source: str, added: int = 0) -> Iterator[SourceRow]:
    text = (f"{line}\n" for _, line in lines)
    yield from _read_table(csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE), source, added)


def _read_csv(lines: Iterator[tuple[int, str]], source: str, added: int = 0) -> Iterator[SourceRow]:
    text = io.StringIO("".join(f"{line}\n" for _, line in lines), newline="")
    yield from _read_table(csv.reader(text, strict=True), source, added)


def _read_table(cells: Any, source: str, added: int) -> Iterator[SourceRow]:
    """Yield the rows of a table; `added` lines before the first are not the file's."""
    limit = csv.field_size_limit(LONGEST_CELL)
    try:
        header: list[str] = next(cells, [])
        if len(set(header)) < len(header):
            raise UserError(f"{source} line 1: a column name appears twice in {', '.join(header)}")
        for values in cells:
            if not values:
                continue
            where = f"{source} line {cells.line_num - added}"
            if len(values) != len(header):
                raise UserError(f"{where}: {len(values)} cells, but the header has {len(header)}; mend the line")
            yield SourceRow(dict(zip(header, values, strict=True)), where)
    except csv.Error as error:
        raise UserError(f"{source} line {cells.line_num - added}: {error}; mend the line") from None
    finally:
        csv.field_size_limit(limit)


def _read_hugging_face(name: str, source: str) -> Iterator[SourceRow]:
    import datasets  # 1 s, and most tasks are files

    name, _, split = name.rpartition("/")
    name, _, config = name.partition(":")
    try:
        if Path(name).is_dir():
            data: Any = datasets.load_from_disk(name)
            data = data[split] if isinstance(data, datasets.DatasetDict) else data
        else:
            data = datasets.load_dataset(name, config or None, split=split)
    except Exception as error:  # the library raises a dozen kinds for names and networks
        raise UserError(f"{source}: datasets cannot read it ({type(error).__name__}: {error})") from error
    labels = {key: kind.names for key, kind in data.features.items() if isinstance(kind, datasets.ClassLabel)}
    yield from _library_rows(data, labels, source)


def _read_tfds(name: str, source: str) -> Iterator[SourceRow]:
    import tensorflow_datasets as tfds  # its data sources need no TensorFlow

    name, _, split = name.rpartition("/")
    data: Any
    try:
        if Path(name).is_dir():
            builder: Any = tfds.builder_from_directory(name)
            data = builder.as_data_source(split)
        else:
            data = tfds.data_source(name, split=split)
    except Exception as error:  # the library raises a dozen kinds for names, files and networks
        raise UserError(
            f"{source}: tensorflow_datasets cannot read it ({type(error).__name__}: {error}); it must be prepared "
            f"in the format array_record: `tfds build {name} --file_format=array_record`"
        ) from error
    features = data.dataset_info.features
    labels = {key: kind.names for key, kind in features.items() if isinstance(kind, tfds.features.ClassLabel)}
    yield from _library_rows(data, labels, source)


def _read_seqio(name: str, source: str) -> Iterator[SourceRow]:
    # the one call upwards: seqio is for `data` alone, and rows are read here
    return importlib.import_module("fiat_jax.data.seqio_rows").read_seqio(name, source)


def _library_rows(data: Any, labels: Mapping[str, Sequence[str]], source: str) -> Iterator[SourceRow]:
    """Yield plain rows; `labels` are the names of class labels, stored as numbers, where -1 says that there is none."""
    for number, row in enumerate(data):
        plain = {key: _plain(value) for key, value in row.items()}
        for key, names in labels.items():
            label = plain[key]
            plain[key] = names[label] if label is not None and label >= 0 else None
        yield SourceRow(plain, f"{source} row {number}")


def _plain(value: Any) -> Any:
    """Return what JSON would hold: TFDS writes texts as bytes, numbers and lists as NumPy arrays."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.decode("utf-8") if isinstance(value, bytes) else value


Parser = Callable[..., Iterator[SourceRow]]  # of numbered lines and the source
TABLES = {".tsv": "\t", ".csv": ","}
PARSERS: dict[str, Parser] = {".jsonl": _read_jsonl, ".tsv": _read_tsv, ".csv": _read_csv}
LIBRARIES: dict[str, Callable[[str, str], Iterator[SourceRow]]] = {
    "hf": _read_hugging_face,
    "tfds": _read_tfds,
    "seqio": _read_seqio,
}
