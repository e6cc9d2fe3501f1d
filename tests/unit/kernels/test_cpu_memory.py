"""Memory of packed weights: aligned, disjoint, alive as long as any tensor."""

import gc

import torch

from outrider.kernels.cpu.arena import Arena


def test_tensors_are_aligned_and_disjoint() -> None:
    arena = Arena(chunk_bytes=4096)
    tensors = [arena.empty((n, 3), dtype) for n, dtype in [(5, torch.bfloat16), (7, torch.float32), (1, torch.uint8)]]
    for number, tensor in enumerate(tensors):
        assert tensor.is_contiguous()
        assert tensor.data_ptr() % 64 == 0
        tensor.fill_(number + 1)
    assert [tensor.unique().tolist() for tensor in tensors] == [[1], [2], [3]]


def test_a_tensor_larger_than_a_chunk_gets_one_of_its_own() -> None:
    tensor = Arena(chunk_bytes=64).empty((100, 10), torch.float32).fill_(2.0)
    assert tensor.sum() == 2000.0


def test_a_tensor_outlives_the_others_of_its_chunk() -> None:
    arena = Arena(chunk_bytes=128)
    first, second = arena.empty((16,), torch.float32), arena.empty((16,), torch.float32)
    arena.empty((32,), torch.float32)
    del first
    gc.collect()
    second.fill_(3.0)
    assert second.sum() == 48.0
