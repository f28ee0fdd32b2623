"""Streams of items with known totals, fed through kill -9 of everything, and everything that was answered compared afterwards.

tests/mesh/test_aggregation.py tells the stories.
"""
