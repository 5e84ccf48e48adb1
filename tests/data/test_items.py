"""Data sets that are read item by item: augmentation anew in every epoch, worker processes, resume, and what goes wrong."""

import random
from multiprocessing import active_children

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset, default_collate
from toys import mlp

import subnet_search as ss
from subnet_search.core.errors import Interrupted, RunError, UserError
from subnet_search.data import Batches, from_user

X = torch.randn(60, 10, generator=torch.Generator().manual_seed(0))
Y = X[:, :3].argmax(1)


class Noisy(Dataset):
    """Items with noise from three random generators."""

    classes = ("a", "b", "c")

    def __init__(self, transform=lambda x: x + 0.1 * torch.randn(10) + np.random.rand() + random.random()):
        self.transform = transform

    def __len__(self):
        return len(X)

    def __getitem__(self, index):
        return self.transform(X[index]).float(), int(Y[index])


class Plain(Dataset):
    """Items that are always the same."""

    def __len__(self):
        return len(X)

    def __getitem__(self, index):
        return X[index], int(Y[index])


class Words(Dataset):
    """Items as Hugging Face's data sets give them: mappings of lists."""

    def __len__(self):
        return 40

    def __getitem__(self, index):
        return {"input_ids": [index % 7, 1, 2], "attention_mask": [1, 1, 0], "labels": index % 2}


class Stream(IterableDataset):
    def __iter__(self):
        for x, y in zip(X, Y.tolist(), strict=True):
            yield x + 0.1 * torch.randn(10), y


def batches(data, seed=0, size=8):
    return Batches(data.train, data.mean, data.std, size, seed)


def run(data, tmp_path, name, steps=None, resume=False, epochs=3, **options):
    count = iter(range(10_000))
    stop = (lambda: next(count) >= steps) if steps is not None else None
    config = ss.RunConfig(
        extractor={"name": "granet", "density": 0.5},
        recipe={"epochs": epochs, "batch_size": 8, "threads": 1, "device": "cpu"},
        **options,
    )
    return ss.run(config, tmp_path / name, module=mlp(), data=from_user(data), resume=resume, should_stop=stop)


def test_items_are_drawn_anew_in_every_epoch_as_a_function_of_seed_epoch_and_index():
    data = from_user(Noisy())
    first = batches(data)
    found = [first.batch(step)[0] for step in range(2 * first.steps_per_epoch)]
    again = batches(data)
    assert again.batch(9)[0].equal(found[9])  # from any step
    assert again.batch(2)[0].equal(found[2])
    assert again.batch(3)[0].equal(found[3])
    assert not batches(data, seed=1).batch(0)[0].equal(found[0])
    rows = torch.cat(found).round(decimals=4)
    assert len(rows.unique(dim=0)) == len(rows)  # none is drawn twice


def test_workers_read_the_same_batches_and_global_random_states_are_untouched():
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    here, there = (batches(from_user(Noisy() if workers is None else DataLoader(Noisy(), num_workers=workers)))
                   for workers in (None, 2))  # fmt: skip
    for step in (0, 1, 7, 8, 3):
        for mine, theirs in zip(here.batch(step), there.batch(step), strict=True):
            assert mine.equal(theirs)
    after = torch.rand(1), np.random.rand(), random.random()
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    assert after == (torch.rand(1), np.random.rand(), random.random())


def test_items_in_an_epoch_are_each_item_once():
    data = from_user(Plain())
    drawn = torch.cat([batches(data, size=9).batch(step)[0] for step in range(6)])
    assert {row.numpy().tobytes() for row in drawn} == {row.numpy().tobytes() for row in data.train.first(54)[0]}


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.long), 2])
def test_a_run_stopped_at_any_step_resumes_to_the_same_bits(tmp_path, workers):
    whole = run(DataLoader(Noisy(), 8, num_workers=workers), tmp_path, "whole")
    for steps in (1, 9):
        with pytest.raises(Interrupted):
            run(DataLoader(Noisy(), 8, num_workers=workers), tmp_path, f"cut-{steps}", steps=steps)
        assert not active_children()  # although the error still refers to the run
        rest = run(DataLoader(Noisy(), 8, num_workers=2 - workers), tmp_path, f"cut-{steps}", resume=True)
        assert rest.sha256 == whole.sha256
        assert rest.metrics["val_accuracy"] == whole.metrics["val_accuracy"]


def test_an_iterable_dataset_keeps_its_order_and_is_resumed_by_skipping(tmp_path):
    data = {"train": Stream(), "val": (X, Y)}
    loaded = from_user(data)
    assert (len(loaded.train), len(loaded.val)) == (60, 60)
    first = batches(loaded)
    assert (first.batch(0)[0] - X[:8]).abs().max() < 1
    assert not first.batch(7)[0].equal(first.batch(0)[0])  # the second epoch: the same items, other noise
    assert (first.batch(7)[0] - X[:8]).abs().max() < 1
    whole = run(data, tmp_path, "whole")
    with pytest.raises(Interrupted):
        run(data, tmp_path, "cut", steps=10)
    assert run(data, tmp_path, "cut", resume=True).sha256 == whole.sha256


def test_validation_items_have_the_transform_that_is_named():
    data = from_user(Noisy(), val_transform=lambda x: x)
    inputs, _ = data.val.first(len(data.val))
    wanted = {row.numpy().tobytes() for row in X}
    assert all(row.numpy().tobytes() in wanted for row in inputs)
    assert data.class_names == ("a", "b", "c")
    named = from_user(Subset(Noisy(), range(40)), val_transform={"transform": lambda x: x})
    assert named.val.first(4)[0].numpy().tobytes() in {X[i : i + 1].numpy().tobytes() for i in range(40)} or len(named.val) == 4
    with pytest.raises(UserError, match="val_transform: Plain has no attribute 'transform'"):
        from_user(Plain(), val_transform=lambda x: x)
    with pytest.raises(UserError, match="val_transform replaces the transform of a Dataset"):
        from_user((X, Y), val_transform=lambda x: x)


def test_validation_on_random_items_is_logged_and_the_same_every_time(caplog):
    data = from_user(Noisy())
    assert "the items of the data are random, and so are those held out for validation" in caplog.text
    assert data.val.first(4)[0].equal(data.val.first(4)[0])
    caplog.clear()
    from_user(Plain())
    from_user(Noisy(), val_transform=lambda x: x)
    assert not caplog.text


def test_plain_items_train_like_the_same_tensors(tmp_path):
    assert run(Plain(), tmp_path, "items").sha256 == run((X, Y), tmp_path, "tensors").sha256


def test_images_of_a_dataset_are_normalised_like_tensors():
    images = torch.randint(0, 256, (40, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)

    class Photos(Dataset):
        def __len__(self):
            return 40

        def __getitem__(self, index):
            return images[index], index % 4

    items, tensors = from_user(Photos()), from_user((images, torch.arange(40) % 4))
    torch.testing.assert_close(items.mean, tensors.mean)
    torch.testing.assert_close(items.std, tensors.std)
    torch.testing.assert_close(items.first(3)[0], tensors.first(3)[0])


def test_mappings_of_lists_go_in_as_keywords(tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.out = nn.Embedding(7, 4), nn.Linear(4, 2)

        def forward(self, input_ids, attention_mask):
            weight = attention_mask.unsqueeze(2).float()
            return {"logits": self.out((self.embed(input_ids) * weight).sum(1) / weight.sum(1))}

    found = ss.extract(Net(), Words(), "magnitude", density=0.5, recipe=ss.Recipe(epochs=2, batch_size=8, threads=1))
    assert found.origin.classes == 2
    assert found.origin.input_spec["keys"]["input_ids"]["dtype"] == "int64"
    measured = ss.evaluate(found, network=Net(), data=Words())
    assert measured["accuracy"] == found.metrics["val_accuracy"]


class Failing(Plain):
    def __getitem__(self, index):
        if index == 17:
            raise ValueError("no such picture\nand more")
        return super().__getitem__(index)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_index_of_an_item_that_fails_is_named_before_training(workers):
    with pytest.raises(UserError, match=r"^item 17 of the data cannot be read: ValueError: no such picture$"):
        from_user(DataLoader(Failing(), num_workers=workers))


def test_an_item_that_fails_later_ends_the_run_in_one_line(tmp_path):
    class Later(Plain):
        reads = 0

        def __getitem__(self, index):
            self.reads += 1
            if self.reads > 150:
                raise ValueError("disk on fire")
            return super().__getitem__(index)

    with pytest.raises(RunError, match=r"item \d+ of the data cannot be read: ValueError: disk on fire"):
        run(Later(), tmp_path, "run")


def test_a_dataset_that_changes_its_length_ends_the_run(tmp_path):
    class Growing(Plain):
        length = 60

        def __len__(self):
            return self.length

    data = Growing()
    loaded = from_user(data)
    data.length = 61
    with pytest.raises(RunError, match="the data set has 61 items, and had 60 when the run began"):
        batches(loaded).batch(0)


def test_values_that_are_not_finite_are_refused():
    class Bad(Plain):
        def __getitem__(self, index):
            return (X[index] / 0 if index == 33 else X[index]), 0

    with pytest.raises(UserError, match="item 33 of the data contains NaN or infinite values"):
        from_user(Bad())


def test_parts_that_share_items_are_refused():
    data = Plain()
    with pytest.raises(UserError, match="the train and val parts of the data have 10 items in common"):
        from_user((Subset(data, range(40)), Subset(data, range(30, 60))))
    from_user((Subset(data, range(40)), Subset(data, range(40, 60))))


def test_copies_of_an_item_are_in_one_part():
    data = Plain()
    found = from_user(ConcatDataset([data, data]))
    train, val = ({row.numpy().tobytes() for row in split.first(len(split))[0]} for split in (found.train, found.val))
    assert not train & val
    assert len(found.train) + len(found.val) == 120


def test_a_collate_function_makes_the_batches():
    def collate(items):
        inputs, labels = default_collate(items)
        return {"x": inputs, "y": labels}

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp()

        def forward(self, x):
            return self.net(x)

    loader = DataLoader(TensorDataset(X, Y), 8, collate_fn=collate)
    found = ss.extract(Named(), loader, "random", density=0.5, recipe=ss.Recipe(epochs=1, threads=1))
    assert found.origin.input_spec == {"keys": {"x": found.origin.input_spec["keys"]["x"]}}
