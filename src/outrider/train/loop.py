"""The training loop, one for all methods.

    for every step of the schedule
        for its micro-batches, dealt out to the processes in turn
            loss = objective(batch)                 the sum over texts of each text's mean loss
            backward
        add the gradients of all processes and divide by the number of texts of the step
        clip, set the learning rate, let the optimiser step
        at intervals: evaluate held-out texts, decode with the engine, write a checkpoint

Because the loss is a sum over texts and the division comes last, it does not matter how texts are packed, how many
passes a step has, or how many processes share it. Because every draw is a function of (seed, step, micro-batch), a run
that was killed and resumed ends with the same bits as one that was not.

Gradients are summed once per step by `accelerate`, over all processes; heads are small next to the target, so nothing
is gained by hiding that behind the backward pass.

Worked example: two micro-batches with 3 and 1 texts and loss sums 6 and 4: the step's loss is (6 + 4) / 4 = 2.5.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from outrider.errors import RunError
from outrider.formats.token_ranking import write_ranking
from outrider.loop.free_memory import allocating
from outrider.records.files import replacing_directory, writing
from outrider.train.batch import Batch
from outrider.train.checkpoints import Progressed, load_checkpoint, newest, save_checkpoint
from outrider.train.evaluate import Counts, HeldOut, RealTau, decode, summary
from outrider.train.features import Source
from outrider.train.optimizers.build import optimizer_of, trainable
from outrider.train.plan import TrainPlan
from outrider.train.run_log import RunLog
from outrider.train.schedule import Micro, generator, learning_rate
from outrider.train.signals import Stop

__all__ = ["Progress", "Trainer"]


class Progress(NamedTuple):
    """The report to the listener after every step; `held_out` and `decoded` are the last ones known."""

    step: int
    num_steps: int
    epoch: int
    loss: float | None
    learning_rate: float
    tokens_per_s: float
    seconds_left: float
    held_out: HeldOut | None
    decoded: RealTau | None


class _Sums(NamedTuple):
    loss: float
    num_texts: int
    stop: bool


@final
class Trainer:
    """A run in one process of possibly several.

    Args:
        accelerator: accelerate's object for the device, the processes and the sum over them.
        directory: directory of the run; only the main process writes there.
        listen: called after every step in the main process.
        stop: request to finish early, read after every step.
    """

    def __init__(
        self,
        plan: TrainPlan,
        directory: Path,
        accelerator: Any,
        *,
        listen: Callable[[Progress], None] = lambda progress: None,
        stop: Stop | None = None,
    ) -> None:
        self.plan = plan
        self.config = plan.setup.config
        self.directory = directory
        self.accelerator = accelerator
        self.listen = listen
        self.stop = stop or Stop()
        self.device: torch.device = accelerator.device
        self.optimizer = optimizer_of(plan.objective, self.config)
        self.progressed = Progressed()
        self.held_out: HeldOut | None = None
        self.decoded: RealTau | None = None
        self._log: RunLog | None = None
        self._saved_at = perf_counter()

    @property
    def num_steps(self) -> int:
        return len(self.plan.schedule.steps)

    @property
    def checkpoints(self) -> Path:
        return self.directory / "checkpoints"

    def resume(self) -> None:
        """Go on from the newest good checkpoint, if there is one."""
        if path := newest(self.checkpoints):
            self.progressed = load_checkpoint(path, self.plan.objective.module, self.optimizer)

    def run(self) -> bool:
        """Train to the end, or until asked to stop; return whether the end was reached.

        Raises:
            RunError: for a loss that is not finite, or a full disk.
        """
        if self.accelerator.is_main_process:
            self._log = RunLog(self.directory, self.progressed.step)
        self._saved_at = perf_counter()
        try:
            if self.progressed.step == self.num_steps:
                self._measure_again()
            while self.progressed.step < self.num_steps:
                if self._advance():
                    return self.progressed.step == self.num_steps
        finally:
            if self._log is not None:
                self._log.close()
        return True

    def finish(self) -> None:
        """Write what was trained to final/, in the published layout."""
        if self.accelerator.is_main_process:
            self._export("final")

    def _advance(self) -> bool:
        """Take one step and do what is due after it; return whether to stop now."""
        before, number = self.progressed, self.progressed.step
        start = perf_counter()
        with allocating(f"a step of rows={self.config.rows} x {self.config.row_length}", self._less, self.device):
            sums = self._gradients(number)
        rate = learning_rate(number, self.num_steps, self.config)
        norm = self._update(sums, number, rate)
        spent = perf_counter() - start
        step = self.plan.schedule.steps[number]
        self.progressed = replace(
            before,
            step=number + 1,
            num_tokens=before.num_tokens + step.num_tokens,
            seconds=before.seconds + spent,
        )
        loss = sums.loss / sums.num_texts if sums.num_texts else None
        figures = {"loss": loss, "learning_rate": rate, "grad_norm": norm, "tokens_per_s": step.num_tokens / spent}
        self._note("step", {**figures, "epoch": step.epoch, "tokens": self.progressed.num_tokens})
        self._measure_if_due(number + 1)
        self._tell(step.epoch, loss, rate)
        self._save_if_due(sums.stop)
        return sums.stop

    @property
    def _less(self) -> str:
        """Settings to reduce where a step does not fit in memory."""
        rows, length, accumulation = self.config.rows, self.config.row_length, self.config.accumulation
        fewer = f"rows={rows // 2} and accumulation={2 * accumulation}" if rows > 1 else f"row_length={length // 2}"
        return f"use {fewer}; the run resumes with its own settings, so start a new one"

    def _gradients(self, number: int) -> _Sums:
        """Run backward over the micro-batches of a step; leave gradients as sums over the texts of all processes."""
        objective, micros = self.plan.objective, self.plan.schedule.steps[number].micros
        objective.module.train()
        totals_3 = torch.zeros(3, dtype=torch.float64, device=self.device)
        for place in range(self.accelerator.process_index, len(micros), self.accelerator.num_processes):
            draws = generator(self.config.seed, "draw", number, place)
            torch.manual_seed(draws.initial_seed())  # dropout draws from the global generator
            with self._autocast():
                outcome = objective(self._batch(self.plan.train, micros[place]), draws)
            if outcome.num_texts:
                outcome.loss.backward()  # type: ignore[no-untyped-call]
            totals_3[0] += outcome.loss.detach()
            totals_3[1] += outcome.num_texts
        totals_3[2] = self.stop.asked
        if self.accelerator.num_processes > 1:
            totals_3 = self.accelerator.reduce(totals_3, "sum")
            for parameter in self._parameters():
                # unused in this process's micro-batches, perhaps not in those of others
                local = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = self.accelerator.reduce(local, "sum")
        loss, num_texts, stop = totals_3.tolist()
        return _Sums(loss, int(num_texts), stop > 0)

    def _update(self, sums: _Sums, number: int, rate: float) -> float:
        """Step the optimiser; return the norm of the gradients before clipping."""
        self._check_finite("loss", sums.loss, number)
        if not sums.num_texts:
            return 0.0
        parameters = self._parameters()
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad /= sums.num_texts
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm))
        self._check_finite("gradient", norm, number)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _check_finite(self, what: str, value: float, number: int) -> None:
        if math.isfinite(value):
            return
        kept = newest(self.checkpoints)
        raise RunError(
            f"the {what} of step {number + 1} is {value}; start a new run with a learning rate below "
            f"{self.config.peak:g}, or with --precision fp32"
            + (f" (the weights before it are in {kept})" if kept else "")
        )

    def _measure_if_due(self, step: int) -> None:
        config, last = self.config, step == self.num_steps
        if last or step % config.eval_every == 0:
            self.held_out = self._evaluate()
            self._note("held_out", asdict(self.held_out))
            self._keep_best(self.held_out)
        decodes = config.real_tau_every and (last or step % config.real_tau_every == 0)
        if decodes and self.accelerator.is_main_process:
            self.decoded = self._decode()
            if self.decoded is not None:
                self._note("decoded", asdict(self.decoded))

    def _measure_again(self) -> None:
        """Evaluate again a run that is resumed after its last step: its figures and the objective's counts."""
        self.held_out = self._evaluate()
        if self.config.real_tau_every and self.accelerator.is_main_process:
            self.decoded = self._decode()

    def _evaluate(self) -> HeldOut:
        """Evaluate the held-out texts, shared among the processes."""
        objective, micros = self.plan.objective, self.plan.micros
        objective.module.eval()
        counts = Counts.zero(objective.num_depths, self.device)
        with torch.no_grad(), self._autocast():
            for place in range(self.accelerator.process_index, len(micros), self.accelerator.num_processes):
                draws = generator(self.config.seed, "held out", place)
                counts.add(objective(self._batch(self.plan.held_out, micros[place]), draws))
        if self.accelerator.num_processes > 1:
            counts = Counts(*(self.accelerator.reduce(part, "sum") for part in (counts.table_4K, counts.totals_3)))
        return summary(counts)

    def _decode(self) -> RealTau | None:
        self.plan.objective.module.eval()
        with torch.no_grad():
            plan, limit = self.plan, self.config.real_tau_tokens
            return decode(plan.objective, plan.setup.target, plan.prompts, limit, plan.ranking_N)

    def _keep_best(self, found: HeldOut) -> None:
        if found.tau > self.progressed.best_tau:
            self.progressed = replace(self.progressed, best_tau=found.tau)
            if self.accelerator.is_main_process:
                self._export("best")

    def _export(self, name: str) -> None:
        path = self.directory / name
        with writing(path), replacing_directory(path) as part:
            self.plan.objective.save(part, getattr(torch, self.config.save_dtype))
            write_ranking(part, self.plan.ranking_N, self.plan.setup.target)

    def _tell(self, epoch: int, loss: float | None, rate: float) -> None:
        now, total = self.progressed, self.plan.schedule.num_tokens
        if self.accelerator.is_main_process:
            mean_rate = now.num_tokens / now.seconds
            left = (total - now.num_tokens) / mean_rate
            self.listen(
                Progress(now.step, self.num_steps, epoch, loss, rate, mean_rate, left, self.held_out, self.decoded)
            )

    def _note(self, kind: str, figures: dict[str, Any]) -> None:
        if self._log is not None:
            self._log.write(kind, self.progressed.step, figures)

    def _save_if_due(self, stop: bool) -> None:
        step = self.progressed.step
        minutes = (perf_counter() - self._saved_at) / 60
        due = stop or step == self.num_steps or step % self.config.checkpoint_every == 0
        if self.accelerator.is_main_process and (due or minutes >= self.config.checkpoint_minutes):
            save_checkpoint(
                self.checkpoints, self.plan.objective.module, self.optimizer, self.progressed, self.config.keep
            )
            self._saved_at = perf_counter()

    def _batch(self, source: Source, micro: Micro) -> Batch:
        return source.batch(micro, self.config.row_length, self.device)

    def _parameters(self) -> list[Tensor]:
        return list(trainable(self.plan.objective))

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")
