"""The TFX pipeline: graph, runners, command."""
