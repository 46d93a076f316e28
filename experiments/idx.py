"""The IDX format of the MNIST family: a magic number, the shape, then the bytes."""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from ..core.errors import DataError

_UNSIGNED_BYTE = 0x08


def read_idx(path: Path) -> np.ndarray:
    """Reads a gzipped IDX file of unsigned bytes.

    Returns:
        (n, …) uint8, of the shape that the file declares.

    Raises:
        DataError: the file is missing, not gzip, of another element type, or shorter or longer than declared.
    """
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as cause:
        raise DataError(f"{path} cannot be read as gzip: {cause}") from cause
    if len(content) < 4 or content[:3] != bytes((0, 0, _UNSIGNED_BYTE)):
        raise DataError(f"{path} must begin with the IDX magic 00 00 08, got {content[:3].hex(' ') or 'nothing'}")
    offset = 4 + 4 * content[3]
    if len(content) < offset:
        raise DataError(f"{path} declares {content[3]} dimensions but ends before them")
    shape = struct.unpack_from(f">{content[3]}I", content, 4)
    if len(content) - offset != math.prod(shape):
        raise DataError(f"{path} must hold {math.prod(shape)} elements for shape {shape}, got {len(content) - offset}")
    return np.frombuffer(content, np.uint8, offset=offset).reshape(shape)
