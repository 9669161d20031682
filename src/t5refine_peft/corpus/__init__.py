"""Text in, model-ready examples out."""
