"""What the platform means: values, decisions and ports. Nothing in this package imports Ray."""
