"""The tools that are shipped. Each module runs in a sandboxed child by its file name, and imports the standard library alone."""
