"""Faults, for real: a store under writers and watchers is killed, paused and cut off, and everything is compared afterwards.

`python -m tests.chaos` is the long form; tests/mesh/test_chaos.py the short one.
"""
