"""Costs of a machine that nobody measured: a roofline from its data sheet (Williams et al., CACM 2009).

Linear layers and attention take turns, and each takes as long as the slower of reading and computing. A forward pass is
both and a fixed time to launch:

    roof(bytes, operations) = max(bytes / (bytes_per_s * bandwidth_share), operations / (flops_per_s * compute_share))
    forward                 = roof(weights) + roof(cache, attention) + launch_s + layers * layer_s

Quantised weights are multiplied at `int8_ops_per_s` where the machine has such a rate. The two shares are what real
kernels reach of the data sheet's figures. A step further judges the logits of its rows,
which are written and read several times, and spends `host_s` and `slot_s`. A drafter is its passes, one after another.

This is a model, good for the question which method could pay where; a decision deserves `outrider profile`. It knows no
idle time between kernels beyond `launch_s` and `layer_s`, and no scheduling.

Worked example: an H100 reads 3.35e12 bytes/s. Qwen2.5-7B in bf16 is 14.1 GB: 4.2 ms a token, 237 tokens/s; at 75 % of
the bandwidth 177. An EAGLE-3 draft of two tokens reads 1.5 GB more: at least 1.11 plain steps.
"""

from dataclasses import dataclass
from typing import Final, final

from outrider.costs.tables import DraftCosts, TargetCosts
from outrider.errors import ConfigError
from outrider.models.spec import DecoderSpec
from outrider.models.weight_kinds import KvDtype
from outrider.planning.shapes import DrafterSizes, PassShape, target_pass

__all__ = ["Hardware", "RooflineCosts", "RooflineDraftCosts"]

GREEDY_PASSES: Final = 2
"""Over the logits in fp32: written by the head, read for the maximum."""
SAMPLED_PASSES: Final = 6
"""And for the normalisation, the filters and the noise."""

CACHE_BYTES: Final = 2.0
"""Bytes of a cached number; quantized weights leave the cache as it is."""
CODE_BYTES, SCALE_BYTES = 1.0, 4.0
"""With keys and values in int8: those of a code, and of the scale of a head."""

USABLE: Final = 0.9
"""Share of the memory for weights and cache; the rest is for everything else."""


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """A machine.

    source           source of the figures
    memory_bytes     that it has
    bytes_per_s      at which it reads them
    flops_per_s      multiplications and additions, dense, in the arithmetic of plain weights
    int8_ops_per_s   multiplications and additions of 8-bit integers; 0 where quantised weights cost as plain ones
    bandwidth_share  share of `bytes_per_s` that a forward pass reaches
    compute_share    share of `flops_per_s` and `int8_ops_per_s` that it reaches
    launch_s         fixed time of a pass
    layer_s          fixed time of each of its layers
    host_s           commit and host work of a step
    slot_s           the same for each slot in it

    Raises:
        ConfigError: for a rate or share that is not positive, a share above 1, or a negative time.
    """

    name: str
    source: str
    memory_bytes: float
    bytes_per_s: float
    flops_per_s: float
    bandwidth_share: float = 1.0
    compute_share: float = 1.0
    launch_s: float = 0.0
    layer_s: float = 0.0
    host_s: float = 0.0
    slot_s: float = 0.0
    int8_ops_per_s: float = 0.0

    def __post_init__(self) -> None:
        for field in ("memory_bytes", "bytes_per_s", "flops_per_s", "bandwidth_share", "compute_share"):
            if not getattr(self, field) > 0:
                raise ConfigError(f"hardware {self.name}: {field}={getattr(self, field):g} must be positive")
        for field in ("bandwidth_share", "compute_share"):
            if getattr(self, field) > 1:
                raise ConfigError(f"hardware {self.name}: {field}={getattr(self, field):g} must be at most 1")
        for field in ("launch_s", "layer_s", "host_s", "slot_s", "int8_ops_per_s"):
            if not getattr(self, field) >= 0:
                raise ConfigError(f"hardware {self.name}: {field}={getattr(self, field):g} must not be negative")

    def seconds(self, num_bytes: float, operations: float, is_integer: bool = False) -> float:
        """Return the time to read and compute so much, whichever is slower."""
        per_s = self.int8_ops_per_s if is_integer and self.int8_ops_per_s else self.flops_per_s
        return max(num_bytes / (self.bytes_per_s * self.bandwidth_share), operations / (per_s * self.compute_share))

    def pass_s(self, shape: PassShape, num_layers: int, load: "Load") -> float:
        """Return the seconds of one forward pass."""
        weight_bytes = load.bytes_per_weight * shape.weights_read(load.num_rows)
        cached = load.num_slots * load.context * shape.kv_per_token
        cache_bytes = (load.bytes_per_cached or max(CACHE_BYTES, load.bytes_per_weight)) * cached
        linear_s = self.seconds(weight_bytes, load.num_rows * 2.0 * shape.num_multiplied, load.is_integer)
        attention_s = self.seconds(cache_bytes, load.num_rows * load.context * shape.attention_flops)
        return linear_s + attention_s + self.launch_s + num_layers * self.layer_s


@dataclass(frozen=True, kw_only=True)
class Load:
    """Load of a pass: slots with their context, rows of all slots together.

    bytes_per_cached   bytes of a cached number; 0 for 2, or those of a wider weight
    """

    num_slots: int
    num_rows: float
    context: float
    bytes_per_weight: float
    is_integer: bool = False
    bytes_per_cached: float = 0.0


@final
@dataclass(frozen=True, kw_only=True)
class RooflineCosts(TargetCosts):
    """A target on a machine, its weights `bytes_per_weight` wide, and multiplied as integers if `is_integer`.

    kv_dtype   dtype of keys and values; drafters keep theirs as plain numbers
    """

    hardware: Hardware
    spec: DecoderSpec
    bytes_per_weight: float = 2.0
    is_integer: bool = False
    kv_dtype: KvDtype = "auto"

    @property
    def bytes_per_cached(self) -> float:
        """Bytes of a cached number, with its share of a scale."""
        if self.kv_dtype == "int8":
            return CODE_BYTES + SCALE_BYTES / self.spec.head_dim
        return max(CACHE_BYTES, self.bytes_per_weight)

    def forward_s(self, num_slots: int, num_rows: float, context: float) -> float:
        load = Load(
            num_slots=num_slots,
            num_rows=num_rows,
            context=context,
            bytes_per_weight=self.bytes_per_weight,
            is_integer=self.is_integer,
            bytes_per_cached=self.bytes_per_cached,
        )
        return self.hardware.pass_s(target_pass(self.spec), self.spec.num_layers, load)

    def largest_batch(self, context: float) -> int:
        """Return the slots whose caches fit beside the weights; 0 if the weights alone do not fit."""
        shape = target_pass(self.spec)
        per_slot = self.bytes_per_cached * shape.kv_per_token * context
        free = USABLE * self.hardware.memory_bytes - self.bytes_per_weight * shape.num_held
        return max(0, int(free / per_slot))

    def accept_s(self, num_slots: int, num_rows: float, greedy: bool) -> float:
        passes = GREEDY_PASSES if greedy else SAMPLED_PASSES
        return self.hardware.seconds(4.0 * passes * num_rows * self.spec.vocab_size, 0.0)

    def rest_s(self, num_slots: int) -> float:
        return self.hardware.host_s + num_slots * self.hardware.slot_s


@final
@dataclass(frozen=True, kw_only=True)
class RooflineDraftCosts(DraftCosts):
    """A drafter beside that target. Each of its passes reads its weights again."""

    target: RooflineCosts
    sizes: DrafterSizes
    context: float = 512.0

    def propose_s(self, num_slots: int, num_nodes: float, depth: int) -> float:
        sizes, spec = self.sizes, self.target.spec
        lookup_s = num_slots * sizes.lookup_s
        if num_nodes == 0 or sizes.passes == "none":
            return lookup_s
        num_passes = depth if sizes.passes == "depth" else 1
        rows = max(num_slots, num_nodes) if sizes.rows == "nodes" else num_slots
        hardware = self.target.hardware
        once = sizes.once(spec)
        fuse_s = hardware.pass_s(once, 0, self._load(num_slots, num_slots)) if once.num_read else 0.0
        each_s = hardware.pass_s(sizes.each_pass(spec), sizes.num_layers, self._load(num_slots, rows / num_passes))
        return lookup_s + fuse_s + num_passes * each_s

    def _load(self, num_slots: int, num_rows: float) -> Load:
        return Load(
            num_slots=num_slots,
            num_rows=num_rows,
            context=self.context,
            bytes_per_weight=self.sizes.bytes_per_weight or self.target.bytes_per_weight,
            is_integer=self.target.is_integer and not self.sizes.bytes_per_weight,
        )
