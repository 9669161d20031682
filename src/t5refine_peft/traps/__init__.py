"""Known traps of the installed libraries, each tried in a moment on a tiny model."""
