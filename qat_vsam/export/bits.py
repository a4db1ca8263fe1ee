"""Integer codes as a dense stream of bits: n codes of b bits take ceil(n b / 8) bytes.

    u_i      = (code_i - lowest) / stride          an unsigned number of b bits
    stream   = u_0 | u_1 << b | u_2 << 2b | ...    cut into bytes, lowest bit first; zeros at the end

One-bit weights are {-1, +1}, so their stride is 2; every other grid has stride 1.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from qat_vsam.errors import CheckpointError, InputError, explain


def packed_length(count: int, bits: int) -> int:
    """Bytes that `count` codes of `bits` bits take.

    Example:
        >>> packed_length(5, 3)
        2
    """
    return -(-count * bits // 8)


def pack_codes(codes: Tensor, bits: int, lowest: int, stride: int = 1) -> Tensor:
    """Pack integer codes, without a gap between them.

    Args:
        codes: integers lowest, lowest + stride, ..., lowest + stride (2^bits - 1); any shape, row by row.
        bits: width of a code, 1..8.
        lowest: the code that is stored as zero.
        stride: distance between neighbouring codes.

    Returns:
        uint8, shape (packed_length(codes.numel(), bits),).

    Raises:
        InputError: the width is not in 1..8, or a code does not fit.

    Example:
        >>> pack_codes(torch.tensor([-8, 7, 0]), bits=4, lowest=-8).tolist()  # 0x0, 0xF, 0x8
        [240, 8]
    """
    if not 1 <= bits <= 8:
        raise InputError(explain("bits", bits, "an integer in 1..8", "choose a width that the packed file can hold"))
    offsets = codes.detach().cpu().flatten().numpy().astype(np.int64) - lowest
    values = offsets // stride
    if offsets.size and (values.min() < 0 or values.max() >= 1 << bits or (offsets % stride).any()):
        got = f"codes in {codes.min().item()}..{codes.max().item()}"
        highest = lowest + stride * ((1 << bits) - 1)
        raise InputError(
            explain("codes", got, f"{lowest}..{highest} in steps of {stride}", "pack with the quantizer's range")
        )
    planes = (values[:, None] >> np.arange(bits)) & 1  # (n, bits)
    return torch.from_numpy(np.packbits(planes.astype(np.uint8).reshape(-1), bitorder="little"))


def unpack_codes(packed: Tensor, count: int, bits: int, lowest: int, stride: int = 1) -> Tensor:
    """The inverse of `pack_codes`.

    Args:
        packed: uint8, shape (packed_length(count, bits),).
        count: number of codes.
        bits, lowest, stride: as given to `pack_codes`.

    Returns:
        int16, shape (count,).

    Raises:
        CheckpointError: the stream has another length, or bits set behind the last code.

    Example:
        >>> unpack_codes(torch.tensor([240, 8], dtype=torch.uint8), count=3, bits=4, lowest=-8).tolist()
        [-8, 7, 0]
    """
    expected = packed_length(count, bits)
    if packed.dtype != torch.uint8 or packed.numel() != expected:
        got = f"{packed.numel()} x {packed.dtype}"
        raise CheckpointError(
            explain("packed codes", got, f"{expected} x torch.uint8", "export the model again, the file is broken")
        )
    stream = np.unpackbits(packed.cpu().flatten().numpy(), bitorder="little")
    if stream[count * bits :].any():
        raise CheckpointError(
            explain(
                "packed codes",
                "bits behind the last code",
                "zeros",
                "export the model again, the file is broken",
            )
        )
    planes = stream[: count * bits].reshape(count, bits).astype(np.int16)
    values = (planes << np.arange(bits, dtype=np.int16)).sum(axis=1, dtype=np.int16)
    return torch.from_numpy(values * np.int16(stride) + np.int16(lowest))
