"""P-EAGLE in configs of the speculators library: names that set it apart from an EAGLE-3 head of the same tensors.

Example: `{"speculators_model_type": "peagle", "architectures": ["PEagleSpeculator"], "mask_token_id": 151669, ...}`.
"""

from typing import Final

__all__ = ["ARCHITECTURE", "KIND", "MASK"]

KIND: Final = "peagle"
ARCHITECTURE: Final = "PEagleSpeculator"
MASK: Final = "mask_token_id"
"""Key of the token of masked slots."""
