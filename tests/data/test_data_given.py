"""Data handed in from Python: what a loader's dataset is, what is refused and why, and what a run can ask of its data."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from test_data import rng
from torch import nn
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)
from toys import mlp, pictures, points, run_config

import subnet_search as ss
from subnet_search import RunConfig
from subnet_search.core.errors import Interrupted, UserError
from subnet_search.data import Batches, Split, from_user, load
from subnet_search.extraction.config_file import check
from subnet_search.nets import check_batch_norm

X, Y = torch.randn(40, 6, generator=rng()), torch.arange(40) % 4
ITEMS = TensorDataset(X, Y)
WEIGHTED = WeightedRandomSampler([1.0] * 40, 80)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(X, Y.tolist(), strict=True))


class Wrapped(Dataset):
    """Items of another data set, which are read when they are needed."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        return self.data[index]


class Own(Sampler):
    """A sampler of one's own: what it draws is not known."""

    def __init__(self):
        self.batch_size = 4

    def __len__(self):
        return 10

    def __iter__(self):
        return iter([[0, 0, 0, 0]] * 10)


def settings(**recipe):
    recipe = {"epochs": 2, "batch_size": 8, "threads": 1, "device": "cpu", **recipe}
    return check(RunConfig, {"extractor": {"name": "magnitude", "density": 0.5}, "recipe": recipe})


# --- loaders ---


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(ITEMS, 7),
        DataLoader(ITEMS, 7, shuffle=True, drop_last=True),
        DataLoader(ITEMS, 7, sampler=RandomSampler(ITEMS, num_samples=10)),
        DataLoader(ITEMS, batch_sampler=BatchSampler(RandomSampler(ITEMS), 7, drop_last=True)),
        DataLoader(ITEMS, None, shuffle=True),
        DataLoader(ITEMS, 7, sampler=SubsetRandomSampler([*range(39, -1, -1), 3])),
        DataLoader(Subset(ITEMS, range(40)), 7, shuffle=True),
        DataLoader(ITEMS, 7, num_workers=2),
    ],
    ids=[
        "in order", "shuffled", "fewer a time", "batch sampler", "single items", "indices", "subset", "workers",
    ],
)  # fmt: skip
def test_a_loaders_dataset_is_read_once_and_in_order(loader):
    expected, found = from_user(ITEMS), from_user(loader)
    for split in ("train", "val"):
        assert getattr(found, split).inputs.equal(getattr(expected, split).inputs)
        assert getattr(found, split).labels.equal(getattr(expected, split).labels)
    assert found.fingerprint == from_user(loader).fingerprint == expected.fingerprint


def test_a_loader_of_some_indices_reads_those():
    found = from_user(DataLoader(ITEMS, 4, sampler=SubsetRandomSampler(torch.tensor([30, 2, 5, 9, 12, 16, 21, 27, 30, 31]))))
    wanted = from_user((X[[2, 5, 9, 12, 16, 21, 27, 30, 31]], Y[[2, 5, 9, 12, 16, 21, 27, 30, 31]]))
    assert found.fingerprint == wanted.fingerprint


@pytest.mark.parametrize(
    ("loader", "name"),
    [
        (DataLoader(ITEMS, 4, sampler=RandomSampler(ITEMS, replacement=True)), "RandomSampler"),
        (DataLoader(ITEMS, 4, sampler=RandomSampler(ITEMS, num_samples=80)), "RandomSampler"),
        (DataLoader(ITEMS, 4, sampler=DistributedSampler(ITEMS, 3, 0)), "DistributedSampler"),
        (DataLoader(ITEMS, batch_sampler=Own()), "Own"),
    ],
)
def test_a_sampler_that_may_repeat_an_item_is_refused(loader, name):
    with pytest.raises(UserError) as caught:
        from_user(loader)
    assert str(caught.value) == (
        f"a DataLoader with {name} may draw an item more than once, so the validation split could contain training items: "
        "pass its dataset"
    )


@pytest.mark.parametrize("wrap", [lambda data: data, lambda data: DataLoader(data, 4, shuffle=True)])
@pytest.mark.parametrize(
    "data",
    [
        Subset(ITEMS, [*range(40), 3, 3, *range(20)]),
        ConcatDataset([ITEMS, ITEMS]),
        Subset(ConcatDataset([ITEMS, ITEMS]), range(80)),
        Subset(Wrapped(ITEMS), [*range(40), *range(30)]),
        TensorDataset(torch.cat([X, X[:30]]), torch.cat([Y, Y[:30]])),
    ],
)
def test_all_copies_of_an_item_are_in_one_part(data, wrap):
    found = from_user(wrap(data))
    train, val = ({row.numpy().tobytes() for row in split.first(len(split))[0]} for split in (found.train, found.val))
    assert not train & val
    assert (len(train) + len(val), len(found.train) + len(found.val)) == (40, len(data))
    assert len(val) == 4


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(ITEMS, 4, sampler=WEIGHTED),
        DataLoader(ITEMS, batch_sampler=BatchSampler(WEIGHTED, 4, False)),
        DataLoader(ITEMS, None, sampler=WEIGHTED),
    ],
)
def test_a_weighted_sampler_gives_sampling_weights_of_training_items(loader):
    found, plain = from_user(loader), from_user(ITEMS)
    assert torch.equal(found.train.inputs, plain.train.inputs)  # each item once, so none is in training and validation
    assert torch.equal(found.val.inputs, plain.val.inputs)
    given = {tuple(x.tolist()): weight for x, weight in zip(X, WEIGHTED.weights.tolist(), strict=True)}
    assert found.train.weights.tolist() == [given[tuple(x.tolist())] for x in found.train.inputs]
    assert found.fingerprint != plain.fingerprint


def test_items_are_drawn_by_their_weights():
    weights = torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64).repeat_interleave(100)
    split = Split(torch.arange(300).view(-1, 1), torch.zeros(300).long(), weights)
    made = Batches(split, None, None, 60, seed=0)
    assert made.steps_per_epoch == 5
    drawn = torch.cat([made.batch(step)[0].view(-1) for step in range(5 * 40)])
    counts = (drawn // 100).bincount(minlength=3)
    assert counts[0] == 0
    assert counts[2] / counts[1] == pytest.approx(3, rel=0.1)
    again = Batches(split, None, None, 60, seed=0)
    assert torch.equal(again.batch(7)[0], made.batch(7)[0])
    assert not torch.equal(again.batch(7)[0], made.batch(2)[0])


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.ones(3), "has 3 weights, but the data has 40 items"),
        (torch.zeros(40), "must be finite numbers of at least 0, and not all be 0"),
        (-torch.ones(40), "must be finite numbers of at least 0, and not all be 0"),
        (torch.full((40,), float("nan")), "must be finite numbers of at least 0, and not all be 0"),
    ],
)
def test_mistakes_in_sampling_weights(weights, message):
    with pytest.raises(UserError, match=message):
        from_user(DataLoader(ITEMS, 4, sampler=WeightedRandomSampler(weights, 40)))


def test_the_batch_size_of_a_loader_counts_where_the_recipe_has_none(tmp_path):
    data, recipe = points(60), {"epochs": 2, "threads": 1, "device": "cpu"}
    loader = DataLoader(TensorDataset(data.train.inputs, data.train.labels), 9)
    for given, set_here, size in (
        (loader, {}, 9),
        ((loader, None), {}, 9),
        (loader, {"batch_size": 5}, 5),
        (loader.dataset, {}, 128),
    ):
        subnet = ss.extract(mlp(), given, "random", density=0.5, recipe=ss.Recipe(**recipe, **set_here))
        assert subnet.origin.recipe["batch_size"] == size


PARTS = [(X[:20], Y[:20]), (X[20:30], Y[20:30]), (X[30:], Y[30:])]
SUBSETS = [Subset(ITEMS, range(20)), Subset(ITEMS, range(20, 30)), Subset(ITEMS, range(30, 40))]
THREE = ("train", "val", "test")


@pytest.mark.parametrize(
    "data",
    [
        tuple(PARTS),
        dict(zip(THREE, PARTS, strict=True)),
        tuple(SUBSETS),
        {name: DataLoader(part, 4, shuffle=True) for name, part in zip(THREE, SUBSETS, strict=True)},
        {"test": PARTS[2], "train": SUBSETS[0], "val": DataLoader(TensorDataset(*PARTS[1]), 4)},
    ],
)
def test_data_in_parts(data):
    found = from_user(data)
    for part, (inputs, labels) in zip((found.train, found.val, found.test()), PARTS, strict=True):
        assert torch.equal(part.inputs, inputs)
        assert torch.equal(part.labels, labels)


def test_parts_may_be_absent():
    whole = from_user(PARTS[0])
    for data in ({"train": PARTS[0]}, (PARTS[0], None), (PARTS[0], None, None)):
        assert from_user(data).fingerprint == whole.fingerprint
        assert from_user(data).test() is None
    held = from_user((PARTS[0], None, PARTS[2]))
    assert (held.fingerprint, len(held.test())) == (whole.fingerprint, 10)
    assert from_user((PARTS[0], PARTS[1])).test() is None
    assert len(from_user((SUBSETS[0], SUBSETS[1])).val) == 10


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"train": ITEMS, "valid": ITEMS}, "unknown part of the data 'valid': did you mean 'val'"),
        ({"val": ITEMS}, "data in parts needs a training part"),
        ((None, ITEMS, None), "data in parts needs a training part"),
        ((ITEMS, ITEMS), "the train and val parts of the data have 40 items in common"),
        ((SUBSETS[0], None, Subset(ITEMS, [5, 19, 21])), "the train and test parts of the data have 2 items in common"),
        (
            (SUBSETS[0], Subset(ConcatDataset([SUBSETS[1], SUBSETS[0]]), [0, 12])),
            "train and val parts of the data have 1 items",
        ),
        ((DataLoader(SUBSETS[0]), DataLoader(ITEMS, sampler=[3, 30])), "train and val parts of the data have 1 items"),
        ((PARTS[0], PARTS[1], PARTS[0]), "the train and test parts of the data have 20 items in common"),
        (((X, Y), (X[:15], Y[:15])), "the train and val parts of the data have 15 items in common"),
        ((TensorDataset(X, Y), Subset(TensorDataset(X[30:], Y[30:]), [1, 2])), "train and val parts of the data have 2 items"),
        (((X.numpy(), Y.numpy()), None, (X[30:], Y[30:])), "the train and test parts of the data have 10 items in common"),
        ((PARTS[0], (X[30:33, :1], Y[30:33])), r"given data \(validation\): inputs are"),
        ((PARTS[0], (X[30:33], Y[30:33] + 9)), r"given data \(validation\): label"),
    ],
)
def test_mistakes_in_parts(data, message):
    with pytest.raises(UserError, match=message):
        from_user(data)


def test_pixels_as_floats_are_warned_of(caplog):
    images, labels = torch.arange(20 * 64).remainder(251).view(20, 1, 8, 8), torch.arange(20) % 3
    from_user((images.float(), labels))
    assert len(caplog.messages) == 1
    assert "whole numbers from 0 to 255 as torch.float32, and floats are not scaled: pass uint8" in caplog.messages[0]
    caplog.clear()
    for others in (images.to(torch.uint8), images / 255, images.float() - 128, (images % 2).float()):
        from_user((others, labels))
    assert caplog.messages == []


def test_outputs_without_a_class_are_warned_of(caplog):
    data = (torch.randn(40, 6), torch.arange(40) % 3)
    for outputs in (3, 5):
        net = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, outputs))
        recipe = ss.Recipe(epochs=1, threads=1, device="cpu")
        ss.extract(net, data, "random", density=0.5, init="kaiming_normal", recipe=recipe, progress=False)
    assert [one for one in caplog.messages if "outputs" in one] == ["Sequential has 5 outputs, but the data has 3 classes"]


def test_copies_of_training_inputs_are_counted(caplog):
    from_user(((X[:20], Y[:20]), (torch.cat([X[:3], X[30:]]), torch.cat([Y[:3], Y[30:]]))))
    assert caplog.messages == ["3 of 13 validation inputs are equal to a training input"]
    caplog.clear()
    from_user((PARTS[0], PARTS[1]))
    assert caplog.messages == []


def test_a_test_part_is_read_after_training_and_evaluated_as_a_whole():
    read = []

    class Watched(TensorDataset):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    made = points(80)
    inputs, labels = (torch.cat([getattr(made.train, key), getattr(made.val, key)]) for key in ("inputs", "labels"))
    test = Watched(inputs[60:], labels[60:])
    run = {"recipe": ss.Recipe(epochs=1, device="cpu", threads=1), "density": 0.5}
    subnet = ss.extract(
        mlp(), {"train": (inputs[:50], labels[:50]), "val": (inputs[50:60], labels[50:60]), "test": test}, "random", **run
    )
    assert read == list(range(20))
    assert subnet.summary()["test_accuracy"] is not None
    for data in (test, (inputs[60:], labels[60:]), (TensorDataset(inputs[:50], labels[:50]), None, test)):
        found = ss.evaluate(subnet, "test", network=mlp(), data=data)
        assert (found["items"], found["accuracy"]) == (20, subnet.summary()["test_accuracy"])


def test_a_run_on_a_shuffled_loader_is_resumed_to_the_same_bits(tmp_path):
    def run(folder, resume=False, steps=None):
        loader = DataLoader(TensorDataset(*both), 16, shuffle=True)  # each draws another order
        count = iter(range(1000))
        stop = (lambda: next(count) >= steps) if steps else None
        return run_config(settings(), tmp_path / folder, resume=resume, module=mlp(), data=from_user(loader), should_stop=stop)

    data = points(60)
    both = torch.cat([data.train.inputs, data.val.inputs]), torch.cat([data.train.labels, data.val.labels])
    whole = run("whole")
    with pytest.raises(Interrupted):
        run("cut", steps=5)
    assert run("cut", resume=True).sha256 == whole.sha256


# --- what is refused ---


class Items(Dataset):
    """Any items, in a data set."""

    def __init__(self, *items):
        self.items = items

    def __len__(self):
        return 40

    def __getitem__(self, index):
        return self.items


class Broken(Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, index):
        raise KeyError("picture") if index == 3 else AssertionError


class Pairs(Dataset):
    """Items with these labels."""

    def __init__(self, labels):
        self.labels = labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return X[index], self.labels[index]


IMAGE = Image.fromarray(np.zeros((8, 8), np.uint8))
WORDS = ["cat", "dog"] * 20
NAN, HUGE = X.clone(), X.double()
NAN[7, 2] = NAN[9, 0] = float("nan")
HUGE[7, 2] = 1e300


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Items(IMAGE, 1), "cannot be put together in a batch: it is a PIL image; add torchvision.transforms.v2.PILToTensor"),
        (DataLoader(Items(IMAGE, 1), 4, collate_fn=lambda items: items[5]), "holds no tensors: .*PIL image"),
        ((X, WORDS), "the labels cannot be converted to a tensor: it holds text; labels must be class indices from 0"),
        ((X, np.array(WORDS)), "the labels .*: it holds text; labels must be class indices"),
        ((X, np.array(WORDS, object)), "the labels .*: it holds text; labels must be class indices"),
        (Items(X[0], "cat"), "given data: labels must be one class index for each input, got text"),
        ((np.array([*X, 1], object)[:40], Y), r"the inputs .*: it holds objects \(Tensor\); .*arrays of one numeric type"),
        ((list(X), Y), "the inputs cannot be converted to a tensor"),
        ((X, Y.double()), r"labels must be whole numbers .*float64: pass labels\.long\(\)"),
        ((X, Y + 0.5), "labels must be whole numbers .*float32: for others set task"),
        ((X, torch.where(Y == 0, torch.nan, Y)), "float32, some of them NaN or infinite: leave these items out"),
        ((X, Y[:, None].float()), r"labels must be whole numbers .*: pass labels\.flatten\(\)\.long\(\)"),
        ((X, F.one_hot(Y)), r"got int64 of shape \(N, 4\) of one-hot rows: pass labels\.argmax\(1\)"),
        ((X, F.one_hot(Y).float()), r"got torch\.float32 of one-hot rows: pass labels\.argmax\(1\)"),
        (Pairs(Y.float()), r"got float32 of shape \(N\): pass labels\.long\(\) \(in a Dataset, int\(label\)\)"),
        (Pairs(Y + 0.5), r"got float32 of shape \(N\): for others set task"),
        (Pairs(Y[:, None]), r"got int64 of shape \(N, 1\): pass labels\.flatten\(\).*in a Dataset, int\(label\)"),
        (Pairs(F.one_hot(Y)), r"got int64 of shape \(N, 4\) of one-hot rows: .*in a Dataset, label\.argmax\(\)"),
        ((X, Y - 100), "label -100 is outside the classes .*: leave out items that have no class"),
        ((Pairs(Y), Pairs(Y + 1)), r"given data \(validation\): label 4 is outside the classes 0 to 3"),
        ((Pairs(Y), Pairs(Y.float())), r"given data \(validation\): labels must be one class index .*: pass labels\.long\(\)"),
        ((Pairs(Y), Pairs(Y[:0])), "the validation part is empty"),
        ((Pairs(Y[:0]), Pairs(Y)), "the training part is empty"),
        ((X.to_sparse(), Y), "the inputs are sparse or nested: pass a dense tensor"),
        ((X.to("meta"), Y), "the inputs are on the meta device, which has no values"),
        ((torch.complex(X, X), Y), "inputs must be real numbers, got torch.complex64"),
        ((NAN, Y), "given data: 2 of 40 inputs contain NaN or infinite values; the first is item 7"),
        ((HUGE, Y), "given data: 1 of 40 inputs contain NaN or infinite values; the first is item 7"),
        ((X, Y * 1000), "label 3000 needs 3001 outputs, but there are 40 items with 4 different labels"),
        (Items(X[0]), "labels must be one class index for each input, got no labels"),
        (Items(X[0], 1, "name"), "labels must be one class index for each input, got text"),
        (DataLoader(Items(X[0]), 4), "labels must be one class index for each input, got no labels"),
        (Stream(), r"an iterable data set keeps its order, so no items can be held out for validation: pass \(train, val\)"),
        (DataLoader(Stream(), 4), r"an iterable data set .*pass \(train, val\)"),
        ((torch.zeros(40, 6), Y), "40 items with only 1 different inputs are too few"),
        (Broken(), "item 0 of the data cannot be read: AssertionError"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_said_in_one_line(data, message):
    with pytest.raises(UserError, match=message) as caught:
        from_user(data)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("labels", "hint"),
    [
        (Y + 1, "3 outputs, but the data has 5 classes: labels start at 1, and class indices at 0: subtract 1"),
        (Y * 2, "7 classes: only 4 of the labels 0 to 6 occur: .*number the others from 0"),
        (Y, "has 3 outputs, but the data has 4 classes$"),
    ],
)
def test_classes_that_are_not_numbered_from_0(labels, hint):
    with pytest.raises(UserError, match=hint):
        ss.extract(nn.Linear(6, 3), (X, labels), "random", recipe=ss.Recipe(epochs=1, threads=1))


def test_labels_of_a_tensor_dataset_may_be_a_column():
    assert torch.equal(from_user(TensorDataset(X, Y[:, None])).labels(), from_user(TensorDataset(X, Y)).labels())


def test_the_training_and_validation_items_are_found_in_chunks():
    wide = torch.zeros(5, 2**21)
    wide[4, -1] = float("inf")
    with pytest.raises(UserError, match="1 of 5 inputs contain NaN or infinite values; the first is item 4"):
        from_user((wide, torch.zeros(5)[:, None].long()))


@pytest.mark.parametrize("augment", ["crop", "flip", "cutout"])
def test_augmentation_of_what_is_no_image_is_refused_before_the_first_step(tmp_path, augment):
    with pytest.raises(UserError, match=rf"recipe.augment: {augment} needs images .*; inputs have shape \(10,\)"):
        run_config(settings(augment=[augment]), tmp_path / "run", module=mlp(), data=points(60))
    assert not (tmp_path / "run").exists()


def test_inputs_with_gradients_are_taken_without():
    encoder = nn.Linear(10, 10)
    plain = points(60)
    inputs, labels = plain.train.inputs, plain.train.labels
    for data in ((encoder(inputs), labels), TensorDataset(encoder(inputs), labels)):
        found = from_user(data)
        assert not found.train.inputs.requires_grad
        assert run_config(settings(epochs=1), module=mlp(), data=found).sha256
    assert all(parameter.grad is None for parameter in encoder.parameters())


# --- batch norm on one item ---


def one_value(*before):
    return nn.Sequential(*before, nn.Linear(10, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))


def test_batch_norm_on_one_item_is_refused_before_the_first_step(tmp_path):
    for recipe in ({"batch_size": 1}, {"batch_size": 1, "epochs": 1}):
        with pytest.raises(UserError, match=r"batch norm \(1\) needs two or more values a channel"):
            run_config(settings(**recipe), tmp_path / "run", module=one_value(), data=points(60))
    assert not (tmp_path / "run").exists()
    probing = check(RunConfig, {**settings(epochs=0).dump(), "extractor": {"name": "snip", "images": 1}})
    with pytest.raises(UserError, match=r"batch norm \(1\) needs two or more values a channel"):
        run_config(probing, module=one_value(), data=points(60))
    assert run_config(settings(batch_size=2, epochs=1), module=one_value(), data=points(60)).sha256
    assert run_config(settings(batch_size=1, epochs=0), module=one_value(), data=points(60)).sha256


def test_batch_norm_over_pixels_takes_one_item():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 3))
    check_batch_norm(net, torch.zeros(1, 1, 8, 8), 1)
    assert run_config(settings(batch_size=1, epochs=1), module=net, data=pictures(12)).sha256


def test_the_look_at_batch_norm_leaves_no_trace():
    net = one_value(nn.Dropout(0.5)).eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(UserError):
        check_batch_norm(net, torch.zeros(1, 10), 1)
    assert not net.training
    assert all(value.equal(before[name]) for name, value in net.state_dict().items())
    assert not any(module._forward_pre_hooks for module in net.modules())
    net[2].train = lambda mode=True: net[2]  # frozen by the network's own hand
    check_batch_norm(net, torch.zeros(1, 10), 1)


# --- what a run can ask of its data ---


def test_the_fingerprint_is_of_all_that_is_trained_and_validated_on():
    found = from_user((X, Y)).fingerprint
    assert len(found) == 64
    assert from_user((X.clone(), Y.clone())).fingerprint == found
    changed = X.clone()
    changed[13, 2] += 1e-3
    others = [
        from_user((changed, Y)),
        from_user((X, Y.roll(1))),
        from_user((X, Y), val_fraction=0.2),
        from_user((X, Y), split_seed=1),
        from_user((X[:, :5], Y)),
        from_user((X.view(40, 2, 3), Y)),
    ]
    assert len({found, *(other.fingerprint for other in others)}) == 7
    images = pictures(40)
    inputs, labels = images.train.inputs, images.train.labels
    assert from_user((inputs, labels), mean=[0.5], std=[0.5]).fingerprint != from_user((inputs, labels)).fingerprint


def test_the_fingerprint_is_reckoned_once_and_is_the_same_elsewhere(monkeypatch):
    data = from_user((X, Y))
    found = data.fingerprint
    assert data.to("cpu").fingerprint == found
    monkeypatch.setattr("subnet_search.data.sources.digest", None)
    assert data.fingerprint == found


def test_examples_are_training_inputs_as_the_network_sees_them():
    data = load({"name": "digits", "limit": 50})
    pixels = data.train.inputs[:3].float() / 255
    torch.testing.assert_close(data.examples(3), (pixels - data.mean.view(1, 1, 1)) / data.std.view(1, 1, 1))
    assert from_user((X.double(), Y)).examples(2).dtype == torch.float32
    assert from_user((X, Y)).examples(100).shape == (36, 6)


def test_the_range_of_inputs():
    assert load({"name": "digits", "limit": 50}).input_range == ("uint8", 0, 255)
    data = from_user((X, Y))
    assert data.input_range == ("float32", data.train.inputs.min().item(), data.train.inputs.max().item())
    assert from_user((torch.stack([torch.arange(40) % 7, torch.arange(40) // 6], 1), Y)).input_range == ("int64", 0, 6)
    assert from_user((torch.arange(40)[:, None] // 2 ** torch.arange(6) % 2 == 0, Y)).input_range == ("bool", 0, 1)
    assert from_user((torch.arange(40)[:, None].to(torch.uint16), Y)).input_range == ("float32", 0, 39)


def test_sequences_of_indices_are_samplers_too():
    for sampler in (range(0, 40, 2), list(range(38, -1, -2))):
        assert from_user(DataLoader(ITEMS, 4, sampler=sampler)).fingerprint == from_user((X[::2], Y[::2])).fingerprint
    loader = DataLoader(ITEMS, 4, sampler=SequentialSampler(range(20)))
    assert from_user(loader).fingerprint == from_user((X[:20], Y[:20])).fingerprint
