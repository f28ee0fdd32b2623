"""Streaming aggregation: sessions of items over windows of event time, kept through the store.

What is counted and how is pure: `config`, `item`, `pane`, `window`, `distinct`, `cell`, `strategy`, `fold`, `aggregation`. A session's
writer and its durable form, its readers and its feed stand around that.
"""
