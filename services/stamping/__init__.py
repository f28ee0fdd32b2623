"""The stamping node: hashes content, stamps it, and keeps the ledger of stamps.

Owns the tables stamps, stamp_requests, stamp_revocations, stamp_events and stamp_log. It never keeps content, never calls another
node, and decides nothing about workflows.
"""
