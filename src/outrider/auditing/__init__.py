"""The audit of a method: is every text the target's own, and would a fault have been seen?"""
