"""What the platform tells its operators: logs and metrics, never what anyone is billed or blamed for."""
