"""The `omnibridge` command: a client of the mesh, and what runs a mesh on one machine.

It owns no state and no rule of a node: what it knows of stamping it asks over the contract.
"""
