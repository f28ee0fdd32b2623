"""The nodes of OmniNode Bridge, one folder each, and the chassis that they stand on.

`omninode.*` is always a generated contract, `services.*` always our code. Nodes never import nodes: they call each other's stubs.
"""
