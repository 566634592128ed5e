"""How you talk to the platform: the gateway on Ray Serve, and one file per protocol."""
