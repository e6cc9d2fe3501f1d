"""A signal that comes while a kernel is compiled takes effect behind it."""

import os
import signal
import threading
from collections.abc import Iterator

import numba
import pytest

from outrider.kernels.deferral import signals_deferred, uninterrupted


@pytest.fixture
def at_once() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("at_once")
def test_a_signal_waits_for_the_end() -> None:
    done = []

    def work() -> None:
        with signals_deferred():
            os.kill(os.getpid(), signal.SIGINT)
            done.append("the work")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["the work"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_threads_go_on() -> None:
    done = []

    def work() -> None:
        with signals_deferred():
            done.append("the work")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert done == ["the work"]


@pytest.mark.usefixtures("at_once")
def test_a_kernel_is_compiled_whole() -> None:
    def double(number):  # type: ignore[no-untyped-def]
        return 2 * number

    kernel = numba.njit(double)
    inner, compiled = kernel.compile, []

    def compile_interrupted(signature: object) -> object:
        os.kill(os.getpid(), signal.SIGINT)
        compiled.append(signature)
        return inner(signature)

    kernel.compile = compile_interrupted
    kernel = uninterrupted(kernel)
    with pytest.raises(KeyboardInterrupt):
        kernel(21)
    assert len(compiled) == 1
    assert kernel(21) == 42
    assert len(compiled) == 1
