"""Write a GGUF file's widened weights in other types: the files that docs/results/quality.md measures.

    python dev/quality_files.py smollm2-135m OUTPUT [--llama-quantize PATH]

Matrices are widened to bf16 and rounded again. gguf-py rounds to Q8_0, Q5_0, Q4_0 and MXFP4 here, with the embedding in
Q8_0 in each; it knows no K-quants and no IQ4_NL. `llama-quantize` (`make peers` builds it) writes those with its own
mix of types.

Example: `OUTPUT/Q4_0.gguf` has Q4_0 projections and a Q8_0 embedding.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
from gguf.quants import dequantize, quantize

from outrider.formats.locate import gguf_file

KINDS = ("BF16", "Q8_0", "Q5_0", "Q4_0", "MXFP4")
BY_LLAMA = ("Q6_K", "Q5_K_M", "Q4_K_M", "Q2_K", "IQ4_NL")
EMBEDDINGS = ("token_embd.weight", "output.weight")


def write(source: GGUFReader, path: Path, kind: str) -> None:
    """Write all tensors with matrices of one type, and all metadata but the file's own type."""
    writer = GGUFWriter(path, source.fields["general.architecture"].contents())
    for key, field in source.fields.items():
        if key.startswith("GGUF.") or key in ("general.architecture", "general.file_type"):
            continue
        inner = field.types[1] if field.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(key, field.contents(), field.types[0], sub_type=inner)
    for tensor in source.tensors:
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if values.ndim < 2:
            writer.add_tensor(tensor.name, values)
            continue
        bf16 = quantize(values, GGMLQuantizationType.BF16)
        stored = GGMLQuantizationType["Q8_0" if tensor.name in EMBEDDINGS and kind != "BF16" else kind]
        widened = dequantize(bf16, GGMLQuantizationType.BF16)
        data = bf16 if kind == "BF16" else quantize(widened, stored)
        writer.add_tensor(tensor.name, data, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target")
    parser.add_argument("output", type=Path)
    parser.add_argument("--llama-quantize", type=Path, default=None)
    options = parser.parse_args()
    file = gguf_file(options.target)
    if file is None:
        parser.error(f"{options.target} is no GGUF file")
    options.output.mkdir(parents=True, exist_ok=True)
    for kind in KINDS:
        write(GGUFReader(file), options.output / f"{kind}.gguf", kind)
        print(f"{kind}.gguf", file=sys.stderr)
    for kind in BY_LLAMA if options.llama_quantize else ():
        given = [options.output / "BF16.gguf", options.output / f"{kind}.gguf", kind]
        subprocess.run([options.llama_quantize, *given], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
