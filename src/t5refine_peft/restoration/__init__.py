"""Text with gaps in, the same text with the gaps filled out."""
