"""Tests that share a cluster with two places. A package, so that it ends with the last of them."""
