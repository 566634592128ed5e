"""From raw segments to curated events, each once: a numbered plan, its execution, and the proof that it is done."""
