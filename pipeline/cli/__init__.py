"""Subcommands of `mlet-tf` that are large enough for a module of their own."""
