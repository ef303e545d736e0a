"""The version, in one place: setup, the command and the stored models read it here."""

__version__ = "0.1.0"
