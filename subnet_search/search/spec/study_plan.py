"""What the trials of a study would do, for `--dry-run`."""

from collections.abc import Mapping
from typing import Any

from subnet_search.core.parameter_names import key_and_condition
from subnet_search.extraction.config_file import flatten, with_values
from subnet_search.extraction.dry_run import dry_run
from subnet_search.search.spec.space_parser import LAYERS, METHOD, TARGET
from subnet_search.search.spec.study_spec import StudySpec


def plan_of_study(spec: StudySpec) -> dict[str, Any]:
    """`dry_run` of a trial of the first method and unit, with `method`, its name.

    In `config` and `density`, what is searched or differs between methods and units is text in place of the value.
    Raises UserError as a run does.
    """
    runs = [spec.config(branch) for branch in spec.searched.branches]
    plan, searched = dry_run(runs[0]), _searched(spec)
    first, *others = (flatten(run.resolve().dump()) for run in runs)
    differ = [key for key, value in first.items() if any(key in one and one[key] != value for one in others)]
    config = with_values(plan["config"], dict.fromkeys(differ, "depends on the method or unit"))
    for key, text in searched.items():
        has_name = key != METHOD and isinstance(config.get(key), Mapping)  # as a network
        config = with_values(config, {f"{key}.name" if has_name else key: text})
    amounts = [text for key, text in searched.items() if key == f"{METHOD}.density" or key.partition(".")[0] == TARGET]
    if amounts or len({run.extractor.target_density for run in runs}) > 1:
        plan["density"] = "; ".join(amounts) or "depends on the method"
    return {**plan, "config": config, "method": runs[0].extractor.name}


def _searched(spec: StudySpec) -> dict[str, str]:
    """Keys that are searched, or have a value under a condition, with their domains and conditions as text."""
    found: dict[str, list[str]] = {}
    for entry in spec.searched.entries:
        if (entry.domain or entry.when) and not entry.key.startswith(f"{LAYERS}."):
            text = f"searched: {entry.domain}" if entry.domain else str(entry.value)
            _, condition = key_and_condition(entry.name)
            found.setdefault(entry.key, []).append(f"{text} ({condition})" if condition else text)
    return {key: "; ".join(parts) for key, parts in found.items()}
