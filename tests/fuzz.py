"""Mutated inputs: each is accepted as it is meant, or refused in one line; no traceback, no hang, no password.

    python tests/fuzz.py --inputs 10000 --seed 3 [--target study] [--save FOLDER]

A target is what reads one kind of input. `TARGETS` at the end lists them: a new kind of file is one more entry, whose `make`
writes a mutated file, and whose `read` reads it as the program does and looks at what was accepted. Nothing is trained.
"""

import argparse
import copy
import json
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import optuna
import yaml

from subnet_search.core.documents import dump, read_text
from subnet_search.core.errors import LONGEST_MESSAGE, RunError, UserError
from subnet_search.data import load
from subnet_search.extraction.config import RunConfig
from subnet_search.extraction.config_file import flatten, read_config, typed
from subnet_search.extraction.session import make_network
from subnet_search.extractors import Clock, extractor_names, get_extractor
from subnet_search.search.engine.multiobjective_pruner import check_options
from subnet_search.search.spec.samplers import make_pruner, make_sampler
from subnet_search.search.spec.study_spec import StudySpec, read_study
from subnet_search.structure.units_of_network import units_of

sys.path[:0] = [str(Path(__file__).parent / folder) for folder in ("artifact", "data")]

import test_data_files  # noqa: E402
import test_formats  # noqa: E402

SECONDS, MEMORY = 20, 24 * 2**30  # an input may take; bytes of address space, of which most is libraries
PASSWORD = "hunter2secret"


class Hang(BaseException):
    """An input took too long. No program's `except Exception` catches it."""


@dataclass(frozen=True)
class Target:
    """One kind of input. make: writes a mutated one. read: reads it, and asserts that what is accepted means what it says."""

    make: Callable[[random.Random, Path], Path]
    read: Callable[[Path], None]


def attempt(name: str, seed: int, folder: Path) -> str:
    """Make and read the input that a seed stands for. Returns what it was refused with, or nothing. Raises for a fault."""
    path = TARGETS[name].make(random.Random(f"{name} {seed}"), folder)
    try:
        with time_limit(SECONDS):
            TARGETS[name].read(path)
    except (UserError, RunError) as error:
        said = str(error)
        assert said, "refused without a word"
        assert len(said.splitlines()) == 1, "more than one line"
        assert len(said) <= LONGEST_MESSAGE, "a message without end"
        assert PASSWORD not in said, "a password is told"
        return said
    return ""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise Hang(f"more than {seconds} seconds")

    # Of this process's own time, since others may keep the machine busy; and much later on the clock, for what waits for ever.
    timers = ((signal.ITIMER_PROF, signal.SIGPROF, seconds), (signal.ITIMER_REAL, signal.SIGALRM, 10 * seconds))
    before = [signal.signal(which, stop) for _, which, _ in timers]
    for timer, _, length in timers:
        signal.setitimer(timer, length)
    try:
        yield
    finally:
        for (timer, which, _), handler in zip(timers, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(which, handler)


# --- mutating YAML ---

NETWORKS = ("lenet_300_100", "lenet5", "small_conv", "conv2")
ODD: tuple[Any, ...] = (
    *(None, True, False, "", "x", "null", "0.1", "1e-3", 0, 1, -1, 3, 0.5, 1.0, 1.5, -0.5, 1e-9, 1e300, 10**9, 2**31, 2**53),
    *(2**63, 2**64 - 1, 2**64, 10**40, float("inf"), float("nan"), [], {}, [1, 2], ["gumbel"], [[]], [None], {"name": 3}),
    *({"name": ["x"]}, {"a": {"b": {"c": 1}}}, {"float": [0.1, 0.5]}, {"float": [0, 0.5], "log": True}, {"int": [1, 3]}),
    *({"int": [0.5, 3]}, {"choice": [1, 2]}, {"choice": []}, {"choice": "x"}, {"when": {}, "value": 1}, {"value": 1}),
    *({"when": {"extractor": []}, "value": 3}, {"when": {"extractor": ["gumbel", {"a": 1}]}, "float": [1, 2]}, "all"),
    *("gumbel", "lenet5", "digits", "weight", "2:4", "block:0", "0:0", "npz:none.npz", "torchvision:resnet18", "a.b:c", "../x"),
    *(
        "x" * 20_000,
        "x y " * 3_000,
        "\x00",
        "é\u2028\ud7ff",
        "a\nb",
        "/dev/zero",
        "meta",
        "cuda:99",
        "rungs",
        "median",
        "cmaes",
    ),
    *(f"postgresql://me:{PASSWORD}@h/x", {"url": f"postgresql://me:{PASSWORD}@h/x"}, [f"me:{PASSWORD}@h/x"]),
    *({f"postgresql://me:{PASSWORD}@h/x": 1}, f"postgresql://me@h/x?pwd={PASSWORD}", {"password": PASSWORD}),
)
RAW = (  # as it stands in the file
    *(
        "2024-02-30",
        "2001-01-01T00:00:00+99:99",
        "0x_",
        "0x" + "f" * 400,
        "9" * 5000,
        "1e-3",
        "1E5",
        "1_000",
        "010",
        "08",
        "0b2",
    ),
    *("!!bool maybe", "!!int x", "!!float []", "!!set {a, b}", "!!python/object/apply:os.system [ls]", "!!binary aGk=", "!x y"),
    *("&a {x: *a}", "&a [*a]", "*nope", "{[1]: 2}", "{1: 2, 1: 3}", "{? : 1}", "<<", "{<<: 3}", "{<<: {seed: 3}}", "[" * 3000),
    *(
        "{a: " * 500,
        "- - - -",
        "'",
        '"\\U99999999"',
        "|99",
        "%YAML",
        "---",
        "? [a",
        "1.5.2",
        ".5e-3",
        "+.inf",
        "-.INF",
        "~",
        "=",
        "@",
        "`",
    ),
    *(
        f"{{x: postgresql://me:{PASSWORD}@h/x",
        f"'me:{PASSWORD}@h/x",
        "[" + ", ".join(["*l"] * 9) + "]",
        "yes",
        "2:4",
        "12:30:45",
    ),
)
LINES = (  # in between
    *(
        "seed: 3",
        "k: &a {x: *a}",
        "<<: {seed: 3}",
        "3: 4",
        "- 1",
        "\tx: 1",
        "null: 1",
        "true: 2",
        "? [a, b]",
        "name: x",
        "...",
        "--- 1",
    ),
    *(
        "recipe: {epochs: 1}",
        "x: {y: {z: 1}}",
        f"postgresql://me:{PASSWORD}@h/x: 1",
        f"? postgresql://me:{PASSWORD}@h/x",
        "!!str a: b",
    ),
    f"storage: {{url: postgresql://me:{PASSWORD}@h/x}}",
    f"storage: [postgresql://me:{PASSWORD}@h/x, x: y: z]",
    f"storage: postgresql://me:{PASSWORD}@h/x: 3",
    f"imports: [postgresql://me:{PASSWORD}@h/x, 3]",
    f"enqueue: [{{postgresql://me:{PASSWORD}@h/x: 3}}]",
    f"imports: {{password: {PASSWORD}}}",
    "bomb: {a: &a [x, x, x, x, x, x, x, x, x], b: &b [*a, *a, *a, *a, *a, *a, *a, *a], c: &c [*b, *b, *b, *b, *b, *b, *b, *b], "
    "d: &d [*c, *c, *c, *c, *c, *c, *c, *c], e: &e [*d, *d, *d, *d, *d, *d, *d, *d], f: [*e, *e, *e, *e, *e, *e, *e, *e]}",
)


def mutated(document: Any, rng: random.Random) -> str:
    """A document as YAML, with a few mistakes in its values, or in the text."""
    document, raw = copy.deepcopy(document), {}
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        holder, key = rng.choice(list(_places(document)))
        match rng.randrange(8):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[_mistyped(str(key), rng)] = holder.pop(key)
            case 2:
                holder[key] = rng.choice(([holder[key]], {"name": holder[key]}, {"choice": [holder[key]]}))
            case 3:
                other, place = rng.choice(list(_places(document)))
                holder[key] = copy.deepcopy(other[place])
            case 4 if isinstance(holder, dict):
                key = rng.choice(("name", "density", "extractor", "recipe.lr", "unit", "target", "seed", "x"))
                holder[key] = copy.deepcopy(rng.choice(ODD))
            case 5:
                mark = f"RAW{len(raw)}RAW"
                holder[key], raw[mark] = mark, rng.choice(RAW)
            case _:
                holder[key] = copy.deepcopy(rng.choice(ODD))
        if not document:
            break
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, default_flow_style=rng.choice((False, None)))
    for mark, value in raw.items():
        text = text.replace(mark, value)
    lines = text.splitlines()
    for _ in range(rng.choice((0, 0, 0, 1, 2))):
        at = rng.choice(
            [*(place for place, line in enumerate(lines) if line[:1].isalpha()), len(lines)]
        )  # not inside of a value
        match rng.randrange(4):
            case 0 if lines:
                lines.insert(at, rng.choice(lines))
            case 1 if lines:
                place = rng.randrange(len(lines))
                middle = rng.randrange(len(lines[place]) + 1)
                odd = rng.choice("{}[]:,-'\"#&*!|>%@`\t ~0")
                lines[place] = lines[place][:middle] + odd + lines[place][middle:]
            case _:
                lines.insert(at, rng.choice(LINES))
    return "\n".join(lines) + "\n"


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every holder with a key of it, or with a place in it."""
    inner = list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    for key, item in inner:
        yield value, key
        yield from _places(item)


def _mistyped(word: str, rng: random.Random) -> Any:
    at = rng.randrange(len(word) + 1)
    return rng.choice((word[:at] + word[at + 1 :], word[:at] + "x" + word[at:], 3, None, True, 1.5, word.upper()))


# --- runs ---


def a_run(rng: random.Random) -> dict[str, Any]:
    """A valid configuration, small."""
    method = get_extractor(rng.choice(extractor_names()))
    extractor: dict[str, Any] = {"name": method.name}
    if "density" in method.model_fields:
        extractor["density"] = rng.choice((0.5, 0.2, 0.1))
    for name in rng.sample(sorted(method.model_fields), min(2, len(method.model_fields))):
        extractor.setdefault(name, method.model_fields[name].default)
    return {
        "network": {"name": rng.choice(NETWORKS), "init": rng.choice(("kaiming_normal", "signed_constant"))},
        "data": {"name": "digits", "limit": 64, "val_fraction": 0.2, "split_seed": 0},
        "extractor": json.loads(json.dumps({key: value for key, value in extractor.items() if value is not None}, default=str)),
        "unit": {"n:m": "2:4", "block": "block:4"}.get(unit := rng.choice(method.paradigm.units), unit),
        "seed": rng.randrange(100),
        "weights": "values",
        "recipe": {
            "epochs": rng.choice((1, 2, 20)),
            "batch_size": 16,
            "lr": 0.05,
            "momentum": 0.9,
            "nesterov": True,
            "schedule": "cosine",
            "milestones": [0.5, 0.75],
            "augment": [],
            "threads": 1,
            "device": "cpu",
        },
    }


def make_run(rng: random.Random, folder: Path) -> Path:
    return _written(
        folder / "run.yaml", mutated(a_run(rng) | {"task": {"name": "classification", "class_weights": "balanced"}}, rng)
    )


def read_run(path: Path) -> None:
    plan(read_config(RunConfig, path), path)


def make_override(rng: random.Random, folder: Path) -> Path:
    """What comes after -s, one a line."""
    keys = [
        *flatten(a_run(rng)),
        "extractor",
        "network.options.x",
        "",
        "seed.x",
        "a..b",
        f"//me:{PASSWORD}@h/x",
        "seed",
        "unit",
    ]
    values = [*(yaml.safe_dump(value, default_flow_style=True).splitlines()[0] for value in ODD), *RAW]
    return _written(
        folder / "overrides.txt", "\n".join(f"{rng.choice(keys)}={rng.choice(values)}" for _ in range(rng.choice((1, 2))))
    )


def read_override(path: Path) -> None:
    plan(read_config(RunConfig, None, ["data.limit=64", "network=lenet5", *path.read_text().split("\n")]), None)


def plan(config: RunConfig, path: Path | None) -> None:
    """A run up to its first step: read back as the same, and checked against its network."""
    if path:
        _check_meaning(typed(read_text(path.read_text(), "").values, RunConfig), config.dump())
    again = path or Path(tempfile.gettempdir()) / "again.yaml"
    again.write_bytes(dump(config.dump()))
    assert read_config(RunConfig, again).dump() == config.dump(), "not read back as the same"
    resolved = config.resolve()
    if config.network.name in NETWORKS and config.data.name == "digits" and (config.data.limit or 10**4) <= 64:
        data = load(config.data)
        net, _ = make_network(resolved, None, "keep", data, resolved.task.fitted(data, "cpu"))
        units = units_of(config.unit, net, data.shape, measure=next(iter(config.target or ["units"])), round_to=config.round_to)
        steps = resolved.recipe.epochs * -(-len(data.train) // resolved.recipe.batch_size)
        resolved.extractor.check(units, Clock(0, steps, config.seed))


def _check_meaning(written: dict[str, Any], got: dict[str, Any]) -> None:
    """What was written and accepted is what counts."""
    if "target" in written:
        return  # the target's density goes before the method's own
    found = flatten(got)
    for key, value in flatten(written).items():
        at = key if key in found else f"{key}.name"
        assert value in (None, {}) or at not in found or _same(value, found[at]), f"{key}: {value!r} became {found[at]!r}"


def _same(written: Any, got: Any) -> bool:
    if isinstance(written, list) and isinstance(got, list):
        return len(written) == len(got) and all(map(_same, written, got))
    if isinstance(written, str) and not isinstance(got, str):
        read = typed(read_text(written, "").values)  # a number in quotes is a number, where the key is one
        return not isinstance(read, str) and _same(read, got)
    if isinstance(written, int) and isinstance(got, float):  # beyond 2**53, a float is the nearest one that there is
        written = float(written)
    return bool(written == got) or got == [written] or (isinstance(got, str) and str(written) == got)


# --- studies ---


def a_study(rng: random.Random) -> dict[str, Any]:
    """A valid specification of a study."""
    spaces: tuple[dict[str, Any], ...] = (
        {"extractor": "all", "recipe.lr": {"float": [0.01, 0.3], "log": True}},
        {"extractor": {"temperature": None, "strength": {"float": [0.03, 0.3], "log": True}}},
        {"extractor": {"choice": ["gumbel", "rigl", "snip"]}, "extractor.density": {"choice": [0.1, 0.2]}},
        {"recipe.epochs": {"int": [1, 3]}, "recipe.augment": {"choice": [[], ["flip"]]}, "recipe.momentum": 0.5},
        {
            "extractor": {"choice": ["gumbel", "rigl"]},
            "recipe.lr": [
                {"when": {"extractor": "gumbel"}, "float": [10, 100], "log": True},
                {"when": {"extractor": ["rigl"]}, "float": [0.01, 0.3]},
            ],
        },
        {"extractor": {"choice": rng.sample(extractor_names(), 3)}},
        {"density_per_layer": ["conv1", "fc1"], "extractor": {"choice": ["gmp", "snip"]}},
    )
    space = rng.choice(spaces)
    return {
        "name": "toy",
        "run": a_run(rng) | {"unit": "weight", "extractor": "gumbel"},
        "space": space,
        "objective": rng.choice(("val_accuracy", ["val_accuracy", "density"], ["val_nll"])),
        "constraints": {"density": "<= 0.5"},
        "sampler": rng.choice(
            ("tpe", {"name": "tpe", "n_startup_trials": 4}, "random", {"name": "nsga2", "population_size": 8})
        ),
        "pruner": rng.choice(("none", {"name": "none"})),
        "trials": 3,
        "timeout": 100.0,
        "repeats": 1,
        "enqueue": [{"recipe.lr": 0.1}] if space is spaces[0] else [],
        "imports": [],
        "heartbeat": 60,
        "seed": 3,
        "storage": "sqlite:///runs/studies.db",
    }


def make_study(rng: random.Random, folder: Path) -> Path:
    return _written(folder / "study.yaml", mutated(a_study(rng), rng))


def read_spec(path: Path) -> None:
    """A study up to its first trial."""
    spec = read_study(path)
    written = typed(read_text(path.read_text(), "").values, StudySpec)
    _check_meaning({"run": written.get("run", {}), "seed": written.get("seed")}, spec.model_dump(mode="json"))
    again = StudySpec.from_json(spec.to_json())
    assert again.differences(spec) == [], "not read back as the same"
    assert again.to_json() == spec.to_json(), "not read back as the same"
    make_sampler(spec), make_pruner(spec)
    if spec.pruner["name"] == "rungs":
        check_options(spec)
    for item in spec.enqueue:
        if "study" not in item:
            spec.searched.named(item)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    spec.config(spec.searched.suggest(study.ask()) | {"seed": 1})


# --- filters of `study trials` ---


def make_filter(rng: random.Random, folder: Path) -> Path:
    sign = rng.choice(("=", "==", "!=", "<=", "<", ">", ">=", "~", "", "=<", "<>"))
    return _written(
        folder / "filter.txt", f"{rng.choice(('lr', 'number', 'sha256', 'x', ''))}{sign}{rng.choice((*map(str, ODD), *RAW))}"
    )


def read_filter(path: Path) -> None:
    from subnet_search.search.queries.trial_table import select

    rows = [{"number": 0, "lr": 0.001, "sha256": "1e5"}, {"number": 1, "lr": None, "sha256": "100000.0"}]
    select(rows, [path.read_text()], ["number", "lr", "sha256"])


# --- files that the package writes, and data files, both damaged ---


@cache
def _undamaged() -> tuple[Path, dict[str, Any]]:
    folder = test_formats.write_files(Path(tempfile.mkdtemp()))
    return folder, {kind: test_formats.content(folder / kind) for kind in test_formats.KINDS}


def make_file(rng: random.Random, folder: Path) -> Path:
    kind = rng.choice(test_formats.KINDS)
    path = folder / kind
    path.write_bytes(test_formats.mutated((_undamaged()[0] / kind).read_bytes(), rng))
    return path


def read_artifact_file(path: Path) -> None:
    assert test_formats.content(path) == _undamaged()[1][path.name], "a damaged file says something else"


_whole: dict[Path, tuple[Any, Any]] = {}


def make_data(rng: random.Random, folder: Path) -> Path:
    case = rng.choice(test_data_files.CASES)
    inner = folder / case.__name__
    shutil.rmtree(inner, ignore_errors=True)
    inner.mkdir()
    name, path = case(inner)
    _whole[path] = name, test_data_files.read(name)
    damage = rng.choice([d for d in test_data_files.DAMAGE if d is not test_data_files.folder_instead])
    damage(path, path.read_bytes(), rng)
    return path


def read_data(path: Path) -> None:
    name, whole = _whole[path]
    assert test_data_files.read(name) == whole, "a damaged file says something else"


def _written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8", errors="replace")
    return path


# --- what is read, and the command ---

TARGETS = {
    "run": Target(make_run, read_run),
    "override": Target(make_override, read_override),
    "study": Target(make_study, read_spec),
    "filter": Target(make_filter, read_filter),
    "file": Target(make_file, read_artifact_file),
    "data": Target(make_data, read_data),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=10_000, help="in all, over the targets")
    parser.add_argument("--seed", type=int, default=0, help="of the first input; the others count on")
    parser.add_argument("--target", choices=TARGETS, help="one of them alone")
    parser.add_argument(
        "--save", type=Path, default=Path("runs/fuzz"), help="a folder for inputs that are not answered rightly"
    )
    given = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    names = [given.target] if given.target else list(TARGETS)
    faults, refused = 0, 0
    with tempfile.TemporaryDirectory() as folder:
        for index in range(given.inputs):
            name, seed = names[index % len(names)], given.seed + index // len(names)
            try:
                refused += bool(attempt(name, seed, Path(folder)))
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                faults += 1
                last = traceback.extract_tb(error.__traceback__)[-1]
                where = f"{Path(last.filename).name}:{last.lineno}"
                kind = re.sub(r"\s+", " ", f"{type(error).__name__}: {error}")[:200]
                given.save.mkdir(parents=True, exist_ok=True)
                path = TARGETS[name].make(random.Random(f"{name} {seed}"), Path(folder))
                (given.save / f"{name}-{seed}{path.suffix}").write_bytes(path.read_bytes())
                print(f"{name} {seed}: {kind} ({where})", flush=True)
    print(f"{given.inputs} inputs, {refused} refused, {faults} answered wrongly{f' (in {given.save})' if faults else ''}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
