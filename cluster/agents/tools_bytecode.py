"""Bytecode of the tools, made once: a child starts from read-only files, and could not keep what it compiles."""

from __future__ import annotations

import contextlib
import importlib.util
import py_compile
from pathlib import Path


def compile_tools(folder: Path) -> None:
    """Compile the modules in `folder` that have no bytecode yet, where that may be written; it only saves time."""
    for source in folder.glob("*.py"):
        cached = Path(importlib.util.cache_from_source(str(source)))
        with contextlib.suppress(OSError, py_compile.PyCompileError):
            if not cached.exists() or cached.stat().st_mtime < source.stat().st_mtime:
                py_compile.compile(str(source), doraise=True)
