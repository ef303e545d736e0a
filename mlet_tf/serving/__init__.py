"""Client, local stand-in server and push for TF Serving."""
