"""Evaluation of trained systems: metrics and their intervals, calibration, comparisons, explanations."""
