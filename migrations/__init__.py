"""The schema's migrations: one purpose each, forward and back, as plain SQL.

`versions/NNNN_purpose.py` says in its docstring's first line what it is for and holds its SQL as constants, a statement each.
`schema.sql` is what all of them make together. How they are run is services.chassis.migration's; no query lives here.
"""
