"""Figures and self-contained HTML pages made from evaluations."""
