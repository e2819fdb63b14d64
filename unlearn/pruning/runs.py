"""How the concepts of a mask were measured, for the patch's provenance."""

from collections.abc import Sequence
from typing import Any

from ..types import SaliencyMap

RUNS = "saliency_runs"
"""The setting of a patch that lists how its concepts were measured, where that differs."""


def runs(maps: Sequence[SaliencyMap]) -> list[dict[str, Any]]:
    """How the concepts of several maps were measured: settings, and concepts by name, of each run.

    Concepts of a merged map may have been measured with more prompts than its settings say. One
    run with the settings of the first map is what a patch says anyway, so the list is empty then.
    """
    found: list[dict[str, Any]] = []
    for measured in maps:
        texts = {
            group.concept: stats.prompts
            for group, stats in measured.gathered.items()
            if group.concept is not None
        }
        by_seeds: dict[tuple[int, int], list[str]] = {}
        for concept in measured.concepts:
            by_seeds.setdefault(_numbers(texts.get(concept.name, ()), measured), []).append(
                concept.name
            )
        for (first, prompts), names in by_seeds.items():
            settings = {**measured.settings, "prompts": prompts}
            if first != settings.get("first", 0):
                settings["first"] = first
            found.append({"concepts": names, "settings": settings})
    if len(found) == 1 and found[0]["settings"] == maps[0].settings:
        return []
    return found


def _numbers(prompts: Sequence[str], measured: SaliencyMap) -> tuple[int, int]:
    """(number of the first prompt, how many) of prompts written as `seed:text`."""
    settings = measured.settings
    if not prompts:
        return settings.get("first", 0), settings["prompts"]
    seeds = [int(prompt.partition(":")[0]) for prompt in prompts]
    return (min(seeds) - settings["seed"]) % 2**63, len(set(seeds))
