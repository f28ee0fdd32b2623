"""The store node: the canonical state of keys under optimistic concurrency, the log of their commits, what is projected of them,
the outbox, blobs and leases.

It never folds, never runs a step and never reads what a state means. Its tables: store_partitions, workflow_state,
workflow_commits, workflow_projection, projection_watermarks, outbox_consumers, blobs, blob_chunks, blob_references, leases,
lease_log, lease_events.
"""
