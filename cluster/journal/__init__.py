"""Facts on disk before they are spoken of: one journal for each life of a process."""
