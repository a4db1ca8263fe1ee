"""Packed codes come back exactly, and take no bit more than they must."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qat_vsam.errors import CheckpointError, InputError
from qat_vsam.export.bits import pack_codes, packed_length, unpack_codes


@given(
    count=st.integers(0, 257),
    bits=st.integers(1, 8),
    grid=st.sampled_from(["signed", "unsigned", "symmetric"]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=2000, deadline=None)
def test_every_length_and_width_comes_back_exactly(count: int, bits: int, grid: str, seed: int) -> None:
    stride = 2 if grid == "symmetric" else 1
    lowest = {"signed": -(1 << bits - 1), "unsigned": 0, "symmetric": 1 - (1 << bits)}[grid]
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 1 << bits, (count,), generator=generator) * stride + lowest
    packed = pack_codes(codes, bits, lowest, stride)
    assert packed.dtype == torch.uint8
    assert packed.numel() == packed_length(count, bits) == (count * bits + 7) // 8
    assert torch.equal(unpack_codes(packed, count, bits, lowest, stride).long(), codes)


@pytest.mark.parametrize(
    ("codes", "bits", "lowest", "stride", "stream"),
    [
        ([-8, 7, 0], 4, -8, 1, [0xF0, 0x08]),
        ([1, 2, 3, 4, 5], 3, 0, 1, [0b11_010_001, 0b0_101_100_0]),
        ([-2, -1, 0, 1], 2, -2, 1, [0b11_10_01_00]),
        ([1, -1, -1, -1, -1, -1, -1, 1, 1], 1, -1, 2, [0b1000_0001, 1]),
        ([-3, 3], 2, -3, 2, [0b11_00]),
        ([-128, 127], 8, -128, 1, [0, 255]),
    ],
)
def test_the_first_code_lies_in_the_lowest_bits(codes, bits, lowest, stride, stream) -> None:
    """Files that were written once stay readable."""
    packed = pack_codes(torch.tensor(codes), bits, lowest, stride)
    assert packed.tolist() == stream
    assert unpack_codes(packed, len(codes), bits, lowest, stride).tolist() == codes


@pytest.mark.parametrize(("code", "bits", "lowest", "stride"), [(8, 4, -8, 1), (-9, 4, -8, 1), (0, 1, -1, 2)])
def test_a_code_outside_its_grid_is_refused(code: int, bits: int, lowest: int, stride: int) -> None:
    with pytest.raises(InputError, match="codes: got"):
        pack_codes(torch.tensor([code]), bits, lowest, stride)


@pytest.mark.parametrize("bits", [0, 9])
def test_an_impossible_width_is_refused(bits: int) -> None:
    with pytest.raises(InputError, match=f"bits: got {bits}"):
        pack_codes(torch.tensor([0]), bits, 0)


def test_a_stream_of_another_length_or_with_stray_bits_is_refused() -> None:
    packed = pack_codes(torch.tensor([1, 2, 3]), 3, 0)  # 9 bits: 7 of the last byte's are padding
    with pytest.raises(CheckpointError, match="packed codes"):
        unpack_codes(packed[:1], 3, 3, 0)
    packed[1] |= 0x80
    with pytest.raises(CheckpointError, match="behind the last code"):
        unpack_codes(packed, 3, 3, 0)
