"""What an agent is: its declared spec, its life as a table, its brain, its tools and the walls around them."""
