"""Tables in csv and Parquet files: the encoding by hand, its use on other files, and what goes wrong."""

import builtins

import pyarrow
import pyarrow.parquet
import pytest
import torch
from torch import nn

import subnet_search as ss
from subnet_search.core.errors import UserError
from subnet_search.data import DataSpec, Labels, describe, load

NUMBERS = Labels(classes=False)
# Standardised by mean 4 and standard deviation 2 of the training part: -1, 1, -1, 1 and, of the test part, 3.
TRAIN = "size,colour,kind\n2,red,dog\n6,blue,cat\n2,blue,dog\n6,red,cat\n"
VAL = "size,colour,kind\n4,red,cat\n4,blue,dog\n"
TEST = "kind,size,colour\ncat,10,green\n"


def table(folder, text, name="table.csv"):
    (folder / name).write_text(text)
    return f"csv:{folder / name}"


@pytest.fixture
def parts(tmp_path):
    for name, text in (("train", TRAIN), ("val", VAL), ("test", TEST)):
        table(tmp_path, text, f"{name}.csv")
    return f"csv:{tmp_path}"


def rows(count=40):
    """The label is whether `a` is above 0; `b` is a text, `a` from -20 to 19."""
    lines = [f"{index - count // 2},{'xyz'[index % 3]},{'yes' if index >= count // 2 else 'no'}" for index in range(count)]
    return "\n".join(["a,b,label", *lines]) + "\n"


def test_columns_by_hand(parts):
    data = load(parts)
    assert data.train.inputs.tolist() == [[-1, 0, 1], [1, 1, 0], [-1, 1, 0], [1, 0, 1]]  # size, blue, red
    assert data.val.inputs.tolist() == [[0, 0, 1], [0, 1, 0]]
    assert data.test().inputs.tolist() == [[3, 0, 0]]  # an unknown colour, and columns in another order
    assert (data.train.inputs.dtype, data.class_names, data.classes) == (torch.float32, ("cat", "dog"), 2)
    assert [part.labels.tolist() for part in (data.train, data.val, data.test())] == [[1, 0, 1, 0], [0, 1], [0]]
    assert data.spec.encoding.model_dump()["columns"] == {"size": (4.0, 2.0), "colour": ("blue", "red")}


def test_not_standardised(parts):
    assert load({"name": parts, "standardize": False}).train.inputs[:, 0].tolist() == [2, 6, 2, 6]


def test_only_training_items_decide_the_encoding(tmp_path):
    data = load({"name": table(tmp_path, rows()), "val_fraction": 0.5})
    numbers = data.train.inputs[:, 0]
    assert (len(data.train), len(data.val), data.test()) == (20, 20, None)
    assert (numbers.mean().item(), numbers.std(correction=0).item()) == pytest.approx((0, 1), abs=1e-6)
    assert data.val.inputs[:, 0].mean().abs() > 1e-3
    rare = rows().replace("-20,x", "-20,rare")  # in one item, which one of the seeds holds out
    known = [load({"name": table(tmp_path, rare), "val_fraction": 0.5, "split_seed": seed}).shape[0] for seed in range(6)]
    assert set(known) == {4, 5}


def test_copies_of_a_row_are_in_one_part(tmp_path):
    data = load({"name": table(tmp_path, rows(20) + "\n".join(rows(20).splitlines()[1:])), "val_fraction": 0.3})
    train, val = ({tuple(row) for row in part.inputs.tolist()} for part in (data.train, data.val))
    assert not train & val


@pytest.mark.parametrize(
    ("target", "labels", "expected"),
    [
        ("x", NUMBERS, [1.5, 2.5, 3.5]),
        (["x", "n"], NUMBERS, [[1.5, 0], [2.5, 1], [3.5, 1]]),
        ("n", Labels(), [0, 1, 1]),
        (None, Labels(), [1, 0, 1]),
    ],
)
def test_targets(tmp_path, target, labels, expected):
    text = "x,n,last\n1.5,0,b\n2.5,1,a\n3.5,1,b\n"
    name = table(tmp_path, text, "train.csv") and table(tmp_path, text, "val.csv") and f"csv:{tmp_path}"
    data = load(DataSpec(name=name, target=target), labels)
    assert data.train.labels.tolist() == expected
    assert data.train.labels.dtype == (torch.int64 if labels.classes else torch.float32)
    assert data.class_names == (("a", "b") if target is None else None)


def test_other_delimiters_and_a_byte_order_mark(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf" + rows().replace(",", ";").encode())
    assert load(f"csv:{tmp_path}/a.csv").fingerprint == load(table(tmp_path, rows())).fingerprint


def test_a_parquet_file_is_the_same_table(tmp_path):
    lines = [line.split(",") for line in rows().splitlines()[1:]]
    a, b, label = zip(*lines, strict=True)
    columns = {"a": pyarrow.array(list(map(int, a))), "b": pyarrow.array(b).dictionary_encode(), "label": pyarrow.array(label)}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    data = load(f"parquet:{tmp_path}/a.parquet")
    assert data.fingerprint == load(table(tmp_path, rows())).fingerprint
    assert data.class_names == ("no", "yes")


def test_mistakes_in_a_parquet_file(tmp_path, monkeypatch):
    def refused(columns):
        pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
        with pytest.raises(UserError) as caught:
            load(f"parquet:{tmp_path}/a.parquet")
        return str(caught.value).removeprefix(f"{tmp_path}/a.parquet")

    assert refused({"a": [1, None], "y": [0, 1]}) == ": row 2, column 'a': a missing value: fill it in or remove the row"
    assert refused({"a": [1.0, float("nan")], "y": [0, 1]}).startswith(": row 2, column 'a': a missing value (nan)")
    assert (
        refused({"a": [[1], [2]], "y": [0, 1]}) == ": the column 'a' is list<element: int64>, which is neither numbers nor text"
    )
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"a.parquet is not a readable table"):
        load(f"parquet:{tmp_path}/a.parquet")
    real = builtins.__import__

    def without(name, *rest):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"needs the package pyarrow: pip install 'subnet-search\[tables\]'"):
        load(f"parquet:{tmp_path}/a.parquet")


@pytest.mark.parametrize(
    ("text", "target", "message"),
    [
        ("", None, "table.csv is empty"),
        ("a,b\n", None, "table.csv has no rows"),
        ("a,b\n1,2\n3\n", None, "row 2 has 1 values, and the header 2 columns"),
        ("a,b\n1,0\n,1\n", None, r"row 2, column 'a': a missing value \(''\)"),
        ("a,b\nx,0\nNA,1\n", None, r"row 2, column 'a': a missing value \('NA'\)"),
        ("a,a\n1,2\n", None, "the header has 'a' more than once"),
        ("a,,b\n1,2,3\n", None, "the header has a column without a name"),
        ("a,b\n1,2\n", "c", r"unknown column 'c' \(data.target, in .*table.csv\): valid: a, b"),
        ("b\n1\n", None, "has no columns for the inputs, only b"),
        ("a,b\n1,0.5\n2,1\n", None, "the column 'b' is not whole numbers .class indices.: set task, such as regression"),
        (
            "a,b\n" + "".join(f"{i},0\n" for i in range(60)) + "1O,1\n",
            None,
            "row 61, column 'a' is '1O', and other rows hold numbers",
        ),
        ("a,b\n" + "".join(f"id{i},0\n" for i in range(1001)), None, "column 'a' has 1,001 different texts"),
        ("a,b\n1,inf\n", None, "NaN or infinite|label"),
    ],
)
def test_mistakes_name_the_file_and_the_place(tmp_path, text, target, message):
    with pytest.raises(UserError, match=message) as caught:
        load({"name": table(tmp_path, text), "target": target})
    assert str(tmp_path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_mistakes_in_other_parts(tmp_path, parts):
    with pytest.raises(UserError, match=r"no such data file: .*none.csv"):
        load(f"csv:{tmp_path}/none.csv")
    with pytest.raises(UserError, match=r"no such data file: .*train.parquet"):
        load(f"parquet:{tmp_path}")
    table(tmp_path, TEST.replace("cat", "bird"), "test.csv")
    with pytest.raises(UserError, match=r"test.csv: row 1, column 'kind': 'bird' is no class of the training items"):
        load(parts).test()
    table(tmp_path, TEST.replace("10", "big"), "test.csv")
    with pytest.raises(UserError, match=r"test.csv: row 1, column 'size': 'big' is no number, as in training"):
        load(parts).test()
    table(tmp_path, VAL.replace("size", "length"), "val.csv")
    with pytest.raises(UserError, match=r"unknown column 'size' \(.*val.csv\)"):
        load(parts)
    with pytest.raises(UserError, match=r"the column 'kind' is text, and the labels of this task are numbers"):
        load(table(tmp_path, TRAIN), NUMBERS)
    with pytest.raises(UserError, match="target: only for csv:FILE and parquet:FILE, and the data is digits"):
        DataSpec.of({"name": "digits", "target": "x"})


def test_a_description(tmp_path, parts):
    assert describe(parts)["shape"] == [3]
    assert describe(table(tmp_path, "a,b\n" + "".join(f"{i},{i}.5\n" for i in range(20))))["classes"] == 0


def test_evaluate_and_predict_encode_other_tables_as_the_run_did(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = table(tmp_path, rows()).replace(f"{tmp_path}/", "")
    config = ss.RunConfig(
        data=name, network="torchvision:resnet18", extractor={"name": "magnitude", "density": 0.5},
        recipe={"epochs": 30, "batch_size": 8, "lr": 0.1, "threads": 1, "device": "cpu"},
    )  # fmt: skip
    net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    ss.run(config, tmp_path / "run", module=net)
    subnet = ss.Subnetwork.load(tmp_path / "run" / "subnetwork.safetensors")
    again = ss.evaluate(subnet, "val", network=net, data=name)
    assert again["accuracy"] == subnet.summary()["val_accuracy"]
    # One item: standardised by its own mean, `a` would be 0; the columns x and z would be missing.
    other = table(tmp_path, "label,b,a\nyes,y,19\n", "other.csv")
    assert ss.evaluate(subnet, "test", network=net, data=other)["accuracy"] == 1
    found = ss.predict(subnet, "other.csv", network=net)
    assert [row["class"] for row in found.rows()] == ["yes"]
    table(tmp_path, "b,a\ny,-19\nnew,18\n", "new.csv")  # without labels
    assert [row["class"] for row in ss.predict(subnet, "new.csv", network=net).rows()] == ["no", "yes"]
    table(tmp_path, "b\ny\n", "less.csv")
    with pytest.raises(UserError, match=r"unknown column 'a' \(less.csv\): valid: b"):
        ss.predict(subnet, "less.csv", network=net)


def test_a_regression_on_a_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table(tmp_path, "a,b,y\n" + "".join(f"{i},{'xyz'[i % 3]},{i / 10}\n" for i in range(40)))
    config = ss.RunConfig(
        data={"name": "csv:table.csv", "target": "y"},
        task="regression",
        extractor={"name": "magnitude", "density": 0.5},
        recipe={"epochs": 60, "batch_size": 8, "lr": 0.05, "threads": 1, "device": "cpu"},
    )
    net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))
    subnet = ss.run(config, tmp_path / "run", module=net)
    assert ss.evaluate(subnet, "val", network=net)["r2"] > 0.5
    assert ss.predict(subnet, "table.csv", network=net).values.shape == (40,)
