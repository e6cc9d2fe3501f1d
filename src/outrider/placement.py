"""Where the rows of one forward stand in the cache, and what each of them sees.

Shapes: R rows of the call, B slots, M rows of one slot, T tail positions, S cached positions, P rotary positions.
"""

from dataclasses import dataclass, replace

from torch import Tensor

__all__ = ["Placement"]


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where the rows of one forward stand in the cache; the same object serves all layers.

    slots_B      int64, the cache slot of each batch row; a slot may come again if its rows are written apart
    lengths_B    int64, committed positions of each slot; all of them are visible to every row of the slot
    positions_BM int64, rotary positions, below P
    write_BM     int64, the cache position that receives the row's key and value; padding rows share a trash position
                 that no row can see
    mask_BMT     bool, True where row m sees position length + t. T may exceed M: the rest of the tail was written
                 before. None means a causal chunk: row m sees t = 0..m (T = M). With a mask, the mask alone decides
                 about the tail; with None the sliding window applies to the tail as well.
    limit        int known to the host, at least max(lengths) + T and at most S; positions from it on are never read
    """

    slots_B: Tensor
    lengths_B: Tensor
    positions_BM: Tensor
    write_BM: Tensor
    mask_BMT: Tensor | None
    limit: int

    def only(self, rows_R: Tensor) -> "Placement":
        """The given rows alone (indices into B * M), each as a batch row of its own. Needs a mask."""
        assert self.mask_BMT is not None
        row_slots_R = rows_R // self.positions_BM.shape[1]
        return Placement(
            slots_B=self.slots_B[row_slots_R],
            lengths_B=self.lengths_B[row_slots_R],
            positions_BM=self.positions_BM.flatten()[rows_R][:, None],
            write_BM=self.write_BM.flatten()[rows_R][:, None],
            mask_BMT=self.mask_BMT.flatten(0, 1)[rows_R][:, None],
            limit=self.limit,
        )

    def within(self, window: int | None) -> "Placement":
        """The same rows for a layer with a sliding window: the mask loses tail rows that lie `window` or more behind.

        A draft is rarely deeper than a window; then this is the placement itself. Needs T = M where it is deeper.
        """
        if window is None or self.mask_BMT is None or self.mask_BMT.shape[2] <= window:
            return self
        assert self.mask_BMT.shape[1:] == (self.positions_BM.shape[1],) * 2, (
            "positions of earlier tail rows are unknown"
        )
        near_BMM = self.positions_BM[:, :, None] - self.positions_BM[:, None, :] < window
        return replace(self, mask_BMT=self.mask_BMT & near_BMM)
