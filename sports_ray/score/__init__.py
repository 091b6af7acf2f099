"""Scores: sums until the end, then fractions with their intervals."""
