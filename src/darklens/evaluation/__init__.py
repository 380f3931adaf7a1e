"""Judging a system: metrics, their intervals, paired comparisons."""
