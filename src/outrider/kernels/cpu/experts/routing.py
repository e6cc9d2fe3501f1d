"""The choice of a row's experts, the order of the rows by expert, and the sum of what the experts make of them.

    choose     for each row the K experts with the largest logits, ascending, and their shares: a softmax, or sigmoids
    arrange    all R * K pairs of a row and an expert, sorted by expert, and a copy of the rows in that order
    combine    x[r] += share * y[place] for each expert of a row, ascending

Shares multiply either the copies or the sum.

A row's choice and its sum depend on that row alone. The products between them (`linear.py`, `quant.py`) read the groups
of rows that `arrange` leaves in an int32 record:

    groups         number of experts that a row chose
    expert, start  number of each, and its first pair; one start more is the number of pairs

Example: rows that chose the experts (1, 4) and (0, 4) are the groups 0: row 1, 1: row 0, 4: rows 0 and 1.
"""

import math
from typing import Any

import numpy as np

from outrider.kernels.cpu.threads import finished, ticket, wait_for
from outrider.kernels.cpu.vector import f32, i32, i64, inlined, kernel

__all__ = ["NORMALISED", "SIGMOID", "SOFTMAX", "arrange", "choose", "combine"]

SOFTMAX, NORMALISED, SIGMOID = range(3)
"""Shares: of all experts, of the chosen ones, of each alone."""


@inlined
def pick(logits: int, N: int, K: int, chosen: int) -> Any:
    """Write the K experts with the largest logits, ascending, of equal ones the first; return the largest logit.

    With NaN too they are K different experts.
    """
    numbers, found = f32(logits), i32(chosen)
    most = np.float32(0.0)
    for k in range(K):
        best, best_logit = -1, np.float32(0.0)
        for n in range(N):
            is_taken = False
            for other in range(k):
                is_taken = is_taken or found[other] == n
            if not is_taken and (best < 0 or numbers[n] > best_logit):
                best, best_logit = n, numbers[n]
        if k == 0:
            most = best_logit
        place = k
        while place > 0 and found[place - 1] > best:
            found[place] = found[place - 1]
            place -= 1
        found[place] = np.int32(best)
    return most


@kernel
def choose(block: int, lane: int) -> None:
    """Choose the experts of each row, and compute their shares."""
    a = i64(block)
    logits, N, K, rule, chosen, shares, R = a[0], a[1], a[2], a[3], a[4], a[5], a[6]
    r = ticket(block, 0)
    while r < R:
        numbers, found, share = f32(logits + r * N * 4), i32(chosen + r * K * 4), f32(shares + r * K * 4)
        most = np.float64(pick(logits + r * N * 4, N, K, chosen + r * K * 4))
        total = 0.0
        if rule == NORMALISED:
            for k in range(K):
                total += math.exp(np.float64(numbers[found[k]]) - most)
        elif rule == SOFTMAX:
            for n in range(N):
                total += math.exp(np.float64(numbers[n]) - most)
        for k in range(K):
            logit = np.float64(numbers[found[k]])
            odds = math.exp(logit - most) / total if rule != SIGMOID else 1.0 / (1.0 + math.exp(-logit))
            share[k] = np.float32(odds)
        r = ticket(block, 0)


@inlined
def group(chosen: int, pairs: int, N: int, counts: int, groups: int, expert: int, start: int, order: int) -> None:
    """Sort the pairs by expert; `order` takes the place of each pair."""
    numbers, count, place = i32(chosen), i32(counts), i32(order)
    for n in range(N):
        count[n] = np.int32(0)
    for p in range(pairs):
        count[numbers[p]] += np.int32(1)
    num_groups, first = 0, 0
    for n in range(N):
        size = count[n]
        count[n] = np.int32(first)
        if size > 0:
            i32(expert)[num_groups], i32(start)[num_groups] = np.int32(n), np.int32(first)
            num_groups += 1
            first += size
    i32(start)[num_groups] = np.int32(first)
    i32(groups)[0] = np.int32(num_groups)
    for p in range(pairs):
        place[p] = count[numbers[p]]
        count[numbers[p]] += np.int32(1)


@kernel
def arrange(block: int, lane: int) -> None:
    """Sort the pairs of rows and experts, and copy the rows in that order, times their shares if there are any."""
    a = i64(block)
    chosen, N, K, R = a[0], a[1], a[2], a[3]
    counts, groups, expert, start, order = a[4], a[5], a[6], a[7], a[8]
    x, F, out, shares = a[9], a[10], a[11], a[12]
    pairs = R * K
    if ticket(block, 0) == 0:  # too little for more than one thread
        group(chosen, pairs, N, counts, groups, expert, start, order)
        finished(block, 1)
    wait_for(block, 1, 1)
    place = i32(order)
    p = ticket(block, 2)
    while p < pairs:
        source, target = f32(x + p // K * F * 4), f32(out + place[p] * F * 4)
        share = f32(shares)[p] if shares != 0 else np.float32(1.0)
        for i in range(F):
            target[i] = share * source[i]
        p = ticket(block, 2)


@kernel
def combine(block: int, lane: int) -> None:
    """Add to each row what its experts made of it, times their shares if there are any."""
    a = i64(block)
    y, order, shares, K, R, F, out = a[0], i32(a[1]), a[2], a[3], a[4], a[5], a[6]
    r = ticket(block, 0)
    while r < R:
        target = f32(out + r * F * 4)
        for k in range(K):
            share, source = np.float32(1.0), f32(y + order[r * K + k] * F * 4)
            if shares != 0:
                share = f32(shares)[r * K + k]
            for i in range(F):
                target[i] += share * source[i]
        r = ticket(block, 0)
