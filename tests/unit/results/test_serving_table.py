"""Tables of serving engines: their own, and beside ours."""

from outrider.results.rows import Equality, Report, Row
from outrider.results.statistics import Interval, Percentiles
from outrider.results.tables.table import sheets_of


def row(engine: str, method: str, **more: object) -> Row:
    fields = {"batch": 1, "temperature": 0.0, "num_prompts": 3, "category": "chat", "tokens_per_s": 50.0}
    return Row(engine=engine, method=method, **(fields | more))  # type: ignore[arg-type]


DRAFTING = row(
    "vllm",
    "m",
    tokens_per_s=100.0,
    tau=2.5,
    mean_acceptance_length=3.0,
    acceptance_per_pos=(0.9, 0.5, 0.25, 0.1),
    speedup=Interval(point=2.0, low=1.8, high=2.2),
    ttft_s=Percentiles(p50=0.01, p95=0.02, p99=0.03),
    tpot_s=Percentiles(p50=0.005, p95=0.006, p99=0.007),
    equality=Equality(num_answers=4, num_equal=3, equal_share=0.9),
)


def tables(*rows: Row) -> dict[str, tuple[tuple[str, ...], ...]]:
    report = Report(run=None, target="t", dtype="bfloat16", device="cpu", commit=None, rows=rows)
    return {sheet.title: sheet.lines for sheet in sheets_of(report)}


def test_what_a_user_of_the_server_feels() -> None:
    [(title, lines)] = tables(row("vllm", "none", tau=1.0), DRAFTING).items()
    assert title == "vllm, 1 at a time, temperature 0"
    assert lines[0] == ("chat", "none", "50.0", "-", "1.00", "-", "-", "1 (baseline)", "1", "-", "-", "-")
    assert lines[1] == (
        "chat", "m", "100.0", "-", "2.50", "3.00", "0.90 0.50 0.25", "2.00 [1.80, 2.20]", "-",
        "10.0/20.0", "5.0/6.0/7.0", "3 of 4",
    )  # fmt: skip


def test_engines_side_by_side() -> None:
    ours = row("outrider", "m", tokens_per_s=90.0, speedup=Interval(point=1.5, low=None, high=None))
    found = tables(row("outrider", "none"), ours, row("vllm", "none", tokens_per_s=57.0), DRAFTING)
    lines = next(lines for title, lines in found.items() if title.startswith("engines side by side"))
    assert lines == (("chat", "none", "50.0", "57.0"), ("chat", "m", "90.0 (1.50x)", "100.0 (2.00x)"))


def test_a_method_that_one_engine_lacks() -> None:
    lines = list(tables(row("outrider", "none"), row("outrider", "x"), row("vllm", "none")).values())[-1]
    assert ("chat", "x", "50.0", "-") in lines
