"""The reducer node: folds actions into the state of keys, by pure functions registered by name.

Owns nothing: every fold is committed through the store. It never performs an intent, never connects to a database, and decides
nothing that its contract's state machine does not say.
"""
