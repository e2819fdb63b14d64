"""What benchmarks share that measure cell by cell: results that a later run goes on from, tables.

A file of results is one JSON object with the settings that all of its figures have in common.
"""

import datetime
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def processor():
    """The processor's name, and how many cores of it there are."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    name = found[1] if found else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"


def today():
    return datetime.datetime.now(datetime.timezone.utc).date().isoformat()


def commit():
    """The short name of the commit that is checked out, with a plus where files differ from it."""

    def git(*args):
        return subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True).stdout

    found = git("rev-parse", "--short=7", "HEAD").strip() or "unknown"
    return found + "+" * bool(git("status", "--porcelain", "-uno").strip())


def load(path, settings):
    """Results so far; exits with a sentence where they were made with other settings."""
    if not path.exists():
        return {"settings": settings, "worlds": {}}
    found = json.loads(path.read_text(encoding="utf-8"))
    if found["settings"] != settings:
        sys.exit(
            f"{path} was made with other settings ({found['settings']}); use those, name another "
            "file with --out, or remove it."
        )
    return found


def write(path, text):
    """Writes a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def save(results, path):
    """Writes results."""
    write(path, json.dumps(results, indent=1) + "\n")


def table(head, lines):
    """A Markdown table of lists of texts."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines))


def chosen(given, known, what):
    """The names in a comma-separated option; exits with a sentence on one that is not known."""
    listed = [n.strip() for n in given.split(",") if n.strip()] or list(known)
    if wrong := [n for n in listed if n not in known]:
        sys.exit(f"There is no {what} '{wrong[0]}'; there are {', '.join(known)}.")
    return listed
