"""The inside of an .mnn file, as far as Mirabelle reads and changes it. It is a flatbuffer: tables
of numbered fields, found through offsets.

Field numbers are those of MNN's schema (`schema/default/*.fbs` of MNN 3.6), which by the rules of
flatbuffers may only grow. Scalars are changed in place, and what is new goes to the end, so that
nothing in the file moves.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

NET_BIZ_CODE, NET_OPS, NET_UUID = 0, 3, 11
OP_PARAMETERS, OP_NAME, OP_TYPE = 2, 3, 5
CONVOLUTION = 12  # of OP_TYPE; linear layers are stored as such too
CONVOLUTION_WEIGHT, CONVOLUTION_QUANTIZED, CONVOLUTION_SPARSE = 1, 3, 5
QUANTIZED_VALUES, QUANTIZED_SIZE, QUANTIZED_INDEX = (
    1,
    12,
    13,
)  # sparse weights are stored as a kind of quantized ones
SPARSE_METHOD, SPARSE_ARGUMENTS = 0, 1
ATTRIBUTE_NUMBER, ATTRIBUTE_KEY = 1, 3


@dataclass(frozen=True)
class Table:
    """A table of `data` at `position`."""

    data: bytearray
    position: int

    def field(self, number: int) -> int | None:
        """Where the field's bytes are; None where the table leaves it out."""
        start = self.position - struct.unpack_from("<i", self.data, self.position)[0]
        place = 4 + 2 * number
        if place >= struct.unpack_from("<H", self.data, start)[0]:
            return None
        offset = struct.unpack_from("<H", self.data, start + place)[0]
        return self.position + offset if offset else None

    def _target(self, number: int) -> int | None:
        at = self.field(number)
        return None if at is None else at + struct.unpack_from("<I", self.data, at)[0]

    def table(self, number: int) -> Table | None:
        at = self._target(number)
        return None if at is None else Table(self.data, at)

    def tables(self, number: int) -> Iterator[Table]:
        at = self._target(number)
        if at is None:
            return
        for place in range(at + 4, at + 4 + 4 * struct.unpack_from("<I", self.data, at)[0], 4):
            yield Table(self.data, place + struct.unpack_from("<I", self.data, place)[0])

    def span(self, number: int) -> tuple[int, int] | None:
        """The first element of a string or vector and its length."""
        at = self._target(number)
        return None if at is None else (at + 4, struct.unpack_from("<I", self.data, at)[0])

    def put_at_end(
        self, number: int, content: bytes, instead_of: int, without: Iterable[int]
    ) -> None:
        """Gives the table a field, whose content goes to the end of the file, in the place of the
        field `instead_of`, and takes the fields `without` from it.

        Tables of the same fields share the list of where these are, so this one gets a list of its
        own, at the end too.
        """
        slot = self.field(instead_of)
        assert slot is not None
        start = self.position - struct.unpack_from("<i", self.data, self.position)[0]
        fields = bytearray(self.data[start : start + struct.unpack_from("<H", self.data, start)[0]])
        for gone in (instead_of, *without):
            struct.pack_into("<H", fields, 4 + 2 * gone, 0)
        struct.pack_into("<H", fields, 4 + 2 * number, slot - self.position)
        struct.pack_into("<i", self.data, self.position, self.position - self._append(fields))
        struct.pack_into("<I", self.data, slot, self._append(content) - slot)

    def _append(self, content: bytes | bytearray) -> int:
        self.data.extend(bytes(-len(self.data) % 4))
        self.data.extend(content)
        return len(self.data) - len(content)

    def numbers(self, number: int, kind: str) -> np.ndarray:
        """A vector of numbers, of NumPy's type `kind`."""
        span = self.span(number)
        return (
            np.frombuffer(b"") if span is None else np.frombuffer(self.data, kind, span[1], span[0])
        )

    def text(self, number: int) -> str | None:
        span = self.span(number)
        return None if span is None else bytes(self.data[span[0] : span[0] + span[1]]).decode()


def root(data: bytearray) -> Table:
    return Table(data, struct.unpack_from("<I", data, 0)[0])


def note(data: bytearray) -> str | None:
    """The text that was given as the file's "biz code" when it was written."""
    return root(data).text(NET_BIZ_CODE)


def same_every_time(data: bytearray) -> None:
    """Zeros in place of the random number that MNN gives each file, so that the same network is the
    same bytes.
    """
    if span := root(data).span(NET_UUID):
        data[span[0] : span[0] + span[1]] = b"0" * span[1]


@dataclass(frozen=True)
class SparseLayer:
    """A layer that MNN stored as sparse. name: of the operator. parameters: where it is in the
    file.
    """

    name: str
    parameters: int

    def run_as(self, data: bytearray, block: int, elements: int, blocks: int) -> None:
        """How the layer is to run in the file `data`: in blocks of `block` output channels, with so
        many stored weights in so many blocks; 0: dense.
        """
        parameters = Table(data, self.parameters)
        sparse = parameters.table(CONVOLUTION_SPARSE)
        assert sparse is not None
        if not block:
            parameters.put_at_end(
                CONVOLUTION_WEIGHT, _dense(parameters), CONVOLUTION_QUANTIZED, [CONVOLUTION_SPARSE]
            )
            return
        numbers = {"sparseBlockOC": block, "NNZElement": elements, "blockNumber": blocks}
        for argument in sparse.tables(SPARSE_ARGUMENTS):
            place = argument.field(ATTRIBUTE_NUMBER)
            if (key := argument.text(ATTRIBUTE_KEY)) in numbers and place is not None:
                struct.pack_into("<i", data, place, numbers[key])
        method = sparse.field(SPARSE_METHOD)
        if method is not None:
            data[method] = int(block > 1)


def _dense(parameters: Table) -> bytes:
    """The weights of a sparse layer as the vector that a dense one has."""
    stored = parameters.table(CONVOLUTION_QUANTIZED)
    size = None if stored is None else stored.field(QUANTIZED_SIZE)
    assert stored is not None and size is not None
    weights = np.zeros(struct.unpack_from("<I", stored.data, size)[0], "<f4")
    weights[stored.numbers(QUANTIZED_INDEX, "<u4")] = stored.numbers(QUANTIZED_VALUES, "<f4")
    return struct.pack("<I", len(weights)) + weights.tobytes()


def sparse_layers(data: bytearray) -> list[SparseLayer]:
    """The layers of a file that MNN's converter found sparse, in order."""
    found = []
    for op in root(data).tables(NET_OPS):
        kind, name = op.field(OP_TYPE), op.text(OP_NAME)
        if kind is None or name is None or struct.unpack_from("<i", data, kind)[0] != CONVOLUTION:
            continue
        parameters = op.table(OP_PARAMETERS)
        if parameters is not None and parameters.table(CONVOLUTION_SPARSE) is not None:
            found.append(SparseLayer(name, parameters.position))
    return found
