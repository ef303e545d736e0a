"""The TFX pipeline: configuration, graph, runners."""
