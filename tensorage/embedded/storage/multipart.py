"""Uploads by form (``multipart/form-data``), parsed while they arrive."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tensorage.embedded.storage.errors import invalid_request

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

#: Largest field besides the file. The largest one is `metadata`, a JSON object of the user's.
MAX_FIELD_BYTES: Final = 1 << 20
_MAX_FIELDS: Final = 100

#: Most bytes of the headers of all parts together.
_MAX_HEADER_BYTES: Final = 64 * 1024


@dataclass
class _Part:
    """One part of a form: its headers, and whether its data is the file's."""

    headers: dict[str, bytes] = field(default_factory=dict)
    name: str = ""
    is_file: bool = False


@dataclass
class FormUpload:
    """A form that is arriving.

    Parameters
    ----------
    boundary
        Boundary of the parts, from the request's content type.
    fields
        Fields besides the file that have arrived.
    content_type
        Content type of the file; None if the form has none.
    """

    boundary: bytes
    fields: dict[str, bytes] = field(default_factory=dict)
    content_type: str | None = None

    def __post_init__(self) -> None:
        # Imported here, since most uploads are no forms.
        from python_multipart.multipart import MultipartParser

        self._part = _Part()
        self._header = [b"", b""]
        self._header_nbytes = 0
        self._content: list[bytes] = []
        self._has_file = self._is_complete = False
        callbacks: MultipartCallbacks = {
            "on_part_begin": self._begin_part,
            "on_header_field": lambda data, start, end: self._add_to_header(0, data[start:end]),
            "on_header_value": lambda data, start, end: self._add_to_header(1, data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._add_data,
            "on_end": self._end,
        }
        self._parser = MultipartParser(self.boundary, callbacks)

    async def feed(self, piece: bytes, sink: Callable[[bytes], Awaitable[None]]) -> None:
        """Parse a piece of the body, and pass the file's content in it to `sink`."""
        from python_multipart.exceptions import FormParserError

        try:
            self._parser.write(piece)
        except FormParserError as error:
            raise invalid_request(f"The form cannot be read: {error}") from error
        content, self._content = self._content, []
        for part in content:
            await sink(part)

    def check_complete(self) -> None:
        if not self._is_complete:
            raise invalid_request("The form ends before its closing boundary")
        if not self._has_file:
            raise invalid_request("The form holds no file")

    def _begin_part(self) -> None:
        self._part = _Part()

    def _add_to_header(self, position: int, data: bytes) -> None:
        self._header_nbytes += len(data)
        if self._header_nbytes > _MAX_HEADER_BYTES:
            raise invalid_request("The headers of the form's parts are too large")
        self._header[position] += data

    def _end_header(self) -> None:
        name, value = self._header
        self._part.headers[name.decode("latin-1").lower()] = value
        self._header = [b"", b""]

    def _end_headers(self) -> None:
        from python_multipart.multipart import parse_options_header

        part = self._part
        _, options = parse_options_header(part.headers.get("content-disposition"))
        part.name = options.get(b"name", b"").decode("latin-1")
        # The names of the file's field differ between clients. All of them send a file name with it.
        part.is_file = b"filename" in options
        if part.is_file and self._has_file:
            raise invalid_request("The form holds more than one file")
        if part.is_file:
            self._has_file = True
            declared = part.headers.get("content-type")
            self.content_type = None if declared is None else declared.decode("latin-1")
        elif len(self.fields) >= _MAX_FIELDS:
            raise invalid_request("The form has too many fields")
        else:
            self.fields[part.name] = b""

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        if self._part.is_file:
            self._content.append(data[start:end])
            return
        value = self.fields[self._part.name] + data[start:end]
        if len(value) > MAX_FIELD_BYTES:
            raise invalid_request(f"The form's field {self._part.name!r} is too large")
        self.fields[self._part.name] = value

    def _end(self) -> None:
        self._is_complete = True
