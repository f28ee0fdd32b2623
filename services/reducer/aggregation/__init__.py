"""Streaming aggregation: sessions of items over windows of event time, kept through the store.

What is counted and how is pure (`config`, `item`, `pane`, `window`, `distinct`, `cell`, `strategy`, `fold`, `aggregation`), and so
is a session's durable form (`durable`). A session's writer, its readers and its feed stand around that.
"""
