"""The orchestrator node: takes stamping workflows in, and carries each through its steps to its end, whatever crashes.

Owns no table and keeps nothing: state goes through the reducer, content and leases through the store, stamps through the stamping
node. It decides what is done next and never what a state becomes.
"""
