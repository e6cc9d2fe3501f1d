"""Servers that already run: several beside each other, a shared one, replicas, and how they are written."""

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from serving_runs import Run, running

from outrider.bench.config import BenchConfig
from outrider.bench.serving.endpoint import endpoint_of
from outrider.bench.serving.flags import serve_flags
from outrider.bench.serving.service import Launched
from outrider.errors import ConfigError, RunError
from outrider.vllm.environment import find_vllm

Serve = Callable[..., str]
SPECULATION = '{"method": "m", "num_speculative_tokens": 3}'


@pytest.fixture
def serve(fake: Path, tmp_path: Path) -> Iterator[Serve]:
    """Starts fake servers that somebody else would run; gives their addresses."""
    services = []

    def start(name: str = "m", *flags: str) -> str:
        vllm = find_vllm()
        service = Launched(
            name,
            lambda host, port: [*vllm.launcher, name, "--host", host, "--port", str(port), *flags],
            environment=vllm.environment(os.environ, offline=True),
            log=tmp_path / "remote.log",
            timeout_s=20,
        )
        services.append(service)
        return service.start()

    yield start
    for service in services:
        service.stop()


def test_an_endpoint_is_measured_and_left_running(run: Run, serve: Serve, pids: Path) -> None:
    plain, drafting = serve(), serve("m", "--speculative-config", SPECULATION)
    report = run(engines=(), endpoints=(f"none={plain}", f"drafting={drafting}"))
    rows = {row.method: row for row in report.rows}
    assert set(rows) == {"none", "drafting"}
    assert {row.engine for row in report.rows} == {"endpoint"}
    assert rows["none"].tau == 1
    assert rows["drafting"].tau is not None
    assert rows["drafting"].tau > 1
    assert rows["drafting"].speedup is not None
    assert rows["drafting"].equality is not None
    assert rows["drafting"].equality.num_equal == 3
    assert len(running(pids)) == 4


def test_counters_of_replicas_are_added_and_those_of_others_refused(run: Run, serve: Serve) -> None:
    url, other = serve(), serve("n")
    pages = tuple(f"{address.removesuffix('/v1')}/metrics" for address in (url, other))
    [row] = run(engines=(), endpoints=(url,), endpoint_metrics=pages).rows
    assert row.method == "served"
    assert row.tau == 1


def test_counters_that_do_not_fit_what_arrived_are_not_believed(run: Run, serve: Serve) -> None:
    url, other = serve(), serve("n")
    [row] = run(engines=(), endpoints=(url,), endpoint_metrics=(f"{other.removesuffix('/v1')}/metrics",)).rows
    assert row.tau is None
    assert row.tpot_s is not None
    assert row.tokens_per_s is not None


def test_nobody_is_there(run: Run) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/v1"
    with pytest.raises(RunError, match=f"endpoint served: {url}/models cannot be reached"):
        run(engines=(), endpoints=(url,))


def test_how_endpoints_are_written() -> None:
    assert endpoint_of("http://a:1/v1?x=y") == ("served", "http://a:1/v1?x=y")
    assert endpoint_of("eagle=https://a/v1").label == "eagle"
    with pytest.raises(ConfigError, match="must begin with http"):
        endpoint_of("localhost:8000")
    with pytest.raises(ConfigError, match="two endpoints are called 'served'"):
        BenchConfig(endpoints=("http://a/v1", "http://b/v1"))
    with pytest.raises(ConfigError, match="there is no engine"):
        BenchConfig(engines=())
    with pytest.raises(ConfigError, match="unknown engine 'vlm'; did you mean 'vllm'"):
        BenchConfig(engines=("vlm",))  # type: ignore[arg-type]


def test_flags_that_are_given_replace_ours() -> None:
    own = {"dtype": "bfloat16", "no-enable-prefix-caching": None, "seed": "0"}
    assert serve_flags(own, ["--enable_prefix_caching", "dtype=auto", 'x={"a": 1}']) == [
        "--seed", "0", "--enable-prefix-caching", "--dtype", "auto", "--x", '{"a": 1}',
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="no flag of a server"):
        serve_flags(own, ["=3"])
