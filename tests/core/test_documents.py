"""YAML and JSON that others wrote: numbers, keys that stand twice, odd values, passwords, and what nothing foresaw."""

import json
import logging
import re
import threading
from pathlib import Path

import optuna
import pytest
import yaml

from subnet_search.cli import main
from subnet_search.core.documents import dump, read_text
from subnet_search.core.errors import LONGEST_MESSAGE, RunError, UserError, reading, shown
from subnet_search.core.redaction import Redacting, scrub
from subnet_search.extraction.config import RunConfig
from subnet_search.extraction.config_file import check, read_config, typed
from subnet_search.nets import NetworkSpec, build
from subnet_search.search.queries.trial_table import select
from subnet_search.search.spec.samplers import make_pruner, make_sampler
from subnet_search.search.spec.study_spec import StudySpec, read_study

SPACE = "space: {recipe.lr: {float: [0.01, 0.1]}}\n"
SECRET = "hunter2secret"


def refused(call, *arguments):
    """The one line that a call complains with."""
    with pytest.raises(UserError) as caught:
        call(*arguments)
    said = str(caught.value)
    assert "\n" not in said
    assert len(said) <= LONGEST_MESSAGE
    return said


def run_file(text):
    Path("run.yaml").write_text(text)
    return read_config(RunConfig, "run.yaml")


def study_file(text, name="name: s\n"):
    Path("study.yaml").write_text(name + text)
    return read_study("study.yaml")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# --- a key twice ---


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: 1\nunit: weight\nseed: 2", "the key 'seed' is given twice: leave one out (run.yaml, lines 1 and 3)"),
        (
            "recipe: {lr: 0.1}\nseed: 1\nrecipe: {epochs: 1}",
            "the key 'recipe' is given twice: leave one out (run.yaml, lines 1 and 3)",
        ),
        (
            "recipe:\n  lr: 0.1\n  epochs: 2\n  'lr': 0.2",
            "the key 'recipe.lr' is given twice: leave one out (run.yaml, lines 2 and 4)",
        ),
        ("data: {name: digits, name: digits}", "the key 'data.name' is given twice: leave one out (run.yaml, line 1)"),
    ],
)
def test_a_key_that_is_given_twice_is_refused_with_both_lines(text, said):
    assert refused(run_file, text) == said


def test_a_key_twice_in_a_study_an_override_and_a_stored_study():
    text = "space:\n  recipe.lr: {float: [0.1, 1]}\n  seed: 3\n  recipe.lr: {float: [10, 100]}\n"
    assert "'space.recipe.lr' is given twice: leave one out (study.yaml, lines 3 and 5)" in refused(study_file, text)
    assert "'name' is given twice" in refused(read_config, RunConfig, None, ["data={name: digits, name: x}"])
    stored = study_file(SPACE).to_json()
    assert StudySpec.from_json(stored).name == "s"
    assert "'name' is given twice" in refused(StudySpec.from_json, stored.replace('"name": "s"', '"name": "s", "name": "t"', 1))


def test_what_is_merged_in_may_be_changed():
    config = run_file("recipe:\n  <<: {lr: 0.1, epochs: 3}\n  lr: 0.2\n")
    assert (config.recipe.lr, config.recipe.epochs) == (0.2, 3)


# --- numbers ---


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 1e5),
        ("-1.5e3", -1500.0),
        (".5e-1", 0.05),
        ("1_000", 1000),
        ("0x1f", 31),
        ("-7", -7),
        ("1.", 1.0),
        ("08", 8),
        ("010", 10),
        ("0o10", 8),
        ("0b2", "0b2"),
        ("0x_", "0x_"),
        ("2:4", "2:4"),
        ("2:4.5", "2:4.5"),
        ("2024-02-30", "2024-02-30"),
        ("2024-02-03", "2024-02-03"),
        ("1e", "1e"),
        ("1.5.2", "1.5.2"),
        ("yes", True),
        ("~", None),
        ("'1e-3'", "1e-3"),
    ],
)
def test_what_a_word_stands_for(text, value):
    found = typed(read_text(text, "here").values)
    assert (found, type(found)) == (value, type(value))
    assert typed(read_text(dump({"x": found}).decode(), "here").values) == {"x": found}


def test_a_number_takes_the_type_of_its_key():
    config = run_file("recipe: {lr: 1e-3, epochs: 1e1, milestones: [5e-1]}\nnetwork: {name: lenet5, state: 1e5}\nseed: 3\n")
    assert (config.recipe.lr, config.recipe.epochs, config.recipe.milestones) == (0.001, 10, (0.5,))
    assert config.network.state == "1e5"
    assert read_config(RunConfig, None, ["data.root=1e5", "recipe.lr=1e-3"]).data.root == "1e5"
    assert study_file(f"imports: [1e5]\n{SPACE}", "name: 12e3\n").model_dump(include={"name", "imports"}) == {
        "name": "12e3",
        "imports": ["1e5"],
    }


def test_choices_ends_and_first_values_are_numbers():
    spec = study_file(
        "space:\n  recipe.lr: {choice: [1e-3, 1e-2, 1e-1]}\n  recipe.momentum: {float: [1e-1, 9e-1]}\n"
        "  recipe.epochs: {int: [1e0, 1e1]}\nenqueue: [{recipe.lr: 1e-3, recipe.momentum: 5e-1, recipe.epochs: 2}]\n"
    )
    lr, momentum, epochs = (entry.distribution for entry in spec.searched.searched)
    assert lr.choices == (0.001, 0.01, 0.1)
    assert (momentum.low, momentum.high) == (0.1, 0.9)
    assert (epochs.low, epochs.high) == (1, 10)
    named = spec.searched.named(spec.enqueue[0])
    assert named == {"recipe.lr": 0.001, "recipe.momentum": 0.5, "recipe.epochs": 2}


@pytest.mark.parametrize(
    ("condition", "numbers"),
    [
        ("lr<=0.05", [0, 1]),
        ("lr=0.001", [0]),
        ("lr=1e-3", [0]),
        ("lr!=1e-3", [1, 2]),
        ("hash=1e5", [0]),
        ("hash=100000.0", [2]),
    ],
)
def test_filters_compare_numbers_as_numbers_and_texts_as_texts(condition, numbers):
    hashes = ("1e5", "ab", "100000.0")
    rows = [{"number": n, "lr": lr, "hash": hashes[n]} for n, lr in enumerate((0.001, 0.01, 0.1))]
    assert [row["number"] for row in select(rows, [condition], ["number", "lr", "hash"])] == numbers


# --- a space's mistakes ---


@pytest.mark.parametrize(
    ("text", "line", "part"),
    [
        ("space:\n  recipe.lr: {float: [0.1, x]}", 3, "space.recipe.lr: float takes numbers as low and high, got 'x'"),
        (
            "space:\n  recipe.epochs:\n    int: [1.5, 3]",
            3,
            "space.recipe.epochs: int takes whole numbers as low and high, got 1.5",
        ),
        ("space:\n  recipe.epochs: {int: [yes, 3]}", 3, "whole numbers as low and high, got True"),
        ("space:\n  recipe.lr: {float: [1, 2], log: maybe}", 3, "space.recipe.lr: log is true or false, got 'maybe'"),
        ("space:\n  recipe.lr: {float: [-1, 1]}", 3, "space: recipe.lr: input should be greater than 0, got -1"),
        ("space:\n  recipe.lr: {float: [0.1, .inf]}", 3, "space.recipe.lr.float.1: input should be a finite number"),
        ("space:\n  recipe.lr: {float: [0.1, 1]}\n  sed: 3", 4, "unknown key of a run 'sed'"),
        ("space:\n  recipe.lr: {float: [2, 1]}", 3, "the low end of a range must not be above the high end"),
        ("space:\n  extractor:\n    temprature:\n", 4, "unknown hyperparameter of gumbel 'temprature'"),
        (
            "space:\n  extractor:\n    choice:\n      gmp:\n      rigl: {every: {float: [0, x]}}",
            6,
            "space.extractor.every: float takes numbers",
        ),
        ("space:\n  extractor:\n    choice:\n      - gmp\n      - rigll", 6, "unknown extractor 'rigll': did you mean 'rigl'"),
        ("space:\n  extractor:\n    choice:\n      - gmp\n      - [rigl]", 6, "unknown extractor"),
        (
            "space:\n  extractor: {choice: [gmp, rigl]}\n  recipe.lr:\n    - {when: {extractor: gmp}, float: [1, 2]}\n"
            "    - {when: {extractor: [rigll]}, float: [1, 2]}",
            6,
            "unknown extractor 'rigll' (`when` of space.recipe.lr)",
        ),
        (
            "space:\n  extractor: {choice: [gmp]}\n  recipe.lr:\n    - {when: {extractor: [gmp, {name: x}]}, float: [1, 2]}",
            5,
            "unknown extractor \"{'name': 'x'}\"",
        ),
        (
            "space:\n  recipe.lr: {when: {extractor: []}, float: [1, 2]}",
            3,
            "a condition takes `when: {key: value}`",
        ),
        ("space:\n  seed: {int: [1, 2]}", 3, "space.seed cannot be searched: each trial's seed is derived"),
        ("space:\n  density_per_layer: [[x]]", 3, "space.density_per_layer takes true, or a list of layers"),
        (f"{SPACE}sampler: tpee", 3, "unknown sampler 'tpee'"),
        (f"{SPACE}objective: [density, x]", 3, "unknown objective 'x'"),
        (f"{SPACE}constraints: {{density: low}}", 3, "a constraint is one of"),
    ],
)
def test_a_mistake_in_a_study_names_file_line_and_key(text, line, part):
    said = refused(study_file, text)
    assert part in said
    assert f"(study.yaml, line {line})" in said


# --- what a reader might choke on ---

BOMB = "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefg", "bcdefgh", strict=True)
)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("k: &a {x: *a}", "an alias refers to a value that contains it (run.yaml, line 2)"),
        (
            f"a: &a [x, x, x, x, x, x, x, x, x]\n{BOMB}",
            "more than 100,000 values after expanding aliases",
        ),
        (f"k: {'[' * 2000}", "nested too deeply"),
        (f"k: {'{a: ' * 400}", "nested too deeply"),
        ("seed: 2024-02-30", "seed: input should be a valid integer"),
        ("seed: 2001-01-01T00:00:00+99:99", "seed: input should be a valid integer"),
        ("seed: 0x_", "seed: input should be a valid integer"),
        ("seed: !!bool maybe", "'maybe' is not a valid value for the tag !!bool (run.yaml, line 2)"),
        ("seed: !!python/object/apply:os.system [ls]", "the tag !!python/object/apply:os.system is not supported"),
        ("seed: !!set {a, b}", "the tag !!set is not supported"),
        ('seed: "\\U99999999"', "cannot read run.yaml: OverflowError"),
        ("seed: 18446744073709551616", "seed: a whole number has 64 bits at most, got 18446744073709551616 (run.yaml, line 2)"),
        (f"seed: {'9' * 5000}", "cannot read run.yaml: ValueError: Exceeds the limit"),
        (f"seed: 0x{'f' * 20000}", "seed: a whole number has 64 bits at most, got a value of type int"),
        ("extractor: {name: gmp, 3: nsga2}", "unknown key 'extractor.3'"),
        ("extractor: {name: [gmp]}", "extractor: unknown extractor \"['gmp']\""),
        ("extractor:\n  name: {float: [a, b]}", "extractor: unknown extractor"),
        ("{[1, 2]: 3}", "a key must be text"),
        ("recipe: {lr: .inf}", "recipe.lr: input should be a finite number, got inf (run.yaml, line 2)"),
        ("recipe: {lr: .nan}", "recipe.lr: input should be"),
        ("recipe: {lr: 'inf'}", "recipe.lr: input should be a finite number"),
        ("recipe: {lr: 1e300}", "recipe.lr: input should be a finite number of at most 3.4e+38, got 1e+300 (run.yaml, line 2)"),
        ("network: {name: lenet5, options: {x: .nan}}", "network.options.x: input should be a finite number"),
        (f"network: {'x' * 100_000}", "unknown network 'xxx"),
        (f"network: {'x y ' * 50_000}", "unknown network 'x y"),
        ("y: 1\n" * 200_000, "run.yaml is too large for a configuration: more than 500,000 characters"),
        ("--- 1\n--- 2", "is not YAML"),
    ],
)
def test_what_cannot_be_meant_is_one_line(text, part):
    assert part in refused(run_file, f"unit: weight\n{text}" if not text.startswith("{") else text)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("heartbeat: 1e10", "heartbeat: input should be less than or equal to 1000000, got 10000000000.0 (study.yaml, line 3)"),
        ("timeout: .inf", "timeout: input should be a finite number, got inf"),
        ("sampler: {name: tpe, n_startup_trials: .nan}", "sampler.n_startup_trials: input should be a finite number"),
        ("enqueue: [{recipe.lr: .inf}]", "enqueue.0.recipe.lr: input should be a finite number"),
        ("run: {seed: 99999999999999999999}", "run.seed: a whole number has 64 bits at most"),
        ("k: &a {x: *a}", "an alias refers to a value that contains it"),
    ],
)
def test_what_no_study_can_mean_is_one_line(text, part):
    assert part in refused(study_file, SPACE + text)


@pytest.mark.parametrize(
    "given", [{1: 2}, {"extractor": {"name": "gmp", 3: 4}}, {"seed": 2**70}, {"recipe": {"lr": float("nan")}}]
)
def test_what_python_hands_in_is_looked_at_too(given):
    refused(check, RunConfig, given)


def test_a_study_that_is_stored_in_a_damaged_way_is_one_line():
    for text in ("", "{", "[]", "3", '{"name": 3}', "[" * 100_000, '{"space": {"recipe.lr": {"float": [1, NaN]}}}'):
        assert "the study's specification" in refused(StudySpec.from_json, text)


@pytest.mark.parametrize(
    "sampler",
    [
        {"n_startup_trials": {"name": 8}},
        {"n_startup_trials": "8"},
        {"n_startup_trials": 8.5},
        {"n_startup_trials": True},
        {"n_startup_trials": -1},
        {"multivariate": 3},
        {"weights": 3},
        {"nonsense": 1},
    ],
)
def test_options_of_samplers_are_looked_at_before_the_first_trial(sampler):
    given = {"name": "s", "space": {"recipe.lr": {"float": [1, 2]}}, "sampler": {"name": "tpe", **sampler}}
    assert next(iter(sampler)) in refused(check, StudySpec, given)


def test_options_of_samplers_and_pruners_that_are_right():
    given = {"name": "tpe", "n_startup_trials": 8, "multivariate": True, "n_ei_candidates": 12}
    pruner = {"name": "hyperband", "max_resource": "auto", "reduction_factor": 2}
    spec = check(StudySpec, {"name": "s", "space": {"recipe.lr": {"float": [1, 2]}}, "sampler": given, "pruner": pruner})
    assert isinstance(make_sampler(spec), optuna.samplers.TPESampler)
    assert isinstance(make_pruner(spec), optuna.pruners.HyperbandPruner)


def made(name, **options):
    return build(NetworkSpec(name=name, options=options).resolve(1.0), (3, 32, 32), 10, 0)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("torchvision:squeezenet1_1", {"weights": "x"}),
        ("torchvision:squeezenet1_1", {"weights": 3}),
        ("torchvision:squeezenet1_1", {"nonsense": 3}),
        ("torchvision:squeezenet1_1", {"version": [1]}),
        ("torchvision:squeezenet1_1", {"num_classes": -3}),
        ("collections:OrderedDict", {"a": 1}),
        ("math:pi", {}),
        ("operator:truediv", {"a": 1}),
        ("lenet5", {"num_classes": 3}),
    ],
)
def test_options_that_a_network_does_not_take_are_one_line(name, options):
    refused(lambda: made(name, **options))


def test_a_factory_and_a_module_that_fail_are_one_line(monkeypatch):
    Path("fails_in_parts.py").write_text("def make(num_classes): return 1 / 0\n")
    Path("fails_whole.py").write_text("raise KeyError('a\\nb')\n")
    monkeypatch.syspath_prepend(Path.cwd())
    assert refused(lambda: made("fails_in_parts:make")).endswith("{'num_classes': 10}: ZeroDivisionError: division by zero")
    assert "cannot import 'fails_whole'" in refused(lambda: made("fails_whole:make"))


def test_a_device_without_values_is_refused():
    assert "the device 'meta' is not available" in refused(lambda: check(RunConfig, {"recipe": {"device": "meta"}}).resolve())


# --- the guard, and messages ---


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyError("x"), "cannot read f: KeyError: 'x'"),
        (RecursionError("maximum"), "cannot read f: nested too deeply"),
        (MemoryError(), "cannot read f: not enough memory"),
        (IsADirectoryError(21, "Is a directory"), "cannot read f: Is a directory"),
        (ValueError("one\ntwo"), "cannot read f: ValueError: one"),
        (AssertionError(), "cannot read f: AssertionError"),
        (UserError("seed: no"), "seed: no"),
    ],
)
def test_whatever_goes_wrong_in_reading_is_one_line(error, said):
    def read():
        with reading("f"):
            raise error

    assert refused(read) == said


def test_what_is_no_mistake_of_a_file_passes_through():
    with pytest.raises(RunError), reading("f"):
        raise RunError("full")
    with pytest.raises(KeyboardInterrupt), reading("f"):
        raise KeyboardInterrupt


def test_values_are_shown_at_a_sane_length():
    deep: list = []
    for _ in range(10_000):
        deep = [deep]
    for value in ("x" * 10**6, list(range(10**5)), deep, {str(n): n for n in range(10**5)}, 1 << 10**6, b"x" * 10**6):
        assert len(shown(value)) <= 420
    assert shown({"a": [1, None]}) == "{'a': [1, None]}"
    assert len(str(UserError("word " * 10**5))) <= LONGEST_MESSAGE


# --- the last resort ---


def told(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1, err
    return stopped.value.code, err


def test_an_error_that_nothing_foresaw_is_one_line_and_a_file(monkeypatch, capsys, tmp_path):
    def fails():
        raise ZeroDivisionError(f"by\nzero at postgresql://me:{SECRET}@h/x")

    monkeypatch.setattr("subnet_search.data.catalogue", fails)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code, said = told(["data"], capsys)
    assert code == 1
    found = re.fullmatch(
        r"error: unexpected ZeroDivisionError: by zero at postgresql://me:\*\*\*@h/x \(test_documents, line \d+\) "
        r"\(traceback: (\S+\.log)\)\n",
        said,
    )
    trace = Path(found[1]).read_text()
    assert "in fails" in trace
    assert SECRET not in trace


def test_an_error_in_a_thread_is_one_line(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    told(["extract", "none.yaml"], capsys)
    thread = threading.Thread(target=lambda: {}["x"])
    thread.start()
    thread.join()
    assert re.fullmatch(
        r"error: unexpected KeyError: 'x' \(test_documents, line \d+\) \(traceback: .*\n", capsys.readouterr().err
    )


# --- passwords ---

URL = f"postgresql://me:{SECRET}@h/x"


@pytest.mark.parametrize(
    "text",
    [
        f"storage: {{url: {URL}}}",
        f"storage: [{URL}]",
        f"storage: {{password: {SECRET}}}",
        f"{URL}: 3",
        f"{{{URL}: 3}}",
        f"storage: {URL}: 3",
        f"storage: {{url: {URL}",
        f"storage: '{URL}",
        f"? {URL}\n: [",
        f"storage: me:{SECRET}@h/x",
        f"storage: postgresql://me@h/x?pwd={SECRET}",
        f"storage: postgresql://me@h:x/x?password={SECRET}",
        f"imports: {URL}",
        f"imports: [{URL}, 3]",
        f"imports: {{{URL}: 3}}",
        f"imports: [{URL}]\nstorage: sqlite:///new.db",
        f"enqueue: [{{study: {URL}}}]\nstorage: sqlite:///new.db",
        f"enqueue: [{{{URL}: 3}}]\nstorage: sqlite:///new.db",
        f"enqueue: {URL}",
        f"run: {{data: {{root: 3, name: {URL}}}}}",
        f"{URL}: 3\n{URL}: 4",
        f"artifacts: {URL}",
        f"sampler: {URL}",
    ],
)
def test_no_password_of_a_study_is_told(text, capsys):
    Path("study.yaml").write_text(f"name: s\n{SPACE}{text}\n")
    code, said = told(["study", "run", "study.yaml"], capsys)
    assert code == 2
    assert SECRET not in said


@pytest.mark.parametrize(
    "words",
    [
        ["study", "list", "--storage", f"me:{SECRET}@h/x"],
        ["study", "list", "--storage", f"postgres//me:{SECRET}@h/x"],
        ["study", "list", "--storage", f"nonsense://me@h/x?pwd={SECRET}"],
        ["study", "list", "--storage", f"nonsense://me@h/x?user=me&password={SECRET}&x=1"],
        ["study", "list", URL],
        ["study", "show", URL],
        ["study", "run", URL],
        ["study", "run", f"me:{SECRET}@h/x"],
        ["extract", URL],
        ["extract", "-s", URL],
        ["extract", "-s", f"{URL}=3"],
        ["extract", "-s", f"me:a.{SECRET}@h/x=3"],
        ["extract", "-s", f"data=[{URL}"],
        ["extract", "-s", f"storage={{url: {URL}}}"],
        ["extract", "-s", f"data={{password: {SECRET}}}"],
        ["extract", "-s", f"seed={URL}"],
        ["study", "worker", "s", "--trials", URL],
        ["evaluate", URL],
    ],
)
def test_no_password_of_a_command_line_is_told(words, capsys):
    code, said = told(words, capsys)
    assert code == 2
    assert SECRET not in said
    assert "secret" not in said


def test_no_password_is_logged():
    record = logging.LogRecord("x", logging.WARNING, "f", 1, "cannot reach %s", (URL,), None)
    assert Redacting("%(message)s").format(record) == "cannot reach postgresql://me:***@h/x"


@pytest.mark.parametrize(
    "text",
    [
        "recipe.lr @granet|synflow is searched",
        "no such data file: npz:/home/me/images.npz",
        "postgresql://host:5432/studies does not answer",
        "password authentication failed for user me",
        "unknown key 'passwort': valid: artifacts, name",
        "sqlite:///runs/studies.db",
        "seed: input should be a valid integer, got {'a': 'b'} (run.yaml, line 3)",
        "http://127.0.0.1:8080/dashboard",
    ],
)
def test_what_holds_no_password_is_told_as_it_is(text):
    assert scrub(text) == text


def test_a_long_study_is_read_back_from_json_as_it_is():
    spec = study_file(SPACE + "enqueue: [{recipe.lr: 0.05}]\n")
    assert json.loads(StudySpec.from_json(spec.to_json()).to_json()) == json.loads(spec.to_json())
    assert yaml.safe_load(dump({"a": "1e5", "b": "2:4", "c": 1e-5})) == {"a": "1e5", "b": "2:4", "c": 1e-5}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("target: {flops:0.4}", r"'flops:0\.4': write {flops: 0\.4} .*line 1\)$"),
        ("extractor: {name: rigl,\n  density:0.1}", r"'density:0\.1': write {density: 0\.1} .*line 2\)$"),
        ("a: {choice: [{hub:samplers/x}]}", r"write {hub: samplers/x}"),
        ("recipe:\n  epochs:3\n  lr: 0.1\n", "line 3 is not YAML: .*a space after the colon of each key, as in epochs: 3$"),
        ("recipe:\n  lr: 0.1\n  epochs:3\n", "is not YAML: .*a space after the colon of each key, as in epochs: 3$"),
    ],
)
def test_a_missing_space_after_a_colon_is_said(text, says):
    with pytest.raises(UserError, match=says):
        read_text(text, "x.yaml")


def test_colons_inside_keys_and_values_are_read():
    text = 'a: {"m:C", "n:D": 1, data: npz:f, list: [2:4, m:C], "f":0.4}\nb:\n  m:C:\n'
    values = {"m:C": None, "n:D": 1, "data": "npz:f", "list": ["2:4", "m:C"], "f": 0.4}
    assert typed(read_text(text, "x.yaml").values) == {"a": values, "b": {"m:C": None}}


def test_a_text_in_place_of_a_mapping_shows_the_mapping():
    with pytest.raises(UserError, match=r"^target: .*got 'flops:0\.4': write {flops: 0\.4} \(-s target\)$"):
        read_config(RunConfig, None, ["target=flops:0.4"])
