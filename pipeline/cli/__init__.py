"""The `mlet-tf` command: `main` holds the group, every other module a few commands."""
