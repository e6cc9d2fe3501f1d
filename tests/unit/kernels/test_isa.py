"""Instruction sets: the choice among them, the code that is compiled for each, and equal bits on all."""

import json
import os
import subprocess
import sys
from pathlib import Path

import llvmlite.binding as llvm
import pytest
from llvmlite import ir

from outrider.errors import ConfigError
from outrider.kernels.cpu import isa as sets
from outrider.kernels.cpu.isa import ISAS, chosen, forced, supported
from outrider.kernels.cpu.quant_layout import Layout
from outrider.kernels.cpu.quant_tile import Strip
from outrider.kernels.cpu.vector import I64, Emitter

HERE = Path(__file__).parent
PROCESSORS = {
    "portable": ("x86-64", 8, "pmaddwd"),
    "avx2": ("haswell", 8, "vpmaddubsw"),
    "avxvnni": ("alderlake", 8, "{vex}"),
    "avx512": ("skylake-avx512", 16, "vpmaddubsw"),
    "vnni": ("icelake-server", 16, "vpdpbusd"),
    "amx": ("sapphirerapids", 16, "tdpbsud"),
}


def test_the_best_set_is_chosen_unless_one_is_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    assert supported()[0] == "portable"
    assert chosen() == supported()[-1] or "OUTRIDER_CPU_ISA" in os.environ
    monkeypatch.setenv("OUTRIDER_CPU_ISA", "portable")
    assert forced() == "portable"


def test_a_set_that_the_processor_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sets, "supported", lambda: ("portable", "avx2"))
    monkeypatch.setenv("OUTRIDER_CPU_ISA", "amx")
    with pytest.raises(ConfigError, match=r"OUTRIDER_CPU_ISA='amx' needs .* set one of portable, avx2"):
        forced()


def test_sets_are_those_of_the_processors_features(monkeypatch: pytest.MonkeyPatch) -> None:
    features = dict.fromkeys(("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512vnni"), True)
    monkeypatch.setattr(sets, "host_features", lambda: features)
    assert supported.__wrapped__() == ("portable", "avx2", "avx512", "vnni")
    monkeypatch.setattr(sets, "host_features", lambda: features | {"amx-tile": True, "amx-int8": True})
    for allowed in (True, False):
        monkeypatch.setattr(sets, "_may_use_tiles", lambda allowed=allowed: allowed)
        assert ("amx" in supported.__wrapped__()) is allowed


@pytest.mark.parametrize("isa", ISAS)
def test_code_is_made_for_each_set(isa: str) -> None:
    cpu, lanes, instruction = PROCESSORS[isa]
    module = ir.Module("strip")
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64] * 4), "strip")
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    emitter, (x, weight, blocks, out) = Emitter(builder), function.args
    strip = Strip(emitter, Layout(bits=4, has_minima=True), isa, lanes, 16 if isa == "amx" else 4)
    for row, total in enumerate(strip.product(x, weight, blocks)):
        emitter.store(emitter.at(out, row * lanes, 4), total)
    builder.ret_void()
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    parsed = llvm.parse_assembly(str(module))
    machine = llvm.Target.from_triple("x86_64-unknown-linux-gnu").create_target_machine(cpu=cpu, opt=2)
    assert instruction in machine.emit_assembly(parsed)


@pytest.mark.parametrize("isa", ["vnni", "amx"])
def test_a_pretended_set_gives_the_bits_of_this_processor(isa: str, tmp_path: Path) -> None:
    names = ["Q4_1"]
    found = [digests(which, names, tmp_path) for which in ("own", isa)]
    assert found[0] == found[1]


def digests(isa: str, names: list[str], cache: Path) -> dict[str, str]:
    environment = os.environ | {"NUMBA_CACHE_DIR": str(cache / isa)} if isa != "own" else os.environ
    command = [sys.executable, str(HERE / "run_pretended.py"), isa, *names]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found
