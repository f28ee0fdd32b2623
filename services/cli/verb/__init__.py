"""The verbs of the command, a module each with its `app`: what the line asks for, handed to the modules that do it, and printed."""
