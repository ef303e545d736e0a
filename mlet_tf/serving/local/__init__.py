"""The parts of the stand-in server: a model server for development, answering as TF Serving does."""
