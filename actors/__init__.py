"""What is alive: thin Ray shells round `cluster/`, and the channel that carries calls between them."""
