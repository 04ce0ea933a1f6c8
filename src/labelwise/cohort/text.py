"""Reading small text files that people edit."""

from __future__ import annotations

from pathlib import Path

from labelwise.errors import DataError


def read_text(file: Path, *, missing: str, do: str | None = None, encoding_do: str | None = None) -> str:
    """The text of a UTF-8 file, without the byte order mark that some editors put first.

    Parameters
        missing       what to say if there is no such file
        do            what to do then
        encoding_do   what to do if the file is not UTF-8

    Errors
        DataError     the file is missing, unreadable or not UTF-8; the last with the row
    """
    try:
        data = file.read_bytes()
    except FileNotFoundError as error:
        raise DataError(missing, file=file, do=do) from error
    except OSError as error:
        raise DataError(f"the file cannot be read: {error.strerror}", file=file) from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = data.count(b"\n", 0, error.start) + 1
        raise DataError("the file is not UTF-8 text", file=f"{file}, row {row}", do=encoding_do) from error
