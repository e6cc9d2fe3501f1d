"""The adaptive budget's settings.

Example: `AdaptiveConfig(start_gain=1.1)` drafts only where that promises a tenth more tokens per second.
"""

from dataclasses import dataclass

__all__ = ["AdaptiveConfig"]


@dataclass(frozen=True, kw_only=True)
class AdaptiveConfig:
    """Settings of the adaptive budget; shares are of a plain step.

    start_gain       rate over plain decoding at which drafting starts
    stop_gain        rate over plain decoding below which it stops
    cheap_share      largest cost of a proposer that drafts all it can and is pruned afterwards
    probe_share      share of the time that probes in vain may cost
    refill           plain steps added to every balance per step, beside `probe_share`
    overdraft        plain steps by which a balance may be overdrawn
    max_balance      plain steps that a balance can hold
    allowance_share  share of its balance that an owner may be expected to lose in a step
    prompt_share     share of what drafting should save a request that reading its prompt may cost all requests
    free_probe       plain steps that reading pending tokens for a probe may cost at once
    """

    start_gain: float = 1.03
    stop_gain: float = 0.95
    cheap_share: float = 0.06
    probe_share: float = 0.007
    refill: float = 0.005
    overdraft: float = 1.0
    max_balance: float = 12.0
    allowance_share: float = 0.1
    prompt_share: float = 0.5
    free_probe: float = 0.5
