"""Whose job it is, and what it used."""
