"""The version, in one place: setup, the command and the stored models read it here."""

__version__ = "0.2.0"
