"""Fixtures shared by every test."""

import gc
import os
import signal
import threading
from pathlib import Path

import hypothesis
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config

from outrider.env import cache_home
from outrider.formats.locate import locate
from outrider.targets.hf import HFTarget

TESTS = Path(__file__).parent
UNTRACED = {"cli", "interop", "model", "pages", "train", "vllm"}
UNTRACED_UNITS = {"bench", "benchmarks", "data", "docs", "doctor", "examples", "formats", "house", "planning"}
UNTRACED_UNITS |= {"report", "results", "serve", "traces", "tuning"}
"""Tests of what is not the algorithm, whose coverage is measured."""

# A busy machine is slow; that is no failure.
hypothesis.settings.register_profile("outrider", deadline=None)
hypothesis.settings.load_profile("outrider")


def pytest_configure(config: pytest.Config) -> None:
    """One core per worker, and compiled kernels for all.

    Processes that tests start would otherwise run a thread on each core, and wait there; and a worker or process whose
    first kernel is wanted by a test with a cache of its own would compile every kernel anew.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("NUMBA_CACHE_DIR", str(cache_home() / "kernels"))
    if config.getoption("cov_source", default=None):
        _trace_no_threads()


def _trace_no_threads() -> None:
    """Measure coverage in main threads alone.

    In Python 3.11, of two threads that start at the same time under a trace function, one can die with "Cannot install
    a trace function while another trace function is being installed".
    """
    threading.settrace(None)  # type: ignore[arg-type]
    threading.settrace = lambda trace: None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Measure the coverage of the algorithm by the tests of it: tracing would slow all others by a quarter."""
    if config.pluginmanager.hasplugin("pytest_cov"):
        for item in items:
            part, inner, *_ = (*item.path.parts[len(TESTS.parts) :], "", "")
            if part in UNTRACED or (part == "unit" and inner in UNTRACED_UNITS):
                item.add_marker("no_cover")


def pytest_collection_finish() -> None:
    """Take all that imports made out of the garbage collector's sight: every benchmark unit collects before it runs."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tiny tensors gain nothing from a thread pool, and a spinning pool slows everything beside it."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """A background shell starts its commands with interrupts ignored, which the processes of tests would inherit."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def smollm2_dir() -> Path:
    """The embedded target's directory; fetched and converted by the first test that ever asks for it."""
    return locate("smollm2-135m")


@pytest.fixture(scope="session")
def tiny_gpt2_target() -> HFTarget:
    """A random GPT-2 in fp64 through `transformers`, of the same sizes as `tiny_target`, for the contract tests."""
    sizes = {"vocab_size": 31, "n_positions": 96, "n_embd": 16, "n_layer": 2, "n_head": 4}
    config = GPT2Config(**sizes, initializer_range=0.5, bos_token_id=None, eos_token_id=30)
    torch.manual_seed(0)
    return HFTarget(AutoModelForCausalLM.from_config(config, dtype=torch.float64), "tiny-gpt2")
