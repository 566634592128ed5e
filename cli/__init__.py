"""The `sovereign` command: it imports every other room, and none imports it."""
