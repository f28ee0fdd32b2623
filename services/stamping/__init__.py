"""The stamping node: hashes content, stamps it, and keeps the ledger of stamps.

Owns the tables stamps, stamp_requests and stamp_events. It never keeps content, never calls another node, and decides nothing about
workflows.
"""
