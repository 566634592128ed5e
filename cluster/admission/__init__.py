"""What may become an agent: the request, the policy that decides, the bundle it comes from, and the registrar that acts on it."""
