"""Diagnosis: why a drafter is accepted so seldom, and whether the machine is fit."""
