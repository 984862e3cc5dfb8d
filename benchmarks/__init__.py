"""Measurements, as ratios against a baseline of the same run; nothing here is timed in the tests."""
