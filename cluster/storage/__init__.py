"""Objects that are written once: the port to an object store, and what stands behind it."""
