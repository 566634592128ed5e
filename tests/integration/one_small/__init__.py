"""Tests that share one small cluster. A package, so that it ends with the last of them."""
