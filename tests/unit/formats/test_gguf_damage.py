"""2,000 damaged GGUF files: each is read within its bounds, or refused with one sentence that names it."""

import random
import struct
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import gguf
import pytest
from test_gguf_blocks import random_blocks
from test_gguf_stored import gguf_name
from transformers import LlamaConfig, LlamaForCausalLM

from outrider.errors import CheckpointError
from outrider.formats.gguf.stored import open_stored
from outrider.ops.quantised import QuantisedMatrix

Kind = gguf.GGMLQuantizationType
NUM_EACH = 250
ODD = (0, 1, 2, 3, 31, 32, 255, 256, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 32, 2**64 - 1)
NARROW = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "MXFP4")
WIDE = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS")
Damage = Callable[[bytearray, "Places", random.Random], bytearray]


class Places:
    """The first bytes of names in a file's header, and its end."""

    def __init__(self, data: bytes, file: Path) -> None:
        reader = gguf.GGUFReader(file)
        self.end = reader.data_offset
        self.keys = [field.offset for field in reader.fields.values() if not field.name.startswith("GGUF.")]
        self.tensors = [tensor.field.offset for tensor in reader.tensors]
        self.size = len(data)


def odd_bytes(rng: random.Random, size: int) -> bytes:
    return (rng.choice(ODD) % 2 ** (8 * size)).to_bytes(size, "little")


def flipped(data: bytearray, places: Places, rng: random.Random) -> bytearray:
    for _ in range(rng.choice((1, 1, 2, 8))):
        data[rng.randrange(places.end)] ^= 1 << rng.randrange(8)
    return data


def numbered(data: bytearray, places: Places, rng: random.Random) -> bytearray:
    size = rng.choice((1, 4, 8))
    at = rng.randrange(4, places.end - size)
    data[at : at + size] = odd_bytes(rng, size)
    return data


def counted(data: bytearray, places: Places, rng: random.Random) -> bytearray:
    """Change a count of the header, or the length of a key's name, its type, or what follows it."""
    at = rng.choice((4, 8, 16, *places.keys))
    if at > 16:
        length = int.from_bytes(data[at : at + 8], "little")
        at += rng.choice((0, 8 + length, 12 + length, 16 + length))
    size = rng.choice((4, 8))
    data[at : at + size] = odd_bytes(rng, size)
    return data


def misplaced(data: bytearray, places: Places, rng: random.Random) -> bytearray:
    """Change a tensor's number of dimensions, one of its sizes, its type or its offset."""
    at = rng.choice(places.tensors)
    at += 8 + int.from_bytes(data[at : at + 8], "little")
    dimensions = int.from_bytes(data[at : at + 4], "little")
    match rng.randrange(4):
        case 0:
            data[at : at + 4] = struct.pack("<I", rng.choice((0, 1, 2, 3, 4, 5, 2**32 - 1)))
        case 1:
            data[at + 4 : at + 12] = odd_bytes(rng, 8)
        case 2:
            place = at + 4 + 8 * dimensions
            data[place : place + 4] = struct.pack("<I", rng.choice((*range(48), 2**32 - 1)))
        case _:
            place = at + 8 + 8 * dimensions
            data[place : place + 8] = (
                odd_bytes(rng, 8) if rng.random() < 0.5 else struct.pack("<Q", 32 * rng.randrange(999))
            )
    return data


def cut(data: bytearray, places: Places, rng: random.Random) -> bytearray:
    return data[: rng.randrange(rng.choice((places.end, places.size)))]


def spliced(data: bytearray, places: Places, rng: random.Random) -> bytearray:
    start, stop, at = sorted(rng.randrange(places.end) for _ in range(3))
    piece = data[start : min(stop, start + 64)]
    return data[:at] + (piece if rng.random() < 0.5 else b"") + data[at + rng.choice((0, len(piece))) :]


def renamed(data: bytearray, places: Places, rng: random.Random) -> bytearray:
    at = rng.choice((*places.keys, *places.tensors))
    length = int.from_bytes(data[at : at + 8], "little")
    data[at + 8 + rng.randrange(length)] = rng.choice((0, 10, 46, 95, 97, 128, 195, 255))
    return data


def overwritten(data: bytearray, places: Places, rng: random.Random) -> bytearray:
    """Change bytes of tensors: a scale becomes NaN or infinite, or a value any other."""
    for _ in range(rng.choice((1, 1, 4, 64))):
        at = rng.randrange(places.end, places.size - 4)
        data[at : at + 4] = rng.choice((b"\x00\x7e\x00\x7e", b"\xff\xff\xff\xff", bytes(4), rng.randbytes(4)))
    return data


@pytest.fixture
def intact(write_gguf: Callable[..., Path], tiny_sizes: dict[str, int], tmp_path: Path) -> Path:
    """A llama of six layers with every quantised type, F16 and F32."""
    sizes = tiny_sizes | {"intermediate_size": 256, "num_hidden_layers": 6}
    model = LlamaForCausalLM(LlamaConfig(**sizes))
    narrow, wide = cycle(NARROW), cycle(WIDE)
    blocks = {}
    for seed, (name, tensor) in enumerate(model.state_dict().items()):
        if tensor.ndim == 2 and "v_proj" not in name:
            kind = next(wide if tensor.shape[1] == 256 else narrow)
            features = gguf.GGML_QUANT_SIZES[Kind[kind]][0]
            data = random_blocks(kind, tensor.shape[0], tensor.shape[1] // features, seed)
            blocks[gguf_name(name)] = (data, Kind[kind])
    return write_gguf(tmp_path / "intact.gguf", model, kind=Kind.F16, blocks=blocks)


def read_all(file: Path) -> None:
    """Open a model and read every tensor in two ranges; check that none lies outside the file."""
    weights = open_stored(file).weights
    size = file.stat().st_size
    for name in weights:
        stored = weights.stored(name)
        assert 0 < stored.offset <= stored.offset + stored.num_bytes <= size
        found = weights[name]
        if isinstance(found, QuantisedMatrix):
            num_rows, middle = found.shape[0], found.shape[0] // 2
            assert len(found.rows(0, middle).codes_OF) == middle
            assert len(found.rows(middle, num_rows).codes_OF) == num_rows - middle
        else:
            assert tuple(found.shape) == stored.shape


def test_the_intact_file_is_read(intact: Path) -> None:
    read_all(intact)


DAMAGES: list[Damage] = [flipped, numbered, counted, misplaced, cut, spliced, renamed, overwritten]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_file_is_read_within_its_bounds_or_refused_with_a_sentence(
    damage: Damage, intact: Path, tmp_path: Path
) -> None:
    content = intact.read_bytes()
    places = Places(content, intact)
    file = tmp_path / "damaged.gguf"
    refused = 0
    for seed in range(NUM_EACH):
        file.write_bytes(damage(bytearray(content), places, random.Random(f"{damage.__name__} {seed}")))
        try:
            read_all(file)
        except CheckpointError as error:
            message = str(error)
            assert str(file) in message, seed
            assert message.isprintable(), seed
            assert len(message) < 800, seed
            refused += 1
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
    assert refused > NUM_EACH // 5, "the damage must be such that most of it is seen"
